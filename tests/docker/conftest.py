"""The image, and a federation of its containers."""

import os

import pytest

from tests.docker.engine import SITES, Engine, Project, below, compose_file, only_run
from tests.federation.conftest import ROOT
from tests.federation.test_deployment import rows

OWN = ["data.source=jsonl", "run.num-server-rounds=4", "strategy.name=scaffold", "train.local-steps=3"]
OWN += ["train.per-device-batch-size=4", "strategy.min-available-nodes=3", "eval.every=0"]
SECRET, MARKER = "marker-secret-5b1c", "marker-7f3a"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def image(engine, tmp_path_factory):
    """The image, built with a secret that must not be in it.

    If the pip of the base image has local wheels, no torch index is needed.
    """
    secret = tmp_path_factory.mktemp("build") / "pip.conf"
    secret.write_text(f"# {SECRET}\n")
    wheels = engine("run", "--rm", "python:3.11-slim-bookworm", "pip", "config", "list")
    index = "" if "find-links" in wheels else None
    index = os.environ.get("TORCH_INDEX", index)
    tag = f"accord:test-{os.getpid()}"
    engine(
        *("build", "-q", "-f", "docker/Dockerfile", "-t", tag, "--secret", f"id=pip.conf,src={secret}"),
        *([] if index is None else ["--build-arg", f"TORCH_INDEX={index}"]),
        str(ROOT),
        DOCKER_BUILDKIT="1",
    )
    yield tag
    engine("image", "rm", "-f", tag)


@pytest.fixture(scope="module")
def federation(engine, image):
    project = Project(engine, image, f"accordtest{os.getpid()}", compose_file("compose.yml"))
    try:
        project.up()
        yield project
    finally:
        project.down()


@pytest.fixture(scope="module")
def simulation(engine, image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    folder.chmod(0o755)  # for the image's user
    project = Project(engine, image, f"accordsim{os.getpid()}", compose_file("compose.sim.yml"))
    for number in range(len(SITES)):
        (folder / f"site-{number}.jsonl").write_text(rows(number))
    project.env["ROWS"] = str(folder)
    yield project
    project.down()


@pytest.fixture(scope="module")
def with_rows(federation):
    """The same sites, each with its own rows."""
    for number, site in enumerate(SITES):
        federation.write(f"data-{site}", "rows.jsonl", rows(number))
        federation.env[site.upper()] = "data-path=/data/rows.jsonl"
    federation.up()
    return federation


@pytest.fixture(scope="module")
def simulated(simulation):
    """The files of the simulated run on the sites' rows."""
    words = [*OWN, "data.path=/data", "federation.num-supernodes=3", "run.dir=runs/own"]
    simulation("run", "--rm", "simulation", "accord", "run", *words)
    files = below(simulation.volume("simulation-runs"), "own")
    return below(files, only_run(files))
