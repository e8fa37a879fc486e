"""The defaults by the planted truth: a run improves the generated answers, and not only the ranking of given ones."""

import pytest

from core.config import parse
from tests.sites import federate


@pytest.mark.slow
def test_the_demo_makes_its_model_better_by_the_planted_truth(tmp_path):
    """The run of `make demo`, in one process: at least 95 % valid answers, of higher utility than the base's."""
    config = parse({"run.dir": str(tmp_path / "runs"), "eval.every": 0, "run.seed": 2})
    _, records = federate(config, tmp_path, config.run.num_server_rounds, clients=8)
    base, last = (record["eval"]["mean"] for record in (records[0], records[-1]))
    assert base["truth/valid"] == 1.0
    assert last["truth/valid"] >= 0.95
    assert last["truth/right"] > base["truth/right"] + 0.1
    assert last["truth/utility"] > base["truth/utility"] + 1.0
    assert last["logps/accuracies"] > base["logps/accuracies"] + 0.15
