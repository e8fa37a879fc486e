"""The terminal output, line by line."""

import json

import pytest

from core.config import defaults
from server_app.report import console
from server_app.report.formatting import duration, interval, number, points, ranges, size, value
from server_app.report.stats import Estimate
from tasks.tokens.encode import DIFFERS, NO_CALLS
from tests.server_app.report.sample import dpo_record, dpo_run, selector_record, sft_record, write_run


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_the_plan_has_three_lines(tmp_path):
    config = {**defaults(), "train.gradient-accumulation-steps": 2, "strategy.fraction-train": 0.5}
    lines = console.plan_lines(config, manifest(dpo_run(tmp_path)), "runs/x")
    assert lines == [
        "plan     dpo on toy (float32, LoRA r=8) with fedavg: 8 clients, 348 rows (40 to 47 each, 1 skipped), seed 42",
        "         12 rounds with 50% of the clients, 10 steps x 16 rows per client and round; "
        "frozen base 3f2a9c01d4e5 is the reference of every client",
        "         results go to runs/x",
    ]


def test_the_plan_names_rows_left_out_and_warns_of_the_toy_model_on_other_rows(tmp_path):
    clients = {"0": {"examples": 5, "name": "north", "heldout": {"rows": 2, "unit": "row", "shared": 1.0}}}
    left_out = {"smaller": {"owners": 2, "rows": 7, "names": ["s", "t"]}}
    folder = write_run(tmp_path, [], clients=clients, left_out=left_out)
    foreign = {"data.source": "jsonl", "model.name": "toy"}
    text = " ".join(" ".join(console.plan_lines({**defaults(), **foreign}, manifest(folder), folder)).split())
    assert "2 owners of 7 rows (s, t) are left out" in text
    assert "100.0 % of 2 held-out rows have a prompt that the same client trains on" in text
    assert text.count("warning: model.name = 'toy'") == 1
    for harmless in ({"data.source": "toy"}, {**foreign, "model.name": "org/model"}):
        assert "warning" not in str(console.plan_lines({**defaults(), **harmless}, manifest(folder), folder))


def test_clients_carry_their_names_in_rows_and_failures():
    """The column of the worst client is as wide as the longest name needs, under its head as well."""
    names = {c: f"a name of client {c}" for c in range(7)} | {1: "\x1b[31mnorth\n"}
    rows = [dpo_record(r) for r in range(3)]
    (line,), head = console.round_lines(rows, 12, names), console.header(names)
    assert "52.1 % ([31mnorth, 1)" in line
    assert len(line) == len(head) <= console.WIDTH + 12
    assert head.index("worst client") + len("worst client") == line.index("north, 1)") + len("north, 1)")
    _, failed = console.round_lines([rows[0], dpo_record(1, absent=(0, 7))], 12, names)
    assert failed.strip() == (
        "no answer: client a name of client 0 (0): no answer within 60 s, client 7: no answer within 60 s"
    )


def test_sft_has_no_reference_and_a_variant_is_named(tmp_path):
    folder = write_run(
        tmp_path, [], clients={"0": {"examples": 5}}, strategy={"name": "x", "variant": "paper"}
    )
    lines = console.plan_lines({**defaults(), "task.name": "sft"}, manifest(folder), folder)
    assert "fedavg (paper): 1 client, 5 rows (5 each)" in lines[0]
    assert "is the same on every client" in lines[1]


def test_a_round_is_one_row_under_its_head(tmp_path):
    """Rounds 1 and 2 took 6.65 and 4.85 s, so ten more take 57.5 s at that pace."""
    rows = [dpo_record(r) for r in range(3)]
    (line,) = console.round_lines(rows, 12)
    head = console.header()
    assert " ".join(line.split()) == "2/12 8/8 0.6359 56.0 % 52.1 % (1) 336 kB 672 kB 4.8 s 57.5 s"
    assert len(line) == len(head) <= console.WIDTH
    for title, cell in [("clients", "8/8"), ("loss", "0.6359"), ("accuracy", "56.0 %"), ("left", "57.5 s")]:
        assert head.index(title) + len(title) == line.index(cell) + len(cell)


def test_round_zero_shows_the_evaluation_of_the_base():
    (line,) = console.round_lines([dpo_record(0)], 12)
    assert " ".join(line.split()) == "0/12 - - 50.0 % 43.8 % (6) 8 kB 336 kB 1.5 s -"


def test_failed_clients_are_on_a_second_line_without_control_characters():
    record = dpo_record(1, absent=(0, 2, 4, 6))
    record["failed"]["0"] = "\x1b[31mdisk\nfull"
    row, failed = console.round_lines([dpo_record(0), record], 12)
    assert "4/8" in row
    assert failed.strip().startswith("no answer: client 0 ([31mdisk full), client 2 (no answer within 60 s)")
    assert failed.endswith("and 1 more")


def test_absent_values_print_as_a_dash():
    (line,) = console.round_lines([{"round": 3, "participants": [1]}], 3)
    assert line.split() == ["3/3", "1/1", *"-------"]
    (line,) = console.round_lines([sft_record(1)], 3)
    assert " ".join(line.split()) == "1/3 3/3 1.8 42.0 % 42.0 % (0) - - - -"


def test_a_selectors_round_shows_its_accuracy():
    """280 of 384, and 26 of 48 at the worst client."""
    (line,) = console.round_lines([selector_record(12)], 12)
    assert line.split()[3:8] == ["72.9", "%", "54.2", "%", "(5)"]


def test_units():
    assert [size(n) for n in (None, 0, 999, 1000, 41_500, 999_700, 3_200_000_000)] == [
        "-", "0 B", "999 B", "1 kB", "41.5 kB", "1 MB", "3.2 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (None, 0.04, 59.96, 61, 3599.6, 7260, float("nan"))] == [
        "-", "0.0 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 01 min", "-",
    ]  # fmt: skip
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert [number(x) for x in (None, 0.0, 0.693147, -41.25, 2e-5, float("nan"))] == [
        "-", "0", "0.6931", "-41.25", "2.00e-05", "nan",
    ]  # fmt: skip


def test_points_that_round_to_zero_have_no_sign():
    assert [points(x) for x in (-0.0004, 0.0, 0.0004, 0.015, -0.015)] == ["0.0", "0.0", "0.0", "+1.5", "-1.5"]
    gain = Estimate("gain", "", -0.0004, -0.0004, 0.021, unit="points")
    assert (value(gain), interval(gain)) == ("0.0 points", "0.0 to +2.1")


def test_as_json_a_round_is_an_object_without_missing_values(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(console, "_format", "json")
    record = dpo_record(1, absent=(0, 2))
    record["failed"]["0"] = "\x1b[31mdisk\nfull"
    console.say("")
    console.say_head(console.header())
    console.say("plan     what will happen", level="ERROR")
    console.say_round([dpo_record(0)], 12)
    console.say_round([dpo_record(0), record], 12)
    console.say_end(tmp_path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["message"] for line in lines] == [
        "plan what will happen",
        "round 0 of 12",
        "round 1 of 12",
        "finished",
    ]
    assert [line["level"] for line in lines] == ["ERROR", "INFO", "INFO", "INFO"]
    assert "loss" not in lines[1]
    assert (lines[2]["clients"], lines[2]["failed"].keys()) == (6, {"0", "2"})
    assert lines[2]["loss"] == pytest.approx(record["train"]["mean"]["loss"])
    assert lines[2]["logps/accuracies"] == record["eval"]["mean"]["logps/accuracies"]


def test_a_remark_of_the_strategy_is_a_line_of_its_own():
    record = {**dpo_record(1), "remarks": ["strategy.robust = 'median' protected nobody"]}
    _, remark = console.round_lines([dpo_record(0), record], 12)
    assert remark.strip() == "strategy.robust = 'median' protected nobody"


def test_the_plan_has_the_notes_of_a_template_and_the_numbers_of_rows():
    """Counts are summed over the clients; unknown remarks and invalid counts are ignored."""
    hellos = [
        {"remarks": {DIFFERS: 3}},
        {"remarks": {DIFFERS: 4, NO_CALLS: 0, "secret": 9}},
        {"remarks": {DIFFERS: "many", NO_CALLS: True}},
        {"remarks": None},
        {},
    ]
    assert console.template_notes(["the template is odd"], hellos) == [
        "note     the template is odd",
        f"note     7 rows: {DIFFERS}",
    ]
    assert console.template_notes([], [{}]) == []
