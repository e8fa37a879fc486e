"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"  # real data and specifications, not part of the repository
REAL = SHARED / "data"
