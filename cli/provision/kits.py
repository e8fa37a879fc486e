"""Make kits, the folders that the server and each site need.

    kits/authority/    ca.key (0600), ca.crt: used only to sign the server's certificate
    kits/server/       the server's key and certificate, the public key of every site
    kits/sites/NAME/   the site's own key, the authority's certificate

Making them again keeps every key and every site.toml.
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
from cli.provision.federation import Federation, SitePlan
from core.addresses import join_address
from core.errors import ConfigError
from core.files import read_toml

NUMBERS = "sites.toml"
SOON = 30  # days before its end from which on a certificate is reported


def provision(federation: Federation, out: Path, *, renew: bool = False) -> Iterator[str]:
    """Make the missing files in `out`, and yield a line for each file made or step left to the user.

    Args:
        federation: The server and the sites.
        out: The folder of the kits.
        renew: Make a new key and certificate for the server.

    Raises:
        ConfigError: `out` belongs to another federation or cannot be written, or a file of it is damaged.
    """
    authority, server = out / "authority", out / "server"
    _refuse_another(federation, server)
    try:
        for folder in (authority, server / "sites", out / "sites"):
            folder.mkdir(parents=True, exist_ok=True)
        authority.chmod(0o700)
        server.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}; name another folder") from error
    if not (authority / "ca.crt").exists():
        if (authority / "ca.key").exists() or (server / KIT).exists():
            raise ConfigError(
                f"{authority / 'ca.crt'} is missing; restore it from {server / 'ca.crt'} or a site's kit, because "
                f"sites reject a server of a new authority; if no site has its kit yet, delete {authority} instead"
            )
        make_authority(authority, federation.name, federation.ca_days)
        yield f"authority  made, for {federation.ca_days} days; keep {authority / 'ca.key'} off the server's machine"
    numbers = _numbers(federation, server / NUMBERS)
    yield from _server(federation, server, authority, renew=renew)
    for site in federation.sites:
        yield from _site(federation, site, numbers, out)
    for public in sorted((server / "sites").glob("*.pub")):
        if public.stem not in {site.name for site in federation.sites}:
            public.unlink()
            yield f"{public.stem}  is no longer a site; `accord register {server}` on the server removes its key"


def make_site_key(kit: Path) -> str:
    """At the site: make node.key and node.pub in its kit, unless they exist. Returns a line that says what to send."""
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
            raise ConfigError(
                f"{authority / 'ca.key'} is missing: it is needed to sign the server's certificate; put it back"
            )
        make_server(folder, authority, federation.names, federation.days)
        yield f"server  certificate for {', '.join(federation.names)}, for {federation.days} days"
    certificate = read_certificate(present)
    if not is_signed_by(certificate, read_certificate(ca)):
        raise ConfigError(f"{present} was not signed by {ca}; make a new one with --renew")
    if lacking := sorted(set(federation.names) - names_of(certificate)):
        yield f"server  its certificate does not name {', '.join(lacking)}; make a new one with --renew"
    if (days := days_left(certificate)) < SOON:
        end = certificate.not_valid_after_utc
        verb = "ends" if days > 0 else "ended"
        yield f"server  its certificate {verb} on {end:%Y-%m-%d}; make a new one with --renew"
    write(folder / "ca.crt", ca.read_bytes())
    about = {
        "kind": "server",
        "federation": federation.name,
        "fleet": join_address(federation.listen, federation.fleet_port),
        "control": federation.control,
        "state-dir": "state",
    }
    write(folder / KIT, tomli_w.dumps(about).encode())
    for name, text in kit_files.server(federation).items():
        write(folder / name, text.encode())


def _numbers(federation: Federation, path: Path) -> dict[str, int]:
    """The client number of each site, by name. New sites get new numbers, and no number is ever reused.

    A site's private memory belongs to its number, and a resumed run identifies the site by it.
    """
    numbers: dict[str, int] = read_toml(path) if path.exists() else {}
    if (path.parent / KIT).exists() and not numbers:
        raise ConfigError(
            f"{path} is missing or empty: it says which client each site is; restore it from a copy, or write a line "
            "NAME = NUMBER for each site into it, with the partition-id of its site.toml"
        )
    for name, number in numbers.items():
        if type(number) is not int or number < 0:
            raise ConfigError(
                f"{path}: {name} must be a whole number from 0, got {number!r}; restore the file from a copy"
            )
    for site in federation.sites:
        numbers.setdefault(site.name, max(numbers.values(), default=-1) + 1)
    write(path, tomli_w.dumps(numbers).encode())
    return numbers


def _site(federation: Federation, site: SitePlan, numbers: dict[str, int], out: Path) -> Iterator[str]:
    folder, server_copy = out / "sites" / site.name, out / "server" / "sites" / f"{site.name}.pub"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    private, public = folder / "node.key", folder / "node.pub"
    if site.own_key:
        if not server_copy.is_file():
            yield (
                f"{site.name}  makes its own key: run `accord provision --site-key KIT` there, "
                f"and put its node.pub here as {server_copy}"
            )
    elif not server_copy.is_file():
        if not private.is_file():
            make_key(private, public)
        write(server_copy, public.read_bytes())
        yield f"{site.name}  key {fingerprint(server_copy)} in {folder}"
    write(folder / "ca.crt", (out / "authority" / "ca.crt").read_bytes())
    about = {
        "kind": "site",
        "name": site.name,
        "federation": federation.name,
        "superlink": federation.address,
        "runtime-port": site.port,
    }
    before = (folder / KIT).read_bytes() if (folder / KIT).is_file() else b""
    write(folder / KIT, tomli_w.dumps(about).encode())
    if before and before != (folder / KIT).read_bytes():
        yield f"{site.name}  {folder / KIT} has changed: send it to the site, and restart its SuperNode"
    if not (folder / "site.toml").is_file():
        write(folder / "site.toml", kit_files.site_toml(site, numbers[site.name], len(numbers)).encode())
    for name, text in kit_files.site(federation, site).items():
        write(folder / name, text.encode())
