"""Evaluation of policies: by the selectors that labelled the training pairs (signal), and by an independent judge.

Together they detect reward hacking: the signal keeps rising while the judgement falls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from core.errors import ConfigError
from core.sections import Choice, Config
from core.types import Metrics
from evals.base import LanguageModel
from tasks.data.base import Planted, Source
from tasks.scoring.votes import How, Verdict, knockout, ranking, vote

SIGNAL = "signal/score"
JUDGEMENTS = ("judge/score", "judge/accuracy")  # a judge has one of them
LASTING_EPOCHS = 2  # consecutive epochs of hacking before it is reported
Answers = Sequence[str]  # one for each held-out prompt


@dataclass(frozen=True)
class Judge:
    """An independent judge of answers: the source's planted truth, public pairs, or none."""

    name: str  # truth | pairs | none
    utility: Callable[[str, str, int], float | None] | None = None  # of (prompt, answer, client)
    pairs: Choice | None = None

    @staticmethod
    def of(config: Config, source: Source) -> "Judge":
        """The judge that rlft.judge names. Raises ConfigError for "truth" if the source has no planted truth."""
        kind = config.rlft.judge
        if kind == "pairs":
            return Judge("pairs", pairs=config.judge)
        if kind != "none" and isinstance(source, Planted):
            seed = config.run.seed
            return Judge(
                "truth", lambda prompt, answer, client: source.utility_of(seed, prompt, answer, client)
            )
        if kind == "truth":
            raise ConfigError(
                f"rlft.judge = 'truth': data.source = {config.source_choice.name!r} has no planted "
                "truth; use pairs | none"
            )
        return Judge("none")

    def compare(
        self, prompts: Sequence[str], answers: Answers, references: Answers, clients: Sequence[int]
    ) -> Metrics:
        """Compare answers with the references by planted utility, averaged over `clients` for each prompt.

        Returns `judge/score`, the mean gain in utility, `judge/win_rate`, where a tie counts half, and `judge/n`, the
        number of prompts that the planted truth covers; {} if it covers none.
        """
        gains = []
        for prompt, answer, reference in zip(prompts, answers, references, strict=True):
            utilities = [
                (self._utility(prompt, answer, c), self._utility(prompt, reference, c)) for c in clients
            ]
            gains.append([new - old for new, old in utilities if new is not None and old is not None])
        return _win_metrics("judge", [gain for gain in gains if gain])

    def score(self, model: LanguageModel) -> Metrics:
        """`judge/accuracy`: share of the `judge/n` public pairs whose chosen answer the policy finds more likely."""
        if self.pairs is None:
            return {}
        metrics = self.pairs.build().run(model)
        return {"judge/accuracy": metrics["logps/accuracies"], "judge/n": metrics["examples"]}

    def _utility(self, prompt: str, answer: str, client: int) -> float | None:
        return self.utility(prompt, answer, client) if self.utility else None


def signal(verdicts: Sequence[Verdict]) -> Metrics:
    """Score and win rate of answer 0 over answer 1 of each prompt, by the ensemble's vote over both orders."""
    return _win_metrics("signal", [[float(v.score[0, 1])] for v in verdicts])


def _win_metrics(name: str, gains: Sequence[Sequence[float]]) -> Metrics:
    """Mean gain, win rate and number of prompts, from the gains of each prompt."""
    if not gains:
        return {}
    win_rates = [fmean(0.5 if gain == 0 else float(gain > 0) for gain in of_prompt) for of_prompt in gains]
    score = fmean(fmean(of_prompt) for of_prompt in gains)
    return {f"{name}/score": score, f"{name}/win_rate": fmean(win_rates), f"{name}/n": float(len(gains))}


# --- over epochs -------------------------------------------------------------------


def judge_score(record: Mapping[str, float]) -> float | None:
    """The held-out judgement of an epoch; None without a judge."""
    return next((record[name] for name in JUDGEMENTS if name in record), None)


def best_epoch(records: Sequence[Mapping[str, float]]) -> int:
    """The first epoch with the best judgement, or without a judge the best signal; 0 is the untrained policy."""
    values = [record[SIGNAL] if (value := judge_score(record)) is None else value for record in records]
    return values.index(max(values))


def is_out_of_patience(records: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether `patience` epochs have passed since the best one."""
    return bool(patience) and len(records) - 1 - best_epoch(records) >= patience


def hacking_epoch(records: Sequence[Mapping[str, float]]) -> int | None:
    """The best epoch, if reward hacking began after it; None if not, or without a judge.

    Hacking: in each of the last LASTING_EPOCHS epochs the judgement is lower and the signal higher than in that epoch.
    """
    if judge_score(records[0]) is None:
        return None
    best = best_epoch(records)
    later = records[best + 1 :]
    if len(later) < LASTING_EPOCHS:
        return None
    best_score, best_signal = judge_score(records[best]), records[best][SIGNAL]
    assert best_score is not None
    is_hacked = all(
        (judge_score(r) or 0.0) < best_score and r[SIGNAL] > best_signal for r in later[-LASTING_EPOCHS:]
    )
    return best if is_hacked else None


# --- best of n -----------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """Sampled answers to one prompt and the reference answer, with the selectors' log-odds of all pairs."""

    prompt: str
    reference: str
    completions: Sequence[str]
    odds: torch.Tensor  # (U, 1 + n, 1 + n) of U selectors, the reference first


def best_of_n(
    candidates: Sequence[Candidates], weights: Sequence[float], how: How, judge: Judge, clients: Sequence[int]
) -> list[dict[str, float]]:
    """For every n, the signal and judgement over the reference of the answer picked among the first n.

    Answers are picked by the vote, in a knockout (`knockout/`) and in a round robin (`round_robin/`).
    """
    if not candidates:
        return []
    with_reference = [vote(c.odds, weights, how) for c in candidates]
    without_reference = [vote(c.odds[:, 1:, 1:], weights, how) for c in candidates]
    rows = []
    for n in range(1, 1 + min(len(c.completions) for c in candidates)):
        row: dict[str, float] = {"n": n}
        for name, pick in (("knockout", knockout), ("round_robin", lambda v, n: ranking(v, n)[0])):
            picks = [pick(v, n) for v in without_reference]
            answers = [c.completions[i] for c, i in zip(candidates, picks, strict=True)]
            scores = [[float(v.score[1 + i, 0])] for v, i in zip(with_reference, picks, strict=True)]
            metrics = _win_metrics("signal", scores)
            metrics |= judge.compare(
                [c.prompt for c in candidates], answers, [c.reference for c in candidates], clients
            )
            row |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        rows.append(row)
    return rows
