"""Chat rows are rendered by the template: token ids equal those of TRL 1.16 for many kinds of templates."""

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from core.errors import DataError
from tasks.base import Row
from tasks.data.base import SourceRow, canonical
from tasks.kto import rotated
from tasks.tokens.encode import Encoder
from tests import tiny
from tests.tasks.tokens.conversations import LONG, ROWS, Ids, ids_of, parts
from tests.tasks.tokens.templates import FAMILIES, Family
from tests.tasks.tokens.trl_tokens import Trl

pytestmark = pytest.mark.usefixtures("trls_clock")


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Trl:
    return Trl(str(tiny.folder(tmp_path_factory.mktemp("chat") / "model")))


def ours(row: Row, tokenizer: PreTrainedTokenizerFast, prompt_format: str, *sides: str) -> Ids:
    row = canonical(SourceRow("here", row))
    example = Encoder(tokenizer, prompt_format, LONG).example(row["prompt"], [row[side] for side in sides])
    assert example is not None
    return ids_of(example)


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
