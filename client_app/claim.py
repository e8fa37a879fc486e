"""Claim: where a message says that it comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """Where a message says that it comes from: told by the app that the server uploaded, and no proof."""

    run: str  # Flower's id of the run
    owner: str  # the account that started it; "" where Flower does not say
    app: str  # the bundle's hash, or the name of its folder, which ends in how the hash begins
