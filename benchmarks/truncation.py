"""How much of long pairs is left by Accord's truncation and by TRL's?

    python -m benchmarks.truncation FILE.jsonl.gz --model FOLDER [--max-length 256 512 1024] [--rows 1000]

Accord cuts the start of a prompt first, for both answers alike, and the end of an answer only where the answer alone
is too long. TRL 1.16 cuts the end of prompt and answer together (truncation_mode = "keep_start", the only one of its
KTO), drops pairs whose prompt fills max_length, and with "keep_end" cuts the start, BOS included, for each answer by
itself. Nothing is trained: rows are tokenised once, in the format alpaca, and counted.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tasks.base import Example
from tasks.data.base import read
from tasks.data.jsonl import Jsonl
from tasks.dpo import pairs
from tasks.pretrained.loading import load_tokenizer
from tasks.tokens.encode import Encoder

UNCUT = 1_000_000
Kept = list[tuple[int, int]]  # (prompt, answer) tokens left of each pair's two answers


def accord(example: Example, length: int) -> Kept:
    longest = max(map(len, example.completions))
    prompt = min(len(example.prompt), max(1, length - longest))
    return [(prompt, min(len(answer), length - prompt)) for answer in example.completions]


def keep_start(example: Example, length: int) -> Kept:
    """Nothing of a pair that TRL drops."""
    prompt = len(example.prompt)
    if prompt >= length:
        return [(0, 0), (0, 0)]
    return [(prompt, min(len(answer), length - prompt)) for answer in example.completions]


def keep_end(example: Example, length: int) -> Kept:
    """An answer that fills all of it has nothing to be predicted from at its first token, which TRL leaves out."""
    kept = []
    for answer in example.completions:
        left = min(len(answer), length)
        kept.append((min(len(example.prompt), length - left), left))
    return kept


RULES = {"Accord": accord, "TRL keep_start": keep_start, "TRL keep_end": keep_end}


def table(examples: Sequence[Example], lengths: Sequence[int]) -> list[str]:
    lines = ["| max-length | pairs too long | rule | pairs lost | prompt tokens left | answer tokens left |"]
    lines.append("|---|---|---|---|---|---|")
    prompts = 2 * sum(len(e.prompt) for e in examples)
    answers = sum(len(answer) for e in examples for answer in e.completions)
    for length in lengths:
        long = sum(len(e.prompt) + max(map(len, e.completions)) > length for e in examples)
        for name, rule in RULES.items():
            kept = [rule(example, length) for example in examples]
            lost = sum(not any(answer for _, answer in sides) for sides in kept)
            left = [sum(side[part] for sides in kept for side in sides) for part in (0, 1)]
            cells = (f"{lost / len(kept):.1%}", f"{left[0] / prompts:.1%}", f"{left[1] / answers:.1%}")
            lines.append(f"| {length} | {long / len(kept):.1%} | {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--model", type=Path, required=True, help="a folder with a tokenizer")
    parser.add_argument("--max-length", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rows", type=int, default=1000)
    args = parser.parse_args()
    rows = [entry.row for entry in read(islice(Jsonl(args.file).rows(0, 1), args.rows), "skip").entries]
    examples = pairs(rows, Encoder(load_tokenizer(args.model), "alpaca", UNCUT))
    print(f"{len(examples)} pairs of {Path(args.file).name}")
    print("\n".join(table(examples, args.max_length)))


if __name__ == "__main__":
    main()
