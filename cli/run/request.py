"""What the words of a command ask for: presets, KEY=VALUE, a run folder; every key and value is checked."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.machine.processes import ROOT
from core.config import checked, defaults, flatten, parse, without_effect
from core.errors import ConfigError, DataError
from core.files import read_json, read_toml
from core.naming import shown_name
from core.plugins import build
from core.types import Scalar
from server_app.report.commands import FEDERATION, has_owners
from server_app.report.reading import CONFIG, read_config
from tasks.data.clients.shares import owners_of

MINIMUM = "strategy.min-available-nodes"
LEAST = {"num-supernodes": 1, "client-cpus": 1, "client-gpus": 0}
MOST = 1e6  # of each of these


PATHS = ("data.path", "eval.prompts", "eval.pairs", "rlft.prompts")  # of this machine, in a simulation


@dataclass(frozen=True)
class Request:
    """What to run: the app's keys as overrides, and the federation's; notes: lines for the user before the start."""

    keys: dict[str, Scalar]
    federation: dict[str, Scalar]
    notes: tuple[str, ...] = ()


def request(words: list[str]) -> Request:
    """Preset files, a later one over an earlier one, merged with key=value words; every key and value is checked.

    In a simulation, files are named from the root, so that the run's config.toml repeats it from any folder.
    """
    keys, chosen = given(words)
    federation = federated(keys, chosen)
    parse(keys)
    if not federation["superlink"]:
        keys |= {k: str(Path(str(keys[k])).expanduser().resolve()) for k in PATHS if keys.get(k)}
    counted = not chosen.get("superlink") and "num-supernodes" not in chosen and has_owners(keys)
    return Request(keys, federation, (_about_clients(keys, federation),) if counted else ())


def federated(keys: dict[str, Scalar], chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The federation's values where `chosen` is silent; a simulation waits for all of its clients.

    Rows that say whose they are (a folder's files, a client column) are simulated with a client for each owner, which
    takes reading them. Raises DataError where they cannot be read, ConfigError for more clients to wait for than there
    are.
    """
    federation = {**FEDERATION, **chosen}
    if federation["superlink"]:
        return federation
    if "num-supernodes" not in chosen and has_owners(keys):
        federation["num-supernodes"] = _owners(keys)
    clients = int(federation["num-supernodes"])
    if int(keys.setdefault(MINIMUM, clients)) > clients:
        raise ConfigError(
            f"{MINIMUM} = {keys[MINIMUM]}, but the simulation has {clients} clients and would wait for ever; "
            f"leave {MINIMUM} out, or raise federation.num-supernodes"
        )
    return federation


def _owners(keys: Mapping[str, Scalar]) -> int:
    """How many owners the rows have, of those that a task can be trained on."""
    asked = {key: value for key, value in keys.items() if key.startswith(("data.", "run.seed"))}
    task = str({**defaults(), **keys}["task.name"])
    return len(owners_of(parse({**asked, "task.name": task}), build("tasks", task, {})))


def _about_clients(keys: Mapping[str, Scalar], federation: Mapping[str, Scalar]) -> str:
    known = {**defaults(), **keys}
    where = Path(str(known["data.path"] or known["data.dataset"])).expanduser()
    folder = known["data.source"] == "jsonl" and where.is_dir()
    each = "file" if folder else f"value of {shown_name(known['data.client-column'])}"
    return (
        f"clients  {federation['num-supernodes']}, one for each {each} in {shown_name(where.name)}; "
        "federation.num-supernodes=N takes the N with most rows"
    )


def given(words: list[str]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The keys of the app and those of the federation that the words name, checked one by one.

    A word that chooses another plugin than the preset drops the preset's keys that were for that one alone.
    """
    keys: dict[str, Scalar] = {}
    federation: dict[str, Scalar] = {}
    preset: set[str] = set()  # keys that it alone has set
    for source, found in _sources(words):
        for key, value in found.items():
            if key.startswith("federation."):
                federation[key.removeprefix("federation.")] = _federation_value(key, value)
                continue
            try:
                keys[key] = checked(key, value)
            except ConfigError as error:
                raise ConfigError(f"{error} ({source})") from error
        preset -= found.keys()
        lost = without_effect(found, preset)
        keys = {key: value for key, value in keys.items() if key not in lost}
        preset = set(keys) if source.endswith(".toml") else preset - lost
    return keys, federation


def _sources(words: list[str]) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
    for i, word in enumerate(words):
        if "=" not in word:
            if not word.endswith(".toml") or any("=" in earlier for earlier in words[:i]):
                raise ConfigError(f"expected preset files first and then key=value words, got {word!r}")
            yield word, _preset(Path(word))
        else:
            key, text = word.split("=", 1)
            yield (
                "command line",
                {key: _value(text, defaults().get(key, FEDERATION.get(key.split(".", 1)[-1])))},
            )


def _preset(path: Path) -> dict[str, Scalar]:
    for candidate in (path, ROOT / "presets" / path):
        if candidate.is_file():
            return flatten(read_toml(candidate))
    have = ", ".join(sorted(p.name for p in (ROOT / "presets").glob("*.toml")))
    raise ConfigError(f"no preset {path}; have in presets/: {have}")


def _value(text: str, like: Scalar | None) -> Scalar:
    """A word as TOML reads it; anything is a string where a string is meant."""
    if isinstance(like, str):
        return text
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _federation_value(key: str, value: Scalar) -> Scalar:
    short = key.removeprefix("federation.")
    if short not in FEDERATION:
        raise ConfigError(f"unknown key {key!r}; have: {', '.join('federation.' + k for k in FEDERATION)}")
    want = type(FEDERATION[short])
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is not want:
        raise ConfigError(f"{key} must be {want.__name__}, got {value!r}")
    if short in LEAST and not LEAST[short] <= float(value) < MOST:
        raise ConfigError(f"{key} must be at least {LEAST[short]} and below {MOST:g}, got {value!r}")
    if short == "client-cpus" and value != int(value):
        raise ConfigError(f"{key} must be a whole number, got {value!r}")
    return value


def run_folder(folder: str) -> Path:
    for path in (Path(folder), Path("runs") / folder):
        if (path / CONFIG).is_file():
            return path
    raise ConfigError(f"{folder!r} is no run folder: expected a folder with a config.toml, here or in runs/")


def recorded_federation(
    path: Path, then: Mapping[str, Scalar], named: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """A simulation with as many clients as the run had, and what is `named` now.

    Raises ConfigError for the run of a deployment that is not named again: simulated clients are others.
    """
    manifest = read_json(path / "manifest.json", {})
    if manifest.get("federation") == "deployment" and not named.get("superlink"):
        raise ConfigError(
            f"{path.name} is a run of a deployment: name it, `accord resume {path} federation.superlink=NAME`"
        )
    known, federation = manifest.get("clients", {}), read_config(path)[1]
    if not isinstance(known, dict):
        raise DataError(f"{path / 'manifest.json'}: clients must be an object; was it edited by hand?")
    clients = len(known) or int(checked(MINIMUM, then.get(MINIMUM, defaults()[MINIMUM])))
    recorded = {key: _federation_value(f"federation.{key}", value) for key, value in federation.items()}
    return {**FEDERATION, "num-supernodes": clients, **recorded, **named}
