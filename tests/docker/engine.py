"""Docker's engine and a federation of docker/compose.yml in it, under a name of its own."""

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


def command(*words: str, given: bytes = b"", check: bool = True, **env: str) -> str:
    """What a command printed; both streams are in the error when it fails."""
    done = subprocess.run(words, input=given, env={**os.environ, **env}, capture_output=True, timeout=LONG_S)
    said = done.stdout.decode(errors="replace")
    assert not check or done.returncode == 0, (
        f"{' '.join(words)}\n{said}{done.stderr.decode(errors='replace')}"
    )
    return said


def find_docker() -> str:
    """The first docker on PATH that builds with BuildKit: since 23 that takes a plugin, before it was built in."""
    for folder in os.get_exec_path():
        found = f"{folder}/docker"
        version = (
            command(found, "version", "--format", "{{.Client.Version}}") if os.access(found, os.X_OK) else ""
        )
        if version and (int(version.split(".")[0]) < 23 or command(found, "buildx", "version", check=False)):
            return found
    raise AssertionError("no docker on PATH builds with BuildKit: install its buildx plugin")


@dataclass
class Engine:
    docker: str = field(default_factory=find_docker)

    def __call__(self, *words: str, **options: Any) -> str:
        return command(self.docker, *words, **options)

    def inspect(self, name: str) -> dict[str, Any]:
        return json.loads(self("inspect", name))[0]

    @property
    def compose(self) -> list[str]:
        plugin = command(self.docker, "compose", "version", check=False)
        return [self.docker, "compose"] if plugin else ["docker-compose"]


@dataclass
class Project:
    """A compose file at work."""

    engine: Engine
    image: str
    name: str
    file: Path
    env: dict[str, str] = field(default_factory=dict)

    def words(self, *words: str) -> list[str]:
        return [*self.engine.compose, "-p", self.name, "-f", str(self.file), *words]

    @property
    def surroundings(self) -> dict[str, str]:
        return {"ACCORD_IMAGE": self.image, **self.env}

    def __call__(self, *words: str) -> str:
        return command(*self.words(*words), **self.surroundings)

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
        done = subprocess.run(
            [self.engine.docker, "logs", *(["--since", since] if since else []), self.id(service)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    def within(self, service: str, *words: str, **options: Any) -> str:
        """What a command prints in a running container."""
        return self.engine("exec", self.id(service), *words, **options)

    def start(self, log: Path, *words: str) -> subprocess.Popen:
        """`docker compose exec superlink WORDS` in the background."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.words("exec", "-T", "superlink", *words),
                env={**os.environ, **self.surroundings},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def volume(self, name: str) -> dict[str, bytes]:
        """The files of a volume."""
        mount, pack = f"{self.name}_{name}:/v:ro", ["tar", "-c", "-C", "/v", "."]
        words = ["run", "--rm", "--network=none", "--user=0", "-v", mount, self.image, *pack]
        done = subprocess.run([self.engine.docker, *words], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            return {m.name[2:]: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]

    def write(self, name: str, file: str, content: str) -> None:
        """A file into a volume, as docs/docker.md says."""
        self.engine("run", "--rm", "-i", "--network=none", "-v", f"{self.name}_{name}:/data", self.image,
                    "sh", "-c", f"cat > /data/{file}", given=content.encode())  # fmt: skip


def one_run(files: dict[str, bytes], but: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """The name of the one run folder of a volume that is not among `but`."""
    (run,) = {name.split("/")[0] for name in files} - but
    return run


def below(files: dict[str, bytes], folder: str) -> dict[str, bytes]:
    return {n.removeprefix(f"{folder}/"): c for n, c in files.items() if n.startswith(f"{folder}/")}


def compose_file(name: str) -> Path:
    return ROOT / "docker" / name
