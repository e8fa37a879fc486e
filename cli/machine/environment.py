"""The environment that Accord's child processes get: this shell's, without what would break them.

Functions of an environment, so that they can be tested without one. No torch and nothing of ours here: `accord node`
reads this module without its package (cli/site/node.py).
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
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # that httpx reads, in either case
OURS = ("accord", "cli", "client_app", "core", "evals", "server_app", "strategies", "tasks")
SOCKET_BYTES = 103  # of a unix socket's path, on every system
RAY_BYTES = 70  # of these, for Ray's own part: /ray/session_DATE_TIME_PID/sockets/plasma_store
ROOM = 100e6  # bytes on disk for the sources and logs of a run
_ignored: list[str] = []  # notes of what prepare_process() took out of this process's environment
FILES = 65536  # open files that are asked for, where the system allows as many


def cleaned(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment for a child process, and a line for each variable that was left out of it.

    - Loopback traffic bypasses every proxy: Flower's processes and the site's talk over it.
    - A proxy that httpx cannot use is left out: httpx refuses to start with one, whatever it is asked to reach.
    - Python reads and writes UTF-8, whatever the locale.
    - A folder on PYTHONPATH with a module of the name of one of ours is left out.
    """
    env = {name: value for name, value in environ.items() if name != "PYTHONIOENCODING"}
    env |= {"PYTHONUTF8": "1", **bypass(environ)}
    notes = list(_ignored) if environ is os.environ else []
    for name, reason in unusable_proxies(environ).items():
        del env[name]
        notes.append(f"{name} is ignored: {reason}")
    kept, shadowing = _split_path(environ.get("PYTHONPATH", ""))
    if shadowing:
        env["PYTHONPATH"] = os.pathsep.join(kept)
        notes += [
            f"PYTHONPATH: {folder} is ignored: its {name} would hide Accord's" for folder, name in shadowing
        ]
    return env, notes


def private_ray(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """`environ` for a simulation, which starts a Ray of its own, and a line for what was left out.

    RAY_ADDRESS and the other variables in capitals describe or choose a cluster; Ray's settings are in lower case
    after RAY_ and stay.
    """
    gone = sorted(
        n for n in environ if n.startswith("RAY_") and n[4:5].isupper() and n != "RAY_USAGE_STATS_ENABLED"
    )
    env = {name: value for name, value in environ.items() if name not in gone}
    notes = [f"{', '.join(gone)}: ignored, since a simulation starts a Ray of its own"] if gone else []
    return env, notes


def bypass(environ: Mapping[str, str]) -> dict[str, str]:
    """no_proxy in every spelling, with the loopback added to what it holds."""
    out = {}
    user = next((environ[name] for name in NO_PROXY if environ.get(name)), "")
    for name in NO_PROXY:
        # "*" switches all proxies off, and only where it stands alone
        out[name] = "*" if user.strip() == "*" else _with_loopback(user)
    out["no_grpc_proxy"] = _with_loopback(environ.get("no_grpc_proxy") or user)
    return out


def _with_loopback(hosts: str) -> str:
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join([*named, *(host for host in LOOPBACK if host not in named)])


def unusable_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the proxy variables those that httpx, which Flower and the Hub's client use, cannot take, and why."""
    named = {name: value for name, value in environ.items() if name.lower() in PROXIES and value}
    if not named:
        return {}
    import httpx  # a tenth of a second

    out = {}
    for name, value in named.items():
        try:
            httpx.HTTPTransport(verify=False, proxy=value if "://" in value else f"http://{value}").close()
        except (ValueError, httpx.InvalidURL):
            out[name] = "it is no URL of a proxy, http://HOST:PORT"
        except ImportError:
            out[name] = "a SOCKS proxy needs the package socksio: pip install socksio"
    return out


def proxy_for(environ: Mapping[str, str], host: str) -> str:
    """The name of the variable whose proxy gRPC takes to `host`; "" for a direct connection.

    gRPC reads lower case only, and goes directly where the first that is set is no http:// URL.
    """
    name = next((n for n in ("grpc_proxy", "https_proxy", "http_proxy") if environ.get(n)), "")
    if not name or not environ[name].startswith("http://"):
        return ""
    direct = bypass(environ)["no_grpc_proxy"].split(",")
    return "" if any(host.endswith(entry) for entry in direct) else name


def _split_path(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The folders of PYTHONPATH that hide nothing of ours, and those that do, with what hides it."""
    kept, shadowing = [], []
    for folder in path.split(os.pathsep) if path else []:
        hiding = next(_hiding(Path(folder or ".")), "")
        if hiding:
            shadowing.append((folder, hiding))
        else:
            kept.append(folder)
    return kept, shadowing


def _hiding(folder: Path) -> Iterator[str]:
    root = Path(__file__).parents[2]
    if folder.resolve() == root:
        return
    for name in OURS:
        if (folder / f"{name}.py").is_file():
            yield f"{name}.py"
        elif (folder / name / "__init__.py").is_file():
            yield f"{name}/"


def short_folder(prefix: str, room: float = 0.0, taken: int = 0) -> Path:
    """A new private folder in which a unix socket can be made.

    room: bytes that must be free there. taken: bytes that a path below it needs. OSError where there is no such place.
    """
    reasons = []
    for place in dict.fromkeys([_temporary(), "/tmp", "/var/tmp", "/dev/shm", os.getcwd()]):
        if not place:
            continue
        if len(os.fsencode(place)) + 1 + len(prefix) + 8 + taken > SOCKET_BYTES:
            reasons.append(f"{place}: too long a path")
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
    """Of a command line: what its own process needs, and what its children inherit."""
    if sys.getfilesystemencoding() != "utf-8":  # names of files and their contents would be misread
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    open_standard_streams()
    raise_file_limit()
    os.environ.update(bypass(os.environ))  # this process asks the loopback too, and the Hub
    for name, reason in unusable_proxies(os.environ).items():
        del os.environ[name]
        _ignored.append(f"{name} is ignored: {reason}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter stops no run


def raise_file_limit() -> None:
    """As many open files as this user may have, up to FILES; for this process and what it starts."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_standard_streams() -> None:
    """/dev/null for each of stdin, stdout and stderr that is closed, so that no file gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def die_with_parent() -> None:
    """In a child, before its program: SIGTERM when the parent is gone, however it went (Linux only)."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
