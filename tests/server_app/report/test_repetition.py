"""seq-rep-4 by hand."""

import pytest

from server_app.report.repetition import repeated, repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one two three four five", 0.0),  # two 4-grams, both new
        ("it eats it eats it eats it eats", 0.6),  # five 4-grams: two different ones
        ("no no no no no", 0.5),
        ("no\nno  no no no", 0.5),  # any white space divides
        ("one two three", None),
        ("", None),
        ("abcd" * 25, 1 - 4 / 97),  # no spaces: 97 4-grams of characters, 4 different ones
    ],
)
def test_the_share_of_4_grams_that_came_before(text, share):
    assert repeated(text) == (None if share is None else pytest.approx(share))


def test_texts_count_alike_and_short_ones_do_not_count():
    assert repetition(["no no no no no", "one two three four five six", "yes"]) == (0.25, 2)
    assert repetition(["yes", ""]) is None
    assert repetition([]) is None
