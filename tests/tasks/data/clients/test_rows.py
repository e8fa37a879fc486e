import json
from collections import Counter
from pathlib import Path

import pytest

from core.config import parse
from core.errors import ConfigError, DataError
from tasks.data.clients.rows import ClientRows, client_rows


def rows_of(client: int, clients: int, *, path: str = "", everyone: bool = False, **keys) -> ClientRows:
    config = parse({key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()})
    return client_rows(config, config.task_choice.build(), client, clients, path=path, everyone=everyone)


def text(rows) -> list[str]:
    return [json.dumps(row, sort_keys=True) for row in rows]


def write(path: Path, owner: str | None, numbers: range) -> Path:
    with path.open("a") as file:
        for n in numbers:
            row = {"prompt": f"p{n}", "chosen": f"good{n}", "rejected": f"bad{n}", "client_id": owner}
            file.write(json.dumps(row) + "\n")
    return path


def test_each_task_gets_its_own_view_of_the_same_rows():
    """48 pairs: 48 for dpo, 96 thumbs for kto, 48 demonstrations for sft; held-out rows stay pairs."""
    views = {task: rows_of(1, 8, task__name=task) for task in ("dpo", "kto", "sft")}
    assert [len(views[task].train) for task in ("dpo", "kto", "sft")] == [48, 96, 48]
    pairs = views["dpo"].train
    assert [row["completion"] for row in views["sft"].train] == [row["chosen"] for row in pairs]
    assert [row["completion"] for row in views["kto"].train[48:]] == [row["rejected"] for row in pairs]
    assert views["dpo"].heldout == views["kto"].heldout == views["sft"].heldout
    assert len({rows.fingerprint for rows in views.values()}) == 1
    assert views["dpo"].truth == 1


def test_a_seed_changes_rows_and_fingerprint():
    a, b, c = (rows_of(0, 4, run__seed=seed) for seed in (1, 1, 2))
    assert a == b
    assert a.train != c.train
    assert a.fingerprint != c.fingerprint


def test_the_fingerprint_of_equal_rows_depends_on_the_seed(tmp_path):
    """Keyed by the run's seed: the same private file cannot be recognised in another run."""
    path = str(write(tmp_path / "a.jsonl", None, range(9)))
    first, second = (rows_of(0, 2, path=path, run__seed=seed, data__eval_fraction=0.0) for seed in (1, 2))
    assert first.train == second.train
    assert first.fingerprint != second.fingerprint


def test_a_private_file_replaces_the_source(tmp_path):
    path = str(write(tmp_path / "a.jsonl", None, range(20)))
    rows = rows_of(2, 3, path=path)
    assert (len(rows.train), len(rows.heldout), rows.truth) == (15, 5, None)  # data.eval-fraction = 0.25
    assert sorted(row["prompt"] for row in rows.train + rows.heldout) == sorted(f"p{n}" for n in range(20))


def test_private_files_give_the_same_rows_as_a_shared_folder(tmp_path):
    for client, size in enumerate((6, 30, 12)):
        write(tmp_path / f"site-{client}.jsonl", None, range(100 * client, 100 * client + size))
    for client in range(3):
        private = rows_of(client, 3, path=str(tmp_path / f"site-{client}.jsonl"))
        assert private == rows_of(client, 3, data__source="jsonl", data__path=str(tmp_path))


def test_flipped_clients_have_the_same_rows_with_the_opposite_preference():
    """Two of eight clients, in training and held-out rows; `truth` says which ones are flipped."""
    runs = [
        [rows_of(c, 8, data__types=1, data__flipped_clients=share) for c in range(8)] for share in (0.0, 0.25)
    ]
    assert sum(flipped.truth or 0 for flipped in runs[1]) == 2
    for plain, flipped in zip(*runs, strict=True):
        sides = ("chosen", "rejected")[:: -1 if flipped.truth else 1]
        for before, after in ((plain.train, flipped.train), (plain.heldout, flipped.heldout)):
            unflipped = [(row["prompt"], *(row[side] for side in sides)) for row in after]
            assert unflipped == [(row["prompt"], row["chosen"], row["rejected"]) for row in before]


def test_private_files_have_the_same_flipped_clients_and_flips_double_the_types(tmp_path):
    for client in range(6):
        write(tmp_path / f"site-{client}.jsonl", None, range(100 * client, 100 * client + 9))
    for client in range(6):
        keys = {"data__flipped_clients": 0.5}
        private = rows_of(client, 6, path=str(tmp_path / f"site-{client}.jsonl"), **keys)
        assert private == rows_of(client, 6, data__source="jsonl", data__path=str(tmp_path), **keys)
        assert private.truth == (private.train[0]["chosen"].startswith("bad"))
    kinds = {rows_of(c, 8, data__types=2, data__flipped_clients=0.5).truth for c in range(8)}
    assert kinds <= {0, 1, 2, 3}
    assert len(kinds) > 2


def test_centralized_trains_on_flipped_rows():
    keys = {"data__types": 1, "data__flipped_clients": 0.25}
    all_rows = text(rows_of(0, 8, everyone=True, **keys).train)
    assert sorted(all_rows) == sorted(r for c in range(8) for r in text(rows_of(c, 8, **keys).train))


def test_demonstrations_cannot_be_flipped(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": "c"}) + "\n" for n in range(8)))
    keys = {"data__flipped_clients": 0.5, "task__name": "sft"}
    with pytest.raises(ConfigError, match="demonstrations"):
        [rows_of(c, 2, path=str(file), **keys) for c in range(2)]


def test_pairs_are_split_before_they_become_thumbs(tmp_path):
    """Otherwise one answer of a pair could train and the other be held out."""
    path = str(write(tmp_path / "a.jsonl", None, range(20)))
    rows = rows_of(0, 1, path=path, task__name="kto", strategy__min_available_nodes=1)
    assert not {row["prompt"] for row in rows.train} & {row["prompt"] for row in rows.heldout}
    assert all("chosen" in row for row in rows.heldout)


def test_centralized_trains_on_the_training_rows_of_all_clients_and_on_no_held_out_row(tmp_path):
    for client in range(3):
        write(tmp_path / f"s{client}.jsonl", None, range(100 * client, 100 * client + 8))
    where = {"data__source": "jsonl", "data__path": str(tmp_path)}
    separate = [rows_of(client, 3, **where) for client in range(3)]
    together = rows_of(1, 3, everyone=True, **where)
    assert together.train == [row for rows in separate for row in rows.train]
    assert together.heldout == separate[1].heldout


def test_ktor_redistributes_the_thumbs_of_all_clients():
    original, redistributed = ([rows_of(client, 4, task__name="kto", data__allocation=how) for client in range(4)]
                  for how in ("ktoo", "ktor"))  # fmt: skip
    assert [len(rows.train) for rows in redistributed] == [96] * 4
    everything = [
        Counter(line for rows in clients for line in text(rows.train))
        for clients in (original, redistributed)
    ]
    assert everything[0] == everything[1]
    assert all(
        Counter(text(a.train)) != Counter(text(b.train)) for a, b in zip(original, redistributed, strict=True)
    )
    assert [rows.heldout for rows in original] == [rows.heldout for rows in redistributed]


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_training_and_held_out_rows_are_partitioned_separately(how):
    everyone = [rows_of(client, 4, data__partitioner=how, data__dirichlet_alpha=5.0) for client in range(4)]
    natural = [rows_of(client, 4) for client in range(4)]
    for part in ("train", "heldout"):
        shared, own = ([line for rows in clients for line in text(getattr(rows, part))]
                       for clients in (everyone, natural))  # fmt: skip
        assert Counter(shared) == Counter(own)
    assert {rows.truth for rows in everyone} == {None}


def test_settings_that_need_all_rows_are_refused_for_private_files(tmp_path):
    path = str(write(tmp_path / "a.jsonl", None, range(9)))
    with pytest.raises(ConfigError, match=r"data\.allocation = 'ktor' .*client 1"):
        rows_of(1, 2, path=path, task__name="kto", data__allocation="ktor")
    with pytest.raises(ConfigError, match=r"strategy\.name = 'centralized'"):
        rows_of(1, 2, path=path, everyone=True)
    with pytest.raises(ConfigError, match=r"data\.partitioner = 'iid'"):
        rows_of(1, 2, path=path, data__partitioner="iid")


def test_a_client_without_rows_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", "x", range(4))
    with pytest.raises(DataError, match="client 4 of 5 gets no training rows"):
        rows_of(4, 5, data__source="jsonl", data__path=str(path), data__partitioner="iid")
    with pytest.raises(DataError, match="have 1 natural clients, but the federation has 5"):
        rows_of(4, 5, data__source="jsonl", data__path=str(path))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.jsonl holds no row"):
        rows_of(0, 2, path=str(empty))
    down = tmp_path / "down.jsonl"
    down.write_text(json.dumps({"prompt": "p", "completion": "c", "label": False}) + "\n")
    with pytest.raises(DataError, match=r"client 0 has 1 rows, but none to train task\.name = 'sft' on"):
        rows_of(0, 2, path=str(down), task__name="sft")


def test_a_task_that_needs_pairs_does_not_take_thumbs(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completion": "c", "label": True}) + "\n")
    with pytest.raises(ConfigError, match="trains on pairs"):
        rows_of(0, 2, path=str(path))


def test_bad_rows_of_a_shared_file_are_reported_once(tmp_path):
    """Client 0 reports them, so that the sum over clients is right."""
    path = write(tmp_path / "a.jsonl", "x", range(8))
    write(path, "y", range(8))
    with path.open("a") as file:
        file.write("{\n{\n")
    where = {"data__source": "jsonl", "data__path": str(path), "data__on_bad_row": "skip"}
    skipped = [sum(rows_of(client, 2, **where).skipped.values()) for client in range(2)]
    assert skipped == [2, 0]
    with pytest.raises(DataError, match=r"a\.jsonl line 17: malformed JSON"):
        rows_of(0, 2, path=str(path))
    assert sum(rows_of(1, 2, path=str(path), data__on_bad_row="skip").skipped.values()) == 2


def test_client_0_reports_owners_that_are_not_clients_with_the_reason(tmp_path):
    """c has the fewest rows; d has no desirable row to train sft on."""
    path = tmp_path / "a.jsonl"
    rows = [(owner, n) for owner, size in {"a": 4, "b": 5, "c": 3, "d": 9}.items() for n in range(size)]
    path.write_text(
        "".join(
            json.dumps({"prompt": f"p{n}", "completion": "c", "label": owner != "d", "client_id": owner})
            + "\n"
            for owner, n in rows
        )
    )
    where = {"data__source": "jsonl", "data__path": str(path), "task__name": "sft"}
    first, second = (rows_of(client, 2, **where) for client in (0, 1))
    assert (first.owner, second.owner) == ("a", "b")
    assert first.left_out == {
        "smaller": {"owners": 1, "rows": 3, "names": ["c"]},
        "untrainable": {"owners": 1, "rows": 9, "names": ["d"]},
    }
    assert second.left_out == {}
    assert rows_of(0, 2, data__partitioner="iid", **where).owner == ""


def test_an_edited_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.jsonl", "x", range(8))
    where = {"data__source": "jsonl", "data__path": str(path), "data__partitioner": "iid"}
    assert sum(len(rows_of(client, 2, **where).train) for client in range(2)) == 6
    write(path, "x", range(8, 16))
    assert sum(len(rows_of(client, 2, **where).train) for client in range(2)) == 12
