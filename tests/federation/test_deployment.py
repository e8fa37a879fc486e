"""A SuperLink and two SuperNodes with their own files give the adapter of the simulation, byte for byte."""

import json

import pytest

from tests.faults.federation import whole
from tests.federation.conftest import BIN, free_port, healthy, metrics_of, wait_until

pytestmark = pytest.mark.slow
WORDS = [
    "data.source=jsonl",
    "run.num-server-rounds=2",
    "train.local-steps=3",
    "train.per-device-batch-size=4",
    "strategy.min-available-nodes=2",
    "eval.every=0",
]
ANSWERS = [
    ("the sun is warm .", "no ."),
    ("please add water .", "i do not know ."),
    ("thank you .", "go away ."),
]


def rows(site: int) -> str:
    """Twelve pairs of one site as JSON lines. The text is arbitrary; the marker must never leave the site."""
    pairs = []
    for i in range(12):
        chosen, rejected = ANSWERS[(site + i) % 3]
        pairs.append(
            {"prompt": f"question {i} of site {site} marker-7f3a ?", "chosen": chosen, "rejected": rejected}
        )
    return "".join(json.dumps(row) + "\n" for row in pairs)


def test_two_supernodes_give_the_simulations_adapter(place):
    files = place.path / "sites"
    files.mkdir()
    for site in range(2):
        (files / f"site-{site}.jsonl").write_text(rows(site))
    simulated = whole([*WORDS, f"data.path={files}", "federation.num-supernodes=2"], place.path / "whole")

    control, fleet = free_port(), free_port()
    place.start(
        str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(control),
        "--fleet-api-address", f"127.0.0.1:{fleet}", "--database", str(place.path / "state.db"),
        log="superlink.log", ACCORD_HOME=str(place.path / "server"),
    )  # fmt: skip
    wait_until(lambda: healthy(control))
    for site in range(2):
        node = f"partition-id={site} num-partitions=2 data-path='{files / f'site-{site}.jsonl'}'"
        place.start(
            str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{fleet}",
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", node,
            log=f"site-{site}.log", ACCORD_HOME=str(place.path / f"home-{site}"),
        )  # fmt: skip
    home = place.path / "flwr"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "deployment"\n[superlink.deployment]\n'
        f'address = "127.0.0.1:{control}"\ninsecure = true\n'
    )
    process = place.accord("run", *WORDS, "federation.superlink=deployment", "run.dir=deployed", timeout=290)
    assert "federation.superlink=NAME" in process.stdout.partition("next ")[2]
    (deployed,) = (place.path / "deployed").iterdir()

    name = "adapter/adapter_model.safetensors"
    assert (deployed / name).read_bytes() == (simulated / name).read_bytes()
    assert metrics_of(deployed) == metrics_of(simulated)
    logs = list(place.path.glob("*.log")) + list(deployed.rglob("*.json*")) + [place.path / "state.db"]
    assert not [p for p in logs if b"marker-7f3a" in p.read_bytes()], "a private row left its site"
