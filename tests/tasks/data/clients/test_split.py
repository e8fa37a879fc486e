import json
from pathlib import Path

import pytest

from core.config import parse
from tasks.data.clients.rows import ClientRows, client_rows
from tasks.data.clients.split import answers_key, choose, prompt_key, share_in, split_rows


def pair(prompt, chosen="good", rejected="bad") -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def rows_of(path: Path, client: int = 0, clients: int = 1, **keys) -> ClientRows:
    keys = {"data.source": "jsonl", "data.path": str(path), **keys}
    config = parse(keys)
    return client_rows(config, config.task_choice.build(), client, clients)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        messages,
        lambda text: [{"role": "system", "content": "Be brief."}, *messages(text)],
        lambda text: f"\n\nHuman: {text}\n\nAssistant:",
    ],
    ids=["string", "messages", "system", "transcript"],
)
@pytest.mark.parametrize("kind", ["pairs", "thumbs", "demonstrations"])
def test_no_prompt_is_on_both_sides(form, kind):
    """40 rows over 13 prompts: 10 rows are to be held out, and a prompt has 3 or 4."""
    columns = {
        "pairs": lambda n: {"chosen": f"good {n}", "rejected": f"bad {n}"},
        "thumbs": lambda n: {"completion": f"answer {n}", "label": n % 3 > 0},
        "demonstrations": lambda n: {"completion": f"answer {n}"},
    }[kind]
    rows = [{"prompt": form(f"question {n % 13}"), **columns(n)} for n in range(40)]
    split = split_rows(rows, 0.25, 7)
    assert sorted(split.train + split.heldout) == list(range(40))
    assert not {n % 13 for n in split.train} & {n % 13 for n in split.heldout}
    assert 9 <= len(split.heldout) <= 11
    assert split.unit == "prompt"


def test_prompts_are_compared_without_case_spacing_and_unicode_form():
    """A single user message equals its text; another role does not."""
    same = ["Where is it?", "  where is\nit? ", "Where is it\uff1f", messages("Where is it?")]
    assert len({prompt_key(prompt) for prompt in same}) == 1
    different = [
        "Where is he?",
        [{"role": "system", "content": "Where is it?"}],
        [*messages("x"), *messages("y")],
    ]
    assert len({prompt_key(prompt) for prompt in [same[0], *different]}) == 4


def test_rows_of_one_prompt_are_split_by_their_answers():
    """A pair that is judged twice, once each way, is on one side."""
    rows = [pair("Tell me a joke.", f"joke {n % 8}", "bad") for n in range(16)]
    rows += [pair("Tell me a joke.", "bad", f"joke {n}") for n in range(8)]
    split = split_rows(rows, 0.25, 1)
    assert (split.unit, len(split.heldout)) == ("row", 6)
    sides = [{answers_key(rows[n]) for n in part} for part in (split.train, split.heldout)]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("rows", "fraction", "held"),
    [
        ([], 0.25, 0),
        ([pair("a")], 0.25, 0),
        ([pair("a")] * 9, 0.25, 0),  # the same row nine times
        ([pair("a"), pair("b")], 0.25, 1),
        ([pair("a"), pair("b")], 0.9, 1),
        ([pair("a"), pair("b")], 0.0, 0),
        ([pair("a", f"good {n}") for n in range(30)] + [pair("b")], 0.25, 1),  # not the 30 rows of a
    ],
)
def test_neither_side_is_empty_if_rows_differ(rows, fraction, held):
    split = split_rows(rows, fraction, 0)
    assert (len(split.train), len(split.heldout)) == (len(rows) - held, held)
    assert held or split.unit == "none"


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    sizes = {f"prompt {n}": 1 + n % 4 for n in range(40)}
    assert choose(sizes, 0.25, 1) == choose(dict(reversed(sizes.items())), 0.25, 1)
    assert choose(sizes, 0.25, 1) != choose(sizes, 0.25, 2)
    assert 24 <= sum(sizes[key] for key in choose(sizes, 0.25, 1)) <= 26  # a quarter of 100 rows


def test_two_clients_hold_out_the_same_prompts():
    """Equal sizes here, so that both take the first ten of the same order; a third lacks half of the prompts."""
    first, second, third = (
        {prompt_key(rows[n]["prompt"]) for n in split_rows(rows, 0.25, 3).heldout}
        for rows in (
            [pair(f"q{n}", f"a{n}") for n in range(40)],
            [pair(f"q{n}", f"b{n}") for n in reversed(range(40))],
            [pair(f"q{n}") for n in range(0, 40, 2)],
        )
    )
    assert first == second
    assert len(first & third) >= 3


def test_the_share_of_prompts_that_are_also_trained_on_is_reported(tmp_path):
    """Client a has a single prompt; no held-out prompt of client b is trained on."""
    rows = [{**pair("Tell me a joke.", f"joke {n}"), "client_id": "a"} for n in range(8)]
    rows += [{**pair(f"q{n}"), "client_id": "b"} for n in range(8)]
    path = write(tmp_path / "rows.jsonl", rows)
    splits = [rows_of(path, client, 2).split for client in (0, 1)]
    assert [split.facts() for split in splits] == [
        {"rows": 2, "unit": "row", "shared": 1.0, "anywhere": 1.0},
        {"rows": 2, "unit": "prompt", "shared": 0.0, "anywhere": 0.0},
    ]
    rows = client_rows(parse({}), parse({}).task_choice.build(), 0, 1, path=str(path)).split
    assert rows.anywhere is None  # the rows of other sites are unknown


def test_prompts_of_other_clients_count_as_trained_on_anywhere(tmp_path):
    """a has one row for each of 8 prompts; b has twelve for each, so that b can hold out two and a's two are there."""
    rows = [{**pair(f"q{n}"), "client_id": "a"} for n in range(8)]
    rows += [{**pair(f"q{n % 2}", f"x{n}"), "client_id": "b"} for n in range(24)]
    path = write(tmp_path / "rows.jsonl", rows)
    first, second = (rows_of(path, client, 2) for client in (0, 1))
    trained = {prompt_key(row["prompt"]) for rows in (first, second) for row in rows.train}
    for each in (first, second):
        assert each.split.shared == 0.0
        assert each.split.anywhere == share_in(each.heldout, trained)


def test_redistributed_rows_may_share_prompts_and_this_is_reported(tmp_path):
    """ktor redistributes the training rows of all clients, regardless of held-out prompts."""
    path = tmp_path / "rows.jsonl"
    write(path, [{**pair(f"q{n % 6}", f"x{n}"), "client_id": "ab"[n % 2]} for n in range(24)])
    keys = {"task.name": "kto", "data.allocation": "ktor"}
    rows = rows_of(path, 0, 2, **keys)
    assert rows.split.shared == share_in(rows.heldout, {prompt_key(row["prompt"]) for row in rows.train})


def test_the_toy_source_has_its_own_split():
    config = parse({})
    rows = client_rows(config, config.task_choice.build(), 0, 8)
    assert (rows.split.unit, rows.split.shared, rows.split.anywhere) == ("source", 0.0, 0.0)
