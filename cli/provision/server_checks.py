"""`accord doctor` on the server: whether its kit can start, or whether the running SuperLink answers."""

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
    """Check the server's kit. Raises ConfigError if the folder is not one."""
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
    yield Check(
        "SuperLink", "note", f"does not answer at {about['control']}; start it with `accord start {kit}`"
    )
    for name in ("fleet", "control"):
        try:
            serve.check_free(about[name])
            yield Check("port", "ok", f"{about[name]} ({name}) is free")
        except AccordError as error:
            yield Check("port", "no", str(error))


def _answers(kit: Path, control: str) -> bool:
    try:
        tls_context = ssl.create_default_context(cafile=str(kit / "ca.crt"))
        urllib.request.urlopen(f"https://{control}/health", timeout=3, context=tls_context).close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def _sites(kit: Path) -> Iterator[Check]:
    for name, status, since in serve.sites(kit):
        message = f"{status}{f' since {since}' if since else ''}"
        yield Check(name, "ok" if status == "online" else "note", message)
