"""Federated preference alignment of language models on Flower: the installed package, behind the command `accord`.

Flower ships the packages `core`, `tasks`, `strategies`, ... to its processes under these names. They are in
`accord/_app` in a wheel, and next to this package in a checkout. Only the command puts them on sys.path, so that
`import accord` hides no other module with such a name.
"""

import sys
from importlib import metadata, util
from pathlib import Path

__version__ = metadata.version("accord-fl")


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, str(_app_folder()))
    from cli.main import main as run

    run()


def embedded_model(name: str = "toy") -> Path:
    """The folder of a model that ships with Accord, for `from_pretrained`. name: "toy" or "toy-judge"."""
    spec = util.spec_from_file_location(
        "accord._toy_base", _app_folder() / "tasks" / "toy_base" / "__init__.py"
    )
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)  # by its path, so that no `tasks` enters sys.modules
    spec.loader.exec_module(module)
    return module.folder(name)


def _app_folder() -> Path:
    """The folder of `core`, `tasks`, ...: in a wheel `accord/_app`, else the checkout."""
    package = Path(__file__).resolve().parent
    bundled = package / "_app"
    return bundled if bundled.is_dir() else package.parent
