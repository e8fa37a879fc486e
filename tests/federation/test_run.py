"""A run, by `flwr run` itself and by `accord run`, and the files that it writes."""

import json
import signal
import subprocess
import sys
import tomllib

import psutil
import pytest
import torch

from core.config import defaults, flatten
from tests.faults.federation import files, whole
from tests.federation.conftest import BIN, ROOT, SMALL, free_port, kill_tree, metrics_of, wait_until

pytestmark = pytest.mark.slow


def test_flwr_run_works_without_a_wrapper(place):
    """From the root, with a fresh FLWR_HOME and nothing installed at run time; Flower starts the SuperLink."""
    ports = {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    short = f'run.num-server-rounds=1 train.local-steps=1 run.dir="{place.path / "runs"}"'
    try:
        process = subprocess.run(
            [str(BIN / "flwr"), "run", ".", "--stream", "--run-config", short],
            cwd=ROOT,
            env={**place.env, **ports},
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        for superlink in psutil.process_iter(["cmdline"]):
            if ports["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] in (superlink.info["cmdline"] or []):
                kill_tree(superlink.pid)
    assert process.returncode == 0, process.stdout + process.stderr
    (run,) = place.runs()
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished", process.stdout
    assert len(metrics_of(run)) == 2


def test_a_run_writes_its_files_and_ends_its_processes(place, finished):
    result = finished(*SMALL)
    run = result.run
    assert {p.name for p in run.iterdir()} >= {
        "config.toml", "manifest.json", "metrics.jsonl", "adapter", "report.md", "report.html", "README.md",
        "answers.json", "checkpoints",
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["federation"]) == ("finished", "simulation")
    assert "federation.num-supernodes=3" in result.stdout.partition("next ")[2]
    assert manifest["participation"] == {"1": [0, 1, 2], "2": [0, 1, 2], "3": [0, 1, 2]}
    assert manifest["base"]["fingerprint"][:8] in result.stdout
    assert manifest["bytes"]["up"] > 3 * 3 * 4 * 1000
    assert set(manifest["data"]) == {"0", "1", "2"}
    records = metrics_of(run)
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert all(0 <= r["eval"]["mean"]["logps/accuracies"] <= 1 for r in records)
    assert "rewards/accuracies" not in records[0]["eval"]["mean"], (
        "before training the policy equals the reference, so there is no reward"
    )
    assert ["truth/valid" in r["eval"]["mean"] for r in records] == [True, False, False, True]
    for report in (result.stdout, (run / "report.md").read_text(), (run / "README.md").read_text()):
        assert "Valid answers, trained" in report
    reader, server = loaded(place, "reader", run / "adapter"), loaded(place, "server", run)
    torch.testing.assert_close(reader, server, rtol=1e-5, atol=1e-5)
    assert not result.place.alive()


def test_a_run_equals_one_without_ray(place, finished):
    """Ray's actors against a fork per message, which other tests use as a simulation."""
    run, reference = finished(*SMALL).run, whole(SMALL, place.path / "whole")
    assert files(run / "adapter") == files(reference / "adapter")
    assert files(run / "checkpoints") == files(reference / "checkpoints")
    assert metrics_of(run) == metrics_of(reference)


def test_every_selector_is_written_for_peft(place):
    """adapter/ is the selector of the largest group: of three clients with two selectors, that of two clients."""
    words = ["strategy.name=fedbiscuit", "strategy.selectors=2", "strategy.warmup-rounds=1", "data.types=2"]
    run = whole([*SMALL, *words, "strategy.regroup-every=1", "eval.every=0"], place.path)
    assert sorted(p.name for p in (run / "adapters").iterdir()) == ["c0", "c1"]
    logits = [loaded(place, "reader", run / name) for name in ("adapter", "adapters/c0", "adapters/c1")]
    assert not torch.allclose(logits[1], logits[2], atol=1e-4)
    route = list(metrics_of(run)[-1]["route"].values())
    assert logits[0].equal(logits[1 if route.count("c0") == 2 else 2])
    assert "Purity of the groups" in (run / "report.md").read_text()
    assert json.loads((run / "manifest.json").read_text())["strategy"] == {
        "name": "fedbiscuit",
        "variant": "paper, ma",
    }


def loaded(place, mode: str, folder) -> torch.Tensor:
    """The logits of the base with the adapter in a folder, computed in a separate process."""
    out = place.path / "logits.pt"
    load = [sys.executable, "-c", LOAD[mode], str(folder), str(out)]
    subprocess.run(load, cwd=ROOT, env=place.env, check=True)
    return torch.load(out)


LOAD = {
    "reader": """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tasks import toy_base
base = AutoModelForCausalLM.from_pretrained(toy_base.folder(), dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[1]).eval()
torch.save(model(torch.arange(3, 13)[None]).logits.detach(), sys.argv[2])
""",
    "server": """
import sys, torch
from pathlib import Path
from core import store
from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
base = load_base(ModelConfig(), LoraConfig())
trees, _ = store.load(store.round_folder(Path(sys.argv[1]) / "checkpoints", 3))
set_adapter(base, trees["adapters/global"])
torch.save(base.model(torch.arange(3, 13)[None]).logits.detach(), sys.argv[2])
""",
}


@pytest.mark.parametrize(
    ("strategy", "task", "participants"), [("local", "sft", [0, 1, 2]), ("centralized", "kto", [0])]
)
def test_the_baselines_and_the_other_tasks_run(place, strategy, task, participants):
    words = ["run.num-server-rounds=2", f"strategy.name={strategy}", f"task.name={task}"]
    run = whole([*SMALL, *words, *(["task.reference-point=pooled"] if task == "kto" else [])], place.path)
    records = metrics_of(run)
    assert records[-1]["participants"] == participants
    assert "loss" in records[-1]["train"]["mean"]
    logps = [r["eval"]["clients"]["1"]["logps/chosen"] for r in records]
    assert len(set(logps)) == 3, "a round changed nothing"


def test_a_selector_reports_its_accuracy_and_writes_no_answers(place):
    words = ["run.num-server-rounds=1", "task.name=selector", "train.max-length=512"]
    run = whole([*SMALL, *words], place.path)
    assert all(0 <= record["eval"]["mean"]["accuracy"] <= 1 for record in metrics_of(run))
    assert "Preference accuracy, round 1" in (place.path / "log").read_text()
    assert not (run / "answers.json").exists()


def test_rows_that_cannot_be_read_are_refused_in_one_clear_line(place):
    (place.path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    words = ["data.source=jsonl", f"data.path={place.path / 'bad.jsonl'}", "federation.num-supernodes=2"]
    process = place.accord("run", *words, check=False)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert "bad.jsonl line 2" in line
    assert "Traceback" not in process.stdout
    assert place.runs() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.lerning-rate=1"], "did you mean 'train.learning-rate'? (command line)"),
        (["train.local-steps=many"], "train.local-steps must be int, got 'many'"),
        (["nothing.toml"], "no preset nothing.toml"),
        (["fault.min-replies=9", "federation.num-supernodes=3"], "fault.min-replies = 9 is above"),
        (["task.name=sft", "task.desirable-weight=1.5"], "has no effect with task.name = 'sft'"),
        (["federation.size=3"], "unknown key 'federation.size'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(place, words, message):
    process = place.accord("run", *words, check=False)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert not (place.path / "runs").exists()


def test_a_preset_is_merged_with_overrides(place):
    preset = place.path / "mine.toml"
    preset.write_text('[task]\nname = "kto"\n[train]\nlearning-rate = 1e-3\nlocal-steps = 2\n')
    place.accord(
        "run", "mine.toml", *SMALL, "run.num-server-rounds=1", "train.local-steps=1", "data.allocation=ktor"
    )
    config = flatten(tomllib.loads((place.runs()[0] / "config.toml").read_text()))
    assert config["task.name"] == "kto"
    assert config["train.learning-rate"] == 0.001
    assert config["train.local-steps"] == 1
    clients = config.pop("federation.num-supernodes")
    assert set(config) == set(defaults()), "config.toml holds every key that ran"
    assert clients == len(json.loads((place.runs()[0] / "manifest.json").read_text())["clients"])
    place.accord("run", str(place.runs()[0] / "config.toml"))
    first, second = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in place.runs())
    assert first == second, "config.toml is a preset that repeats the run"


def test_sigterm_stops_the_superlink_and_is_reported(place):
    process = place.start(sys.executable, str(ROOT / "accord"), "run", log="run.log")
    wait_until(lambda: "memory" in (place.path / "run.log").read_text(), 60)
    wait_until(lambda: len(place.alive()) > 1, 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "accord: stopped" in (place.path / "run.log").read_text()
    wait_until(lambda: not place.alive(), 10)
