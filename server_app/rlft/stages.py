"""Stages of RLFT that run prompt by prompt: answers and their scores.

Each stage appends to a JSON lines file, and a resumed run continues after the last complete line.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from core import store
from core.seeds import seed_for
from core.types import Json
from tasks.scoring.ensemble import Scores, SelectorEnsemble
from tasks.scoring.generate import Sampling, TextGenerator

CHUNK = 16  # prompts that one selector scores before the next one is loaded


def sample_answers(
    path: Path, prompts: Sequence[str], generator: TextGenerator, sampling: Sampling, *, seed: int, turn: int
) -> list[list[str]]:
    """Several sampled answers to each prompt, one line per prompt.

    The random seed of an answer depends only on run seed, prompt and turn, so that resuming gives the same answers.
    """
    answers = [line["completions"] for line in store.lines(path)]
    for prompt in prompts[len(answers) :]:
        completions = generator.sample(prompt, sampling, seed=seed_for(seed, "gen", prompt, turn))
        _append(path, [{"prompt": prompt, "completions": completions}])
        answers.append(completions)
    return answers


def greedy_answers(path: Path, prompts: Sequence[str], generator: TextGenerator) -> list[str]:
    """The greedy answer to each prompt, one line per prompt."""
    answers = [line["completion"] for line in store.lines(path)]
    for prompt in prompts[len(answers) :]:
        (completion,) = generator.generate([prompt])
        _append(path, [{"prompt": prompt, "completion": completion}])
        answers.append(completion)
    return answers


def score_answers(
    path: Path, questions: Sequence[tuple[str, Sequence[str]]], ensemble: SelectorEnsemble
) -> list[Scores]:
    """The ensemble's scores of the answers to each prompt, one line per prompt. questions: (prompt, answers)."""
    finished = [_parse_scores(line) for line in store.lines(path)]
    for start in range(len(finished), len(questions), CHUNK):
        chunk = ensemble.scores(questions[start : start + CHUNK])
        _append(path, [_line(scores) for scores in chunk])
        finished += chunk
    return finished


def _line(scores: Scores) -> Json:
    """A line of the scores file: each selector's log-odds above the diagonal, row by row; null stands for nan."""
    i, j = torch.triu_indices(*scores.odds.shape[1:], offset=1)
    values = [[None if s != s else s for s in row] for row in scores.odds[:, i, j].tolist()]
    return {"answers": len(scores.odds[0]), "odds": values, "consistent": scores.consistent}


def _parse_scores(line: Json) -> Scores:
    """The inverse of `_line`; the log-odds are antisymmetric."""
    n = line["answers"]
    odds = torch.zeros(len(line["odds"]), n, n)
    i, j = torch.triu_indices(n, n, offset=1)
    values = torch.tensor([[torch.nan if s is None else s for s in row] for row in line["odds"]])
    odds[:, i, j], odds[:, j, i] = values, -values
    return Scores(odds, tuple(line["consistent"]))


def _append(path: Path, lines: Sequence[Json]) -> None:
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    store.append(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
