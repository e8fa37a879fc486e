"""Public prompts: the source's own or a file, in order, once each; what cannot be read is named."""

import pytest

from core.errors import ConfigError, DataError
from core.sections import RlftConfig
from server_app.rlft.prompts import Asked, public_prompts
from tasks.data.jsonl import Jsonl
from tasks.data.toy import Toy


def read(path, text: str, name: str = "prompts.txt") -> list[Asked]:
    (path / name).write_text(text, encoding="utf-8")
    return public_prompts(RlftConfig(prompts=str(path / name)), Jsonl())


def test_the_source_asks_its_own_questions():
    found = public_prompts(RlftConfig(), Toy())
    assert [asked.prompt for asked in found] == Toy().questions()
    assert len({asked.prompt for asked in found}) == len(found) > 50


def test_a_file_has_one_a_line_or_rows_with_a_completion(tmp_path):
    assert read(tmp_path, "One?\n\n Two? \nOne?\n") == [Asked("One?"), Asked("Two?")]
    rows = '{"prompt": "One?", "completion": "Yes\\u2028."}\n{"prompt": "Two?"}\n'
    assert read(tmp_path, rows, "p.jsonl") == [Asked("One?", "Yes\u2028."), Asked("Two?")]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("One?\n", "p.txt", "p.txt holds fewer than two different prompts"),
        ('{"prompt": "One?"}\nnope\n', "p.jsonl", "p.jsonl line 2: not JSON"),
        ('{"prompt": ""}\n{"prompt": "a"}', "p.jsonl", "p.jsonl line 1: expected a text `prompt`"),
        ('{"prompt": "a", "completion": 3}\n', "p.jsonl", "p.jsonl line 1: expected a text `prompt`"),
        ("[1]\n", "p.jsonl", "p.jsonl line 1: expected a text `prompt`"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, name, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, name)


def test_private_data_have_no_public_prompts():
    with pytest.raises(ConfigError, match=r"rlft\.prompts: this data\.source has no public prompts"):
        public_prompts(RlftConfig(), Jsonl())
    with pytest.raises(ConfigError, match="no such file"):
        public_prompts(RlftConfig(prompts="/nowhere"), Toy())
