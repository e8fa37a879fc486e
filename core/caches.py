"""The caches of a process, each registered by what it holds, so that whoever frees memory cannot overlook one.

A resident site lives for weeks and serves one run after another. Functions whose values outlive a message are cached
with cached(); tests/core/test_caches.py refuses functools.cache for anything but constants.
"""

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from functools import _lru_cache_wrapper  # not subscriptable at run time

T = TypeVar("T")


class Holds(Enum):
    """What a cache holds."""

    RUN = "configuration, rows and tokens of a run"
    BASE = "base models, and what is known of their files"


_registry: "dict[Holds, list[_lru_cache_wrapper[Any]]]" = {holds: [] for holds in Holds}


def cached(holds: Holds, maxsize: int | None = None) -> "Callable[[Callable[..., T]], _lru_cache_wrapper[T]]":
    """Decorate a function with functools.lru_cache(maxsize), and register the cache for drop()."""

    def register(function: Callable[..., T]) -> "_lru_cache_wrapper[T]":
        wrapper = lru_cache(maxsize)(function)
        _registry[holds].append(wrapper)
        return wrapper

    return register


def drop(holds: Holds) -> None:
    """Empty the caches of one kind; memory is freed once no other reference holds a value."""
    for wrapper in _registry[holds]:
        wrapper.cache_clear()
