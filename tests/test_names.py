"""Names are nouns for values and verbs for functions: fillers and participles are counted, and there are few."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.paths import ROOT

FILLERS = {
    *(
        "found",
        "said",
        "told",
        "asked",
        "known",
        "kept",
        "one",
        "what",
        "shown",
        "seen",
        "given",
        "done",
        "left",
        "own",
    ),
    *("others", "who", "beside", "aside", "opening", "brief", "fits", "adds", "words", "crew"),
}
SOURCE = (
    "accord",
    "benchmarks",
    "cli",
    "client_app",
    "core",
    "evals",
    "scripts",
    "server_app",
    "strategies",
    "tasks",
)
MOST = 30  # the bar; 619 when it was set


def bindings(tree: ast.AST) -> Iterator[str]:
    """Every name that a module gives to something: variables, parameters, fields, functions, classes, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def fillers(path: Path) -> Counter[str]:
    names = [*bindings(ast.parse(path.read_text(encoding="utf-8"))), path.stem]
    return Counter(name.strip("_").lower() for name in names if name.strip("_").lower() in FILLERS)


def count() -> Counter[str]:
    files = [path for package in SOURCE for path in sorted((ROOT / package).rglob("*.py"))]
    return Counter({str(path.relative_to(ROOT)): fillers(path).total() for path in files})


def test_fillers_are_rare() -> None:
    counts = +count()
    assert counts.total() <= MOST, counts.most_common(20)


if __name__ == "__main__":
    for file, number in count().most_common():
        if number:
            print(f"{number:4} {file}: {dict(fillers(ROOT / file))}")
