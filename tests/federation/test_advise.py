"""`accord advise` in real processes: its results, and continuing a comparison that was stopped."""

import json
import shutil

import pytest

from cli.advice.arms import ARMS, is_finished, open_folder, run_arms, run_of
from cli.advice.recommend import FEDPDPO, ORDER
from cli.run.launch import report_failure
from cli.run.request import Request, request
from cli.run.stream import Stream
from server_app.report.commands import FEDERATION
from server_app.report.reading import ADVICE
from tests.faults.federation import start
from tests.federation.conftest import SMALL, metrics_of
from tests.server_app.report.sample import dpo_record, write_run

pytestmark = pytest.mark.slow


def test_an_advice_scores_every_option_and_continues_to_the_same_numbers(place):
    """The last run is reset to the state of a killed one; the earlier ones must not be written again."""
    run_request, homes = request(SMALL), place.path / "homes"
    federation = {f"federation.{key}": value for key, value in run_request.federation.items()}
    folder = open_folder({**run_request.keys, **federation}, place.path / "runs")
    assert run_arms(folder, run_request.keys, lambda keys: start(keys, homes).ended()) == 0
    for home in homes.glob("home-*"):  # the continued simulation looks for its clients there
        shutil.copytree(home, place.env["ACCORD_HOME"], dirs_exist_ok=True)
    runs = {name: run for name, arm in ARMS.items() if (run := run_of(folder, arm))}
    assert set(runs) == set(ORDER)
    assert all(map(is_finished, runs.values()))
    first = json.loads((folder / "advice.json").read_text())
    assert first["word"] == "no difference shown", "three clients are too few for an interval"
    for name, run in runs.items():
        clients = metrics_of(run)[-1]["eval"]["clients"]
        assert first["options"][name]["clients"] == {c: m["logps/accuracies"] for c, m in clients.items()}
    assert "Preference-conflict map" in (folder / "advice.html").read_text()

    last, manifest = runs[FEDPDPO], runs[FEDPDPO] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
    shutil.rmtree(last / "checkpoints" / "00003")
    (folder / "advice.json").unlink()
    before = {name: run.stat().st_mtime_ns for name, run in runs.items()}
    output = place.accord("advise", str(folder), timeout=300).stdout
    assert "resuming" in output
    assert "next  " not in output, "an option is continued through its advice only"
    assert output.startswith("advise   3 clients are too few"), "printed before any run"
    assert output.count("harmed: share of clients") == 1
    assert {name for name, run in runs.items() if run.stat().st_mtime_ns != before[name]} == {FEDPDPO}
    assert json.loads((folder / "advice.json").read_text()) == first


@pytest.mark.parametrize("advice", [True, False])
def test_the_run_of_an_advice_is_not_resumed_by_itself(tmp_path, advice, capsys):
    run = write_run(tmp_path / "advice" / "fedavg", [dpo_record(0)], status="running")
    (run / "checkpoints").mkdir()
    if advice:
        (tmp_path / "advice" / ADVICE).write_text("")
    stream = Stream(tmp_path / "stream.log", is_deployment=True, verbose=False)
    report_failure(Request({"run.resume": str(run)}, {**FEDERATION, "superlink": "clinics"}), 1, stream)
    stderr = capsys.readouterr().err
    assert "accord: the run failed" in stderr
    assert (f"continue with: accord resume {run} federation.superlink=clinics" in stderr) is not advice
