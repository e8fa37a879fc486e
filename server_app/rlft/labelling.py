"""Labels of RLFT: the policy's answers to public prompts, what the selectors say of them, the pairs that follow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from core.errors import DataError
from core.sections import RlftConfig
from core.types import Json
from server_app.rlft.judging import Candidates
from server_app.rlft.prompts import Asked
from server_app.rlft.stages import greedy, sampled, scored
from tasks.base import Row
from tasks.data.base import CONFIDENCE
from tasks.scoring.generate import Sampling, Talker
from tasks.scoring.jury import Jury
from tasks.scoring.votes import Verdict, pairs, vote

ALL = "population"


@dataclass(frozen=True)
class Target:
    """A policy to make: who labels its pairs, and for whom it is."""

    name: str  # population, or the selector's
    selectors: tuple[int, ...]  # places in the jury
    clients: tuple[int, ...]


@dataclass
class Labels:
    """Everything that is asked of models before training, kept in `folder` as it is made.

    The first turn's answers are the base's and serve every policy; those of later turns are a policy's own.
    """

    folder: Path
    rlft: RlftConfig
    seed: int
    train: Sequence[Asked]
    held: Sequence[Asked]
    everyone: Jury
    base: Talker
    policy: Talker  # under its adapter of the moment
    known: dict[tuple[str, int], tuple[list[Row], Json]] = field(default_factory=dict)  # rows(), made once

    def jury(self, target: Target) -> Jury:
        """The selectors of one target."""
        names = [list(self.everyone.selectors)[i] for i in target.selectors]
        weights = tuple(self.everyone.weights[i] for i in target.selectors)
        return replace(
            self.everyone, selectors={n: self.everyone.selectors[n] for n in names}, weights=weights
        )

    def verdicts(self, target: Target, said: Sequence[str]) -> list[Verdict]:
        """Of the policy's answers to the held-out prompts (place 0) against the references (place 1)."""
        asked = [(a.prompt, pair) for a, *pair in zip(self.held, said, self.references, strict=True)]
        jury = self.jury(target)
        return [vote(s.odds, jury.weights, self.rlft.vote) for s in jury.scores(asked)]

    @cached_property
    def references(self) -> list[str]:
        """What held-out answers are compared with: the prompts file's, or the base's greedy answers."""
        open_ = [a.prompt for a in self.held if a.completion is None]
        own = iter(greedy(self.folder / "references.jsonl", open_, self.base))
        return [next(own) if a.completion is None else a.completion for a in self.held]

    def rows(self, target: Target, turn: int) -> tuple[list[Row], Json]:
        """The labelled pairs of a turn, in order of the prompts, and what is to be said about them.

        Raises DataError where none is left.
        """
        key = (target.name, turn)
        if key not in self.known:
            self.known[key] = self._rows(target, turn)
        return self.known[key]

    def _rows(self, target: Target, turn: int) -> tuple[list[Row], Json]:
        prompts = [a.prompt for a in self.train]
        if turn:
            folder, talker, jury = (
                self.folder / target.name / f"turn-{turn:05d}",
                self.policy,
                self.jury(target),
            )
        else:
            folder, talker, jury = self.folder, self.base, self.everyone
        said = self._sampled(folder / "answers.jsonl", prompts, talker, turn)
        scores = scored(folder / "scores.jsonl", list(zip(prompts, said, strict=True)), jury)
        places = list(range(len(target.selectors)) if turn else target.selectors)
        weights, rows, left_out = self.jury(target).weights, [], Counter()
        for prompt, answers, s in zip(prompts, said, scores, strict=True):
            verdict = vote(s.odds[places], weights, self.rlft.vote)
            made, out = pairs(verdict, answers, self.rlft.pairs, self.rlft.min_confidence)
            left_out += out
            for pair in made:
                texts = {"chosen": answers[pair.chosen], "rejected": answers[pair.rejected]}
                sure = {CONFIDENCE: pair.confidence, "agreement": pair.agreement}
                rows.append({"prompt": prompt, **texts, **sure, "turn": turn})
        if not rows:
            raise DataError(
                f"RLFT has no pair to learn from: {dict(left_out)}; see rlft.completions, rlft.temperature"
            )
        same, of = (sum(s.consistent[i] for s in scores) for i in (0, 1))
        about = {"turn": turn, "pairs": len(rows), "left_out": dict(left_out)}
        about |= {key: fmean(row[key] for row in rows) for key in (CONFIDENCE, "agreement")}
        return rows, about | ({"order_consistency": same / of, "comparisons": of} if of else {})

    def candidates(self, target: Target) -> list[Candidates]:
        """The base's answers to the held-out prompts, for the best of n."""
        prompts = [a.prompt for a in self.held]
        said = self._sampled(self.folder / "heldout-answers.jsonl", prompts, self.base, 0)
        whole = [[reference, *answers] for reference, answers in zip(self.references, said, strict=True)]
        scores = scored(
            self.folder / "heldout-scores.jsonl", list(zip(prompts, whole, strict=True)), self.everyone
        )
        return [
            Candidates(prompt, reference, answers, s.odds[list(target.selectors)])
            for prompt, reference, answers, s in zip(prompts, self.references, said, scores, strict=True)
        ]

    def _sampled(self, path: Path, prompts: Sequence[str], talker: Talker, turn: int) -> list[list[str]]:
        rlft = self.rlft
        how = Sampling(rlft.completions, rlft.temperature, rlft.top_p, rlft.max_new_tokens)
        return sampled(path, prompts, talker, how, seed=self.seed, turn=turn)
