"""The vocabulary and the learned positions of a model are checked against its embedding."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from tasks.forward.setup import load_base
from tasks.pretrained.loading import check_length, embedding_rows, learned_positions
from tasks.scoring.generate import greedy
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.tasks.pretrained.model_folders import refusal

pytestmark = pytest.mark.usefixtures("accord_home")


def test_a_vocabulary_larger_than_the_embedding_is_refused(model: Path, tmp_path: Path) -> None:
    special = Path(shutil.copytree(model, tmp_path / "special"))
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    line = refusal(model)
    assert "'<extra>'" in line
    assert f"the {tiny.VOCABULARY} rows" in line
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(special)
    assert "<|im_start|>" in refusal(special)


def test_a_token_for_images_may_be_beyond_the_embedding_of_a_text_model(model: Path) -> None:
    """As in gemma-3-1b-it; a row that spells the token out is refused."""
    inner = tiny.tokenizer().backend_tokenizer
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, extra_special_tokens={"image_token": "<image>"}, **names
    )
    tokenizer.save_pretrained(model)
    base = load_base(ModelConfig(name=str(model)), LoraConfig())
    encoder = Encoder(base.tokenizer, "none", 64, on_bad_row="skip", vocabulary=embedding_rows(base.causal))
    assert encoder.example("a", ["b", "c"])
    assert encoder.example("a", ["b <image>", "c"]) is None
    assert len(encoder.skipped) == 1


def test_a_tokenizer_without_a_vocabulary_is_refused(model: Path) -> None:
    """transformers creates an empty one from the class name alone."""
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert "has no vocabulary" in refusal(model)


@pytest.mark.parametrize(
    ("architecture", "limit"), [("gpt2", 512), ("llama", None), ("opt", 64), ("gpt_neo", 64)]
)
def test_rows_longer_than_the_learned_positions_are_refused(architecture: str, limit: int | None) -> None:
    small = {"vocab_size": 20, "max_position_embeddings": 64, "hidden_size": 8, "num_attention_heads": 2}
    options = {
        "opt": {"ffn_dim": 8, "num_hidden_layers": 1, "word_embed_proj_dim": 8},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2},
    }
    config = (
        AutoConfig.for_model(architecture, **small, **options[architecture])
        if architecture in options
        else tiny.config(architecture)
    )
    causal = AutoModelForCausalLM.from_config(config)
    assert learned_positions(causal) == limit
    check_length(causal, limit or 10**6, "m")
    if limit:
        with pytest.raises(ConfigError, match=f"at most {limit}"):
            check_length(causal, limit + 1, "m")


def test_an_answer_ends_at_the_last_position(tmp_path: Path) -> None:
    """A prompt of 512 tokens leaves room for one more, which is not read again."""
    base = load_base(ModelConfig(name=str(tiny.folder(tmp_path / "gpt2", "gpt2"))), LoraConfig())
    for length in (500, 512):
        assert len(greedy(base, [5] * length)) <= 513 - length
