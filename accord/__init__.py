"""Federated preference alignment of language models on Flower: the installed package, behind the command `accord`.

Flower ships the packages `core`, `tasks`, `strategies`, ... to its processes under these names. They are in
`accord/_app` in a wheel, and next to this package in a checkout. Only the command puts them on sys.path, so that
`import accord` hides no other module with such a name.
"""

import sys
from importlib import metadata
from pathlib import Path

__version__ = metadata.version("accord-fl")


def main() -> None:
    """Run the command line."""
    package = Path(__file__).resolve().parent
    bundled = package / "_app"
    sys.path.insert(0, str(bundled if bundled.is_dir() else package.parent))
    from cli.main import main as run

    run()
