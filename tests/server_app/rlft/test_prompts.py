"""Public prompts: the source's own or a file, in order without duplicates; unreadable lines are named."""

import pytest

from core.errors import ConfigError, DataError
from core.sections import RlftConfig
from server_app.rlft.prompts import PublicPrompt, public_prompts
from tasks.data.jsonl import Jsonl
from tasks.data.toy import Toy


def read(path, text: str, name: str = "prompts.txt") -> list[PublicPrompt]:
    (path / name).write_text(text, encoding="utf-8")
    return public_prompts(RlftConfig(prompts=str(path / name)), Jsonl())


def test_without_a_file_the_source_gives_its_own_questions():
    prompts = public_prompts(RlftConfig(), Toy())
    assert [prompt.prompt for prompt in prompts] == Toy().questions()
    assert len({prompt.prompt for prompt in prompts}) == len(prompts) > 50


def test_a_file_has_one_prompt_per_line_or_rows_with_a_completion(tmp_path):
    assert read(tmp_path, "One?\n\n Two? \nOne?\n") == [PublicPrompt("One?"), PublicPrompt("Two?")]
    rows = '{"prompt": "One?", "completion": "Yes\\u2028."}\n{"prompt": "Two?"}\n'
    assert read(tmp_path, rows, "p.jsonl") == [PublicPrompt("One?", "Yes\u2028."), PublicPrompt("Two?")]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("One?\n", "p.txt", "p.txt .*fewer than two"),
        ('{"prompt": "One?"}\nnope\n', "p.jsonl", "p.jsonl line 2: not JSON"),
        ('{"prompt": ""}\n{"prompt": "a"}', "p.jsonl", "p.jsonl line 1: .*`prompt`"),
        ('{"prompt": "a", "completion": 3}\n', "p.jsonl", "p.jsonl line 1: .*`prompt`"),
        ("[1]\n", "p.jsonl", "p.jsonl line 1: .*`prompt`"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, name, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, name)


def test_private_data_have_no_public_prompts():
    with pytest.raises(ConfigError, match=r"rlft\.prompts .*data\.source has no public prompts"):
        public_prompts(RlftConfig(), Jsonl())
    with pytest.raises(ConfigError, match="no such file"):
        public_prompts(RlftConfig(prompts="/nowhere"), Toy())
