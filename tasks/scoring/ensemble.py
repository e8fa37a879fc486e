"""The selectors or reward models of a run as an ensemble, which compares answers pairwise, in both orders.

Its scores decide which answer is better: for labels, for the best of n and for the training signal of a policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.tree import Tree
from tasks.base import Example, Task
from tasks.model.adapter import set_adapter
from tasks.model.base import Base
from tasks.scoring.evaluate import choice_batch
from tasks.tokens.choice import log_odds, margins
from tasks.tokens.encode import Encoder


@dataclass(frozen=True)
class Scores:
    """Scores of n answers to a prompt by U selectors."""

    odds: Tensor  # (U, n, n) log-odds that answer i is better than j, antisymmetric; nan where the prompt is too long
    consistent: tuple[
        int, int
    ]  # number of comparisons in which both orders prefer the same answer, and in all

    def of(self, places: Sequence[int]) -> Tensor:
        """The odds of some of the selectors."""
        return self.odds[list(places)]


@dataclass(frozen=True)
class SelectorEnsemble:
    """Selectors with one base model, and the weights of their votes."""

    base: Base
    task: Task  # a task that reads choices
    encode: Encoder
    selectors: Mapping[str, Tree]
    merged: Mapping[str, Tree]  # merged factors of each selector
    weights: tuple[float, ...]  # of the votes: the sizes of the groups

    def scores(self, prompts: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """Score the answers to each prompt. Prompts are scored separately, so that no result depends on another."""
        distinct = [list(dict.fromkeys(answers)) for _, answers in prompts]
        comparisons = [
            self._comparisons(prompt, texts) for (prompt, _), texts in zip(prompts, distinct, strict=True)
        ]
        matrices: list[list[Tensor]] = [[] for _ in prompts]
        agreements = [[0, 0] for _ in prompts]  # comparisons in which both orders agree, of all comparisons
        for name, tree in self.selectors.items():
            set_adapter(self.base, tree, self.merged[name])
            self.base.model.eval()
            for n, (places, examples) in enumerate(comparisons):
                z = margins(choice_batch(self.base, examples)) if examples else torch.zeros(0, 2)
                matrices[n].append(self._matrix(z.float().cpu(), places, len(distinct[n])))
                if not self.task.rates_answers:
                    agreements[n][0] += int((z[:, 0].sign() == -z[:, 1].sign()).sum())
                    agreements[n][1] += len(z)
        out = []
        for (_, answers), texts, by_selector, (same, total) in zip(
            prompts, distinct, matrices, agreements, strict=True
        ):
            place = [texts.index(answer) for answer in answers]
            out.append(Scores(torch.stack(by_selector)[:, place][:, :, place], (same, total)))
        return out

    def _comparisons(self, prompt: str, texts: Sequence[str]) -> tuple[list[tuple[int, int]], list[Example]]:
        """The pairs of answers that fit into train.max-length, by place, and their examples."""
        n = len(texts)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        if (
            self.task.rates_answers
        ):  # n prompts, not n (n - 1): disjoint pairs; with odd n, the last is paired with the first
            pairs = [(i, i + 1 if i + 1 < n else 0) for i in range(0, n, 2)] if n > 1 else []
        places, examples = [], []
        for i, j in pairs:
            row = {"prompt": prompt, "chosen": texts[i], "rejected": texts[j]}
            for example in self.task.examples([row], self.encode):
                places.append((i, j))
                examples.append(example)
        return places, examples

    def _matrix(self, z: Tensor, places: Sequence[tuple[int, int]], n: int) -> Tensor:
        """(n, n) log-odds from the margins z of P comparisons in both orders, (P, 2)."""
        if self.task.rates_answers:
            rewards = torch.full((n,), torch.nan)
            for (i, j), pair_rewards in zip(places, z, strict=True):
                rewards[i], rewards[j] = pair_rewards
            odds = self.task.reward_scale * (rewards[:, None] - rewards[None, :])
        else:
            odds = torch.full((n, n), torch.nan)
            for (i, j), s in zip(places, log_odds(z, self.task.reward_scale), strict=True):
                odds[i, j], odds[j, i] = s, -s
        return odds.fill_diagonal_(0.0)
