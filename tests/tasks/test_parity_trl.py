"""Our losses and LoRA gradients are TRL 1.16's on the same text, with a non-zero adapter and the frozen base as
reference; and what TRL does by itself to the reference does not happen here."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.sections import LoraConfig, ModelConfig, TrainConfig
from core.tree import Tree
from tasks.dpo import DPO
from tasks.forward.setup import load_base
from tasks.kto import KTO, rotated
from tasks.model.adapter import save_adapter, set_adapter
from tasks.model.base import Base
from tasks.sft import SFT
from tasks.tokens.encode import Encoder
from tasks.training.loop import NO_OPTIONS, train
from tasks.training.stepper import LocalHooks
from tests import tiny

WORDS = ("tea", "a long walk", "rain", "the old bridge at noon", "no", "maybe 42!")
PAIRS = [
    {
        "prompt": f"About {WORDS[i]}: ",
        "chosen": f"I like {WORDS[-i]} and {i}.",
        "rejected": f"{WORDS[i - 2]}?",
    }
    for i in range(4)
]
THUMBS = [
    {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
    for i, p in enumerate([*PAIRS, *PAIRS[:2]])
]
DEMOS = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
LENGTH = 96
CONFIGS = {DPOTrainer: DPOConfig, KTOTrainer: KTOConfig, SFTTrainer: SFTConfig}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny.folder(tmp_path_factory.mktemp("parity") / "model")
    return load_base(ModelConfig(name=str(folder)), LoraConfig(r=4, target_modules="all-linear"))


@pytest.fixture(scope="module")
def adapter(base: Base) -> Tree:
    return tiny.random_adapter(base)


@pytest.fixture
def trl_side(base: Base, adapter: Tree, tmp_path: Path):
    """(trainer class, rows, frozen reference?, options) -> loss and gradients by tree name, before any step."""

    def measure(cls, rows, *, frozen: bool = True, **options) -> tuple[float, Tree]:
        save_adapter(base, adapter, tmp_path / "adapter", base_name="tiny")
        folder = base.causal.config._name_or_path
        causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        model = PeftModel.from_pretrained(causal, str(tmp_path / "adapter"), is_trainable=True)
        args = CONFIGS[cls](
            output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, max_length=LENGTH, seed=0,
            per_device_train_batch_size=len(rows), gradient_checkpointing=False, disable_tqdm=True, **options,
        )  # fmt: skip
        trainer = cls(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer
        )
        if frozen and "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
        loss.backward()
        gradients = {
            n.replace(".default.", "."): p.grad for n, p in model.named_parameters() if p.requires_grad
        }
        return float(loss), {name: g for name, g in gradients.items() if g is not None}

    return measure


def ours(base: Base, adapter: Tree, task, rows, *, join=None, options=NO_OPTIONS) -> tuple[float, Tree]:
    """Loss and gradients of our engine on all rows as one batch, before any step."""
    set_adapter(base, adapter)
    examples = task.examples(rows, Encoder(base.tokenizer, "none", LENGTH))
    examples = join(examples) if join else examples
    seen: Tree = {}

    def keep(name, parameter, gradient):
        seen[name] = gradient.clone()
        return gradient

    cfg = TrainConfig(per_device_batch_size=len(rows), local_steps=1, max_length=LENGTH)
    report = train(base, task, examples, cfg, seed=0, hooks=LocalHooks(correct=keep), options=options)
    return report.metrics["loss"], seen


def assert_same(a: tuple[float, Tree], b: tuple[float, Tree]) -> None:
    """1e-5 relative: float32 sums of a few hundred terms in two orders."""
    assert a[0] == pytest.approx(b[0], rel=1e-5)
    assert a[1].keys() == b[1].keys()
    flat_a, flat_b = (torch.cat([t[n].flatten() for n in sorted(t)]).double() for t in (a[1], b[1]))
    assert flat_b.norm() > 0
    assert (flat_a - flat_b).norm() / flat_b.norm() < 1e-5


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_dpo_is_trls(base: Base, adapter: Tree, trl_side, loss_type: str) -> None:
    want = trl_side(DPOTrainer, PAIRS, beta=0.3, loss_type=[loss_type])
    assert_same(ours(base, adapter, DPO(beta=0.3, loss_type=loss_type), PAIRS), want)


def test_kto_is_trls_with_its_rotation(base: Base, adapter: Tree, trl_side) -> None:
    want = trl_side(KTOTrainer, THUMBS, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    task = KTO(beta=0.3, desirable_weight="1.5", undesirable_weight="0.5")
    assert_same(
        ours(base, adapter, task, THUMBS, join=lambda e: rotated(e, len(THUMBS), max_length=LENGTH)), want
    )


def test_sft_is_trls(base: Base, adapter: Tree, trl_side) -> None:
    assert_same(ours(base, adapter, SFT(), DEMOS), trl_side(SFTTrainer, DEMOS))


def test_trls_own_reference_is_the_round_start_and_ours_is_not(base: Base, adapter: Tree, trl_side) -> None:
    """Left alone, TRL starts every round at ln 2 whatever the adapter is; ours sees how far it has moved."""
    trap, _ = trl_side(DPOTrainer, PAIRS, frozen=False)
    assert trap == pytest.approx(0.693147, abs=1e-5)
    first, _ = ours(base, adapter, DPO(beta=0.1), PAIRS)
    assert abs(first - 0.693147) > 1e-3
    again, _ = ours(base, adapter, DPO(beta=0.1), PAIRS)  # a second round from the same adapter
    assert again == first
