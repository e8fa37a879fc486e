"""The estimate against the memory of a real process, and models without an estimate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.config import parse
from tasks.model.footprint import estimate, shape_of
from tests import tiny

CLIENT = """
import json, sys
from client_app.node import Node
from client_app.site import Site
from core.config import parse
from core.types import Order
from tasks.model.adapter import initial_adapter

site = Site(parse(json.loads(sys.argv[1])), Node(0, 1, state_dir=sys.argv[2]))
base = site.base()
trees = {"global": initial_adapter(base, 42)}
site.train(Order(0, trees, run="r", base=base.fingerprint, round=1, clients=1, cohort=1))
# not ru_maxrss: that begins with the peak of the process that started this one
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024)
"""


def llama(folder: Path) -> Path:
    """6 layers of 288 channels, float32, with a character tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def keys(tmp_path: Path, **more: object) -> dict:
    return {
        "model.name": str(tmp_path / "model"),
        "data.source": "jsonl",
        "data.path": str(tmp_path / "rows.jsonl"),
        "data.eval-fraction": 0.1,
        "data.partitioner": "iid",
        "train.local-steps": 2,
        **more,
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dpo", "kto", "sft"])
def test_the_estimate_is_a_close_upper_bound(tmp_path: Path, task: str) -> None:
    model = llama(tmp_path / "model")
    rows = [{"prompt": f"{n:03}" * 34, "chosen": "a" * 200, "rejected": "b" * 200} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = keys(tmp_path, **{"task.name": task})
    shape = shape_of(parse(asked).model)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in LlamaForCausalLM.from_pretrained(model).parameters())
    expected = estimate(parse(asked), shape)
    command = [sys.executable, "-c", CLIENT, json.dumps(asked), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    taken = int(done.stdout.split()[-1])
    print(
        task,
        {k: round(v / 1e6) for k, v in vars(expected).items()},
        round(expected.total / 1e6),
        round(taken / 1e6),
    )
    assert taken < 1.1 * expected.total
    assert expected.total < 2 * taken
