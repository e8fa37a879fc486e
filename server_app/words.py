"""What the words of a command ask for: presets, KEY=VALUE, a run folder; every key and value is checked."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import checked, defaults, flatten, parse, without_effect
from core.errors import ConfigError, DataError
from core.files import read_json, read_toml
from core.types import Scalar
from tasks.data.jsonl import ENDINGS

ROOT = Path(__file__).resolve().parents[1]
MINIMUM = "strategy.min-available-nodes"
# Not knobs of the app: how many clients a simulation has and what each may use, or which deployment to ask.
FEDERATION: dict[str, Scalar] = {"num-supernodes": 8, "client-cpus": 1.0, "client-gpus": 0.0, "superlink": ""}
LEAST = {"num-supernodes": 1, "client-cpus": 1, "client-gpus": 0}
MOST = 1e6  # of each of these


@dataclass(frozen=True)
class Request:
    """What to run: the app's keys as overrides, and the federation's."""

    keys: dict[str, Scalar]
    federation: dict[str, Scalar]


def request(words: list[str]) -> Request:
    """Preset files, a later one over an earlier one, merged with key=value words; every key and value is checked."""
    keys, chosen = given(words)
    federation = federated(keys, chosen)
    parse(keys)
    return Request(keys, federation)


def federated(keys: dict[str, Scalar], chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The federation's values where `chosen` is silent; a simulation waits for all of its clients.

    A folder of own files is simulated with a client for each file.
    """
    federation = {**FEDERATION, "num-supernodes": _files(keys) or FEDERATION["num-supernodes"], **chosen}
    if not federation["superlink"]:
        keys.setdefault(MINIMUM, federation["num-supernodes"])
    return federation


def _files(keys: Mapping[str, Scalar]) -> int:
    """How many files with rows data.path names, if it is a folder of them and each is a client's."""
    known = {**defaults(), **keys}
    folder = Path(str(known["data.path"])).expanduser()
    if known["data.source"] != "jsonl" or known["data.partitioner"] != "natural" or not folder.is_dir():
        return 0
    return sum(file.name.endswith(ENDINGS) for file in folder.iterdir())


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
        if (path / "config.toml").is_file():
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
    known = manifest.get("clients", {})
    if not isinstance(known, dict):
        raise DataError(f"{path / 'manifest.json'}: clients must be an object; was it edited by hand?")
    clients = len(known) or int(checked(MINIMUM, then.get(MINIMUM, defaults()[MINIMUM])))
    return {**FEDERATION, "num-supernodes": clients, **named}
