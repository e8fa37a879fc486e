import pytest

from core.naming import client_label, client_mark, shown_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("north", "north"),
        ("Zürich Süd", "Zürich Süd"),
        ("診療所", "診療所"),
        ("two\nlines\ttab", "two lines tab"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("a\u202eb\u200bc", "a b c"),  # bidi override, zero width
        ("\ud800lone", "lone"),
        ("<b>&</b>", "<b>&</b>"),  # pages escape what they show
        (" \n\x00 ", ""),
        ("x" * 41, "x" * 37 + "..."),
        ("x" * 40, "x" * 40),
        (None, ""),
        (["north"], ""),
    ],
)
def test_a_name_is_one_printable_line_of_40_characters(name, shown):
    assert shown_name(name) == shown


def test_a_client_has_its_number_beside_its_name():
    names = {0: "north", 1: "client-1", 2: "2", 3: "a very long name indeed", 4: "2"}
    assert [client_label(c, names) for c in range(6)] == [
        "north (0)", "1", "2", "a very long name indeed (3)", "2 (4)", "5",
    ]  # fmt: skip
    assert [client_mark(c, names) for c in (0, 3, 5)] == ["north, 0", "a very long..., 3", "5"]
