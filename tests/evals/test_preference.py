import gzip
import json

import pytest

from core.errors import ConfigError, DataError
from evals.preference import Preference

ROWS = [{"prompt": "p", "chosen": c, "rejected": r} for c, r in (("aa", "a"), ("b", "bbb"), ("cccc", "c"))]


class LikesLong:
    """A model that finds longer answers likelier."""

    def generate(self, prompts):
        raise AssertionError("this benchmark asks for no answers")

    def logprob(self, prompt, answers):
        return [float(len(a)) for a in answers]


def test_two_of_three_by_hand(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert Preference(str(path)).run(LikesLong()) == {"logps/accuracies": 2 / 3, "examples": 3.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1: not JSON"), ('{"prompt": "x"}', "line 1: expected"), ("\n", "no pairs")],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        Preference(str(tmp_path / "p.jsonl")).run(LikesLong())


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match=r"eval\.pairs = 'nowhere'"):
        Preference("nowhere").run(LikesLong())
