"""Fetch the folder of a model: the toy model, a local folder, or a snapshot of the Hub, downloaded if incomplete.

Imports neither torch nor transformers, so that the command line can call fetch() without a long start.
"""

import glob
import logging
import re
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm as hub_tqdm

from core.errors import ConfigError
from core.sections import ModelConfig
from tasks import toy_base
from tasks.pretrained import weights
from tasks.pretrained.folder import ADAPTER, base_of, local_folder, without_config
from tasks.pretrained.hub_errors import HUB_ERRORS, Repository, explain, offline

MAIN = "main"
# The files that a tokenizer of transformers may read.
TOKENIZER = re.compile(
    r"(.*tokenizer.*\.(json|model)|.*vocab.*\.(json|txt|bpe|model)|vocab\.[a-z]+|merges\.txt|bpe\.codes|[^/]*\.(spm|tiktoken)"
    r"|spiece\.model|sentencepiece[^/]*\.model|tekken\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja)"
)
TOO_MANY_REQUESTS = 429

log = logging.getLogger(__name__)


class _NoBar(hub_tqdm):
    """A disabled progress bar, for output that goes to a log."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{**options, "disable": True})


def fetch(model: ModelConfig, *, progress: bool = False) -> Path:
    """The folder of a model, complete and checked; missing files are downloaded, once per machine.

    progress: print what is downloaded and, on a terminal, a progress bar; otherwise two lines go to the log.
    Raises ConfigError, whose one line says what to do, for a model that does not exist or is incomplete.
    """
    if model.name in toy_base.FILES:
        _check_no_revision(model, "a model that ships with Accord")
        return toy_base.folder(model.name)
    folder = local_folder(model.name)
    if folder is not None:
        _check_no_revision(model, "a local folder")
        check_folder(folder)
        return folder
    repository = Repository("model.name", model.name, model.revision)
    try:
        folder = _CachedRepository(repository).snapshot(progress)
    except HUB_ERRORS as error:
        raise ConfigError(explain(error, repository)) from error
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> weights.WeightFiles:
    """The weight files of a model folder. Raises ConfigError for a file that is missing, damaged or unreadable."""
    names = weights.local_names(folder)
    weights.read_config(folder)
    for name in names:
        if is_of_tokenizer(name):
            weights.check_whole(folder / name)
    stored = weights.choose(names, lambda name: (folder / name).read_bytes(), str(folder))
    weights.check(folder, stored)
    return stored


def is_of_tokenizer(name: str) -> bool:
    return TOKENIZER.fullmatch(name) is not None and (
        "/" not in name or name.startswith("additional_chat_templates/")
    )


def resolve(repository: Repository) -> str:
    """The commit of a revision, from the Hub or, if the Hub cannot be reached, from the cache.

    Raises one of HUB_ERRORS.
    """
    api = partial(
        HfApi().resolve_revision,
        repository.name,
        repo_type=repository.kind,
        revision=repository.revision or None,
    )
    try:
        return api(local_files_only=constants.is_offline_mode()).resolved
    except HfHubHTTPError as error:
        if error.response.status_code != TOO_MANY_REQUESTS:
            raise
        try:  # a machine that has the model in its cache does not need the Hub
            return api(local_files_only=True).resolved
        except HUB_ERRORS:
            raise error from None


class _CachedRepository:
    """A model repository at one commit, with the part of it that this machine's cache holds."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.commit = resolve(repository)
        name = f"models--{repository.name.replace('/', '--')}"
        self.folder = Path(constants.HF_HUB_CACHE).expanduser().resolve() / name / "snapshots" / self.commit

    def snapshot(self, progress: bool) -> Path:
        """The folder in the cache, after the download of missing files. Raises ConfigError or one of HUB_ERRORS."""
        sizes = self._sizes()
        if sizes is None:  # the Hub cannot be reached, and the cache does not list the files of the model
            return self._cached_folder()
        names = self._needed(sizes)
        missing = {name: sizes[name] for name in names if not self._is_cached(name, sizes[name])}
        if missing:
            if constants.is_offline_mode():
                raise ConfigError(offline(self.repository, ", ".join(sorted(missing)[:3])))
            self._download(missing, progress)
        return self.folder

    def _sizes(self) -> dict[str, int] | None:
        """The size in bytes of every file of the commit, from the cache or the Hub; None if neither can tell."""
        name, commit = self.repository.name, self.commit
        try:
            files = get_cached_repo_tree(name, revision=commit)
        except CachedRepoTreeNotFoundError:
            if constants.is_offline_mode():
                return None
            try:
                tree = HfApi().list_repo_tree(name, recursive=True, revision=commit)
                files = [entry for entry in tree if isinstance(entry, RepoFile)]
            except httpx2.TransportError:
                if not (self.folder / weights.CONFIG).is_file():
                    raise
                return None
        return {file.path: file.size for file in files}

    def _needed(self, names: Collection[str]) -> list[str]:
        """The names of the files to load: configuration, tokenizer and weights, without other copies of the weights."""
        where = self.repository.name
        if weights.CONFIG not in names:
            base = base_of(Path(self._file(ADAPTER))) if ADAPTER in names else ""
            hint = without_config(sorted(names), base=base)
            raise ConfigError(f"{self.repository}: the repository holds no {weights.CONFIG}; {hint}")
        stored = weights.choose(names, lambda name: Path(self._file(name)).read_bytes(), where)
        if missing := [file for file in stored.files if file not in names]:
            raise ConfigError(
                f"{self.repository}: the repository lacks {missing[0]}, which its {stored.index} names; tell its owner"
            )
        present = {weights.CONFIG, weights.GENERATION, stored.index, *stored.files} & set(names)
        return sorted({*present, *filter(is_of_tokenizer, names)})

    def _file(self, name: str) -> str:
        if constants.is_offline_mode() and not (self.folder / name).is_file():
            raise ConfigError(offline(self.repository, name))
        return hf_hub_download(self.repository.name, name, revision=self.commit, tqdm_class=_NoBar)

    def _is_cached(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size

    def _download(self, missing: dict[str, int], progress: bool) -> None:
        """Download files. huggingface_hub locks each file, so that one of several processes downloads it."""
        report: Callable[[str], None] = partial(print, flush=True) if progress else log.info
        title = f"{self.repository.name} at {self.repository.revision} ({self.commit[:12]})"
        report(f"model    {title}: downloading {len(missing)} files, {_format_size(sum(missing.values()))}")
        began = time.monotonic()
        for name in missing:  # a cached file of another size than the Hub's was cut short: download it again
            if (path := self.folder / name).is_file():
                path.unlink(missing_ok=True)
                hf_hub_download(
                    self.repository.name, name, revision=self.commit, force_download=True, tqdm_class=_NoBar
                )
        snapshot_download(
            self.repository.name,
            revision=self.commit,
            allow_patterns=[glob.escape(name) for name in missing],
            tqdm_class=None if progress else _NoBar,
        )
        report(f"model    {title}: complete after {time.monotonic() - began:.1f} s in {self.folder}")

    def _cached_folder(self) -> Path:
        """The folder as another tool left it in the cache, if it can be loaded. Raises ConfigError otherwise."""
        if not (self.folder / weights.CONFIG).is_file():
            raise ConfigError(offline(self.repository, weights.CONFIG))
        try:
            check_folder(self.folder)
        except ConfigError as error:
            raise ConfigError(f"{error} ({offline(self.repository, 'a part of it')})") from error
        return self.folder


def _check_no_revision(model: ModelConfig, kind: str) -> None:
    if model.revision != MAIN:
        raise ConfigError(
            f"model.revision = {model.revision!r} has no effect: model.name = {model.name!r} is {kind}; leave it at "
            f"{MAIN!r}"
        )


def _format_size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
