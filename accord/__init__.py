"""Federated preference alignment of language models on Flower: the installed package, behind the command `accord`.

Flower ships the packages `core`, `tasks`, `strategies`, ... to its processes under these names. A wheel holds them in
`accord/_app`, a checkout beside this package. Only the command puts them on the path, so that importing `accord` hides
no other module of such a name.
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
