"""Probe: FedAvg that also watches how far the clients pull the same way, for `accord advise`.

The cosine between clients' updates separates populations that no single model serves: Sattler et al. 2019, Clustered
Federated Learning (arXiv:1910.01991), Eq. (20). Written down after every round, over all rounds so far, as
`facts["conflict"]`: `cosine` of the summed updates, `signs` (the share of entries in which both move and move the same
way), and `apart`, the cosine of what is left when each round's mean over its clients is taken away.
Deviations: of LoRA's two factors on B alone, where updates have it: A has no gradient while B is zero, and Adam gives
what noise it has first the same size; and on `strategy.probe-entries` entries drawn once for all, where there are more.
The adapter is FedAvg's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    probe_entries: int = 65536  # of an update that are compared

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_entries < 1:
            raise ConfigError(f"strategy.probe-entries must be at least 1, got {self.probe_entries}")

    def fold(self, state: ServerState, rnd: int) -> Fold:
        return Watching(super().fold(state, rnd), lambda whole: self._picked(whole, state.seed))

    def _picked(self, whole: Tensor, seed: int) -> Tensor:
        """(entries,): the watched entries of an update, the same of everyone's."""
        if len(whole) <= self.probe_entries:
            return whole.clone()
        places = torch.randperm(len(whole), generator=torch_rng_for(seed, "probe"))[: self.probe_entries]
        return whole[places]

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        seen = merged.trees["global"]["seen"]
        kept = {
            "probe.whole": dict(seen),
            "probe.apart": {
                client: one - torch.stack(list(seen.values())).mean(0) for client, one in seen.items()
            },
        }
        state, metrics = super().merge_train(state, rnd, merged)
        memory = dict(state.memory)
        for name, tree in kept.items():
            before = memory.get(name, {})
            memory[name] = {**before, **{c: one + before.get(c, 0) for c, one in tree.items()}}
        facts = {**state.facts, "conflict": conflict(memory["probe.whole"], memory["probe.apart"])}
        return replace(state, memory=memory, facts=facts), metrics


class Watching:
    """A fold that also keeps some entries of every delta, as a tree `seen` by client."""

    def __init__(self, inner: Fold, pick: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.pick = inner, pick
        self.seen: dict[str, Tensor] = {}

    def add(self, update: Update) -> None:
        delta = update.trees["delta"]
        watched = {name: t for name, t in delta.items() if is_b(name)} or delta
        self.seen[str(update.client)] = self.pick(flat(watched))
        self.inner.add(update)

    def result(self) -> Trees:
        trees = self.inner.result()
        return {**trees, "global": {**trees["global"], "seen": self.seen}}


def conflict(whole: dict[str, Tensor], apart: dict[str, Tensor]) -> Json:
    """The three matrices of the module's text, rounded to 6 decimals, over the clients seen so far."""
    clients = sorted(whole, key=int)
    every, left = (torch.stack([tree[c] for c in clients]).double() for tree in (whole, apart))
    signs = every.sign()
    moving = signs.abs() @ signs.abs().T
    same = (signs @ signs.T + moving) / 2
    shares = torch.where(moving > 0, same / moving.clamp(min=1), torch.full_like(same, 0.5))
    found = {"cosine": _cosines(every), "signs": shares, "apart": _cosines(left)}
    return {"clients": [int(c) for c in clients]} | {
        name: [[round(v, 6) for v in row] for row in matrix.tolist()] for name, matrix in found.items()
    }


def _cosines(rows: Tensor) -> Tensor:
    """(C, C); a row of zeros has the cosine 0 with all others."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return unit @ unit.T


PLUGIN = Probe
