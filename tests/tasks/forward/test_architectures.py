"""Every architecture of the table is packed or padded as listed and gives the results of plain transformers."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from core.seeds import seed_for
from core.tree import Tree
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import training
from tasks.forward.packing import Fork
from tasks.forward.setup import load_base
from tasks.model.adapter import save_adapter, set_adapter
from tasks.model.base import Base
from tasks.scoring.generate import Sampling, greedy, sampled
from tests import tiny
from tests.paths import ROOT
from tests.tasks.forward.architectures import MIXTURES, ROWS, Architecture, folder
from tests.tasks.forward.models_page import page

FORKS: list[Fork] = [
    (tuple(range(5, 24)), ((30, 31, 32, 2), tuple(range(40, 51)), (7,))),
    ((1, 20), ((3,), (33, 34, 35, 36, 37, 38, 39, 40, 41))),
]
PROMPT = (1, 44, 12, 9, 30, 31, 7, 60, 61, 15, 16)
HOW = Sampling(completions=3, temperature=0.9, top_p=0.95, new_tokens=6)
RUNS = [row for row in ROWS.values() if row.path != "refused"]


def loaded(row: Architecture, path: Path, dtype: str) -> Base:
    lora = LoraConfig(r=4, target_modules=row.targets)
    return load_base.__wrapped__(ModelConfig(name=str(path), dtype=dtype), lora)  # type: ignore[arg-type]


def plain(path: Path, adapter: Path, dtype: torch.dtype) -> PeftModel:
    how = (
        {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    )  # the grouped products lack it
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **how)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        out = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    return (out.double() if dtype == torch.float64 else out).eval()


def plain_logps(model: PeftModel, forks: Sequence[Fork]) -> Tensor:
    """Every sequence by itself, with all logits; from short to long because of dynamic frequencies."""
    sequences = [(prompt, completion) for prompt, completions in forks for completion in completions]
    out: dict[int, Tensor] = {}
    for i, (prompt, completion) in sorted(
        enumerate(sequences), key=lambda item: len(item[1][0] + item[1][1])
    ):
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
        logps = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        out[i] = logps[rows, torch.tensor(completion)].sum()
    return torch.stack([out[i] for i in range(len(sequences))])


def weighted(logps: Tensor) -> Tensor:
    return (logps * torch.arange(1.0, len(logps) + 1, dtype=logps.dtype)).sum()


def plain_gradients(model: PeftModel) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logps = plain_logps(model, FORKS)
    weighted(logps).backward()
    named = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
    return logps.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}


def distance(tree: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative L2 distance over all tensors."""
    assert tree.keys() == other.keys()
    squares = sum(float((tree[n].double() - other[n].double()).square().sum()) for n in other)
    return (squares / sum(float(t.double().square().sum()) for t in other.values())) ** 0.5


@pytest.mark.parametrize("row", RUNS, ids=lambda row: row.name)
def test_its_path_is_as_listed_and_its_results_equal_those_of_transformers(row, tmp_path):
    """float32: to rounding. bfloat16: within twice the distance of plain transformers' bfloat16 from the oracle.
    The oracle is plain transformers in float64 (float32 where the table says so), with the adapter as peft loads it."""
    path, adapter = folder(tmp_path / "model", row), tmp_path / "adapter"
    base = loaded(row, path, "float32")
    tree = tiny.random_adapter(base)
    save_adapter(base, tree, adapter, base_name=str(path))
    want, exact = plain_gradients(plain(path, adapter, row.oracle))
    logps, gradients = measured(base, row, tree)
    torch.testing.assert_close(logps.double(), want.double(), rtol=1e-5, atol=1e-4)
    assert distance(gradients, exact) < 1e-4
    if row.generates:
        check_generation(base, plain(path, adapter, torch.float32))

    logps, gradients = measured(loaded(row, path, "bfloat16"), row, tree)
    rounded, rough = plain_gradients(plain(path, adapter, torch.bfloat16))
    noise = float((rounded.double() - want).square().mean().sqrt())
    limit = 4 if row in MIXTURES else 2  # rounding can send a token to another expert
    assert float((logps.double() - rounded).square().mean().sqrt()) < limit * noise
    assert distance(gradients, exact) < 2 * distance(rough, exact) + 0.01


def measured(base: Base, row: Architecture, tree: Tree) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities and gradients under an adapter, as in a local step; the path must be that of the table."""
    assert base.packed == (row.path == "packed"), base.path_reason
    assert row.reason in base.path_reason
    assert bool(row.reason) == bool(base.path_reason)
    set_adapter(base, tree)
    with training(base, dropout=False, seed=0):
        base.flat.zero_grad()
        logps = completion_logps(base, FORKS)
        weighted(logps).backward()
    return logps.detach(), {n: p.grad for n, p in base.adapter.items() if p.grad is not None}


def check_generation(base: Base, model: PeftModel) -> None:
    """Greedy and sampled answers equal those of transformers from one prompt for each answer."""
    prompt = torch.tensor([PROMPT])
    settings = {"pad_token_id": base.tokenizer.pad_token_id, "max_new_tokens": HOW.new_tokens}
    made = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **settings
    )
    (want,) = base.tokenizer.batch_decode(made[:, len(PROMPT) :], skip_special_tokens=True)
    assert greedy(base, PROMPT, HOW.new_tokens) == want.strip()
    prompt = prompt.repeat(HOW.completions, 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(5, "tokens"))
        made = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, top_p=HOW.top_p,
            temperature=HOW.temperature, **settings,
        )  # fmt: skip
    texts = base.tokenizer.batch_decode(made[:, len(PROMPT) :], skip_special_tokens=True)
    assert sampled(base, PROMPT, HOW, seed=5) == [text.strip() for text in texts]


@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.path == "refused"], ids=lambda row: row.name
)
def test_models_that_are_not_causal_are_refused_in_one_line(row, tmp_path):
    with pytest.raises(ConfigError, match=row.reason) as error:
        loaded(row, folder(tmp_path, row), "float32")
    assert "\n" not in str(error.value)


def test_the_page_of_models_matches_the_table():
    """Made by `python -m tests.tasks.forward.models_page > docs/models.md`."""
    assert (ROOT / "docs" / "models.md").read_text() == page()
    assert len(ROWS) >= 80
