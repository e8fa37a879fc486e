"""Kits: what the server's machine and each site's machine need, each in a folder of its own.

    kits/authority/    ca.key (0600), ca.crt: signs the server's certificate, and is needed for nothing else
    kits/server/       the server's key and certificate, the public key of every site
    kits/sites/NAME/   a site's own key, the certificate that it trusts

Making them again keeps every key, and what a site has changed in its site.toml.
"""

from collections.abc import Iterator
from pathlib import Path

import tomli_w

from cli.machine.keys import fingerprint, make_key, write, write_public
from cli.machine.processes import KIT, read_kit
from cli.provision import kit_files
from cli.provision.certificates import (
    days_left,
    is_signed_by,
    make_authority,
    make_server,
    names_of,
    read_certificate,
)
from cli.provision.federation import Federation, SitePlan, join
from core.errors import ConfigError
from core.files import read_toml

NUMBERS = "sites.toml"
SOON = 30  # days before its end at which a certificate is worth a word


def provision(federation: Federation, out: Path, *, renew: bool = False) -> Iterator[str]:
    """Make what is missing in `out` and yield a line for each thing made or left to do.

    renew: a new key and certificate for the server. Raises ConfigError where `out` belongs to another federation.
    """
    authority, server = out / "authority", out / "server"
    _refuse_another(federation, server)
    try:
        for folder in (authority, server / "sites", out / "sites"):
            folder.mkdir(parents=True, exist_ok=True)
        authority.chmod(0o700)
        server.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}; name another") from error
    if not (authority / "ca.crt").exists():
        if (authority / "ca.key").exists() or (server / KIT).exists():
            raise ConfigError(
                f"{authority / 'ca.crt'} is gone; put it back from {server / 'ca.crt'} or a site's kit; "
                f"another authority would shut every site out, unless there is none yet: then delete {authority}"
            )
        make_authority(authority, federation.name, federation.ca_days)
        yield f"authority  made, for {federation.ca_days} days; keep {authority / 'ca.key'} off the server's machine"
    numbers = _numbers(federation, server / NUMBERS)
    yield from _server(federation, server, authority, renew=renew)
    for site in federation.sites:
        yield from _site(federation, site, numbers, out)
    for gone in sorted((server / "sites").glob("*.pub")):
        if gone.stem not in {site.name for site in federation.sites}:
            gone.unlink()
            yield f"{gone.stem}  is no longer a site; `accord register {server}` on the server takes its key away"


def make_site_key(kit: Path) -> str:
    """At the site: make node.key and node.pub in its kit, unless they are there; a line that says what to send."""
    about = read_kit(kit, "site")
    private, public = kit / "node.key", kit / "node.pub"
    if private.is_file():
        write_public(private, public)
    else:
        make_key(private, public)
    return f"{about['name']}  key {fingerprint(public)}; send {public} to the server as sites/{about['name']}.pub"


def _refuse_another(federation: Federation, server: Path) -> None:
    if (server / KIT).is_file() and (was := read_kit(server)["federation"]) != federation.name:
        raise ConfigError(
            f"{server.parent} holds the kits of federation {was!r}, not of {federation.name!r}; use another --out"
        )


def _server(federation: Federation, folder: Path, authority: Path, *, renew: bool) -> Iterator[str]:
    ca, present = authority / "ca.crt", folder / "server.crt"
    if renew or not present.is_file():
        if not (authority / "ca.key").is_file():
            raise ConfigError(f"{authority / 'ca.key'} is not there: it has to sign the server's certificate")
        make_server(folder, authority, federation.names, federation.days)
        yield f"server  certificate for {', '.join(federation.names)}, for {federation.days} days"
    certificate = read_certificate(present)
    if not is_signed_by(certificate, read_certificate(ca)):
        raise ConfigError(f"{present} was not signed by {ca}; make another with --renew")
    if lacking := sorted(set(federation.names) - names_of(certificate)):
        yield f"server  its certificate does not name {', '.join(lacking)}; make another with --renew"
    if (left := days_left(certificate)) < SOON:
        end = certificate.not_valid_after_utc
        yield f"server  its certificate {'ends' if left > 0 else 'ended'} on {end:%Y-%m-%d}; make another with --renew"
    write(folder / "ca.crt", ca.read_bytes())
    about = {
        "kind": "server",
        "federation": federation.name,
        "fleet": join(federation.listen, federation.fleet_port),
        "control": federation.control,
        "state-dir": "state",
    }
    write(folder / KIT, tomli_w.dumps(about).encode())
    for name, text in kit_files.server(federation).items():
        write(folder / name, text.encode())


def _numbers(federation: Federation, path: Path) -> dict[str, int]:
    """Each site's number, which is the client it is; a number is never given to another site.

    A site's private memory and its place in a run go by this number.
    """
    numbers: dict[str, int] = read_toml(path) if path.exists() else {}
    if (path.parent / KIT).exists() and not numbers:
        raise ConfigError(
            f"{path} is gone or empty, and with it which client each site is; put it back from a copy, or write "
            "NAME = partition-id of each site.toml into it"
        )
    for name, number in numbers.items():
        if type(number) is not int or number < 0:
            raise ConfigError(
                f"{path}: {name} must be a number from 0, got {number!r}; put it back from a copy"
            )
    for site in federation.sites:
        numbers.setdefault(site.name, max(numbers.values(), default=-1) + 1)
    write(path, tomli_w.dumps(numbers).encode())
    return numbers


def _site(federation: Federation, site: SitePlan, numbers: dict[str, int], out: Path) -> Iterator[str]:
    folder, known = out / "sites" / site.name, out / "server" / "sites" / f"{site.name}.pub"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    private, public = folder / "node.key", folder / "node.pub"
    if site.own_key:
        if not known.is_file():
            yield f"{site.name}  makes its own key: `accord provision --site-key KIT` there, node.pub here as {known}"
    elif not known.is_file():
        if not private.is_file():
            make_key(private, public)
        write(known, public.read_bytes())
        yield f"{site.name}  key {fingerprint(known)} in {folder}"
    write(folder / "ca.crt", (out / "authority" / "ca.crt").read_bytes())
    about = {
        "kind": "site",
        "name": site.name,
        "federation": federation.name,
        "superlink": federation.address,
        "runtime-port": site.port,
    }
    then = (folder / KIT).read_bytes() if (folder / KIT).is_file() else b""
    write(folder / KIT, tomli_w.dumps(about).encode())
    if then and then != (folder / KIT).read_bytes():
        yield f"{site.name}  {folder / KIT} is another now: send it to the site, and start its SuperNode again"
    if not (folder / "site.toml").is_file():
        write(folder / "site.toml", kit_files.site_toml(site, numbers[site.name], len(numbers)).encode())
    for name, text in kit_files.site(federation, site).items():
        write(folder / name, text.encode())
