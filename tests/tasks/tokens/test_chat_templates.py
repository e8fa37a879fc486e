"""What Accord does with a chat template: the end of a turn, dates, and what is refused without a row's text."""

from datetime import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_template_utils

from core.errors import ConfigError, DataError
from tasks.base import Row
from tasks.data.base import BadRow, SourceRow, canonical
from tasks.tokens.chat import TODAY, ChatTemplate
from tasks.tokens.encode import DIFFERS, NO_CALLS, Encoder
from tests import tiny
from tests.tasks.tokens.conversations import CALLS, LONG, ROWS, at, pair, text
from tests.tasks.tokens.templates import CHATML_TURNS, FAMILIES, Family

pytestmark = pytest.mark.usefixtures("trls_clock")


def test_text_and_turns_are_one_conversation() -> None:
    """Strings in a chat format are a user's turn and an assistant's."""
    for family in FAMILIES.values():
        tokenizer = family.tokenizer()
        encoder = Encoder(tokenizer, "chat", LONG)
        row = ROWS["user"]
        text = encoder.example(row["prompt"][0]["content"], [row["chosen"][0]["content"]])
        assert text == encoder.example(row["prompt"], [row["chosen"]])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_where_the_template_ends_a_turn(name: str) -> None:
    family = FAMILIES[name]
    encoder = Encoder(family.tokenizer(), "chat", LONG)
    ends = dict.fromkeys([family.eos, *([family.end] if family.end else [])])
    assert encoder.tokenizer.convert_ids_to_tokens(list(encoder.ends)) == list(ends)


def test_a_prompt_that_differs_alone_is_counted_and_noted_once() -> None:
    tokenizer = FAMILIES["deepseek-r1"].tokenizer()
    encoder = Encoder(tokenizer, "chat", LONG)
    assert len(encoder.notes) == 1
    assert "'<think>\\n'" in encoder.notes[0]
    for _ in range(2):
        encoder.example("Hi", ("a", "b"))
    assert encoder.remarks == {DIFFERS: 2}
    assert text(tokenizer, encoder.prompt("Hi")).endswith("<|Assistant|>")
    merging = Encoder(FAMILIES["deepseek"].tokenizer(), "none", LONG)  # ": " is one token
    merging.example("Answer:", (" a",))
    assert merging.remarks == {DIFFERS: 1}


def test_tool_calls_that_a_template_does_not_write_are_counted() -> None:
    for name, count in (("llama2", 1), ("hermes", 0)):
        encoder = Encoder(FAMILIES[name].tokenizer(), "chat", LONG)
        encoder.example(CALLS[:1], [CALLS[1:]])
        encoder.example("Hi", ["Ho"])
        assert encoder.remarks == ({NO_CALLS: count} if count else {})


@pytest.mark.parametrize("name", ["smollm3", "llama3.2"])
def test_a_template_reads_the_same_date_on_every_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tokenizer = set(), FAMILIES[name].tokenizer()
    for when in (datetime(2026, 1, 2), datetime(2031, 12, 30)):
        monkeypatch.setattr(chat_template_utils, "datetime", at(when))
        encoder = Encoder(tokenizer, "chat", LONG)
        example = encoder.example("Hi", ("a",))
        assert example is not None
        assert encoder.prompt("Hi") == example.prompt
        seen.add((example.prompt, example.completions))
    ((prompt, _),) = seen
    assert "26 Jul" in text(tokenizer, prompt)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%-d. %B %y, %A", "%H:%M%p 100%%", "%%Y", "plain", "%j %U"])
def test_every_directive_of_the_clock_is_formatted(form: str) -> None:
    """Also one that is not written in the call itself; white space and line breaks of the template stay."""
    template = f"\n  {{% set form = '{form}' %}}\n{{{{ strftime_now(form) }}}}\n"
    tokenizer = Family(template + CHATML_TURNS, tokens=("<|im_start|>", "<|im_end|>")).tokenizer()
    text = ChatTemplate(tokenizer).render([{"role": "user", "content": "Hi"}])
    assert text == "\n" + TODAY.strftime(form) + "\n<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1: Unexpected end of template"),
        ("{{ bos_token }}\n{% fro m in messages %}", "line 2: Encountered unknown tag 'fro'"),
        ("{{ messages[0].content | shout }}", "No filter named 'shout'"),
        ("{% for m in messages if m is shouted %}{% endfor %}", "No test named 'shouted'"),
        ("{{ render_all(messages) }}", r"transformers has no function render_all\(\)"),
        ("{% set today = strftime_now('%d') %}{% if %}", "line 1: Expected an expression"),
        ({"rag": "{{ messages }}"}, "it has several, and none is called 'default'"),
    ],
)
def test_an_unusable_template_is_a_configuration_error_that_names_the_tokenizer(
    template: Any, reason: str
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.name_or_path = "/models/x"
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=rf"tokenizer in /models/x cannot be used: .*{reason}"):
        Encoder(tokenizer, "auto", LONG)


def test_an_optional_function_of_a_template_is_not_missing() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% if tools %}{{ listed(tools) }}{% endif %}" + tiny.CHAT
    assert Encoder(tokenizer, "chat", LONG).example("Hi", ("a",)) is not None


@pytest.mark.parametrize(
    "expression",
    [
        "message.content + 1",
        "message.content / 2",
        "message.content.secret.x",
        "raise_exception('no ' + message.content)",
        "message.content[0:'a']",
        "dict(message.content)",
        "range(10 ** 9)",
    ],
)
def test_a_row_that_a_template_cannot_render_is_a_bad_row_without_its_text(expression: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = f"{{% for message in messages %}}{{{{ {expression} }}}}{{% endfor %}}"
    with pytest.raises(DataError, match="row 4: the chat template") as error:
        Encoder(tokenizer, "chat", LONG).example("secret", ("secret",), row=4)
    assert "secret" not in str(error.value)


def test_a_cut_chat_prompt_keeps_the_first_tokens_of_the_tokenizer() -> None:
    for name, start in (("gemma", ["<bos>"]), ("chatglm", ["[gMASK]", "<sop>"]), ("zephyr", [])):
        tokenizer = FAMILIES[name].tokenizer()
        example = Encoder(tokenizer, "chat", 40).example("x" * 60, ("y",))
        assert example is not None
        tokens = tokenizer.convert_ids_to_tokens(list(example.prompt))
        assert len(example.prompt) + len(example.completions[0]) == 40
        assert tokens[: len(start)] == start
        assert tokens[len(start)] == "x"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            {"role": "user", "content": [{"type": "image", "url": "secret"}]},
            "a content part that is not text",
        ),
        ({"role": "user", "content": [{"type": "text", "text": " "}]}, "empty"),
        ({"role": "user", "content": ["secret"]}, "a content part that is not text"),
        ({"role": "assistant", "content": None}, "empty"),
        ({"role": "assistant", "tool_calls": []}, "empty"),
        ({"role": "assistant", "tool_calls": "secret"}, "tool_calls are not a list"),
    ],
)
def test_messages_without_usable_content_are_refused(message: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as error:
        canonical(SourceRow("here", pair([message])))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("prompt_format", ["alpaca", "vicuna_v1.1", "none"])
def test_plain_formats_take_parts_and_no_tools(prompt_format: str) -> None:
    encoder = Encoder(tiny.tokenizer(), prompt_format, LONG)
    row = ROWS["parts"]
    assert encoder.example(row["prompt"], [row["chosen"]]) == encoder.example("Who are you?", ["a b"])
    with pytest.raises(DataError, match="row 0: a turn with tool calls needs prompt-format chat"):
        encoder.example(CALLS[:1], [CALLS[1:]])
