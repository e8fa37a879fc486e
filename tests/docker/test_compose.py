"""Build and run the containers of docker/ on a real engine. The tests share a federation and depend on their order."""

import json
import os
import subprocess
from datetime import UTC, datetime

import pytest

from cli.provision.federation import read_federation
from cli.provision.kits import provision
from tests.docker.conftest import MARKER, OWN, SECRET
from tests.docker.engine import LONG_S, SITES, USER, Project, below, compose_file, only_run
from tests.federation.conftest import free_port, timeless, wait_until
from tests.federation.test_deployment import rows

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]
DEMO = ["federation.superlink=demo", "strategy.min-available-nodes=3", "site.mode=resident"]
SMALL = [
    "run.num-server-rounds=3",
    "train.local-steps=3",
    "data.rows-per-client=16",
    "data.eval-rows-per-client=8",
]
TENSORS = "adapter/adapter_model.safetensors"  # peft writes its configuration in any order
SERVICES = ("superlink", *(f"{kind}-{site}" for kind in ("site", "node") for site in SITES))


def metrics_in(files: dict[str, bytes]) -> list:
    """The metrics of a run without the values that depend on clock and processes."""
    return [timeless(json.loads(line)) for line in files["metrics.jsonl"].splitlines()]


def names(project: Project) -> set[str]:
    return {name.split("/")[0] for name in project.volume("runs")}


def python(project: Project, service: str, code: str, **options) -> str:
    return project.within(service, "python", "-c", code, **options).strip()


def test_the_demo_gives_the_simulations_adapter(federation, simulation):
    federation("exec", "-T", "superlink", "accord", "run", *DEMO, *SMALL)
    simulation("run", "--rm", "simulation", "accord", "run", "federation.num-supernodes=3", *SMALL)
    files, expected = federation.volume("runs"), simulation.volume("simulation-runs")
    run, simulated = below(files, only_run(files)), below(expected, only_run(expected))
    assert run[TENSORS] == simulated[TENSORS]
    assert metrics_in(run) == metrics_in(simulated)
    assert json.loads(run["manifest.json"])["base_loads"] == {"0": 1, "1": 1, "2": 1}


def test_no_layer_of_the_image_holds_a_secret(engine, image):
    assert SECRET not in engine("history", "--no-trunc", image)
    save = subprocess.Popen([engine.docker, "save", image], stdout=subprocess.PIPE)
    assert subprocess.run(["grep", "-aqF", SECRET], stdin=save.stdout).returncode == 1
    assert save.wait(LONG_S) == 0
    inside = engine(
        "run", "--rm", image, "find", "/opt/accord", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n"
    ).split()
    code = {
        "accord",
        "cli",
        "client_app",
        "core",
        "docker",
        "evals",
        "hatch_build.py",
        "presets",
        "server_app",
        "strategies",
        "tasks",
    }
    about = {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "needs.txt", "__pycache__"}
    assert set(inside) == {*code, *about, ".venv"}
    search = (
        "find /kit /data /state /models /run/accord /srv/accord /home /root -name '*.key' -o -name 'pip.conf'"
    )
    assert engine("run", "--rm", "--user=0", image, "sh", "-c", search) == ""


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_few_permissions(federation, service):
    about = federation.state(service)
    host = about["HostConfig"]
    assert federation.within(service, "id", "-u").strip() == USER
    assert about["Config"]["User"].startswith(USER)
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Memory"] > 0 and host["NanoCpus"] > 0 and host["PidsLimit"] > 0  # noqa: PT018
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert not host["PortBindings"]


def test_sites_can_reach_only_the_superlink(federation):
    listen = "import socket; s = socket.create_server(('', 8899)); s.settimeout(60); [s.accept() for _ in range(2)]"
    federation.engine("exec", "-d", federation.id("node-north"), "python", "-c", listen)
    (net,) = federation.state("node-north")["NetworkSettings"]["Networks"].values()

    def reach(service: str, host: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
        return "no" not in python(federation, service, f"try: {code}\nexcept OSError: print('no')")

    wait_until(lambda: reach("superlink", net["IPAddress"], 8899))
    assert not reach("node-east", net["IPAddress"], 8899)
    assert not reach("node-east", "node-north", 8899)
    assert reach("node-east", "superlink", 9092)
    assert not reach("node-east", "superlink", 8000)  # the control API
    networks = [f"{federation.name}_{site}" for site in SITES]
    assert [federation.engine.inspect(network)["Internal"] for network in networks] == [True] * len(SITES)
    for site in SITES:
        devices = federation.within(f"site-{site}", "cat", "/proc/net/dev")
        assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]


def test_only_its_own_site_can_read_rows(with_rows):
    search = ["grep", "-rlsF", MARKER, "/", "--exclude-dir=proc", "--exclude-dir=sys", "--exclude-dir=.venv"]
    matches = {service: with_rows.within(service, *search, check=False).split() for service in SERVICES}
    assert {s: files for s, files in matches.items() if files} == {
        f"site-{s}": ["/data/rows.jsonl"] for s in SITES
    }
    for number, site in enumerate(SITES):
        assert f"of site {number} {MARKER}" in with_rows.within(f"site-{site}", "cat", "/data/rows.jsonl")
    for site in SITES:
        mounts = {
            m["Name"].removeprefix(f"{with_rows.name}_") for m in with_rows.state(f"node-{site}")["Mounts"]
        }
        assert mounts == {f"kit-{site}", f"socket-{site}", f"node-{site}"}


def test_sites_killed_during_a_run_return(with_rows, simulated, tmp_path):
    """One is killed and restarted through the engine; another restarts by itself after its process died."""
    before, began = names(with_rows), datetime.now(UTC).isoformat()
    process = with_rows.start(tmp_path / "log", "accord", "run", *OWN, *DEMO)
    for site, rnd in (("north", 2), ("east", 3)):
        wait_until(
            lambda s=site, r=rnd: f"round={r} train begins" in with_rows.log(f"site-{s}", began), LONG_S
        )
        if site == "north":
            with_rows.engine("kill", with_rows.id("site-north"))
            with_rows.engine("start", with_rows.id("site-north"))
        else:
            python(with_rows, "site-east", "import psutil; psutil.Process(1).children()[0].kill()")
    assert process.wait(LONG_S) == 0, (tmp_path / "log").read_text()
    files = with_rows.volume("runs")
    run = below(files, only_run(files, before))
    assert with_rows.state("site-east")["RestartCount"] == 1
    assert run[TENSORS] == simulated[TENSORS]
    assert metrics_in(run) == metrics_in(simulated)


def test_a_run_can_be_resumed_after_its_superlink_was_killed(with_rows, simulated, tmp_path):
    before, began = names(with_rows), datetime.now(UTC).isoformat()
    process = with_rows.start(tmp_path / "log", "accord", "run", *OWN, *DEMO)
    wait_until(lambda: "round=3 train begins" in with_rows.log("site-south", began), LONG_S)
    with_rows.engine("kill", with_rows.id("superlink"))
    assert process.wait(LONG_S) != 0
    with_rows.engine("start", with_rows.id("superlink"))
    with_rows.wait_for_health("superlink")
    run = only_run(with_rows.volume("runs"), before)
    with_rows("exec", "-T", "superlink", "accord", "resume", run, "federation.superlink=demo")
    files = below(with_rows.volume("runs"), run)
    assert files[TENSORS] == simulated[TENSORS]
    assert metrics_in(files) == metrics_in(simulated)


def test_no_row_has_left_its_site(with_rows):
    volumes = ["kit-server", "superlink", "runs", *(f"{v}-{s}" for v in ("kit", "node") for s in SITES)]
    for volume in volumes:
        files = with_rows.volume(volume)
        assert files
        assert [name for name, content in files.items() if MARKER.encode() in content] == []
    for service in SERVICES:
        assert MARKER not in with_rows.log(service)


def test_a_second_up_keeps_keys_and_runs(with_rows):
    before = {v: with_rows.volume(v) for v in ("authority", "kit-server", "kit-north", "runs")}
    with_rows("down")
    with_rows.up()
    after = {v: with_rows.volume(v) for v in before}
    for volume in before:
        lost = {
            n for n, c in before[volume].items() if after[volume].get(n) != c and not n.startswith("flwr/")
        }
        assert lost == set(), volume


def test_kits_run_in_containers_by_the_commands_of_their_readmes(engine, image, simulated, tmp_path):
    """A server and three sites, each from the compose file of its kit; they connect through the engine's address."""
    name = f"kits{os.getpid()}"
    host = engine.inspect("bridge")["IPAM"]["Config"][0]["Gateway"]
    plan = tmp_path / "federation.toml"
    plan.write_text(
        f'name = "{name}"\nhosts = ["{host}"]\nimage = "{image}"\nfleet-port = {free_port()}\n'
        + "".join(f'[sites.{site}]\ndata-path = "rows.jsonl"\n' for site in SITES)
    )
    list(provision(read_federation(plan), tmp_path / "kits"))
    kits = {"server": tmp_path / "kits" / "server"} | {s: tmp_path / "kits" / "sites" / s for s in SITES}
    for number, site in enumerate(SITES):
        (kits[site] / "rows.jsonl").write_text(rows(number))
    for path in (tmp_path / "kits").rglob("*"):
        os.chown(path, int(USER), int(USER))
    projects = {
        kit: Project(
            engine,
            image,
            f"accord-{name}" if kit == "server" else f"accord-{name}-{kit}",
            folder / "compose.yml",
        )
        for kit, folder in kits.items()
    }
    try:
        server = projects["server"]
        server("up", "-d")
        server.wait_for_health("superlink")
        server("exec", "-T", "superlink", "accord", "register", "/kit")
        for site in SITES:
            projects[site]("up", "-d")
        for site in SITES:
            projects[site].wait_for_health("site")
            projects[site].wait_for_health("node")
        words = [*OWN, f"federation.superlink={name}", "site.mode=resident"]
        server("exec", "-T", "superlink", "accord", "run", *words)
        (run,) = (kits["server"] / "runs").iterdir()
        assert (run / TENSORS).read_bytes() == simulated[TENSORS]
        for site in SITES:
            node, resident = (projects[site].state(service) for service in ("node", "site"))
            assert list(resident["NetworkSettings"]["Networks"]) == ["none"]
            search = ["grep", "-rlsF", MARKER, "/kit", "/run/accord", "/state", "/srv", "/tmp"]
            assert projects[site].within("site", *search).split() == ["/kit/rows.jsonl"]
            assert projects[site].within("node", *search, check=False) == ""
            assert not {m["Source"] for m in node["Mounts"]} & {str(kits[site]), str(kits[site] / "state")}
            assert MARKER not in projects[site].log("node") + projects[site].log("site")
    finally:
        for project in projects.values():
            project.down()


@pytest.mark.parametrize("files", [["compose.yml", "compose.gpu.yml"], ["compose.sim.yml"]])
def test_compose_accepts_the_gpu_files(engine, files):
    """Checks only what a machine without GPUs can check."""
    words = [word for name in files for word in ("-f", str(compose_file(name)))]
    profile = ["--profile", "gpu"] if files == ["compose.sim.yml"] else []
    result = subprocess.run([*engine.compose, *words, *profile, "config"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("driver: nvidia") == (1 if profile else len(SITES))


def test_compose_accepts_the_files_of_a_kit(engine, tmp_path):
    plan = tmp_path / "federation.toml"
    plan.write_text('name = "clinics"\nhosts = ["fl.example.org"]\n[sites.north]\n')
    list(provision(read_federation(plan), tmp_path / "kits"))
    both = ["-f", "compose.yml", "-f", "compose.gpu.yml"]
    cases: list = [("server", [], {"superlink"}), ("sites/north", [], {"site", "node"})]
    for kit, files, services in (*cases, ("sites/north", both, {"site", "node"})):
        words = [*engine.compose, *files, "config", "--services"]
        result = subprocess.run(words, cwd=tmp_path / "kits" / kit, capture_output=True, text=True)
        assert set(result.stdout.split()) == services, result.stderr
