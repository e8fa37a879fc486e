"""Hostile servers and apps against real sites behind their policies: SuperLink, SuperNodes, `accord site`."""

import json
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cli.run.launch import stage
from client_app.relay import ask
from core import wire
from core.errors import SiteError
from core.types import Order
from tests.cli.site.lab import BASE, facts_of, message, order, refused
from tests.faults.federation import run_of
from tests.federation.conftest import BIN, ROOT, Place
from tests.federation.deployment import LONG_S, SITES, WORDS, Warm
from tests.federation.test_deployment import rows

pytestmark = pytest.mark.slow
MARKER = b"marker-7f3a"  # in every row (tests/federation/test_deployment.py)
POLICY = f"""
tasks = ["dpo"]
strategies = ["scaffold"]
max-runs = 2
max-rounds = 2
min-rows = 3
round-counts-to = 3
max-norm = 0.01

[models]
toy = "{BASE.fingerprint[:16]}"
"""
HOSTILE_SERVER = """
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    asked = [Message(RecordDict(), dst_node_id=n, message_type="query") for n in grid.get_node_ids()]
    loot = [m.content["loot"]["json"] if m.has_content() else str(m.error) for m in grid.send_and_receive(asked)]
    Path("LOOT").write_text(json.dumps([json.loads(text) for text in loot]))
"""
HOSTILE_CLIENT = """
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from client_app.relay import ask

app = ClientApp()

@app.query()
def loot(message, context):
    site, found = str(context.node_config["site"]), {}
    for name in sorted(Path("ORDERS").iterdir()):
        found[name.name] = ask(site, name.read_bytes(), "", 30.0).hex()
    found["node"] = json.dumps(dict(context.node_config), default=str)
    return Message(RecordDict({"loot": ConfigRecord({"json": json.dumps(found)})}), reply_to=message)
"""


class Strict(Warm):
    """Sites behind a policy."""

    def site(self, site: int):
        return start_site(self.place, site, f"sites/{self.file(site).name}")


def start_site(place: Place, site: int, rows_at: str):
    (place.path / "policy.toml").write_text(POLICY)
    file = place.path / f"site-{site}.toml"
    file.write_text(
        f'address = "unix:{site}.sock"\npartition-id = {site}\nnum-partitions = {SITES}\npolicy = "policy.toml"\n'
        f'data-path = "{rows_at}"\nstate-dir = "home-{site}"\nmax-message-mb = 1\n'
    )
    return place.start(sys.executable, str(ROOT / "accord"), "site", str(file), log=f"resident-{site}.log")


@pytest.fixture(autouse=True)
def _no_row_leaves(place):
    """Search the files of the server and the SuperNodes, all logs, and all state except the sites' own token caches."""
    yield
    paths = [p for p in place.path.rglob("*") if p.is_file() and not {"sites", "cache"} & {*p.parts}]
    assert len(paths) > 3
    assert not [p for p in paths if MARKER in p.read_bytes()], "a private row left its site"


def test_a_server_gets_from_sites_only_what_their_policies_allow(place):
    """A run within the policy, one outside it, and a bundle with the attacker's ServerApp and ClientApp."""
    (place.path / "runs").mkdir()
    strict = Strict(place)
    allowed_run_is_clipped(strict)
    refused_run_is_explained_on_both_sides(strict)
    hostile_bundle_gets_no_more(strict)


def allowed_run_is_clipped(strict: Strict) -> None:
    going = strict.run(run__num_server_rounds=2, site__mode="resident", train__learning_rate=0.05)
    assert going.wait(LONG_S) == 0, strict.log()
    run = run_of(strict.place.path)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reported = [m for r in records[1:] for m in r["train"]["clients"].values()]
    assert len(reported) == 2 * SITES
    assert max(m["norm/delta"] for m in reported) == pytest.approx(0.01, rel=1e-3)
    assert {m["examples"] for m in reported} == {9}
    assert any(t.any() for t in load_file(run / "adapter" / "adapter_model.safetensors").values())


def refused_run_is_explained_on_both_sides(strict: Strict) -> None:
    words = {**WORDS, "strategy.name": "fedavg"}
    going = strict.accord("run", *(f"{k}={v}" for k, v in words.items()), log="no.log")
    assert going.wait(LONG_S) == 1
    line = "PolicyRefused: strategy.name = 'fedavg'; this site allows scaffold"
    assert line in (strict.place.path / "no.log").read_text()
    assert all(line in strict.site_log(site) for site in range(SITES))


def hostile_bundle_gets_no_more(strict: Strict) -> None:
    """Send forged messages to the site's socket and check what comes back."""
    path = strict.place.path
    app, orders, loot = path / "hostile", path / "orders", path / "loot.json"
    stage(app)
    for name, text in (("server_app", HOSTILE_SERVER), ("client_app", HOSTILE_CLIENT)):
        (app / name / "main.py").write_text(text.replace("LOOT", str(loot)).replace("ORDERS", str(orders)))
    one_row = {"train.local-steps": 1, "train.per-device-batch-size": 1}
    attacks = {
        "another task": (
            "PolicyRefused",
            sent("train", order(), **{"task.name": "sft", "strategy.name": "fedavg"}),
        ),
        "one row": ("PolicyRefused", sent("train", order(run="loot"), **one_row)),
        "a path": ("PolicyRefused", sent("train", order(), **{"data.path": "/etc"})),
        "all rows": ("SiteError", sent("rows", order())),
        "a pickle": ("FrameError", pickle.dumps({"give": "rows"})),
    }
    orders.mkdir()
    for name, (_, data) in attacks.items():
        (orders / name).write_bytes(data)
    going = strict.place.start(
        str(BIN / "flwr"), "run", str(app), "deployment", "--stream", log="hostile.log"
    )
    going.wait(LONG_S)
    replies = json.loads(loot.read_text())
    assert len(replies) == SITES
    for site in replies:
        assert json.loads(site["node"]).keys() == {"site"}, (
            "the SuperNode knows neither the rows nor their path"
        )
        failures = {name: facts_of(bytes.fromhex(site[name]))["failure"][0] for name in attacks}
        assert failures == {name: kind for name, (kind, _) in attacks.items()}


def sent(kind: str, request: Order, **keys: object) -> bytes:
    return message(kind, wire.encode_order(request), {**WORDS, "run.num-server-rounds": 2, **keys})


def test_a_site_keeps_its_limits_over_a_restart(place):
    """Messages go directly to its socket. One that is too large is not read; runs are counted on disk."""
    (place.path / "sites").mkdir()
    (place.path / "sites" / "a.jsonl").write_text(rows(0))
    socket = f"unix:{place.path}/0.sock"

    def refusal(run: str) -> str:
        request = order(run=run)
        control = {name: torch.zeros_like(t) for name, t in request.trees["global"].items()}
        data = sent("train", replace(request, trees={**request.trees, "control": control}))
        return refused(facts_of(ask(socket, data, "", 60.0)))

    site = start_site(place, 0, "sites/a.jsonl")
    before = [refusal(run) for run in ("first", "second", "third")]
    assert before == ["", "", "run 'third' would be number 3; this site allows 2"]
    with pytest.raises(SiteError, match="RESOURCE_EXHAUSTED"):
        ask(socket, bytes(2 << 20), "", 30.0)
    site.terminate()
    assert site.wait(30) == 0
    start_site(place, 0, "sites/a.jsonl")
    assert before == [refusal(run) for run in ("first", "second", "third")]
