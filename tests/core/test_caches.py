"""Caches have one owner, and no module of a client has one besides."""

import ast
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_app.node import Node
from client_app.site import Site
from core import caches
from core.caches import Holds, cached
from core.config import parse
from tasks.data.clients.shares import pool
from tests.paths import ROOT
from tests.test_imports import modules_imported

# Caches of values that are the same in every run, and small; nobody has to empty them.
CONSTANTS = {
    "core.config.defaults",
    "tasks.data.toy._answers",
    "tasks.data.toy._topic_of_question",
    "tasks.toy_base.language.topics",
}
DECORATORS = {"cache", "lru_cache"}


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules_of_a_client() -> set[str]:
    """All modules of ours that client_app and the plugins import, directly or through others."""
    folders = ["client_app", "tasks", "tasks/data", "strategies"]  # plugins are imported by name
    todo = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in (ROOT / folder).glob("*.py")
    }
    modules: set[str] = set()
    while todo:
        modules |= todo
        todo = {name for module in todo for name in modules_imported(source(module))} - modules
    return modules


def unregistered(module: str, text: str) -> Iterator[str]:
    """The functions that functools.cache or lru_cache is applied to, and the lines of other uses of these two."""
    tree = ast.parse(text)
    names, packages = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "functools":
            names |= {alias.asname or alias.name for alias in node.names if alias.name in DECORATORS}
        elif isinstance(node, ast.Import):
            packages |= {alias.asname or alias.name for alias in node.names if alias.name == "functools"}

    def is_cache(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in DECORATORS and isinstance(node.value, ast.Name) and node.value.id in packages
        return isinstance(node, ast.Name) and node.id in names

    decorators = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                decorators |= {id(part): node.name for part in ast.walk(decorator)}
    for node in ast.walk(tree):
        if is_cache(node):
            place = decorators.get(id(node)) or f"line {getattr(node, 'lineno', 0)}"
            yield f"{module}.{place}"


def test_no_module_of_a_client_has_a_cache_that_nobody_empties():
    modules = modules_of_a_client()
    assert {"client_app.site", "tasks.forward.setup", "tasks.data.hub", "core.config"} <= modules
    texts = {module: source(module).read_text() for module in modules - {"core.caches"}}
    uses = {name for module, text in texts.items() for name in unregistered(module, text)}
    assert uses == CONSTANTS, "use core.caches.cached"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from functools import cache\n@cache\ndef f(): ...", "m.f"),
        ("from functools import lru_cache as memo\n@memo(maxsize=2)\ndef f(): ...", "m.f"),
        ("import functools\n@functools.lru_cache\ndef f(): ...", "m.f"),
        ("import functools as ft\ng = ft.cache(len)", "m.line 2"),
        ("from functools import cache\nclass A:\n    @staticmethod\n    @cache\n    def f(): ...", "m.f"),
    ],
)
def test_every_way_to_cache_is_noticed(text, name):
    assert list(unregistered("m", text)) == [name]


def test_other_names_are_not_taken_for_caches():
    text = (
        "from functools import cached_property\n@cached_property\ndef f(self): return self.cache\ncache = 1"
    )
    assert list(unregistered("m", text)) == []


def test_a_cache_is_emptied_with_its_kind_and_no_other():
    calls = []

    @cached(Holds.RUN, maxsize=1)
    def rows(name: str) -> str:
        calls.append(name)
        return name

    @cached(Holds.BASE)
    def base(name: str) -> str:
        calls.append(name)
        return name

    for _ in range(2):
        assert (rows("a"), base("b"), base("c")) == ("a", "b", "c")
    assert calls == ["a", "b", "c"]
    caches.drop(Holds.RUN)
    assert (rows("a"), base("b"), base("c")) == ("a", "b", "c")
    assert calls == ["a", "b", "c", "a"]
    caches.drop(Holds.BASE)
    assert (rows("a"), base("b")) == ("a", "b")
    assert calls == ["a", "b", "c", "a", "b"]
    rows("d")
    rows("a")
    assert calls[-2:] == ["d", "a"]  # maxsize


def test_a_cached_function_has_what_lru_cache_gives():
    @cached(Holds.BASE)
    def base(name: str) -> str:
        """Load."""
        return name

    base("a")
    assert base.cache_info() == (0, 1, None, 1)
    assert (base.__name__, base.__doc__) == ("base", "Load.")


def test_the_rows_of_a_run_are_freed_with_it(tmp_path):
    site = Site(parse({}), Node(0, 3, state_dir=str(tmp_path)))
    rows = weakref.ref(site.rows())
    assert rows() is not None
    assert pool.cache_info().currsize
    caches.drop(Holds.RUN)
    gc.collect()
    assert rows() is None
    assert not pool.cache_info().currsize
