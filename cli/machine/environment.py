"""The environment of Accord's child processes: this shell's, without the variables that would break them.

The functions take an environment as their argument, so that they can be tested. This module imports neither torch nor
other modules of Accord, because `accord node` loads it without its package (cli/site/node.py).
"""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # read by httpx, in either case
OURS = ("accord", "cli", "client_app", "core", "evals", "server_app", "strategies", "tasks")
SOCKET_BYTES = 103  # longest path of a unix socket on every system
RAY_BYTES = 70  # of these, Ray's own part: /ray/session_DATE_TIME_PID/sockets/plasma_store
ROOM = 100e6  # bytes on disk for the sources and logs of a run
_ignored: list[
    str
] = []  # notes on the variables that prepare_process() removed from this process's environment
FILES = 65536  # the limit of open files that is set, if the system allows it


def cleaned(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment for a child process, and a line for each variable that was left out of it.

    - Loopback traffic bypasses every proxy, because Flower's processes and the site communicate over it.
    - A proxy that httpx cannot use is left out, because httpx then fails for every address.
    - Python uses UTF-8 in every locale.
    - A folder on PYTHONPATH is left out if it holds a module with the name of one of Accord's.
    """
    env = {name: value for name, value in environ.items() if name != "PYTHONIOENCODING"}
    env |= {"PYTHONUTF8": "1", **bypass(environ)}
    notes = list(_ignored) if environ is os.environ else []
    for name, reason in unusable_proxies(environ).items():
        del env[name]
        notes.append(f"{name} is ignored: {reason}")
    folders, shadowing = _split_path(environ.get("PYTHONPATH", ""))
    if shadowing:
        env["PYTHONPATH"] = os.pathsep.join(folders)
        notes += [
            f"PYTHONPATH: {folder} is ignored: its {name} would hide Accord's" for folder, name in shadowing
        ]
    return env, notes


def private_ray(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """`environ` for a simulation, which starts its own Ray, and a line that names the variables left out.

    RAY_ADDRESS and the other variables in capitals select or describe a cluster. Ray's settings, in lower case after
    RAY_, stay.
    """
    ignored = sorted(
        n for n in environ if n.startswith("RAY_") and n[4:5].isupper() and n != "RAY_USAGE_STATS_ENABLED"
    )
    env = {name: value for name, value in environ.items() if name not in ignored}
    notes = [f"{', '.join(ignored)}: ignored, because a simulation starts its own Ray"] if ignored else []
    return env, notes


def bypass(environ: Mapping[str, str]) -> dict[str, str]:
    """no_proxy in every spelling, with the loopback added to its value in `environ`."""
    variables = {}
    user = next((environ[name] for name in NO_PROXY if environ.get(name)), "")
    for name in NO_PROXY:
        # "*" switches all proxies off, but only if nothing is added to it
        variables[name] = "*" if user.strip() == "*" else _with_loopback(user)
    variables["no_grpc_proxy"] = _with_loopback(environ.get("no_grpc_proxy") or user)
    return variables


def _with_loopback(hosts: str) -> str:
    entries = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join([*entries, *(host for host in LOOPBACK if host not in entries)])


def unusable_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables that httpx, the client of Flower and the Hub, cannot use, each with the reason."""
    proxies = {name: value for name, value in environ.items() if name.lower() in PROXIES and value}
    if not proxies:
        return {}
    import httpx  # takes a tenth of a second to import

    reasons = {}
    for name, value in proxies.items():
        try:
            httpx.HTTPTransport(verify=False, proxy=value if "://" in value else f"http://{value}").close()
        except (ValueError, httpx.InvalidURL):
            reasons[name] = "not the URL of a proxy, http://HOST:PORT"
        except ImportError:
            reasons[name] = "a SOCKS proxy needs the package socksio: pip install socksio"
    return reasons


def proxy_for(environ: Mapping[str, str], host: str) -> str:
    """The name of the variable with the proxy that gRPC uses for `host`; "" if it connects directly.

    gRPC reads only variables in lower case, and connects directly if the first that is set is not an http:// URL.
    """
    name = next((n for n in ("grpc_proxy", "https_proxy", "http_proxy") if environ.get(n)), "")
    if not name or not environ[name].startswith("http://"):
        return ""
    direct = bypass(environ)["no_grpc_proxy"].split(",")
    return "" if any(host.endswith(entry) for entry in direct) else name


def _split_path(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The folders of PYTHONPATH that hide no module of Accord, and (folder, module) for those that do."""
    folders, shadowing = [], []
    for folder in path.split(os.pathsep) if path else []:
        module = next(_shadowing_modules(Path(folder or ".")), "")
        if module:
            shadowing.append((folder, module))
        else:
            folders.append(folder)
    return folders, shadowing


def _shadowing_modules(folder: Path) -> Iterator[str]:
    root = Path(__file__).parents[2]
    if folder.resolve() == root:
        return
    for name in OURS:
        if (folder / f"{name}.py").is_file():
            yield f"{name}.py"
        elif (folder / name / "__init__.py").is_file():
            yield f"{name}/"


def short_folder(prefix: str, room: float = 0.0, taken: int = 0) -> Path:
    """Make a private temporary folder whose path is short enough for unix sockets below it.

    Args:
        prefix: The beginning of its name.
        room: The bytes that must be free on its disk.
        taken: The length in bytes of the longest path below it.

    Raises:
        OSError: There is no such place; the message says why for each place.
    """
    reasons = []
    for place in dict.fromkeys([_temporary(), "/tmp", "/var/tmp", "/dev/shm", os.getcwd()]):
        if not place:
            continue
        if len(os.fsencode(place)) + 1 + len(prefix) + 8 + taken > SOCKET_BYTES:
            reasons.append(f"{place}: the path is too long")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
            continue
        if shutil.disk_usage(folder).free >= room:
            return folder
        folder.rmdir()
        reasons.append(f"{place}: less than {room / 1e6:.0f} MB free")
    raise OSError(
        f"no place for temporary files ({'; '.join(reasons)}); set TMPDIR to a folder with a short path"
    )


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return ""


def prepare_process() -> None:
    """Prepare the process of a command: encoding, streams, limits, and the environment that its children inherit."""
    if sys.getfilesystemencoding() != "utf-8":  # file names and contents would be misread
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    open_standard_streams()
    raise_file_limit()
    os.environ.update(bypass(os.environ))  # this process connects to the loopback and the Hub as well
    for name, reason in unusable_proxies(os.environ).items():
        del os.environ[name]
        _ignored.append(f"{name} is ignored: {reason}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a character that the terminal cannot show must not stop a run


def raise_file_limit() -> None:
    """Raise the limit of open files as far as this user may, up to FILES, for this process and its children."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_standard_streams() -> None:
    """Open /dev/null for each closed one of stdin, stdout and stderr, so that no other file gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def die_with_parent() -> None:
    """Make this process get SIGTERM when its parent ends, for whatever reason (Linux only); for `preexec_fn`."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
