"""Packed rows computed by hand."""

from tasks.forward.attention import Piece
from tasks.forward.packing import graft, pack, padded

FORKS = [((1, 5, 6), ((7, 8, 2), (9, 2))), ((1,), ((2,), (3, 4)))]


def test_a_row_holds_each_prompt_once_and_no_last_tokens() -> None:
    """Fork 1: prompt 1 5 6, branches 7 8 and 9; fork 2: prompt 1, an empty branch and 3."""
    row = pack(FORKS)
    assert row.ids.tolist() == [1, 5, 6, 7, 8, 9, 1, 3]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert row.targets.tolist() == [7, 8, 2, 9, 2, 2, 3, 4]
    assert row.rows.tolist() == [2, 3, 4, 2, 5, 6, 6, 7]  # a first token is predicted by its prompt's last
    assert row.counts == (3, 2, 1, 2)


def test_a_piece_attends_to_its_prompt_and_itself() -> None:
    """An empty branch has no piece."""
    assert pack(FORKS).layout.pieces == (
        Piece(slice(0, 3)),
        Piece(slice(3, 5), slice(0, 3)),
        Piece(slice(5, 6), slice(0, 3)),
        Piece(slice(6, 7)),
        Piece(slice(7, 8), slice(6, 7)),
    )


def test_a_graft_holds_only_the_tokens_of_the_mismatched_completions() -> None:
    """The trunk has 8 rows; the completions 11 12 13 of fork 1 and 14 of fork 2 add two and none."""
    trunk = pack(FORKS)
    branch = graft(trunk, [(11, 12, 13), (14,)])
    assert branch.ids.tolist() == [11, 12]
    assert branch.positions.tolist() == [3, 4]
    assert branch.rows.tolist() == [2, 8, 9, 6]
    assert branch.targets.tolist() == [11, 12, 13, 14]
    assert branch.layout.grafts == ((0, 3, 2), (6, 1, 0))


def test_a_fork_without_a_mismatched_completion_has_no_graft() -> None:
    branch = graft(pack(FORKS), [(), (14, 15)])
    assert branch.ids.tolist() == [14]
    assert branch.rows.tolist() == [6, 8]
    assert branch.counts == (2,)


def test_padded_batches_have_the_positions_that_predict() -> None:
    ids, mask, spans = padded(FORKS, filler=0)
    assert ids.tolist() == [[1, 5, 6, 7, 8, 2], [1, 5, 6, 9, 2, 0], [1, 2, 0, 0, 0, 0], [1, 3, 4, 0, 0, 0]]
    assert mask.sum(1).tolist() == [6, 5, 2, 3]
    assert spans == [slice(2, 5), slice(2, 4), slice(0, 1), slice(0, 2)]
