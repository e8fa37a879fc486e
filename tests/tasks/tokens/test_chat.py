"""Chat rows are rendered by the template: token ids equal those of TRL 1.16 for many kinds of templates."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from datasets import Dataset
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.errors import ConfigError, DataError
from tasks.base import Example, Row
from tasks.data.base import BadRow, SourceRow, canonical
from tasks.kto import rotated
from tasks.tokens.chat import TODAY, ChatTemplate
from tasks.tokens.encode import DIFFERS, NO_CALLS, Encoder
from tests import tiny
from tests.tasks.tokens.templates import CHATML_TURNS, FAMILIES, Family

LONG = 4000
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
Ids = tuple[list[int], ...]  # a prompt, and the completions behind it


def turns(*messages: tuple[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **keys} for role, content in messages]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def pair(prompt: list[dict[str, Any]], chosen: Any = "a b. ", rejected: Any = "\nNo!") -> Row:
    return {
        "prompt": prompt,
        "chosen": turns(("assistant", chosen)),
        "rejected": turns(("assistant", rejected)),
    }


CALLS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "content": '{"sum": "2"}', "name": "add", "tool_call_id": "c1"}
ROWS = {
    "user": pair(turns(("user", " Who are you?\n"))),
    "system": pair(turns(("system", "Be brief."), ("user", "Who?"))),
    "history": pair(turns(("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), ("user", "Who?"))),
    "thinking answer": pair(turns(("user", "Hi")), "<think>\nhm\n</think>\n\nHello", "No"),
    "parts": pair(turns(("user", parts("Who ", "are you?"))), parts("a ", "b"), parts("c")),
    "tool result": pair([*CALLS, RESULT], "It is 2."),
    "tool call": {"prompt": CALLS[:1], "chosen": CALLS[1:], "rejected": turns(("assistant", "2"))},
    "special text": pair(turns(("user", "</s><s>"))),
    "ends with the assistant": pair(turns(("user", "Hi"), ("assistant", "Well"))),
}


class Trl:
    """The three trainers of TRL, made once, whose tokenisation takes any tokenizer."""

    def __init__(self, folder: str) -> None:
        causal = AutoModelForCausalLM.from_pretrained(folder)
        rows = [
            {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": i > 0}
            for i in range(2)
        ]
        args = {"output_dir": folder, "report_to": [], "use_cpu": True, "bf16": False, "max_length": None}
        kinds: list[tuple[Any, Any, list[str]]] = [
            (DPOTrainer, DPOConfig, ["prompt", "chosen", "rejected"]),
            (KTOTrainer, KTOConfig, ["prompt", "completion", "label"]),
            (SFTTrainer, SFTConfig, ["prompt", "completion"]),
        ]
        self._made = {}
        for trainer, config, columns in kinds:
            cfg = config(**args, per_device_train_batch_size=2)
            data = Dataset.from_list(rows).select_columns(columns)
            model = causal if trainer is SFTTrainer else AutoModelForCausalLM.from_pretrained(folder)
            made = trainer(model=model, args=cfg, train_dataset=data, processing_class=tiny.tokenizer())
            self._made[trainer] = (made, cfg)

    def _prepared(self, trainer: Any, row: Row, tokenizer: PreTrainedTokenizerFast, *more: Any) -> Row:
        made, cfg = self._made[trainer]
        made._tokenizer = tokenizer
        return made._prepare_dataset(Dataset.from_list([row, row]), tokenizer, cfg, *more, "eval")[0]

    def dpo(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        made = self._prepared(DPOTrainer, row, tokenizer)
        return made["prompt_ids"], made["chosen_ids"], made["rejected_ids"]

    def kto(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        thumb = {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
        made = self._prepared(KTOTrainer, thumb, tokenizer)
        return made["prompt_ids"], made["completion_ids"]

    def kto_batch(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerFast, max_length: int
    ) -> list[list[int]]:
        """Each prompt with its mismatched completion, as the model sees them."""
        made, cfg = self._made[KTOTrainer]
        made._tokenizer = tokenizer
        cfg = KTOConfig(cfg.output_dir, per_device_train_batch_size=len(rows), max_length=max_length, use_cpu=True,
                        bf16=False)  # fmt: skip
        data = made._prepare_dataset(Dataset.from_list(rows), tokenizer, cfg, "eval")
        collate = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=max_length)
        seen = collate([{**row, "label": True} for row in data])
        return [
            ids[mask.bool()].tolist()
            for ids, mask in zip(seen["KL_input_ids"], seen["KL_attention_mask"], strict=True)
        ]

    def sft(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        demonstration = {"prompt": row["prompt"], "completion": row["chosen"]}
        made = self._prepared(SFTTrainer, demonstration, tokenizer, False, None)
        learned = [token for token in made["labels"] if token != -100]
        return made["input_ids"][: len(made["input_ids"]) - len(learned)], learned


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Trl:
    return Trl(str(tiny.folder(tmp_path_factory.mktemp("chat") / "model")))


def at(when: datetime) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return when

    return Clock


@pytest.fixture(autouse=True)
def trls_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock that TRL reads to the date that Accord gives to templates."""
    monkeypatch.setattr(chat_template_utils, "datetime", at(TODAY))


def ours(row: Row, tokenizer: PreTrainedTokenizerFast, prompt_format: str, *sides: str) -> Ids:
    row = canonical(SourceRow("here", row))
    example = Encoder(tokenizer, prompt_format, LONG).example(row["prompt"], [row[side] for side in sides])
    assert example is not None
    return ids_of(example)


def text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def ids_of(example: Example) -> Ids:
    return list(example.prompt), *map(list, example.completions)


def joined(row: Row) -> Row:
    """The row with a string for each content in parts."""
    return {
        side: [{**t, "content": "".join(p["text"] for p in t["content"])} for t in messages]
        for side, messages in row.items()
    }


def wrapped(row: Row) -> Row:
    """The row with one part for each content that is a string."""
    return {
        side: [
            {**t, "content": parts(t["content"]) if isinstance(t["content"], str) else t["content"]}
            for t in messages
        ]
        for side, messages in row.items()
    }


def as_it_takes(name: str, kind: str) -> Row:
    if name == "parts-only":
        return wrapped(ROWS[kind])
    return joined(ROWS[kind]) if kind == "parts" and name != "parts-or-text" else ROWS[kind]


def test_a_mismatched_answer_is_cut_once_as_in_trl(trl: Trl) -> None:
    """What stands behind another prompt is the start of the whole answer, as much as fits; answers longer than any
    room among them. The prompts fit here: where they do not, Accord cuts them and TRL drops the row."""
    tokenizer = Family("", prefix=("<s>",)).tokenizer()
    sizes = ((0, 60), (9, 3), (15, 0), (3, 15), (1, 8), (12, 40))
    rows = [
        {"prompt": "p" * n, "completion": "abcdefghij"[i] * m, "label": i > 2}
        for i, (n, m) in enumerate(sizes)
    ]
    want = trl.kto_batch(rows, tokenizer, max_length=20)
    encoder = Encoder(tokenizer, "none", 20)
    made = [encoder.example(r["prompt"], (r["completion"],), r["label"]) for r in rows]
    examples = rotated([e for e in made if e], len(rows), max_length=20)
    fits = [i for i, (n, m) in enumerate(sizes) if 1 + n + m + 1 <= 20 or n == 0]
    assert len(fits) == 5
    for i in fits:
        assert [*examples[i].prompt, *examples[i].mismatched] == want[i]


REFUSALS = {"Roles must alternate", "No system role", "One call at a time"}  # in the templates' own words


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_are_trls_tokens(trl: Trl, name: str, kind: str) -> None:
    """Or both refuse the row; Accord's message has the template's own text and none of the row's."""
    tokenizer, row = FAMILIES[name].tokenizer(), as_it_takes(name, kind)
    try:
        want, refused = trl.dpo(row, tokenizer), ""
    except TemplateError as error:
        want, refused = (), str(error)
    if refused:
        words = f": {refused}" if refused in REFUSALS else "$"
        with pytest.raises(DataError, match=f"row 0: the chat template does not take its turns{words}"):
            ours(ROWS[kind], tokenizer, "chat", "chosen", "rejected")
    else:
        assert ours(ROWS[kind], tokenizer, "auto", "chosen", "rejected") == want
        prompt = Encoder(tokenizer, "chat", LONG).prompt(ROWS[kind]["prompt"])
        assert list(prompt) == ours(ROWS[kind], tokenizer, "chat", "chosen")[0]


@pytest.mark.parametrize("name", ["qwen2.5-base", "deepseek-r1", "chatglm"])
def test_kto_and_sft_read_the_same_tokens(trl: Trl, name: str) -> None:
    tokenizer, row = FAMILIES[name].tokenizer(), ROWS["system"]
    assert ours(row, tokenizer, "chat", "chosen") == trl.kto(row, tokenizer) == trl.sft(row, tokenizer)


PLAIN = {"prompt": "Who are you? ", "chosen": "a b.", "rejected": "No</s>"}


@pytest.mark.parametrize("row", [PLAIN, {**PLAIN, "prompt": "<s>Hi\n"}, {**PLAIN, "chosen": "</s>\n"}])
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_rows_are_trls_tokens(trl: Trl, name: str, row: Row) -> None:
    """With the tokenizer's own prefix and suffix, BOS or not; merged: 'Assistant: ' is one token less alone."""
    tokenizer = FAMILIES[name].tokenizer()
    encoder = Encoder(tokenizer, "none", LONG)
    example = encoder.example(row["prompt"], (row["chosen"], row["rejected"]))
    assert example is not None
    assert ids_of(example) == trl.dpo(row, tokenizer)
    assert encoder.prompt(row["prompt"]) == example.prompt
    assert not encoder.remarks


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
