"""What went wrong with the Hugging Face Hub, in one line that says what to do; for models and data sets alike."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# What huggingface_hub raises. Its own errors for HTTP are OSErrors; those of the transport below it are not.
HUB_ERRORS = (httpx2.HTTPError, OSError, HFValidationError, RevisionResolutionError)


@dataclass(frozen=True)
class Wanted:
    """A repository at a revision, as the user named it. key: the key that names it."""

    key: str
    name: str
    revision: str
    kind: str = "model"  # or "dataset"

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        return f"{self.key} = {self.name!r} (revision {self.revision!r})"


def is_of_hub(error: BaseException) -> bool:
    """Whether the Hub or the way to it is behind an error that another library may have wrapped."""
    return any(isinstance(one, (httpx2.HTTPError, *OFFLINE, HFValidationError)) for one in _chain(error))


def explain(error: BaseException, wanted: Wanted) -> str:
    """One line for any of HUB_ERRORS, or for an error that has one of them as its cause."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            return f"{wanted}: {_answered(one, wanted)}"
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled) or (
            isinstance(one, OFFLINE) and constants.is_offline_mode()
        ):
            return offline(wanted)
        if isinstance(one, HFValidationError):
            return (
                f"{wanted} is neither a folder here nor an id of the Hub (NAMESPACE/NAME); check the spelling"
            )
        if isinstance(one, FileMetadataError):
            return f"{wanted}: {constants.ENDPOINT} does not answer as a Hub does; check HF_ENDPOINT and the proxy"
        if isinstance(one, httpx2.ProxyError):
            return (
                f"{wanted}: the proxy refused the way to {constants.ENDPOINT}; check https_proxy and no_proxy"
            )
        if isinstance(one, httpx2.HTTPError):
            return f"{wanted}: {_transport(one)}"
    for one in chain:
        if isinstance(one, OSError) and one.errno in DISK:
            where = f"cannot write to {constants.HF_HUB_CACHE}: {one.strerror}"
            return f"{wanted}: {where}; {DISK[one.errno]}, or set HF_HOME"
    text = str(error).strip().splitlines()
    if text and "Consistency check failed" in text[0]:
        return f"{wanted}: a download from {constants.ENDPOINT} ended too early; run again to continue it"
    return f"{wanted}: {text[0] if text else type(error).__name__}"


def offline(wanted: Wanted, missing: str = "") -> str:
    """The refusal where the Hub cannot be asked. missing: a file; "": nothing is there."""
    lacks = f"lacks {missing}" if missing else "does not hold it"
    where = f"the cache in {constants.HF_HUB_CACHE} {lacks}"
    if constants.is_offline_mode():
        return f"{wanted}: HF_HUB_OFFLINE is set and {where}; unset it to download, or name a local folder"
    return f"{wanted}: {constants.ENDPOINT} cannot be asked and {where}; check the network, or name a local folder"


OFFLINE = (OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError)
DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "allow writing there",
    errno.EROFS: "allow writing there",
    errno.EPERM: "allow writing there",
}


def _answered(error: HfHubHTTPError, wanted: Wanted) -> str:
    """For an answer of the Hub that is an error."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"the repository is gated; accept its licence at {wanted.url} and {LOG_IN}"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled this repository; choose another one"
    if isinstance(error, RepositoryNotFoundError):
        there = f"{constants.ENDPOINT} has no such {wanted.kind}, or it is private"
        return f"{there}; check the spelling; for a private one {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no such branch, tag or commit; see {wanted.url}/commits"
    if isinstance(error, RemoteEntryNotFoundError):
        name = str(error.response.url).rsplit("/", 1)[-1]
        return f"the repository has no file {name}; see {wanted.url}/tree/{wanted.revision}"
    if status == 401:
        return f"the Hub does not accept the token that is set; {LOG_IN} anew"
    if status == 403:
        return f"the token that is set may not read this repository; give it that right, or {LOG_IN} with another"
    if status == 429:
        return (
            f"the Hub answers 429, too many requests; wait some minutes, and {LOG_IN}, which raises the limit"
        )
    if status >= 500:
        return f"the Hub answers {status}; try again later"
    return f"the Hub answers {status} to {error.response.url}"


def _transport(error: httpx2.HTTPError) -> str:
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return f"a download from {constants.ENDPOINT} broke off, several times; run again to continue it"
    if isinstance(error, httpx2.TimeoutException):
        return (
            f"{constants.ENDPOINT} does not answer in time; check the network, or set HF_HUB_DOWNLOAD_TIMEOUT"
        )
    return (
        f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}); check the network, or put the files into "
        f"{constants.HF_HUB_CACHE} and set HF_HUB_OFFLINE=1"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, each once."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop(0)
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            pending += [one.__cause__, one.__context__]
