"""`accord doctor` at a site: check its files, rows, policy, key, and whether the server can be reached."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli.machine.checks import Check, disk
from cli.machine.processes import KIT
from cli.site.connectivity import proxy_of
from cli.site.policy.rules import Policy
from cli.site.site_file import SiteFile
from cli.site.supervise import NodeKit, check_files, check_server
from core.addresses import split_address
from core.errors import AccordError
from tasks.data.base import load
from tasks.data.clients.own_file import own_source
from tasks.data.reading.folders import WANTED


def checks(path: Path) -> Iterator[Check]:
    """Check a site's kit, or a SITE.toml alone."""
    kit = path if path.is_dir() else None
    try:
        site = SiteFile.read(path / "site.toml" if kit else path)
    except AccordError as error:
        yield Check("site", "no", str(error))
        return
    yield Check("site", "ok", f"client {site.partition_id} of {site.num_partitions}, at {site.address}")
    yield from _rows(site)
    if site.state_dir:
        yield disk("state", Path(site.state_dir))
    yield _policy(site)
    yield _process(site)
    yield _clock()
    if kit and (kit / KIT).is_file():
        yield from _server(NodeKit.read(kit))


def _rows(site: SiteFile) -> Iterator[Check]:
    """Count the usable rows; name place and fault of the first unusable one, never its text, and what is not read."""
    if not site.data_path:
        yield Check(
            "rows", "note", "no data-path: this site uses its share of the data source that a run names"
        )
        return
    try:
        table = load(own_source(site.data_path, site.data_source), seed=0, clients=1, on_bad_row="skip")
    except AccordError as error:
        yield Check("rows", "no", f"{site.data_path} holds no usable row: {error}")
        return
    good, bad = len(table.entries), sum(table.skipped.values())
    if bad:
        reason, first = next(iter(table.first.items()))
        yield Check("rows", "note", f"{good} usable rows, {bad} unusable ones; {first}: {reason}")
    else:
        yield Check("rows", "ok", f"{good} rows in {site.data_path}")
    yield Check("columns", "ok", table.columns.line())
    if table.unread:
        yield Check("files", "note", f"not read, because not {WANTED}: {', '.join(table.unread)}")


def _policy(site: SiteFile) -> Check:
    if not site.policy:
        return Check("policy", "note", "none: this site does whatever a run requests (docs/policy.md)")
    try:
        Policy.read(Path(site.policy))
    except AccordError as error:
        return Check("policy", "no", str(error))
    return Check("policy", "ok", str(site.policy))


def _process(site: SiteFile) -> Check:
    path = site.socket
    try:
        if path:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(3)
                connection.connect(str(path))
        else:
            socket.create_connection(split_address(site.address), timeout=3).close()
    except OSError as error:
        return Check(
            "process", "note", f"`accord site` does not answer at {site.address} ({error.strerror or error})"
        )
    return Check("process", "ok", f"`accord site` answers at {site.address}")


def _clock() -> Check:
    """Check that systemd synchronises the clock: a site's signatures are valid for five minutes only."""
    tool = shutil.which("timedatectl")
    result = tool and subprocess.run([tool, "show", "-p", "NTPSynchronized"], capture_output=True, text=True)
    if result and result.stdout.strip() == "NTPSynchronized=yes":
        return Check("clock", "ok", "synchronised over the network")
    return Check("clock", "note", "synchronisation unknown; it may differ from the server's by at most 300 s")


def _server(kit: NodeKit) -> Iterator[Check]:
    if variable := proxy_of(kit.host):
        route = f"{kit.superlink} is reached through the proxy of {variable}; no_proxy={kit.host} bypasses it"
        yield Check("proxy", "note", route)
    try:
        check_files(kit)
        yield Check("key", "ok", str(kit.folder / "node.key"))
    except AccordError as error:
        yield Check("key", "no", str(error))
    try:
        check_server(kit)
        yield Check("server", "ok", f"{kit.superlink} answers with a certificate of this federation")
    except AccordError as error:
        yield Check("server", "no", str(error))
    except OSError as error:
        yield Check(
            "server",
            "no",
            f"no answer from {kit.superlink}: {error}; is it running, and is its port open to this site?",
        )
