"""`accord doctor` on the server: whether its kit can be started, and whether what was started does its work."""

import http.client
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cli.machine.checks import Check, disk
from cli.machine.processes import read_kit
from cli.provision import serve
from core.errors import AccordError


def checks(kit: Path) -> Iterator[Check]:
    """The server's kit; ConfigError for a folder that is none."""
    about, kit = read_kit(kit, "server"), kit.resolve()
    yield disk("state", kit / about["state-dir"])
    try:
        yield Check("certificate", *serve.certificate(kit))
    except AccordError as error:
        yield Check("certificate", "no", str(error))
        return
    running = _answers(kit, about["control"])
    if running:
        yield Check("SuperLink", "ok", f"answers at {about['control']}")
        yield from _sites(kit)
        return
    yield Check("SuperLink", "note", f"does not answer at {about['control']}: `accord start {kit}`")
    for name in ("fleet", "control"):
        try:
            serve.check_free(about[name])
            yield Check("port", "ok", f"{about[name]} ({name}) is free")
        except AccordError as error:
            yield Check("port", "no", str(error))


def _answers(kit: Path, control: str) -> bool:
    try:
        trusted = ssl.create_default_context(cafile=str(kit / "ca.crt"))
        urllib.request.urlopen(f"https://{control}/health", timeout=3, context=trusted).close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def _sites(kit: Path) -> Iterator[Check]:
    for name, status, since in serve.sites(kit):
        told = f"{status}{f' since {since}' if since else ''}"
        yield Check(name, "ok" if status == "online" else "note", told)
