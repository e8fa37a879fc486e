"""The command line that benchmarks over several seeds share: KEY=VALUE settings, then --seeds."""

import argparse


def options(doc: str | None, settings_help: str) -> argparse.ArgumentParser:
    """A parser for KEY=VALUE settings, which come before any option, and --seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=settings_help)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser
