"""A fifth of the clients sends -10 times its change, on the toy world: the mean breaks, robust means do not."""

import pytest

from benchmarks.poisoning import DEFENCES, accuracy

pytestmark = pytest.mark.slow
SHORT = {
    "run.num-server-rounds": 3,
    "data.rows-per-client": 24,
    "data.eval-rows-per-client": 24,
    "run.seed": 1,
    "task.beta": 0.1,
    "train.learning-rate": 2e-3,
}


@pytest.fixture(scope="module")
def undefended() -> float:
    return accuracy("scale", SHORT)


@pytest.mark.parametrize("defence", ["clip-norm", "median", "trimmed-mean", "multi-krum"])
def test_a_robust_mean_keeps_what_the_mean_loses(undefended, defence):
    assert accuracy("scale", {**SHORT, **DEFENCES[defence]}) > undefended + 0.1
