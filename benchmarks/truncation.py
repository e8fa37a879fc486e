"""Compare how much of long pairs remains after truncation by Accord and by TRL.

    python -m benchmarks.truncation FILE.jsonl.gz --model FOLDER [--max-length 256 512 1024] [--rows 1000]

Accord cuts the start of a prompt first, equally for both answers, and the end of an answer only if the answer alone is
too long. TRL 1.16 cuts the end of prompt and answer together (truncation_mode = "keep_start", the only mode of its KTO)
and drops pairs whose prompt fills max_length; with "keep_end" it cuts the start, including BOS, for each answer
separately. Nothing is trained: rows are tokenised once, in the format alpaca, and counted.
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
Lengths = list[tuple[int, int]]  # remaining (prompt, answer) tokens for each of a pair's two answers


def accord(example: Example, length: int) -> Lengths:
    longest = max(map(len, example.completions))
    prompt = min(len(example.prompt), max(1, length - longest))
    return [(prompt, min(len(answer), length - prompt)) for answer in example.completions]


def keep_start(example: Example, length: int) -> Lengths:
    """(0, 0) for both answers of a pair that TRL drops."""
    prompt = len(example.prompt)
    if prompt >= length:
        return [(0, 0), (0, 0)]
    return [(prompt, min(len(answer), length - prompt)) for answer in example.completions]


def keep_end(example: Example, length: int) -> Lengths:
    """If an answer fills max_length, TRL omits its first token, since no token remains to predict it."""
    lengths = []
    for answer in example.completions:
        answer_length = min(len(answer), length)
        lengths.append((min(len(example.prompt), length - answer_length), answer_length))
    return lengths


RULES = {"Accord": accord, "TRL keep_start": keep_start, "TRL keep_end": keep_end}


def table(examples: Sequence[Example], lengths: Sequence[int]) -> list[str]:
    lines = ["| max-length | pairs too long | rule | pairs lost | prompt tokens left | answer tokens left |"]
    lines.append("|---|---|---|---|---|---|")
    prompts = 2 * sum(len(e.prompt) for e in examples)
    answers = sum(len(answer) for e in examples for answer in e.completions)
    for length in lengths:
        long = sum(len(e.prompt) + max(map(len, e.completions)) > length for e in examples)
        for name, rule in RULES.items():
            pairs_left = [rule(example, length) for example in examples]
            lost = sum(not any(answer for _, answer in pair) for pair in pairs_left)
            tokens = [sum(side[part] for pair in pairs_left for side in pair) for part in (0, 1)]
            cells = (
                f"{lost / len(pairs_left):.1%}",
                f"{tokens[0] / prompts:.1%}",
                f"{tokens[1] / answers:.1%}",
            )
            lines.append(f"| {length} | {long / len(pairs_left):.1%} | {name} | {' | '.join(cells)} |")
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
