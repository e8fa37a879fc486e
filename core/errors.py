"""The errors a user can meet; each message says what was expected, what came, where, and what to do."""

from collections.abc import Iterable


class AccordError(Exception):
    """Base of every error that Accord raises on purpose.

    names: those of files in the message. They may identify a person, and do not leave a site.
    """

    def __init__(self, message: str = "", *, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(sorted((name for name in names if name), key=len, reverse=True))

    def outside(self) -> str:
        """The message as it may leave a site."""
        text = str(self)
        for name in self.names:
            text = text.replace(name, "the site's file")
        return text


class ConfigError(AccordError):
    """The user's mistake: a key, a value, a combination, a missing file."""


class DataError(AccordError):
    """A row or a data file that cannot be used."""


class TreeMismatch(AccordError):
    """Two adapters that do not have the same names and shapes."""


class MemoryMissing(AccordError):
    """A client was asked for a version of its private memory that its disk does not hold."""


class BaseMismatch(AccordError):
    """A client's base model is not the one the server named."""


class FrameError(AccordError):
    """Bytes between a relay and its site that are no message of Accord."""


class SiteError(AccordError):
    """A site that cannot be reached, or will not answer this."""


class RoundFailed(AccordError):
    """Too few replies to close a round; nothing of it was kept."""


class CheckpointError(AccordError):
    """A run folder that cannot be continued."""


class PolicyRefused(AccordError):
    """What a site's own policy does not let in or out; its line holds no private text."""
