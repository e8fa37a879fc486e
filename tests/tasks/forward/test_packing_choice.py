"""The choice of packed or padded: planted leaks are detected, correct models are packed, unusable ones are refused."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from tasks.forward import packing_choice
from tasks.forward.attention import Layout, Piece
from tasks.forward.logprobs import completion_logps, with_mismatched
from tasks.forward.modes import reference, training
from tasks.forward.setup import load_base
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tests import tiny
from tests.tasks.forward.architectures import ROWS, folder

FORKS = [
    (tuple(range(5, 24)), ((30, 31, 32, 2), tuple(range(40, 59)), (7,))),
    ((1, 20), ((3,), (33, 34, 35))),
]


def loaded(where: Path, **settings: str) -> Base:
    return load_base.__wrapped__(ModelConfig(name=str(where), **settings), LoraConfig(r=4))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("path") / "llama")


def mix_with_previous_token(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A token shift, as in RWKV: half of each channel comes from the token before."""
    (x,) = args
    return (x + 0.5 * nn.functional.pad(x, (0, 0, 1, -1)),)


def add_running_mean(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A state that is carried from token to token."""
    (x,) = args
    return (x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None].to(x.dtype),)


PLANTED = [(LlamaMLP, mix_with_previous_token), (LlamaRMSNorm, add_running_mean), (LlamaAttention, None)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "leak"), PLANTED, ids=["shift", "state", "attention"])
def test_a_planted_leak_is_a_hundred_times_the_threshold(kind, leak, dtype, llama, monkeypatch, caplog):
    """`attention`: every token of the packed row attends to all tokens before it."""
    if leak is None:
        monkeypatch.setattr("tasks.forward.attention.Layout.pieces", property(one_piece))
    else:
        init = kind.__init__

        def planted(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.register_forward_pre_hook(leak)

        monkeypatch.setattr(kind, "__init__", planted)
    base = loaded(llama, dtype=dtype)
    assert not base.packed
    assert "a branch" in base.path_reason
    assert "other rows" in base.path_reason
    moved = float(base.path_reason.split(" by ")[1].split(" nats")[0])
    assert moved > 100 * packing_choice.LEAK * packing_choice.FLOOR


def one_piece(layout: Layout) -> tuple[Piece, ...]:
    total = sum(stem + sum(branches) for stem, branches in layout.forks)
    return (Piece(slice(0, total)),)


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "bfloat16"}, {"quantization": "8bit"}, {"quantization": "4bit"}], ids=str
)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_correct_model_is_packed_in_every_precision(name, settings, tmp_path):
    base = loaded(folder(tmp_path, ROWS[name]), **settings)
    assert base.packed, base.path_reason
    assert base.path_reason == ""


@pytest.mark.parametrize("name", ["gptj", "falcon", "qwen3_next", "lfm2", "jamba", "gemma2"])
def test_small_weights_in_bfloat16_do_not_hide_the_reason(name, tmp_path):
    """Weights as transformers draws them: all differences are far below the noise of bfloat16."""
    where = folder(tmp_path, ROWS[name])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where)).save_pretrained(where)
    base = loaded(where, dtype="bfloat16")
    assert not base.packed
    assert ROWS[name].reason in base.path_reason


def test_the_reason_is_on_the_base_and_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        base = loaded(folder(tmp_path, ROWS["gptj"]))
    assert base.path_reason == ROWS["gptj"].reason
    assert base.path_reason in caplog.text


def test_a_model_that_attends_to_later_tokens_is_refused(llama, monkeypatch):
    """Its configuration is that of a causal model."""

    def looks_ahead(module, args):
        return (args[0] + args[0].mean(1, keepdim=True),)

    init = LlamaMLP.__init__
    monkeypatch.setattr(
        LlamaMLP, "__init__", lambda self, c: (init(self, c), self.register_forward_pre_hook(looks_ahead))[0]
    )
    with pytest.raises(ConfigError, match="not causal"):
        loaded(llama)


def test_a_model_that_draws_at_random_is_refused(llama, monkeypatch):
    init = LlamaMLP.__init__

    def noisy(self, config):
        init(self, config)
        self.register_forward_pre_hook(lambda _, args: (nn.functional.dropout(args[0], 0.1),))

    monkeypatch.setattr(LlamaMLP, "__init__", noisy)
    with pytest.raises(ConfigError, match=r"not causal|at random"):
        loaded(llama)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["opt", "biogpt", "xglm", "llama"])
def test_in_training_the_untrained_policy_equals_the_reference(name, checkpointing, tmp_path):
    """OPT, BioGPT and XGLM draw their dropout in the layer itself, by its own flag. There is a gradient, too."""
    model = ModelConfig(name=str(folder(tmp_path, ROWS[name])), gradient_checkpointing=checkpointing)
    base = load_base.__wrapped__(model, LoraConfig(r=4))
    with reference(base):
        frozen = torch.cat([completion_logps(base, [fork]) for fork in FORKS])
    with training(base, dropout=False, seed=0):
        first, second = completion_logps(base, FORKS), completion_logps(base, FORKS)
        first.sum().backward()
    assert torch.equal(first, second)
    torch.testing.assert_close(first.detach(), frozen, rtol=1e-5, atol=1e-5)
    assert base.flat.gradients[0].any()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama dynamic rope", "phi3 longrope"])
def test_a_row_gives_the_same_results_in_every_batch_if_its_length_matters(name, packed, tmp_path):
    """Rows of 3 to 38 tokens, with a limit of 24: alone, together, after longer ones and as mismatched completions."""
    base = loaded(folder(tmp_path, ROWS[name]))
    assert base.packed
    base.packed, base.head = packed, base.head if packed else packing_choice.Head(None)
    set_adapter(base, tiny.random_adapter(base))
    with torch.no_grad():
        together = completion_logps(base, FORKS)
        reordered = completion_logps(base, FORKS[::-1])
        alone = torch.cat([completion_logps(base, [(p, (c,))]) for p, cs in FORKS for c in cs])
        logps, extra = with_mismatched(base, FORKS, [tuple(range(60, 72)), (5,)])
        want = completion_logps(base, [(FORKS[0][0], (tuple(range(60, 72)),)), (FORKS[1][0], ((5,),))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([reordered[2:], reordered[:2]]), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logps, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extra, want, rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_score_plain_tokens_is_refused_in_one_line(llama, monkeypatch):
    def refuses(*args, **kwargs):
        raise ValueError("pixel_values are missing\nand more")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", refuses)
    with pytest.raises(ConfigError, match="cannot score a few plain tokens") as error:
        loaded(llama)
    assert "\n" not in str(error.value)
