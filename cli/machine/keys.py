"""A site's key pair, with which it authenticates: P-384 (a curve that flwr accepts), in OpenSSH's formats."""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from core import atomic
from core.errors import ConfigError


def make_key(private: Path, public: Path) -> None:
    """Write a new key pair; the private half has mode 0600."""
    key = ec.generate_private_key(ec.SECP384R1())
    write(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), 0o600)
    write_public(private, public)


def write_public(private: Path, public: Path) -> None:
    """Write the public half of a pair."""
    write(public, _public(private) + b"\n")


def check_private(path: Path) -> None:
    """Raise ConfigError unless `path` is a site's private key that only its owner can read."""
    _read(path)
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others; chmod 600 it, or if they may have read it, make another key"
        )


def fingerprint(public: Path) -> str:
    """SHA256:... of a public key file, as `ssh-keygen -lf` prints it. Raises ConfigError if it holds no such key."""
    try:
        text = public.read_bytes()
        if not isinstance(load_ssh_public_key(text), ec.EllipticCurvePublicKey):
            raise ValueError("not an elliptic-curve key")
        return _digest(text)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{public} is not the public key of a site (ecdsa-sha2-nistp384 ...): {error}"
        ) from error


def fingerprint_of(private: Path) -> str:
    """The fingerprint of the pair that a private key file belongs to. Raises ConfigError."""
    return _digest(_public(private))


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file atomically, with its mode set from the start. Raises ConfigError if it cannot be written."""
    try:
        atomic.write(path, content, mode)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _public(private: Path) -> bytes:
    return _read(private).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def _digest(public: bytes) -> str:
    blob = base64.b64decode(public.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _read(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not an elliptic-curve key")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not the private key of a site (P-384, in OpenSSH's format): {error}"
        ) from error
    return key
