"""Labels of RLFT: answers to public prompts, the selectors' scores of them, and the labelled pairs."""

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
from server_app.rlft.prompts import PublicPrompt
from server_app.rlft.stages import greedy_answers, sample_answers, score_answers
from tasks.base import Row
from tasks.data.base import CONFIDENCE
from tasks.scoring.ensemble import SelectorEnsemble
from tasks.scoring.generate import Sampling, TextGenerator
from tasks.scoring.votes import Verdict, pairs, vote

ALL = "population"


@dataclass(frozen=True)
class Target:
    """A policy to train: the selectors that label its pairs, and the clients that it is for."""

    name: str  # "population", or the name of the selector
    selectors: tuple[int, ...]  # indices in the ensemble
    clients: tuple[int, ...]


@dataclass
class Labels:
    """Answers, scores and labelled pairs, stored in `folder` as they are computed.

    Turn 0 has answers of the base, shared by all policies; later turns have answers of one policy each.
    """

    folder: Path
    rlft: RlftConfig
    seed: int
    train: Sequence[PublicPrompt]
    held_out: Sequence[PublicPrompt]
    full_ensemble: SelectorEnsemble
    base: TextGenerator
    policy: TextGenerator  # with its current adapter
    # cache of rows() by target and turn
    rows_by_turn: dict[tuple[str, int], tuple[list[Row], Json]] = field(default_factory=dict)

    def ensemble(self, target: Target) -> SelectorEnsemble:
        """The selectors of one target."""
        names = [list(self.full_ensemble.selectors)[i] for i in target.selectors]
        weights = tuple(self.full_ensemble.weights[i] for i in target.selectors)
        return replace(
            self.full_ensemble, selectors={n: self.full_ensemble.selectors[n] for n in names}, weights=weights
        )

    def verdicts(self, target: Target, answers: Sequence[str]) -> list[Verdict]:
        """The ensemble's verdicts on answers to the held-out prompts (index 0) against the references (index 1)."""
        questions = [
            (a.prompt, pair) for a, *pair in zip(self.held_out, answers, self.references, strict=True)
        ]
        ensemble = self.ensemble(target)
        return [vote(s.odds, ensemble.weights, self.rlft.vote) for s in ensemble.scores(questions)]

    @cached_property
    def references(self) -> list[str]:
        """Reference answers to the held-out prompts: those of the prompts file, or the base's greedy answers."""
        prompts = [a.prompt for a in self.held_out if a.completion is None]
        greedy = iter(greedy_answers(self.folder / "references.jsonl", prompts, self.base))
        return [next(greedy) if a.completion is None else a.completion for a in self.held_out]

    def rows(self, target: Target, turn: int) -> tuple[list[Row], Json]:
        """The labelled pairs of a turn, in order of the prompts, and facts about them for the record.

        Raises DataError if there is no pair.
        """
        key = (target.name, turn)
        if key not in self.rows_by_turn:
            self.rows_by_turn[key] = self._rows(target, turn)
        return self.rows_by_turn[key]

    def _rows(self, target: Target, turn: int) -> tuple[list[Row], Json]:
        prompts = [a.prompt for a in self.train]
        if turn:
            folder, generator, ensemble = (
                self.folder / target.name / f"turn-{turn:05d}",
                self.policy,
                self.ensemble(target),
            )
        else:  # answers of the base, scored by all selectors, serve every target
            folder, generator, ensemble = self.folder, self.base, self.full_ensemble
        sampled = self._sample(folder / "answers.jsonl", prompts, generator, turn)
        scores = score_answers(folder / "scores.jsonl", list(zip(prompts, sampled, strict=True)), ensemble)
        indices = list(range(len(target.selectors)) if turn else target.selectors)
        weights, rows, left_out = self.ensemble(target).weights, [], Counter()
        for prompt, answers, s in zip(prompts, sampled, scores, strict=True):
            verdict = vote(s.odds[indices], weights, self.rlft.vote)
            labelled, skipped = pairs(verdict, answers, self.rlft.pairs, self.rlft.min_confidence)
            left_out += skipped
            for pair in labelled:
                texts = {"chosen": answers[pair.chosen], "rejected": answers[pair.rejected]}
                confidence = {CONFIDENCE: pair.confidence, "agreement": pair.agreement}
                rows.append({"prompt": prompt, **texts, **confidence, "turn": turn})
        if not rows:
            raise DataError(
                f"RLFT has no pair to train on (left out: {dict(left_out)}); see rlft.completions, rlft.temperature"
            )
        consistent, comparisons = (sum(s.consistent[i] for s in scores) for i in (0, 1))
        facts = {"turn": turn, "pairs": len(rows), "left_out": dict(left_out)}
        facts |= {key: fmean(row[key] for row in rows) for key in (CONFIDENCE, "agreement")}
        if comparisons:
            facts |= {"order_consistency": consistent / comparisons, "comparisons": comparisons}
        return rows, facts

    def candidates(self, target: Target) -> list[Candidates]:
        """Sampled answers of the base to the held-out prompts, for the best of n."""
        prompts = [a.prompt for a in self.held_out]
        sampled = self._sample(self.folder / "heldout-answers.jsonl", prompts, self.base, 0)
        compared = [
            [reference, *answers] for reference, answers in zip(self.references, sampled, strict=True)
        ]
        scores = score_answers(
            self.folder / "heldout-scores.jsonl",
            list(zip(prompts, compared, strict=True)),
            self.full_ensemble,
        )
        return [
            Candidates(prompt, reference, answers, s.odds[list(target.selectors)])
            for prompt, reference, answers, s in zip(prompts, self.references, sampled, scores, strict=True)
        ]

    def _sample(
        self, path: Path, prompts: Sequence[str], generator: TextGenerator, turn: int
    ) -> list[list[str]]:
        rlft = self.rlft
        sampling = Sampling(rlft.completions, rlft.temperature, rlft.top_p, rlft.max_new_tokens)
        return sample_answers(path, prompts, generator, sampling, seed=self.seed, turn=turn)
