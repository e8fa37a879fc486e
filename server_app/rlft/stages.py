"""The parts of RLFT that are made prompt by prompt: answers and their scores. A part that stands is not made again."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from core import store
from core.seeds import seed_for
from core.types import Json
from tasks.scoring.generate import Sampling, Talker
from tasks.scoring.jury import Jury, Scores

CHUNK = 16  # prompts that one selector scores before the next takes its place


def sampled(
    path: Path, prompts: Sequence[str], talker: Talker, how: Sampling, *, seed: int, turn: int
) -> list[list[str]]:
    """Several answers to each prompt, a line each. An answer depends on the seed, the turn and its own prompt."""
    done = [line["completions"] for line in store.lines(path)]
    for prompt in prompts[len(done) :]:
        said = talker.sample(prompt, how, seed=seed_for(seed, "gen", prompt, turn))
        _append(path, [{"prompt": prompt, "completions": said}])
        done.append(said)
    return done


def greedy(path: Path, prompts: Sequence[str], talker: Talker) -> list[str]:
    """The likeliest answer to each prompt, a line each."""
    done = [line["completion"] for line in store.lines(path)]
    for prompt in prompts[len(done) :]:
        (said,) = talker.generate([prompt])
        _append(path, [{"prompt": prompt, "completion": said}])
        done.append(said)
    return done


def scored(path: Path, asked: Sequence[tuple[str, Sequence[str]]], jury: Jury) -> list[Scores]:
    """What the jury says of each prompt's answers, a line each."""
    done = [_scores(line) for line in store.lines(path)]
    for at in range(len(done), len(asked), CHUNK):
        fresh = jury.scores(asked[at : at + CHUNK])
        _append(path, [_line(scores) for scores in fresh])
        done += fresh
    return done


def _line(scores: Scores) -> Json:
    """The log-odds above the diagonal, row by row, of each selector; null where it could not be asked."""
    i, j = torch.triu_indices(*scores.odds.shape[1:], offset=1)
    told = [[None if s != s else s for s in row] for row in scores.odds[:, i, j].tolist()]
    return {"answers": len(scores.odds[0]), "odds": told, "consistent": scores.consistent}


def _scores(line: Json) -> Scores:
    n = line["answers"]
    odds = torch.zeros(len(line["odds"]), n, n)
    i, j = torch.triu_indices(n, n, offset=1)
    told = torch.tensor([[torch.nan if s is None else s for s in row] for row in line["odds"]])
    odds[:, i, j], odds[:, j, i] = told, -told
    return Scores(odds, tuple(line["consistent"]))


def _append(path: Path, lines: Sequence[Json]) -> None:
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    store.append(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
