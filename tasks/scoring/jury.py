"""A jury: the selectors of a run, or its reward models, asked for every two answers to a prompt, in both orders.

The one place that says which answer is better, for labels, for the best of n and for the training signal of a policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.tree import Tree
from tasks.base import Example, Task
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.reward import Reward
from tasks.scoring.evaluate import choice_batch
from tasks.tokens.choice import log_odds, margins
from tasks.tokens.encode import Encoder


@dataclass(frozen=True)
class Scores:
    """What each of U selectors says of n answers."""

    odds: Tensor  # (U, n, n) log-odds that answer i is better than j, antisymmetric; nan where it has no room
    consistent: tuple[int, int]  # comparisons in which both orders name the same answer, of how many

    def of(self, places: Sequence[int]) -> Tensor:
        """Of some selectors alone."""
        return self.odds[list(places)]


@dataclass(frozen=True)
class Jury:
    base: Base
    task: Task  # one that reads choices
    encode: Encoder
    selectors: Mapping[str, Tree]
    merged: Mapping[str, Tree]  # what lies beside each adapter
    weights: tuple[float, ...]  # of their votes: the sizes of their groups

    def scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """Of each prompt with its answers. A prompt is scored by itself: its numbers depend on no other."""
        distinct = [list(dict.fromkeys(answers)) for _, answers in asked]
        shown = [self._comparisons(prompt, texts) for (prompt, _), texts in zip(asked, distinct, strict=True)]
        found: list[list[Tensor]] = [[] for _ in asked]
        kept = [[0, 0] for _ in asked]
        for name, tree in self.selectors.items():
            set_adapter(self.base, tree, self.merged[name])
            self.base.model.eval()
            for at, (places, examples) in enumerate(shown):
                z = margins(choice_batch(self.base, examples)) if examples else torch.zeros(0, 2)
                found[at].append(self._matrix(z.float().cpu(), places, len(distinct[at])))
                if not self._alone:
                    kept[at][0] += int((z[:, 0].sign() == -z[:, 1].sign()).sum())
                    kept[at][1] += len(z)
        out = []
        for (_, answers), texts, matrices, (same, of) in zip(asked, distinct, found, kept, strict=True):
            place = [texts.index(answer) for answer in answers]
            out.append(Scores(torch.stack(matrices)[:, place][:, :, place], (same, of)))
        return out

    @property
    def _alone(self) -> bool:
        """Whether an answer has a score of its own, so that n answers cost n and not n (n - 1) prompts."""
        return isinstance(self.task, Reward)

    def _comparisons(self, prompt: str, texts: Sequence[str]) -> tuple[list[tuple[int, int]], list[Example]]:
        """The pairs that have room, by place, and how they are shown."""
        n = len(texts)
        wanted = [(i, j) for i in range(n) for j in range(i + 1, n)]
        if self._alone:  # an odd one goes with the first
            wanted = [(i, i + 1 if i + 1 < n else 0) for i in range(0, n, 2)] if n > 1 else []
        places, examples = [], []
        for i, j in wanted:
            row = {"prompt": prompt, "chosen": texts[i], "rejected": texts[j]}
            for example in self.task.examples([row], self.encode):
                places.append((i, j))
                examples.append(example)
        return places, examples

    def _matrix(self, z: Tensor, places: Sequence[tuple[int, int]], n: int) -> Tensor:
        """(n, n) log-odds from z of both orders of each comparison, (P, 2)."""
        if self._alone:
            rewards = torch.full((n,), torch.nan)
            for (i, j), (one, two) in zip(places, z, strict=True):
                rewards[i], rewards[j] = one, two
            odds = self.task.reward_scale * (rewards[:, None] - rewards[None, :])
        else:
            odds = torch.full((n, n), torch.nan)
            for (i, j), s in zip(places, log_odds(z, self.task.reward_scale), strict=True):
                odds[i, j], odds[j, i] = s, -s
        return odds.fill_diagonal_(0.0)
