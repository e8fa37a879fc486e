"""Training in two processes gives the adapter of one process up to rounding, and the same bytes in every run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.kto import KTO
from tasks.training.loop import shared
from tests import tiny
from tests.paths import ROOT

TRAIN = """
import json, sys
import torch
from core.config import parse
from tasks.forward import processes
from tasks.forward.setup import load_base
from tasks.model.adapter import get_adapter, initial_adapter, set_adapter
from tasks.tokens.cache import Cache
from tasks.training import engine, loop

torch.set_num_threads(1)
processes.join()
results = {}
for task_name, rows in json.loads(sys.argv[2]).items():
    config = parse({**json.loads(sys.argv[1]), "task.name": task_name})
    task, cache = config.task_choice.build(), Cache(None)
    base = load_base(config.model, config.lora)
    set_adapter(base, initial_adapter(base, 1))
    examples = engine.encode_rows(base, task, rows, config, cache).usable
    report = loop.train(base, task, examples, config.train, seed=3, cache=cache)
    results[task_name] = {"tree": get_adapter(base), "metrics": report.metrics, "sums": report.sums}
if processes.is_leader():
    torch.save(results, sys.argv[3])
"""
PAIRS = [
    {"prompt": f"say {n}", "chosen": "yes" * (1 + n % 4), "rejected": "no" * (1 + n % 3)} for n in range(12)
]
THUMBS = [{"prompt": f"say {n}", "completion": "yes" * (1 + n % 4), "label": n % 3 > 0} for n in range(12)]
DEMOS = [{"prompt": f"say {n}", "completion": "yes" * (1 + n % 4)} for n in range(12)]


CASES = {"dpo": PAIRS, "kto": THUMBS, "sft": DEMOS}


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one_process(tmp_path: Path) -> None:
    keys = {
        "model.name": str(tiny.folder(tmp_path / "model")),
        "lora.dropout": 0.0,
        "train.per-device-batch-size": 3,  # odd: the two have parts of different sizes
        "train.gradient-accumulation-steps": 2,
        "train.local-steps": 3,
    }
    single_runs, double_runs, repeats = (
        run(tmp_path / f"{n}.pt", keys, processes) for n, processes in enumerate((1, 2, 2))
    )
    for task in CASES:
        single, double, repeat = single_runs[task], double_runs[task], repeats[task]
        assert double["tree"].keys() == single["tree"].keys()
        for name, tensor in single["tree"].items():
            torch.testing.assert_close(
                double["tree"][name], tensor, atol=1e-5, rtol=1e-4, msg=f"{task} {name}"
            )
            assert torch.equal(double["tree"][name], repeat["tree"][name])
        assert any(tensor.abs().max() > 1e-3 for name, tensor in double["tree"].items() if "lora_B" in name)
        assert double["metrics"].keys() == single["metrics"].keys()
        assert double["metrics"]["grad_norm"] == pytest.approx(single["metrics"]["grad_norm"], rel=1e-3)
        assert double["sums"] == pytest.approx(single["sums"], rel=1e-3)
    assert single_runs["kto"]["sums"]


def run(path: Path, keys: dict, processes: int) -> dict:
    """Train every case in this many processes and read the leader's results."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    script = path.with_suffix(".py")
    script.write_text(TRAIN)
    command = [sys.executable, *launcher, str(script), json.dumps(keys), json.dumps(CASES), str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=env)
    assert result.returncode == 0, result.stderr
    return torch.load(path)


def test_a_single_process_takes_every_micro_batch_whole() -> None:
    batches = [["a", "b"], ["c"]]
    assert shared(KTO(), batches) == batches  # type: ignore[arg-type]  # any rows
