"""Probe: FedAvg that also measures how similar the clients' updates are, for `accord advise`.

The cosine between clients' updates separates populations that no single model fits: Sattler et al. 2019, Clustered
Federated Learning (arXiv:1910.01991), Eq. (20). Stored after every round, over all rounds so far, as
`facts["conflict"]`: `cosine` of the summed updates, `signs` (of the entries that both clients change, the share with
equal signs), and `apart`, the cosine after each round's mean over its clients has been subtracted.
Deviations: of LoRA's two factors only B is compared, if updates have it: A has no gradient while B is zero, and Adam
scales the noise in its first gradients to full steps. Larger updates are compared on `strategy.probe-entries` entries,
drawn once per run. The adapter is FedAvg's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError
from core.factors import is_b
from core.seeds import torch_rng_for
from core.tree import flat
from core.types import Json, Metrics, ServerState, Update
from strategies.aggregation.fold import Fold, Merged, Trees
from strategies.fedavg import FedAvg


@dataclass
class Probe(FedAvg):
    probe_entries: int = 65536  # entries of an update that are compared

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_entries < 1:
            raise ConfigError(f"strategy.probe-entries must be at least 1, got {self.probe_entries}")

    def fold(self, state: ServerState, rnd: int, spool: Path) -> Fold:
        return SampledFold(
            super().fold(state, rnd, spool), lambda entries: self._sampled(entries, state.seed)
        )

    def _sampled(self, entries: Tensor, seed: int) -> Tensor:
        """Return (probe_entries,): the compared entries of an update, the same positions for all clients."""
        if len(entries) <= self.probe_entries:
            return entries.clone()
        places = torch.randperm(len(entries), generator=torch_rng_for(seed, "probe"))[: self.probe_entries]
        return entries[places]

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        samples = merged.trees["global"]["samples"]
        mean = torch.stack(list(samples.values())).mean(0)
        sums = {
            "probe.whole": dict(samples),
            "probe.apart": {client: sample - mean for client, sample in samples.items()},
        }
        state, metrics = super().merge_train(state, rnd, merged)
        memory = dict(state.memory)
        for name, tree in sums.items():
            before = memory.get(name, {})
            memory[name] = {**before, **{c: sample + before.get(c, 0) for c, sample in tree.items()}}
        facts = {**state.facts, "conflict": conflict(memory["probe.whole"], memory["probe.apart"])}
        return replace(state, memory=memory, facts=facts), metrics


class SampledFold:
    """A Fold that also collects some entries of every delta, as a tree `samples` by client."""

    def __init__(self, inner: Fold, sample: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.sample = inner, sample
        self.samples: dict[str, Tensor] = {}

    def add(self, update: Update) -> None:
        delta = update.trees["delta"]
        compared = {name: t for name, t in delta.items() if is_b(name)} or delta
        self.samples[str(update.client)] = self.sample(flat(compared))
        self.inner.add(update)

    def result(self) -> Trees:
        trees = self.inner.result()
        return {**trees, "global": {**trees["global"], "samples": self.samples}}


def conflict(whole: dict[str, Tensor], apart: dict[str, Tensor]) -> Json:
    """Return the three (C, C) matrices of the module's docstring, rounded to 6 decimals, over all clients so far."""
    clients = sorted(whole, key=int)
    sums, residuals = (torch.stack([tree[c] for c in clients]).double() for tree in (whole, apart))
    signs = sums.sign()
    moving = signs.abs() @ signs.abs().T
    same = (signs @ signs.T + moving) / 2
    shares = torch.where(moving > 0, same / moving.clamp(min=1), torch.full_like(same, 0.5))
    matrices = {"cosine": _cosines(sums), "signs": shares, "apart": _cosines(residuals)}
    return {"clients": [int(c) for c in clients]} | {
        name: [[round(v, 6) for v in row] for row in matrix.tolist()] for name, matrix in matrices.items()
    }


def _cosines(rows: Tensor) -> Tensor:
    """Return the (C, C) cosines of (C, n) rows; a row of zeros has cosine 0 with all others."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return unit @ unit.T


PLUGIN = Probe
