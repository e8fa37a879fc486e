"""Ray's failures to start, as Flower 1.39 prints them, in one line each."""

import pytest

from cli.run.ray_failure import simulation_failure
from cli.run.stream import Stream

TRACEBACK = """\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[91mERROR \x1b[0m:     An exception occured!! {reason}
\x1b[91mERROR \x1b[0m:     Traceback (most recent call last):
  File "/x/flwr/server/superlink/fleet/vce/backend/raybackend.py", line 119, in init_ray
    ray.init(
{kind}: {reason}

The above exception was the direct cause of the following exception:

RuntimeError: Simulation Runtime crashed.
"""


@pytest.mark.parametrize(
    ("kind", "reason", "log", "advice"),
    [
        ("Exception", "The current node timed out during startup.", "", "ulimit -a"),
        ("OSError", "AF_UNIX path length cannot exceed 107 bytes: '/x'", "", "TMPDIR"),
        ("OSError", "[Errno 28] No space left on device", "", "disk space"),
        ("RuntimeError", "can't start new thread", "", "ulimit -u"),
        (
            "Exception",
            "The current node timed out during startup.",
            "boost: Too many open files",
            "ulimit -n",
        ),
        ("ray.exceptions.RaySystemError", "System error: Broken", "terminate: std::bad_alloc", "memory"),
    ],
)
def test_a_traceback_becomes_a_line_with_advice(tmp_path, kind, reason, log, advice, capsys):
    logs = tmp_path / "ray" / "session_2026-11-30" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text(log)
    text = TRACEBACK.format(kind=kind, reason=reason)
    stream = Stream(tmp_path / "stream.log", is_deployment=False, verbose=False)
    with stream.log.open("w") as file:
        stream._show(text.splitlines(keepends=True), file)
    line = simulation_failure(stream.log)
    assert line.startswith("Ray, which runs the simulated clients, did not start: ")
    assert reason.rstrip(".") in line
    assert advice in line.split(reason.rstrip("."))[1]
    assert "\n" not in line
    assert capsys.readouterr().out == "", "the traceback is in the log alone"


def test_a_run_without_an_exception_of_flowers_has_no_such_line(tmp_path):
    (tmp_path / "stream.log").write_text("plan     dpo\naccord: ConfigError: no\n")
    assert simulation_failure(tmp_path / "stream.log") == ""
    assert simulation_failure(tmp_path / "missing") == ""


def test_the_folder_of_a_run_is_the_one_that_it_names(tmp_path):
    """Two runs of one checkout must not be taken for one another; as text and as JSON."""
    for line in ("         results go to /runs/a b_ü\n", '{"message": "results go to /runs/a b_ü"}\n'):
        stream = Stream(tmp_path / "stream.log", is_deployment=False, verbose=False)
        with stream.log.open("w") as file:
            stream._show([line], file)
        assert stream.folder == "/runs/a b_ü"
