"""Reading a run folder into values."""

import json

import pytest

from core.errors import DataError
from server_app.report.reading import read_run
from tests.server_app.report.sample import dpo_record, dpo_run, write_run


def test_every_file_is_read(tmp_path):
    run = read_run(dpo_run(tmp_path))
    assert (run.task, run.strategy, run.status, run.rounds, run.completed) == (
        "dpo",
        "fedavg",
        "finished",
        12,
        12,
    )
    assert run.config["train.local-steps"] == 10
    assert run.records[4].failed == {5: "no answer within 60 s", 6: "no answer within 60 s"}
    assert run.records[3].eval.clients[7]["examples"] == 48
    assert [path.name for path in run.adapters()] == ["adapter"]
    assert run.answers[0].after == "the red bird is kind and sings"


def test_the_variant_is_part_of_the_strategys_name(tmp_path):
    run = read_run(write_run(tmp_path, [], strategy={"name": "fedadam", "variant": "paper"}))
    assert run.strategy == "fedadam (paper)"


def test_an_empty_folder_is_a_run_without_rounds(tmp_path):
    run = read_run(tmp_path)
    assert (run.records, run.answers, run.adapters(), run.status, run.completed) == ((), (), [], "running", 0)


def test_a_torn_last_line_is_left_out_and_a_repeated_round_counts_once(tmp_path):
    again = {**dpo_record(1), "bytes_up": 7}
    folder = write_run(tmp_path, [dpo_record(0), dpo_record(1), again])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "par')
    run = read_run(folder)
    assert [r.round for r in run.records] == [0, 1]
    assert run.records[1].bytes_up == 7


def test_a_broken_line_in_the_middle_is_refused_by_number(tmp_path):
    folder = write_run(tmp_path, [])
    (folder / "metrics.jsonl").write_text(json.dumps(dpo_record(0)) + "\n{}\n" + json.dumps(dpo_record(1)))
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2: expected a round's metrics"):
        read_run(folder)


def test_a_broken_manifest_is_refused(tmp_path):
    folder = write_run(tmp_path, [])
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: expected JSON"):
        read_run(folder)


def test_a_round_without_a_total_sums_its_stages(tmp_path):
    record = {**dpo_record(1), "seconds": {"train": 2.0, "wire": 0.5}}
    empty = {**dpo_record(2), "seconds": {}}
    run = read_run(write_run(tmp_path, [record, empty]))
    assert [r.total_s for r in run.records] == [2.5, None]


def test_all_adapters_of_several_are_listed(tmp_path):
    folder = write_run(tmp_path, [{**dpo_record(1), "route": {"3": "c1", "10": "c0"}}])
    for name in ("c0", "c1"):
        (folder / "adapters" / name).mkdir(parents=True)
        (folder / "adapters" / name / "adapter_config.json").write_text("{}")
    run = read_run(folder)
    assert [path.name for path in run.adapters()] == ["adapter", "c0", "c1"]
    assert run.records[0].route == {3: "c1", 10: "c0"}
