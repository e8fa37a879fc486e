"""Parse the arguments of a command: presets, KEY=VALUE, a run folder. Every key and value is checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.machine.processes import ROOT
from cli.machine.settings import read_setting
from core.config import checked, defaults, flatten, parse, without_effect
from core.errors import ConfigError, DataError
from core.files import read_json, read_toml
from core.naming import shown_name
from core.plugins import build
from core.tables import did_you_mean, typed
from core.types import Scalar
from server_app.report.commands import FEDERATION, has_owners
from server_app.report.reading import CONFIG, read_config
from tasks.data.clients.shares import owners_of

FEDERATION_KEYS = {f"federation.{key}": value for key, value in FEDERATION.items()}
MINIMUM = "strategy.min-available-nodes"
LEAST = {"num-supernodes": 1, "client-cpus": 1, "client-gpus": 0}
MOST = 1e6  # every key of LEAST must be below
PATHS = ("data.path", "eval.prompts", "eval.pairs", "rlft.prompts")  # in a simulation, files of this machine


@dataclass(frozen=True)
class Request:
    """A run to start: overrides of the app's keys, and the federation's keys without their prefix.

    notes: lines for the user, printed before the run starts.
    """

    keys: dict[str, Scalar]
    federation: dict[str, Scalar]
    notes: tuple[str, ...] = ()


def request(arguments: list[str]) -> Request:
    """Merge preset files (later ones override earlier ones) with KEY=VALUE arguments, and check every key and value.

    In a simulation, paths become absolute, so that the run's config.toml repeats the run from any folder.
    """
    keys, chosen = parse_arguments(arguments)
    federation = federated(keys, chosen)
    parse(keys)
    if not federation["superlink"]:
        keys |= {k: str(Path(str(keys[k])).expanduser().resolve()) for k in PATHS if keys.get(k)}
    counted = not chosen.get("superlink") and "num-supernodes" not in chosen and has_owners(keys)
    return Request(keys, federation, (_about_clients(keys, federation),) if counted else ())


def federated(keys: dict[str, Scalar], chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Complete `chosen` with the defaults of the federation; a simulation waits for all of its clients.

    Where rows have owners (a folder's files, a client column), a simulation has a client per owner, which requires
    reading the rows. In a simulation, MINIMUM is added to `keys` if it is missing.

    Raises:
        DataError: The rows cannot be read.
        ConfigError: MINIMUM is above the number of clients.
    """
    federation = {**FEDERATION, **chosen}
    if federation["superlink"]:
        return federation
    if "num-supernodes" not in chosen and has_owners(keys):
        federation["num-supernodes"] = _owners(keys)
    clients = int(federation["num-supernodes"])
    if int(keys.setdefault(MINIMUM, clients)) > clients:
        raise ConfigError(
            f"{MINIMUM} = {keys[MINIMUM]}, but the simulation has {clients} clients, so it would wait for ever; "
            f"leave {MINIMUM} out, or raise federation.num-supernodes"
        )
    return federation


def _owners(keys: Mapping[str, Scalar]) -> int:
    """The number of owners with rows that the task can train on."""
    data_keys = {key: value for key, value in keys.items() if key.startswith(("data.", "run.seed"))}
    task = str({**defaults(), **keys}["task.name"])
    return len(owners_of(parse({**data_keys, "task.name": task}), build("tasks", task, {})))


def _about_clients(keys: Mapping[str, Scalar], federation: Mapping[str, Scalar]) -> str:
    settings = {**defaults(), **keys}
    path = Path(str(settings["data.path"] or settings["data.dataset"])).expanduser()
    is_folder = settings["data.source"] == "jsonl" and path.is_dir()
    owner = "file" if is_folder else f"value of {shown_name(settings['data.client-column'])}"
    return (
        f"clients  {federation['num-supernodes']}, one for each {owner} in {shown_name(path.name)}; "
        "federation.num-supernodes=N takes the N with the most rows"
    )


def parse_arguments(arguments: list[str]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The app's keys and the federation's keys (without their prefix) that the arguments set, each checked.

    An argument that chooses another plugin than a preset did drops the preset's keys that only that plugin reads.
    Raises ConfigError for an unknown key, a wrong value or a missing preset.
    """
    keys: dict[str, Scalar] = {}
    federation: dict[str, Scalar] = {}
    from_presets: set[str] = set()  # keys that only presets have set
    for source, settings in _sources(arguments):
        for key, value in settings.items():
            if key.startswith("federation."):
                federation[key.removeprefix("federation.")] = _federation_value(key, value)
                continue
            try:
                keys[key] = checked(key, value)
            except ConfigError as error:
                raise ConfigError(f"{error} ({source})") from error
        from_presets -= settings.keys()
        dropped = without_effect(settings, from_presets)
        keys = {key: value for key, value in keys.items() if key not in dropped}
        from_presets = set(keys) if source.endswith(".toml") else from_presets - dropped
    return keys, federation


def _sources(arguments: list[str]) -> Iterator[tuple[str, Mapping[str, Scalar]]]:
    """The name and the settings of each argument; the name of a KEY=VALUE is "command line"."""
    for i, argument in enumerate(arguments):
        if "=" not in argument:
            if not argument.endswith(".toml") or any("=" in earlier for earlier in arguments[:i]):
                raise ConfigError(f"expected preset files first, then KEY=VALUE arguments; got {argument!r}")
            yield argument, _preset(Path(argument))
        else:
            key, value = read_setting(argument, {**FEDERATION_KEYS, **defaults()})
            yield "command line", {key: value}


def _preset(path: Path) -> dict[str, Scalar]:
    for candidate in (path, ROOT / "presets" / path):
        if candidate.is_file():
            return flatten(read_toml(candidate))
    available = ", ".join(sorted(p.name for p in (ROOT / "presets").glob("*.toml")))
    raise ConfigError(f"no preset {path}: no such file, here or in presets/, which has {available}")


def _federation_value(key: str, value: Scalar) -> Scalar:
    short = key.removeprefix("federation.")
    if key not in FEDERATION_KEYS:
        hint = did_you_mean(key, FEDERATION_KEYS) or f"have: {', '.join(FEDERATION_KEYS)}"
        raise ConfigError(f"unknown key {key!r}; {hint}")
    value = typed(key, value, type(FEDERATION[short]))
    if short in LEAST and not LEAST[short] <= float(value) < MOST:
        raise ConfigError(f"{key} must be at least {LEAST[short]} and below {MOST:g}, got {value!r}")
    if short == "client-cpus" and value != int(value):
        raise ConfigError(f"{key} must be a whole number, got {value!r}")
    return value


def run_folder(folder: str) -> Path:
    """The path of a run folder, or of one in runs/ by its name. Raises ConfigError if there is none."""
    for path in (Path(folder), Path("runs") / folder):
        if (path / CONFIG).is_file():
            return path
    raise ConfigError(
        f"{folder!r} is not a run folder: expected a folder with a config.toml, here or in runs/"
    )


def recorded_federation(
    path: Path, recorded: Mapping[str, Scalar], overrides: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """The federation's keys for resuming a run: as many clients as the run had, and `overrides`.

    Args:
        path: The run folder.
        recorded: The app's keys in its config.toml.
        overrides: The federation's keys of the command line.

    Raises:
        ConfigError: The run belongs to a deployment that the command line does not name. It must not continue as a
            simulation, whose clients hold other rows.
    """
    manifest = read_json(path / "manifest.json", {})
    if manifest.get("federation") == "deployment" and not overrides.get("superlink"):
        raise ConfigError(
            f"{path.name} is a run of a deployment; name its SuperLink: accord resume {path} federation.superlink=NAME"
        )
    clients, federation = manifest.get("clients", {}), read_config(path)[1]
    if not isinstance(clients, dict):
        raise DataError(f"{path / 'manifest.json'}: clients must be an object; was it edited by hand?")
    count = len(clients) or int(checked(MINIMUM, recorded.get(MINIMUM, defaults()[MINIMUM])))
    settings = {key: _federation_value(f"federation.{key}", value) for key, value in federation.items()}
    return {**FEDERATION, "num-supernodes": count, **settings, **overrides}
