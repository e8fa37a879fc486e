"""The origin that a message claims."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """The origin that a message claims. The app that the server uploaded writes it, so it proves nothing."""

    run: str  # Flower's run id
    owner: str  # the account that started the run; "" where Flower does not say
    app: str  # the bundle's hash, or the name of its folder, which ends in the first digits of that hash
