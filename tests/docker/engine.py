"""Docker's engine, and compose projects in it, each under its own name."""

import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.federation.conftest import ROOT, wait_until

SITES = ("north", "east", "south")
USER = "10001"
LONG_S = 600


def command(*arguments: str, stdin: bytes = b"", check: bool = True, **env: str) -> str:
    """Run a command and return its stdout; if it fails, both streams are in the error."""
    process = subprocess.run(
        arguments, input=stdin, env={**os.environ, **env}, capture_output=True, timeout=LONG_S
    )
    output = process.stdout.decode(errors="replace")
    assert not check or process.returncode == 0, (
        f"{' '.join(arguments)}\n{output}{process.stderr.decode(errors='replace')}"
    )
    return output


def find_docker() -> str:
    """The first docker on PATH that builds with BuildKit, which is a plugin since version 23."""
    for folder in os.get_exec_path():
        docker = f"{folder}/docker"
        version = (
            command(docker, "version", "--format", "{{.Client.Version}}")
            if os.access(docker, os.X_OK)
            else ""
        )
        if version and (int(version.split(".")[0]) < 23 or command(docker, "buildx", "version", check=False)):
            return docker
    raise AssertionError("no docker on PATH builds with BuildKit: install its buildx plugin")


@dataclass
class Engine:
    docker: str = field(default_factory=find_docker)

    def __call__(self, *arguments: str, **options: Any) -> str:
        return command(self.docker, *arguments, **options)

    def inspect(self, name: str) -> dict[str, Any]:
        return json.loads(self("inspect", name))[0]

    @property
    def compose(self) -> list[str]:
        plugin = command(self.docker, "compose", "version", check=False)
        return [self.docker, "compose"] if plugin else ["docker-compose"]


@dataclass
class Project:
    """A compose project."""

    engine: Engine
    image: str
    name: str
    file: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [*self.engine.compose, "-p", self.name, "-f", str(self.file), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {"ACCORD_IMAGE": self.image, **self.env}

    def __call__(self, *arguments: str) -> str:
        return command(*self.command(*arguments), **self.environment)

    def up(self) -> None:
        self("up", "-d", "--no-build")
        for service in ("superlink", *(f"{kind}-{site}" for kind in ("site", "node") for site in SITES)):
            self.wait_for_health(service)

    def down(self) -> None:
        self("down", "-v", "--remove-orphans", "-t", "5")

    def id(self, service: str) -> str:
        labels = {"project": self.name, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self.engine("ps", "-aq", *filters).strip()

    def state(self, service: str) -> dict[str, Any]:
        return self.engine.inspect(self.id(service))

    def wait_for_health(self, service: str) -> None:
        def healthy() -> bool:
            return self.state(service)["State"].get("Health", {}).get("Status") == "healthy"

        try:
            wait_until(healthy, LONG_S / 2)
        except AssertionError:
            raise AssertionError(f"{service} is not healthy:\n{self.log(service)}") from None

    def log(self, service: str, since: str = "") -> str:
        process = subprocess.run(
            [self.engine.docker, "logs", *(["--since", since] if since else []), self.id(service)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return process.stdout

    def within(self, service: str, *arguments: str, **options: Any) -> str:
        """The stdout of a command in a running container."""
        return self.engine("exec", self.id(service), *arguments, **options)

    def start(self, log: Path, *arguments: str) -> subprocess.Popen:
        """Start `docker compose exec superlink ARGUMENTS` in the background."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command("exec", "-T", "superlink", *arguments),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def volume(self, name: str) -> dict[str, bytes]:
        """The files of a volume."""
        mount, pack = f"{self.name}_{name}:/v:ro", ["tar", "-c", "-C", "/v", "."]
        arguments = ["run", "--rm", "--network=none", "--user=0", "-v", mount, self.image, *pack]
        process = subprocess.run([self.engine.docker, *arguments], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(process.stdout)) as tar:
            return {m.name[2:]: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]

    def write(self, name: str, file: str, content: str) -> None:
        """Write a file to a volume, as in docs/docker.md."""
        self.engine("run", "--rm", "-i", "--network=none", "-v", f"{self.name}_{name}:/data", self.image,
                    "sh", "-c", f"cat > /data/{file}", stdin=content.encode())  # fmt: skip


def only_run(files: dict[str, bytes], earlier: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """The name of the only run folder in the files of a volume that is not in `earlier`."""
    (run,) = {name.split("/")[0] for name in files} - earlier
    return run


def below(files: dict[str, bytes], folder: str) -> dict[str, bytes]:
    return {n.removeprefix(f"{folder}/"): c for n, c in files.items() if n.startswith(f"{folder}/")}


def compose_file(name: str) -> Path:
    return ROOT / "docker" / name
