"""Count held-out rows whose prompt is trained on, if rows are split one by one and by prompt.

    python -m benchmarks.heldout FILE.jsonl.gz ...

In each file, with a column client_id, every owner is a client, and 25 % of its rows are held out (data.eval-fraction).
The columns are shares of all held-out rows: those whose prompt the same client trains on, those whose answers it also
trains on, and those whose prompt any client trains on.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from core.seeds import seed_for
from tasks.base import Row
from tasks.data.base import read
from tasks.data.clients import partition
from tasks.data.clients.split import answers_key, prompt_key, split_rows
from tasks.data.jsonl import Jsonl

SEED, FRACTION = 42, 0.25
Numbers = tuple[list[int], list[int]]  # row numbers to train on and to hold out


def by_row(rows: Sequence[Row], client: int) -> Numbers:
    """Split rows one by one; only identical rows stay together."""
    return partition.held_out(
        [json.dumps(row, sort_keys=True) for row in rows], FRACTION, seed_for(SEED, "heldout", client)
    )


def by_prompt(rows: Sequence[Row], client: int) -> Numbers:
    split = split_rows(rows, FRACTION, seed_for(SEED, "heldout"))
    return split.train, split.heldout


def measured(clients: Sequence[Sequence[Row]], splits: Sequence[Numbers]) -> str:
    """One line of the table."""
    trained_prompts = [
        {prompt_key(rows[n]["prompt"]) for n in train}
        for rows, (train, _) in zip(clients, splits, strict=True)
    ]
    anywhere = set().union(*trained_prompts)
    held = same_prompt = same_answers = any_client = 0
    for rows, (train, out), prompts in zip(clients, splits, trained_prompts, strict=True):
        trained_answers = {text for n in train for text in _answers(rows[n])}
        held += len(out)
        same_prompt += sum(prompt_key(rows[n]["prompt"]) in prompts for n in out)
        same_answers += sum(all(text in trained_answers for text in _answers(rows[n])) for n in out)
        any_client += sum(prompt_key(rows[n]["prompt"]) in anywhere for n in out)
    total = sum(map(len, clients))
    low = min(len(out) / len(rows) for rows, (_, out) in zip(clients, splits, strict=True))
    high = max(len(out) / len(rows) for rows, (_, out) in zip(clients, splits, strict=True))
    shares = [f"{100 * count / held:>8.1f} %" for count in (same_prompt, same_answers, any_client)]
    return f"{100 * held / total:>8.1f} % ({100 * low:.0f} to {100 * high:.0f}){''.join(shares)}"


def _answers(row: Row) -> list[tuple[str, str]]:
    prompt = prompt_key(row["prompt"])
    return [
        (prompt, answers_key({"completion": row[c]}))
        for c in ("chosen", "rejected", "completion")
        if c in row
    ]


def main(files: Sequence[str]) -> None:
    print(f"{'':<34}{'held out (clients)':>26}{'prompt':>10}{'answers':>10}{'anywhere':>10}")
    for file in files:
        owned: dict[str, list[Row]] = {}
        for entry in read(Jsonl(file).rows(SEED, 1), "skip").entries:
            owned.setdefault(entry.owner, []).append(entry.row)
        clients = [owned[owner] for owner in sorted(owned, key=partition.by_number)]
        for name, rule in (("by row", by_row), ("by prompt", by_prompt)):
            line = measured(clients, [rule(rows, client) for client, rows in enumerate(clients)])
            print(f"{Path(file).parent.name + ', ' + name:<34}{line:>26}")


if __name__ == "__main__":
    main(sys.argv[1:])
