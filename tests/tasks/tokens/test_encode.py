"""Text to token ids: formats byte for byte, BOS and EOS once, truncation from the right end."""

import pytest

from core.errors import ConfigError, DataError
from tasks.base import Example
from tasks.tokens.encode import Encoder, key_of
from tests import tiny
from tests.vectors import OPENFEDLLM

TOKENIZER = tiny.tokenizer()
BOS, EOS = 1, 2


def text(ids) -> str:
    return "".join(TOKENIZER.convert_ids_to_tokens(list(ids)))


def whole(example: Example | None) -> list[str]:
    assert example is not None
    return [text(example.prompt), *map(text, example.completions)]


def test_a_prompt_starts_with_one_bos_and_every_completion_ends_in_eos() -> None:
    example = Encoder(TOKENIZER, "none", 64).example("ab", ("c", "de</s>"))
    assert whole(example) == ["<s>ab", "c</s>", "de</s>"]


@pytest.mark.parametrize(("prompt_format", "key"), [("alpaca", "alpaca"), ("vicuna_v1.1", "vicuna")])
def test_formats_are_the_published_bytes(prompt_format: str, key: str) -> None:
    vector = OPENFEDLLM["sft_templates"]
    encoder = Encoder(TOKENIZER, prompt_format, 512)
    examples = vector["inputs"]["examples"]
    for i, (q, a) in enumerate(zip(examples["instruction"], examples["response"], strict=True)):
        prompt, completion = whole(encoder.example(q, (a,)))
        assert prompt + completion == "<s>" + vector["outputs"][key][i]
        assert text(encoder.prompt(q)) == prompt
    assert text(encoder.prompt("Say hi")) == "<s>" + vector["outputs"][f"{key}_inference_prompt"]


def test_vicuna_takes_a_conversation() -> None:
    turns = [
        {"role": "system", "content": "S."},
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    example = Encoder(TOKENIZER, "vicuna_v1.1", 200).example(
        turns, ([{"role": "assistant", "content": "A2"}],)
    )
    assert whole(example) == ["<s>S. USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:", " A2</s>"]


@pytest.mark.parametrize("prompt", ["Q", [{"role": "user", "content": "Q"}]])
def test_auto_is_the_chat_template_if_there_is_one(prompt) -> None:
    """The template writes BOS and EOS itself; neither is doubled."""
    encoder = Encoder(tiny.tokenizer(chat=True), "auto", 64)
    assert whole(encoder.example(prompt, ("A", "B"))) == [
        "<s>user: Q</s>\n<s>assistant: ",
        "A</s>\n",
        "B</s>\n",
    ]
    assert Encoder(TOKENIZER, "auto", 64).prompt_format == "alpaca"


def test_a_conversation_that_a_format_cannot_express_is_refused_without_its_text() -> None:
    turns = [{"role": "user", "content": "secret"}, {"role": "assistant", "content": "secret"}]
    for prompt_format, requirement in (("alpaca", "one user turn"), ("vicuna_v1.1", "end with the user")):
        with pytest.raises(DataError, match=requirement) as error:
            Encoder(TOKENIZER, prompt_format, 64).example(turns, ("x",), row=7)
        assert "row 7" in str(error.value)
        assert "secret" not in str(error.value)


def test_chat_needs_a_template() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        Encoder(TOKENIZER, "chat", 64)


@pytest.mark.parametrize(
    ("prompt", "completions", "want"),
    [
        ("abcdef", ("xy", "z"), ["<s>cdef", "xy</s>", "z</s>"]),  # 7 + 3 > 8: the prompt's start goes
        ("abcdef", ("stuvwxyz", "z"), ["<s>", "stuvwxy", "z</s>"]),  # then the completion's end; BOS stays
        ("abcd", ("xy", "z"), ["<s>abcd", "xy</s>", "z</s>"]),  # exactly 8
    ],
)
def test_truncation_removes_the_start_of_the_prompt_first(prompt: str, completions, want: list[str]) -> None:
    assert whole(Encoder(TOKENIZER, "none", 8).example(prompt, completions)) == want


def test_without_bos_a_prompt_keeps_a_token_to_predict_from() -> None:
    encoder = Encoder(tiny.tokenizer(bos=False), "none", 4)
    assert whole(encoder.example("abc", ("vwxyz",))) == ["c", "vwx"]
    with pytest.raises(DataError, match="row 3: the prompt is empty"):
        encoder.example("", ("x",), row=3)
    assert whole(Encoder(TOKENIZER, "none", 4).example("", ("x",))) == ["<s>", "x</s>"]


def test_long_rows_are_counted_or_refused_by_number_and_length() -> None:
    skipping = Encoder(TOKENIZER, "none", 8, "skip")
    assert skipping.example("abcdefgh", ("secret",)) is None
    assert skipping.example("a", ("b",)) is not None
    assert skipping.skipped == {"too long": 1}
    with pytest.raises(
        DataError, match=r"row 5: 9 prompt \+ 7 completion tokens exceed train.max-length = 8"
    ) as error:
        Encoder(TOKENIZER, "none", 8, "error").example("abcdefgh", ("secret",), row=5)
    assert "secret" not in str(error.value)


def test_a_prompt_to_answer_is_cut_at_its_start() -> None:
    assert text(Encoder(TOKENIZER, "none", 4).prompt("abcdef")) == "<s>def"


def test_the_key_depends_on_all_token_ids() -> None:
    example = Example((1, 2), ((3, 4), (5,)))
    assert key_of(example) == key_of(Example((1, 2), ((3, 4), (5,)), label=True))
    different = [
        Example((1, 2), ((3,), (4, 5))),
        Example((1,), ((2, 3, 4), (5,))),
        Example((12,), ((3, 4), (5,))),
    ]
    different.append(Example((1, 2), ((3, 4),), mismatched=(6,)))
    assert len({key_of(e) for e in [example, *different]}) == 5
