"""A fault that shows after reading has file and line, and obeys data.on-bad-row; file names do not leave a site."""

import json
from pathlib import Path

import pytest

from client_app.handle import Claim, Request, handle
from client_app.node import Node
from client_app.site import Site
from core import wire
from core.config import parse
from core.errors import DataError
from core.framing import FACTS
from core.types import HelloRequest, Json
from tasks.data.clients.rows import client_rows
from tasks.data.reading.places import PlacedRow

SECRET = "marker-20c1"
KEYS = {"data.source": "jsonl", "data.prompt-format": "alpaca", "data.eval-fraction": 0.4}
GOOD = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(9)]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def talk(n: int, *before: dict[str, str]) -> Json:
    return {
        "prompt": [*before, turn("user", f"q{n}")],
        "chosen": [turn("assistant", f"good {n}")],
        "rejected": [turn("assistant", f"bad {n}")],
    }


SYSTEM = talk(9, turn("system", SECRET))  # what alpaca has no words for
LONG = {**GOOD[0], "prompt": f"{SECRET} " * 400}
FAULTS = {
    "template": ([*(talk(n) for n in range(9)), SYSTEM], {}, "prompt-format alpaca holds one user turn"),
    "length": ([*GOOD, LONG], {"train.on-long-row": "error"}, "exceed train.max-length"),
}


def write(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", ["dpo", "kto", "sft", "selector"])
def test_every_view_of_a_row_knows_its_line(tmp_path, task):
    path = write(tmp_path / "anna.jsonl", GOOD)
    config = parse({"data.source": "jsonl", "task.name": task})
    held = client_rows(config, config.task_choice.build(), 0, 1, path=str(path))
    for row in [*held.train, *held.heldout]:
        assert isinstance(row, PlacedRow)
        assert row.place.where == f"anna.jsonl line {int(row['prompt'][1:]) + 1}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_after_reading_is_named_or_counted(tmp_path, fault):
    """In whichever part the row falls: it is trained on under one seed and held out under another."""
    rows, keys, why = FAULTS[fault]
    node = Node(0, 1, data_path=str(write(tmp_path / "anna.jsonl", rows)), state_dir=str(tmp_path))
    for seed in (1, 2, 3):
        flat = {**KEYS, **keys, "run.seed": seed}
        with pytest.raises(DataError, match=f"anna.jsonl line 10: .*{why}") as error:
            Site(parse(flat), node).hello(HelloRequest("r"))
        assert SECRET not in str(error.value)
        said = Site(parse({**flat, "data.on-bad-row": "skip"}), node).hello(HelloRequest("r"))
        assert sum(said["skipped"].values()) == 1
        assert SECRET not in str(said)


def test_what_leaves_a_site_names_no_file_and_no_column_of_its_own(tmp_path):
    path = write(tmp_path / "anna.jsonl", [*GOOD, {"question": "q"}])
    facts = {"partition-id": 0, "num-partitions": 1, "data-path": str(path), "state-dir": str(tmp_path)}

    def said(keys: dict) -> Json:
        request = Request("hello", keys, wire.encode_hello_request(HelloRequest("r")), Claim("1", "", "app"))
        return json.loads(str(handle(request, facts).config_records[FACTS]["json"]))

    kind, reason = said(KEYS)["failure"]
    assert kind == "DataError"
    assert reason.startswith("the site's file line 10: misses columns")
    assert "anna" not in reason
    write(path, [{**row, "Anna_Example": 1} for row in GOOD])
    answer = said(KEYS)
    assert answer["columns"] == {"used": ["prompt", "chosen", "rejected"], "ignored": ["1 others"]}
    assert "nna" not in str(answer)
