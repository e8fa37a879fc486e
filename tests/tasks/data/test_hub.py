import pytest
from datasets import Dataset

from core.errors import ConfigError
from tasks.data.base import read
from tasks.data.hub import Hub

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "set"
    place.mkdir()
    Dataset.from_list([{**PAIR, "client_id": "a"}, {**PAIR, "client_id": None}]).to_parquet(
        place / "train.parquet"
    )
    return place


def test_conversations_are_read(folder):
    talk = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    Dataset.from_list([talk]).to_parquet(folder / "test.parquet")
    (folder / "train.parquet").unlink()
    assert read(Hub(str(folder), split="test").find(0, 1), "error").entries[0].row == talk


def test_a_local_data_set_is_read_with_its_clients(folder):
    table = read(Hub(str(folder)).find(0, 1), "error")
    assert [(e.row, e.owner) for e in table.entries] == [(PAIR, "a"), (PAIR, "")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs data\.dataset"),
        ({"dataset": "SET", "split": "dev"}, "dev"),
        ({"dataset": "/no/such/set"}, "such"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(folder, options, message):
    options = {key: str(folder) if value == "SET" else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message) as error:
        list(Hub(**options).find(0, 1))
    assert "\n" not in str(error.value)
