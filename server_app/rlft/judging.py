"""Whether a policy became better: by the selectors that taught it, and by a judge that had no part in that.

The two together show reward hacking: the signal goes on rising while the judgement turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from core.errors import ConfigError
from core.sections import Choice, Config
from core.types import Metrics
from evals.base import Talker
from tasks.data.base import Planted, Source
from tasks.scoring.votes import How, Verdict, knockout, ranking, vote

SIGNAL = "signal/score"
JUDGEMENTS = ("judge/score", "judge/accuracy")  # the one a judge has
LASTING = 2  # epochs that a turn must last before it is called one
Said = Sequence[str]  # one answer to each held-out prompt


@dataclass(frozen=True)
class Judge:
    """A judge that took no part in labelling: the source's planted truth, public pairs, or nobody."""

    name: str  # truth | pairs | none
    utility: Callable[[str, str, int], float | None] | None = None  # of (prompt, answer, client)
    pairs: Choice | None = None

    @staticmethod
    def of(config: Config, source: Source) -> "Judge":
        """The one that rlft.judge names. Raises ConfigError for a truth that nobody planted."""
        wanted = config.rlft.judge
        if wanted == "pairs":
            return Judge("pairs", pairs=config.judge)
        if wanted != "none" and isinstance(source, Planted):
            seed = config.run.seed
            return Judge(
                "truth", lambda prompt, answer, client: source.utility_of(seed, prompt, answer, client)
            )
        if wanted == "truth":
            raise ConfigError(
                f"rlft.judge = 'truth': data.source = {config.source_choice.name!r} has no planted "
                "truth; use pairs | none"
            )
        return Judge("none")

    def compare(
        self, prompts: Sequence[str], said: Said, references: Said, clients: Sequence[int]
    ) -> Metrics:
        """`judge/score`, the mean gain in utility over the reference answers, `judge/win_rate`, a tie being half, and
        `judge/n` prompts that the truth knows; each is the mean of a prompt over these clients."""
        gains = []
        for prompt, answer, other in zip(prompts, said, references, strict=True):
            utilities = [(self._utility(prompt, answer, c), self._utility(prompt, other, c)) for c in clients]
            gains.append([one - two for one, two in utilities if one is not None and two is not None])
        return _wins("judge", [gain for gain in gains if gain])

    def score(self, talker: Talker) -> Metrics:
        """`judge/accuracy`: how often the policy finds the chosen one of `judge/n` public pairs the likelier."""
        if self.pairs is None:
            return {}
        found = self.pairs.build().run(talker)
        return {"judge/accuracy": found["logps/accuracies"], "judge/n": found["examples"]}

    def _utility(self, prompt: str, answer: str, client: int) -> float | None:
        return self.utility(prompt, answer, client) if self.utility else None


def signal(verdicts: Sequence[Verdict]) -> Metrics:
    """What the jury says of answer 0 against answer 1 of each prompt, both orders taken together."""
    return _wins("signal", [[float(v.score[0, 1])] for v in verdicts])


def _wins(name: str, gains: Sequence[Sequence[float]]) -> Metrics:
    """Of the gains on each prompt."""
    if not gains:
        return {}
    won = [fmean(0.5 if gain == 0 else float(gain > 0) for gain in each) for each in gains]
    score = fmean(fmean(each) for each in gains)
    return {f"{name}/score": score, f"{name}/win_rate": fmean(won), f"{name}/n": float(len(gains))}


# --- over epochs -------------------------------------------------------------------


def judged(record: Mapping[str, float]) -> float | None:
    """The held-out judgement of an epoch, where there is a judge."""
    return next((record[name] for name in JUDGEMENTS if name in record), None)


def best_epoch(records: Sequence[Mapping[str, float]]) -> int:
    """The first epoch with the best held-out judgement, without a judge the best signal; 0 is the untouched policy."""
    values = [record[SIGNAL] if (value := judged(record)) is None else value for record in records]
    return values.index(max(values))


def exhausted(records: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether `patience` epochs have passed since the best one."""
    return bool(patience) and len(records) - 1 - best_epoch(records) >= patience


def turned(records: Sequence[Mapping[str, float]]) -> int | None:
    """The epoch at which the judgement turned while the signal went on rising, once that has lasted: the last epochs
    are all below it by the one and above it by the other. None without a judge, and while all is well."""
    if judged(records[0]) is None:
        return None
    best = best_epoch(records)
    later = records[best + 1 :]
    if len(later) < LASTING:
        return None
    top, signal_then = judged(records[best]), records[best][SIGNAL]
    assert top is not None
    hacked = all((judged(r) or 0.0) < top and r[SIGNAL] > signal_then for r in later[-LASTING:])
    return best if hacked else None


# --- best of n -----------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """Sampled answers to one prompt and the reference answer, with the selectors' scores of all of them."""

    prompt: str
    reference: str
    completions: Sequence[str]
    odds: torch.Tensor  # (U, 1 + n, 1 + n), the reference first


def best_of_n(
    candidates: Sequence[Candidates], weights: Sequence[float], how: How, judge: Judge, clients: Sequence[int]
) -> list[dict[str, float]]:
    """For every n: what the answers are worth that the vote picks among the first n, by `knockout/` and by
    `round_robin/`; against the reference, by the vote itself and by the judge."""
    if not candidates:
        return []
    whole = [vote(c.odds, weights, how) for c in candidates]
    among = [vote(c.odds[:, 1:, 1:], weights, how) for c in candidates]
    out = []
    for n in range(1, 1 + min(len(c.completions) for c in candidates)):
        row: dict[str, float] = {"n": n}
        for name, pick in (("knockout", knockout), ("round_robin", lambda v, n: ranking(v, n)[0])):
            picks = [pick(v, n) for v in among]
            said = [c.completions[i] for c, i in zip(candidates, picks, strict=True)]
            found = _wins("signal", [[float(v.score[1 + i, 0])] for v, i in zip(whole, picks, strict=True)])
            found |= judge.compare(
                [c.prompt for c in candidates], said, [c.reference for c in candidates], clients
            )
            row |= {f"{name}/{metric}": value for metric, value in found.items()}
        out.append(row)
    return out
