"""Facts from the clients' hellos, in the manifest and as sentences; none of them is trusted."""

import pytest

from server_app.report.clients import count_clients, facts_of, notes


def hello(examples: int = 9, **more) -> dict:
    return {"examples": examples, "skipped": {}, "data": "ab", "truth": None, "clients": 3, **more}


def heldout(rows: int, unit: str = "prompt", shared: float = 0.0, anywhere: float = 0.0) -> dict:
    return {"rows": rows, "unit": unit, "shared": shared, "anywhere": anywhere}


def test_the_manifest_lists_clients_by_number_with_their_names():
    facts = facts_of(
        {1: hello(name="a\x1b[2Jb" + "x" * 99), 0: hello(loads=2, heldout=heldout(3)), 2: hello(name="")}
    )
    assert list(facts["clients"]) == ["0", "1", "2"]
    assert facts["clients"]["0"] == {"examples": 9, "skipped": {}, "loads": 2, "heldout": heldout(3)}
    assert facts["clients"]["1"]["name"] == "a [2Jb" + "x" * 31 + "..."
    assert "name" not in facts["clients"]["2"]
    assert facts["left_out"] == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"heldout": "all"},
        {"heldout": {"rows": "3"}},
        {"heldout": {"rows": -1, "unit": "prompt"}},
        {"aside": {"rows": True}},
        {"name": {"a": 1}},
        {"left_out": [1]},
        {"left_out": {"smaller": {"owners": -1, "rows": 2}}},
        {"left_out": {"other": {"owners": 1, "rows": 2}}},
    ],
)
def test_a_value_of_another_form_is_omitted(wrong):
    facts = facts_of({0: hello(**wrong)})
    assert facts["clients"] == {"0": {"examples": 9, "skipped": {}, "loads": 0}}
    assert facts["left_out"] == {}


def test_an_invalid_share_is_omitted():
    invalid = {"rows": 3, "unit": "odd", "shared": 7.0, "anywhere": float("nan")}
    assert facts_of({0: hello(heldout=invalid)})["clients"]["0"]["heldout"] == {"rows": 3}


def test_clients_without_remarkable_rows_are_not_mentioned():
    assert notes(facts_of({0: hello(heldout=heldout(3)), 1: hello()}), {}) == []


def test_owners_and_rows_left_out_are_named():
    """Of 31 owners 8 are clients, 23 with 514 rows are left out; one more has no trainable row."""
    left_out = {
        "smaller": {"owners": 23, "rows": 514, "names": ["w1", "w2", "w\n3", "w4"]},
        "untrainable": {"owners": 1, "rows": 1, "names": ["w9"]},
    }
    facts = facts_of({c: hello(heldout=heldout(0 if c == 1 else 3), left_out=left_out) for c in range(8)})
    smaller, untrainable, none = notes(facts, {1: "south"})
    assert "23 owners of 514 rows (w1, w2, w 3 and 20 more)" in smaller
    assert "federation.num-supernodes=31" in smaller
    assert "1 owner of 1 row (w9)" in untrainable
    assert "client south (1)" in none
    assert not any(name in note for note in notes(facts, {}) for name in ("w1", "w9", "south"))


def test_held_out_rows_whose_prompts_are_trained_on_are_named_with_the_reason():
    """10 of 40 rows at their own client, 22 somewhere."""
    facts = facts_of({
        0: hello(heldout=heldout(10, "row", 1.0, 1.0)),
        1: hello(heldout=heldout(30, "prompt", 0.0, 0.4)),
        2: hello(aside={"rows": 8, "shared": 0.5}),
    })  # fmt: skip
    same_client, anywhere, comparison = notes(facts, {})
    assert "25.0 % of 40 held-out rows" in same_client
    assert "1 client whose rows all have the same prompt" in same_client
    assert "55.0 % of 40 held-out rows" in anywhere
    assert "50.0 % of 8 rows set aside" in comparison


def test_the_number_of_clients_is_what_most_hellos_report():
    assert count_clients({0: hello(), 1: hello(clients="many"), 2: hello()}) == 3
    assert count_clients({0: {"client": 0}, 1: {}}) == 2
