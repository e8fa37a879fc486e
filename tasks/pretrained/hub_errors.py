"""Errors of the Hugging Face Hub as one line with a remedy, for models and data sets."""

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
# What huggingface_hub raises. Its own HTTP errors are OSErrors; those of the transport library are not.
HUB_ERRORS = (httpx2.HTTPError, OSError, HFValidationError, RevisionResolutionError)


@dataclass(frozen=True)
class Repository:
    """A repository on the Hub at a revision, as the user configured it."""

    key: str  # the configuration key that names it
    name: str
    revision: str
    kind: str = "model"  # or "dataset"

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        return f"{self.key} = {self.name!r} (revision {self.revision!r})"


def is_of_hub(error: BaseException) -> bool:
    """Whether an error, or one that it wraps, comes from the Hub or the connection to it."""
    return any(isinstance(cause, (httpx2.HTTPError, *OFFLINE, HFValidationError)) for cause in _chain(error))


def explain(error: BaseException, repository: Repository) -> str:
    """One line for any of HUB_ERRORS, or for an error that has one of them as its cause."""
    chain = list(_chain(error))
    # an answer of the Hub says more than the errors around it, and a network error more than a disk error
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return f"{repository}: {_explain_response(cause, repository)}"
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled) or (
            isinstance(cause, OFFLINE) and constants.is_offline_mode()
        ):
            return offline(repository)
        if isinstance(cause, HFValidationError):
            return f"{repository} is neither a local folder nor an id on the Hub (NAMESPACE/NAME); check the spelling"
        if isinstance(cause, FileMetadataError):
            return f"{repository}: {constants.ENDPOINT} does not answer like a Hub; check HF_ENDPOINT and the proxy"
        if isinstance(cause, httpx2.ProxyError):
            return f"{repository}: the proxy refused to connect to {constants.ENDPOINT}; check https_proxy and no_proxy"
        if isinstance(cause, httpx2.HTTPError):
            return f"{repository}: {_explain_transport(cause)}"
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in DISK_REMEDIES:
            where = f"cannot write to {constants.HF_HUB_CACHE}: {cause.strerror}"
            return f"{repository}: {where}; {DISK_REMEDIES[cause.errno]}, or set HF_HOME"
    text = str(error).strip().splitlines()
    if text and "Consistency check failed" in text[0]:
        return f"{repository}: a download from {constants.ENDPOINT} ended too early; run again to continue it"
    return f"{repository}: {text[0] if text else type(error).__name__}"


def offline(repository: Repository, missing: str = "") -> str:
    """The error if the Hub cannot be reached. missing: the file that the cache lacks; "" if it lacks all of them."""
    lacks = f"lacks {missing}" if missing else "does not hold it"
    where = f"the cache in {constants.HF_HUB_CACHE} {lacks}"
    if constants.is_offline_mode():
        return (
            f"{repository}: HF_HUB_OFFLINE is set and {where}; unset it to download, or name a local folder"
        )
    return f"{repository}: {constants.ENDPOINT} cannot be reached and {where}; check the network or name a local folder"


OFFLINE = (OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError)
DISK_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "allow writing there",
    errno.EROFS: "allow writing there",
    errno.EPERM: "allow writing there",
}


def _explain_response(error: HfHubHTTPError, repository: Repository) -> str:
    """The explanation of an HTTP error that the Hub answered with."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"the repository is gated; accept its licence at {repository.url} and {LOG_IN}"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled this repository; choose another one"
    if isinstance(error, RepositoryNotFoundError):
        problem = f"{constants.ENDPOINT} has no such {repository.kind}, or it is private"
        return f"{problem}; check the spelling; for a private one {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no such branch, tag or commit; see {repository.url}/commits"
    if isinstance(error, RemoteEntryNotFoundError):
        name = str(error.response.url).rsplit("/", 1)[-1]
        return f"the repository has no file {name}; see {repository.url}/tree/{repository.revision}"
    if status == 401:
        return f"the Hub does not accept the current token; {LOG_IN} again"
    if status == 403:
        return f"the current token may not read this repository; give it that right, or {LOG_IN} with another"
    if status == 429:
        return (
            f"the Hub answers 429, too many requests; wait some minutes, and {LOG_IN}, which raises the limit"
        )
    if status >= 500:
        return f"the Hub answers {status}; try again later"
    return f"the Hub answers {status} to {error.response.url}"


def _explain_transport(error: httpx2.HTTPError) -> str:
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return f"a download from {constants.ENDPOINT} broke off several times; run again to continue it"
    if isinstance(error, httpx2.TimeoutException):
        return (
            f"{constants.ENDPOINT} does not answer in time; check the network, or set HF_HUB_DOWNLOAD_TIMEOUT"
        )
    return (
        f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}); check the network, or put the files into "
        f"{constants.HF_HUB_CACHE} and set HF_HUB_OFFLINE=1"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes and its contexts, breadth first, each once."""
    visited: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop(0)
        if current is not None and current not in visited:
            visited.append(current)
            yield current
            pending += [current.__cause__, current.__context__]
