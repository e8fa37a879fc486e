"""Two processes train what one does: the same adapter but for rounding, the same bytes each time."""

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
done = {}
for task_name, rows in json.loads(sys.argv[2]).items():
    config = parse({**json.loads(sys.argv[1]), "task.name": task_name})
    task, cache = config.task_choice.build(), Cache(None)
    base = load_base(config.model, config.lora)
    set_adapter(base, initial_adapter(base, 1))
    examples = engine.usable(base, task, rows, config, cache).kept
    report = loop.train(base, task, examples, config.train, seed=3, cache=cache)
    done[task_name] = {"tree": get_adapter(base), "metrics": report.metrics, "sums": report.sums}
if processes.leads():
    torch.save(done, sys.argv[3])
"""
PAIRS = [
    {"prompt": f"say {n}", "chosen": "yes" * (1 + n % 4), "rejected": "no" * (1 + n % 3)} for n in range(12)
]
THUMBS = [{"prompt": f"say {n}", "completion": "yes" * (1 + n % 4), "label": n % 3 > 0} for n in range(12)]
DEMOS = [{"prompt": f"say {n}", "completion": "yes" * (1 + n % 4)} for n in range(12)]


CASES = {"dpo": PAIRS, "kto": THUMBS, "sft": DEMOS}


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    keys = {
        "model.name": str(tiny.folder(tmp_path / "model")),
        "lora.dropout": 0.0,
        "train.per-device-batch-size": 3,  # odd: the two have parts of different sizes
        "train.gradient-accumulation-steps": 2,
        "train.local-steps": 3,
    }
    ones, twos, agains = (run(tmp_path / f"{n}.pt", keys, processes) for n, processes in enumerate((1, 2, 2)))
    for task in CASES:
        one, two, again = ones[task], twos[task], agains[task]
        assert two["tree"].keys() == one["tree"].keys()
        for name, tensor in one["tree"].items():
            torch.testing.assert_close(two["tree"][name], tensor, atol=1e-5, rtol=1e-4, msg=f"{task} {name}")
            assert torch.equal(two["tree"][name], again["tree"][name])
        assert any(tensor.abs().max() > 1e-3 for name, tensor in two["tree"].items() if "lora_B" in name)
        assert two["metrics"].keys() == one["metrics"].keys()
        assert two["metrics"]["grad_norm"] == pytest.approx(one["metrics"]["grad_norm"], rel=1e-3)
        assert two["sums"] == pytest.approx(one["sums"], rel=1e-3)
    assert ones["kto"]["sums"]


def run(path: Path, keys: dict, processes: int) -> dict:
    """What so many processes make of the cases."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    script = path.with_suffix(".py")
    script.write_text(TRAIN)
    command = [sys.executable, *launcher, str(script), json.dumps(keys), json.dumps(CASES), str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def test_alone_a_process_takes_every_micro_batch_whole() -> None:
    batches = [["a", "b"], ["c"]]
    assert shared(KTO(), batches) == batches  # type: ignore[arg-type]  # any rows
