"""The summary at the end of a run, line by line."""

import pytest

from server_app.report.reading import ADVICE
from server_app.report.summary import summary_lines
from tests.server_app.report.sample import EVIL, dpo_record, dpo_run, write_run


def test_the_summary_has_answers_headline_paths_and_next_commands(tmp_path):
    folder = dpo_run(tmp_path)
    (folder / "report.html").write_text("")
    text = "\n".join(summary_lines(folder))
    assert "  before  the bird bird is\n  after   the red bird is kind and sings" in text
    assert "Preference accuracy, round 12             72.9 %        68.3 to 77.1      384 rows" in text
    assert f"adapter  {folder}/adapter" in text
    assert "next     accord run strategy.name=local  # does" in text
    assert "accord run run.seed=43" in text
    assert "\n         open " not in text, "a command of one system"
    assert "\x1b" not in text
    assert EVIL in text  # a terminal knows no markup


def test_the_next_command_repeats_the_settings_of_the_run(tmp_path):
    config = {"task.name": "kto", "data.path": "my file", "strategy.name": "local", "run.resume": "runs/x"}
    config["strategy.fraction-train"] = 0.5
    text = "\n".join(summary_lines(write_run(tmp_path, [], config=config)))
    assert (
        "accord run 'data.path=my file' strategy.fraction-train=0.5 strategy.name=fedavg task.name=kto "
        in text
    )
    assert "each client keeps its own" in text


@pytest.mark.parametrize(
    ("federation", "clients", "nodes", "keys"),
    [
        ("simulation", 2, 2, "federation.num-supernodes=2 "),
        ("simulation", 8, 8, ""),
        ("simulation", 7, 8, ""),  # one of eight did not answer
        ("simulation", 6, 4, "federation.num-supernodes=6 strategy.min-available-nodes=4 "),
        ("deployment", 2, 2, "federation.superlink=NAME "),
        ("deployment", 8, 3, "federation.superlink=NAME strategy.min-available-nodes=3 "),
    ],
)
def test_the_next_command_has_the_clients_of_the_run(tmp_path, federation, clients, nodes, keys):
    """2 is also the default of strategy.min-available-nodes, which a simulation sets to all of its clients."""
    facts = {str(client): {"examples": 40} for client in range(clients)}
    config = {"strategy.min-available-nodes": nodes}
    folder = write_run(tmp_path, [], config=config, clients=facts, federation=federation)
    text = "\n".join(summary_lines(folder))
    assert f"next     accord run {keys}strategy.name=local  # does" in text


@pytest.mark.parametrize("status", ["finished", "running"])
def test_an_option_of_an_advice_has_no_next_command(tmp_path, status):
    folder = write_run(tmp_path / "advice" / "fedavg", [dpo_record(0)], status=status)
    assert "next " in "\n".join(summary_lines(folder))
    (tmp_path / "advice" / ADVICE).write_text("")
    assert "next " not in "\n".join(summary_lines(folder))


@pytest.mark.parametrize("status", ["running", "failed: RoundFailed"])
def test_the_next_command_of_an_unfinished_run_resumes_it(tmp_path, status):
    folder = write_run(tmp_path, [dpo_record(0)], status=status)
    assert summary_lines(folder)[-1] == f"next     accord resume {folder}"
