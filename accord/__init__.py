"""Federated preference alignment of language models on Flower: the installed package, behind the command `accord`.

Flower ships the packages `core`, `tasks`, `strategies`, ... to its processes under these names. They are in
`accord/_app` in a wheel, and next to this package in a checkout. Only the command puts them on sys.path, so that
`import accord` hides no other module with such a name.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

__version__ = metadata.version("accord-fl")


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, str(_app_folder()))
    from cli.main import main as run

    run()


def embedded_model(name: str = "toy") -> Path:
    """The folder of a model that ships with Accord, for `from_pretrained`. name: "toy" or "toy-judge"."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from tasks.toy_base import folder; print(folder(sys.argv[2]))"
    # in another process, because `core` and `tasks` may be modules of the user in this one
    command = [sys.executable, "-c", code, str(_app_folder()), name]
    return Path(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip())


def _app_folder() -> Path:
    """The folder of `core`, `tasks`, ...: in a wheel `accord/_app`, else the checkout."""
    package = Path(__file__).resolve().parent
    bundled = package / "_app"
    return bundled if bundled.is_dir() else package.parent
