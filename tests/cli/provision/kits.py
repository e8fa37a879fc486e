"""Kits of a federation of three sites."""

from pathlib import Path

from cli.provision.federation import read_federation
from cli.provision.kits import provision

HEAD = 'name = "clinics"\nhosts = ["fl.example.org", "192.0.2.7", "::1"]\n'
SITES = '[sites.north]\ndata-path = "/data/rows.jsonl"\n[sites.south]\n[sites.west]\nown-key = true\n'


def make(folder: Path, text: str = HEAD + SITES, **options) -> list[str]:
    """Make kits in folder/kits and return the printed lines."""
    (folder / "federation.toml").write_text(text)
    return list(provision(read_federation(folder / "federation.toml"), folder / "kits", **options))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_private(content: bytes) -> bool:
    return b"PRIVATE KEY" in content
