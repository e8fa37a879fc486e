"""The command line that the benchmarks over seeds share: KEY=VALUE words, then --seeds."""

import argparse


def options(doc: str | None, words: str) -> argparse.ArgumentParser:
    """A parser with KEY=VALUE words, said to be `words` in its help, and --seeds; the words come before any option."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=words)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser
