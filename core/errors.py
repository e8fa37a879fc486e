"""Errors that a user can see; each message says what was expected, what was received, where, and what to do."""

from collections.abc import Iterable


class AccordError(Exception):
    """Base of all errors that Accord raises deliberately.

    names: file names in the message, which may identify a person and must not leave a site.
    """

    def __init__(self, message: str = "", *, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(sorted((name for name in names if name), key=len, reverse=True))

    def outside(self) -> str:
        """Return the message as it may leave a site, without file names."""
        text = str(self)
        for name in self.names:
            text = text.replace(name, "the site's file")
        return text


class ConfigError(AccordError):
    """A mistake of the user: a wrong key, value or combination, or a missing file."""


class DataError(AccordError):
    """A row or a data file that cannot be used."""


class TreeMismatch(AccordError):
    """Two trees whose names or shapes differ."""


class MemoryMissing(AccordError):
    """A version of private memory that the client's disk does not hold."""


class BaseMismatch(AccordError):
    """A client's base model is not the server's."""


class FrameError(AccordError):
    """Bytes, or fields of a message, that are not a message of Accord."""


class SiteError(AccordError):
    """A site that cannot be reached or does not answer a message."""


class RoundFailed(AccordError):
    """Too few replies for a round; the round leaves no trace."""


class CheckpointError(AccordError):
    """A run folder that cannot be written or resumed."""


class PolicyRefused(AccordError):
    """An order or answer that a site's policy refuses; the message holds no private text."""
