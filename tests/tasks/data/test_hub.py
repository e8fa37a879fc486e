import pytest
from datasets import Dataset

from core.errors import ConfigError, DataError
from tasks.data.base import read
from tasks.data.hub import Hub

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "set"
    path.mkdir()
    Dataset.from_list([{**PAIR, "client_id": "a"}, {**PAIR, "client_id": None}]).to_parquet(
        path / "train.parquet"
    )
    return path


def test_conversations_are_read(folder):
    talk = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    Dataset.from_list([talk]).to_parquet(folder / "test.parquet")
    (folder / "train.parquet").unlink()
    assert read(Hub(str(folder), split="test").rows(0, 1), "error").entries[0].row == talk


def test_a_local_data_set_is_read_with_its_clients(folder):
    table = read(Hub(str(folder)).rows(0, 1), "error")
    assert [(e.row, e.owner) for e in table.entries] == [(PAIR, "a"), (PAIR, "")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs data\.dataset"),
        ({"dataset": "SET", "split": "dev"}, "dev"),
        ({"dataset": "/no/such/set"}, "such"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_is_refused_in_one_line(folder, options, message):
    options = {key: str(folder) if value == "SET" else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message) as error:
        list(Hub(**options).rows(0, 1))
    assert "\n" not in str(error.value)


@pytest.fixture
def configurations(folder):
    """A data set of two configurations, as its card declares them."""
    (folder / "train.parquet").rename(folder / "first.parquet")
    Dataset.from_list([{**PAIR, "chosen": "better"}]).to_parquet(folder / "second.parquet")
    names = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    return folder


def test_a_configuration_is_chosen(configurations):
    table = read(Hub(str(configurations), config="second").rows(0, 1), "error")
    assert [entry.row["chosen"] for entry in table.entries] == ["better"]


@pytest.mark.parametrize("config", ["", "third"])
def test_an_unknown_configuration_is_refused_with_the_available_ones(configurations, config):
    with pytest.raises(ConfigError, match=r"set data\.config to one of .*'first', 'second'") as error:
        list(Hub(str(configurations), config=config).rows(0, 1))
    assert "\n" not in str(error.value)


def test_a_file_has_no_configurations(folder):
    with pytest.raises(ConfigError, match=r"data\.config = 'x' has no effect"):
        list(Hub(str(folder / "train.parquet"), config="x").rows(0, 1))


def test_a_value_that_does_not_fit_its_column_is_not_quoted(folder):
    """pyarrow and pandas quote the value in their errors."""
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").write_text(
        '{"prompt": 1}\n' * 3 + '{"prompt": "marker-31d0"}\n{"prompt": {"marker-31d0"\n'
    )
    with pytest.raises(ConfigError, match="cannot be read as one table") as error:
        list(Hub(str(folder)).rows(0, 1))
    assert "marker-31d0" not in str(error.value)
    assert error.value.__suppress_context__


def test_a_set_without_rows_and_a_row_without_its_prompt_are_refused(folder):
    (folder / "train.parquet").unlink()
    Dataset.from_list([{"question": "q", "chosen": "a b", "rejected": "a c"}]).to_parquet(
        folder / "train.parquet"
    )
    with pytest.raises(
        DataError, match=r"set split train: none of its 1 rows can be used; .* a column question"
    ):
        read(Hub(str(folder)).rows(0, 1), "skip")
