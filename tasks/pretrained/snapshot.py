"""The folder of a model: the toy, a folder on this disk, or a snapshot of the Hub, downloaded where it is not complete.

Neither torch nor transformers is imported, so that a command line can call fetch() before anything starts.
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
from tasks.pretrained.folder import ADAPTER, base_of, place_of, without_config
from tasks.pretrained.hub_errors import HUB_ERRORS, Wanted, explain, offline

MAIN = "main"
# Besides the configuration and the weights: what a tokenizer of transformers may read.
TOKENIZER = re.compile(
    r"(.*tokenizer.*\.(json|model)|.*vocab.*\.(json|txt|bpe|model)|vocab\.[a-z]+|merges\.txt|bpe\.codes|[^/]*\.(spm|tiktoken)"
    r"|spiece\.model|sentencepiece[^/]*\.model|tekken\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja)"
)
TOO_MANY = 429

log = logging.getLogger(__name__)


class _NoBar(hub_tqdm):
    """A progress bar that is not shown: a log has no place for it."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{**options, "disable": True})


def fetch(model: ModelConfig, *, progress: bool = False) -> Path:
    """The folder of a model, complete and with files that can be loaded; downloads what is missing, once per machine.

    progress: print what is downloaded and, on a terminal, how far it is; else it is two lines of the log.
    Raises ConfigError, one line that says what to do, for a model that is not there or is not whole.
    """
    if model.name in toy_base.FILES:
        _only_main(model, "a model that ships with Accord")
        return toy_base.folder(model.name)
    folder = place_of(model.name)
    if folder is not None:
        _only_main(model, "a local folder")
        check_folder(folder)
        return folder
    wanted = Wanted("model.name", model.name, model.revision)
    try:
        folder = _Repository(wanted).snapshot(progress)
    except HUB_ERRORS as error:
        raise ConfigError(explain(error, wanted)) from error
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> weights.Stored:
    """The files of a model folder that hold its weights. Raises ConfigError unless all of the folder can be read."""
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


def resolve(wanted: Wanted) -> str:
    """The commit of a revision: the Hub's answer, or the cache's where the Hub cannot be asked.

    Raises one of HUB_ERRORS.
    """
    api = partial(
        HfApi().resolve_revision, wanted.name, repo_type=wanted.kind, revision=wanted.revision or None
    )
    try:
        return api(local_files_only=constants.is_offline_mode()).resolved
    except HfHubHTTPError as error:
        if error.response.status_code != TOO_MANY:
            raise
        try:  # a machine that holds the model need not wait until the Hub answers again
            return api(local_files_only=True).resolved
        except HUB_ERRORS:
            raise error from None


class _Repository:
    """A model repository at one commit, and the part of it that the cache of this machine holds."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.commit = resolve(wanted)
        name = f"models--{wanted.name.replace('/', '--')}"
        self.folder = Path(constants.HF_HUB_CACHE).expanduser().resolve() / name / "snapshots" / self.commit

    def snapshot(self, progress: bool) -> Path:
        sizes = self._sizes()
        if sizes is None:  # the Hub cannot be asked, and nothing says what belongs to the model
            return self._as_it_is()
        names = self._needed(sizes)
        missing = {name: sizes[name] for name in names if not self._have(name, sizes[name])}
        if missing:
            if constants.is_offline_mode():
                raise ConfigError(offline(self.wanted, ", ".join(sorted(missing)[:3])))
            self._download(missing, progress)
        return self.folder

    def _sizes(self) -> dict[str, int] | None:
        """Every file of the commit and its size, from the cache or the Hub; None where neither knows."""
        name, commit = self.wanted.name, self.commit
        try:
            files = get_cached_repo_tree(name, revision=commit)
        except CachedRepoTreeNotFoundError:
            if constants.is_offline_mode():
                return None
            try:
                listed = HfApi().list_repo_tree(name, recursive=True, revision=commit)
                files = [entry for entry in listed if isinstance(entry, RepoFile)]
            except httpx2.TransportError:
                if not (self.folder / weights.CONFIG).is_file():
                    raise
                return None
        return {file.path: file.size for file in files}

    def _needed(self, names: Collection[str]) -> list[str]:
        """Configuration, tokenizer and exactly the weights that will be loaded."""
        where = self.wanted.name
        if weights.CONFIG not in names:
            base = base_of(Path(self._file(ADAPTER))) if ADAPTER in names else ""
            raise ConfigError(
                f"{self.wanted}: the repository holds no {weights.CONFIG}; {without_config(sorted(names), base=base)}"
            )
        stored = weights.choose(names, lambda name: Path(self._file(name)).read_bytes(), where)
        if lost := [file for file in stored.files if file not in names]:
            raise ConfigError(
                f"{self.wanted}: the repository lacks {lost[0]}, which its {stored.index} names; tell its owner"
            )
        listed = {weights.CONFIG, weights.GENERATION, stored.index, *stored.files} & set(names)
        return sorted({*listed, *filter(is_of_tokenizer, names)})

    def _file(self, name: str) -> str:
        if constants.is_offline_mode() and not (self.folder / name).is_file():
            raise ConfigError(offline(self.wanted, name))
        return hf_hub_download(self.wanted.name, name, revision=self.commit, tqdm_class=_NoBar)

    def _have(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size

    def _download(self, missing: dict[str, int], progress: bool) -> None:
        """Fetch files; huggingface_hub locks each, so that of several processes one downloads and the rest wait."""
        say: Callable[[str], None] = partial(print, flush=True) if progress else log.info
        what = f"{self.wanted.name} at {self.wanted.revision} ({self.commit[:12]})"
        say(f"model    {what}: downloading {len(missing)} files, {_size(sum(missing.values()))}")
        began = time.monotonic()
        for name in missing:  # of another length than the Hub's: cut short by whoever was here before
            if (place := self.folder / name).is_file():
                place.unlink(missing_ok=True)
                hf_hub_download(
                    self.wanted.name, name, revision=self.commit, force_download=True, tqdm_class=_NoBar
                )
        snapshot_download(
            self.wanted.name,
            revision=self.commit,
            allow_patterns=[glob.escape(name) for name in missing],
            tqdm_class=None if progress else _NoBar,
        )
        say(f"model    {what}: complete after {time.monotonic() - began:.1f} s in {self.folder}")

    def _as_it_is(self) -> Path:
        """What another tool has put into the cache, if it can be loaded. Raises ConfigError."""
        if not (self.folder / weights.CONFIG).is_file():
            raise ConfigError(offline(self.wanted, weights.CONFIG))
        try:
            check_folder(self.folder)
        except ConfigError as error:
            raise ConfigError(f"{error} ({offline(self.wanted, 'a part of it')})") from error
        return self.folder


def _only_main(model: ModelConfig, what: str) -> None:
    if model.revision != MAIN:
        raise ConfigError(
            f"model.revision = {model.revision!r} has no effect: model.name = {model.name!r} is {what}; leave it at "
            f"{MAIN!r}"
        )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
