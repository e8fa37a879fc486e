"""Entry point of `python -m accord` and of `python PATH/accord`."""

import sys
from pathlib import Path

if not __package__:  # started by its path, which Python puts first on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accord import main

if __name__ == "__main__":
    main()
