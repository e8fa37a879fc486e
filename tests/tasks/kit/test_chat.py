"""Chat rows are what the template renders: token ids against TRL 1.16's for templates of every shape."""

from collections.abc import Callable
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
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.errors import ConfigError, DataError
from tasks.base import Example, Row
from tasks.data.base import Found, canonical
from tasks.kit.chat import TODAY
from tasks.kit.encode import Encoder
from tests import tiny
from tests.tasks.kit.templates import CHATML_TURNS, FAMILIES, Family

LONG = 4000
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
Ids = tuple[list[int], ...]  # a prompt, and the completions behind it


def turns(*said: tuple[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content, **more} for role, content in said]


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
        self._made = {}
        for trainer, config, columns in (
            (DPOTrainer, DPOConfig, ["prompt", "chosen", "rejected"]),
            (KTOTrainer, KTOConfig, ["prompt", "completion", "label"]),
            (SFTTrainer, SFTConfig, ["prompt", "completion"]),
        ):
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
    """TRL reads the machine's clock: it stands at the date that Accord gives to templates."""
    monkeypatch.setattr(chat_template_utils, "datetime", at(TODAY))


def ours(row: Row, tokenizer: PreTrainedTokenizerFast, prompt_format: str, *sides: str) -> Ids:
    row = canonical(Found("here", row))
    example = Encoder(tokenizer, prompt_format, LONG).example(row["prompt"], [row[side] for side in sides])
    assert example is not None
    return ids_of(example)


def ids_of(example: Example) -> Ids:
    return list(example.prompt), *map(list, example.completions)


def joined(row: Row) -> Row:
    """The row with a string for each content in parts."""
    return {
        side: [{**t, "content": "".join(p["text"] for p in t["content"])} for t in said]
        for side, said in row.items()
    }


def wrapped(row: Row) -> Row:
    """The row with one part for each content that is a string."""
    return {
        side: [
            {**t, "content": parts(t["content"]) if isinstance(t["content"], str) else t["content"]}
            for t in said
        ]
        for side, said in row.items()
    }


def as_it_takes(name: str, kind: str) -> Row:
    if name == "parts-only":
        return wrapped(ROWS[kind])
    return joined(ROWS[kind]) if kind == "parts" and name != "parts-or-text" else ROWS[kind]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_are_trls_tokens(trl: Trl, name: str, kind: str) -> None:
    """Or both refuse the row: ours names no word of it."""
    tokenizer, row = FAMILIES[name].tokenizer(), as_it_takes(name, kind)
    try:
        want = trl.dpo(row, tokenizer)
    except (TemplateError, TypeError) as error:
        with pytest.raises(DataError, match="chat template") as refusal:
            ours(ROWS[kind], tokenizer, "chat", "chosen", "rejected")
        if str(error) in ("Roles must alternate", "No system role", "One call at a time"):
            assert str(error) in str(refusal.value)
        return
    assert ours(ROWS[kind], tokenizer, "auto", "chosen", "rejected") == want
    assert ours(ROWS[kind], tokenizer, "chat", "chosen") == trl.kto(row, tokenizer) == trl.sft(row, tokenizer)
