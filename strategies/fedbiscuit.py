"""FedBiscuit: U selectors, each trained by a balanced group of clients. Wu et al. 2024, Algorithm 1 (arXiv:2407.03038).

Warm-up: every selector has `strategy.warmup-rounds` rounds of FedBis over all clients. Then each client receives
and trains only the selector of its group. Every `strategy.regroup-every` rounds, first when the warm-up ends, clients
are grouped by the losses of all selectors on their comparison rows, on which they never train: with group sizes that
differ by at most 1, constraint (7), either with the least total loss (exact) or by the paper's procedure (greedy).
With A_u of the A clients that answered training selector u, D_u the mean of their deltas and p as in FedBis:
eq8, Eq. (8): x_u + eta sum_{A_u} p_m D_u. ma: x_u + eta (M/A) sum_{A_u} p_m D_u. cluster-norm: x_u + eta D_u.
Deviations: server-rule = ma by default, since Eq. (8) has Eq. (4)'s sum without its M/A and moves a selector by only
A/(U M) of a client's step in a round; "auto" is the variant's own (paper: eq8). Warm-up is the plain mean, as in the
authors' code. The paper has 50 warm-up rounds and groups every 50 or 100; their code sends all selectors to everyone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from core.errors import ConfigError
from core.factors import first
from core.sections import Config, LoraConfig
from core.seeds import rng_for
from core.tree import Tree
from core.types import Client, Metrics, Order, OrderOption, Scalar, ServerState, Update
from strategies.aggregation.fold import Merged
from strategies.clients.rule import ClientRule
from strategies.fedbis import FedBis
from strategies.rounds.grouping import exact, greedy, join

STATELESS_METHODS = (
    "separate",
    "ffa",
    "rolora",
)  # values of lora.aggregation that leave no tensors at a client, whose group may change


@dataclass
class FedBiscuit(FedBis):
    selectors: int = 3  # U
    warmup_rounds: int = 2  # of each selector
    warmup: str = (
        "sequential"  # sequential (one selector after another) | interleaved (the cohort is split over them)
    )
    regroup_every: int = 2  # tau, rounds after the warm-up
    grouping: str = "exact"  # exact | greedy (the paper's; the order of clients is drawn)
    hysteresis: float = (
        0.0  # exact: a client changes group only for a gain above this many standard deviations of the losses
    )
    soft_balance: float = 0.0  # exact: price on unequal sizes instead of constraint (7); 0: the constraint
    grouping_fraction: float = (
        0.1  # share of a client's training rows on which it compares selectors and never trains
    )
    race: float = (
        0.0  # standard errors behind the best at which a client drops a selector; 0: score all on all rows
    )
    server_rule: str = "ma"  # eq8 | ma | cluster-norm; auto: the variant's default

    order_options: ClassVar[Mapping[str, OrderOption]] = {
        **FedBis.order_options,
        "race": OrderOption(float, ("evaluate",)),
        "vote": OrderOption(str, ("evaluate",)),
    }
    metrics: ClassVar[tuple[str, ...]] = ("loss/*", "race/scored", "vote/accuracy")
    groups_clients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("warmup", ("sequential", "interleaved"))
        self._check_choice("grouping", ("exact", "greedy"))
        self._check_choice("server_rule", ("auto", "eq8", "ma", "cluster-norm"))
        for key, value, least in (
            ("selectors", self.selectors, 2),
            ("warmup-rounds", self.warmup_rounds, 1),
            ("regroup-every", self.regroup_every, 1),
            ("hysteresis", self.hysteresis, 0),
            ("soft-balance", self.soft_balance, 0),
            ("race", self.race, 0),
        ):
            if not value >= least:
                raise ConfigError(f"strategy.{key} must be at least {least}, got {value!r}")
        if not 0 < self.grouping_fraction < 1:
            raise ConfigError(f"strategy.grouping-fraction must be in (0, 1), got {self.grouping_fraction!r}")
        if self.grouping == "greedy" and (self.hysteresis or self.soft_balance):
            raise ConfigError(
                "strategy.hysteresis and strategy.soft-balance need strategy.grouping = 'exact'"
            )

    def conflicts(self, config: Config) -> Iterator[str]:
        rounds = config.run.num_server_rounds
        if self.warmup_end >= rounds:
            yield (
                f"strategy.selectors x strategy.warmup-rounds = {self.warmup_end} rounds of warm-up, and "
                f"run.num-server-rounds = {rounds}: no client would train the selector of its group; lower the first "
                "or raise the second"
            )
        if config.train.optimizer_state == "keep":
            yield (
                "train.optimizer-state = 'keep': with strategy.name = 'fedbiscuit' a client trains several selectors "
                "in turn, so the moments of the previous one do not apply; use 'reset'"
            )

    def with_lora(self, lora: LoraConfig) -> Self:
        if lora.aggregation not in STATELESS_METHODS:
            raise ConfigError(
                f"lora.aggregation = {lora.aggregation!r} cannot be combined with several selectors; "
                f"use {' | '.join(STATELESS_METHODS)}"
            )
        return super().with_lora(lora)

    def init(self, adapters: dict[str, Tree], seed: int) -> ServerState:
        """Return the initial state. Every selector starts from a different A: with the same A they would stay equal."""
        return super().init({name: first(adapters["global"], seed, name) for name in self.names}, seed)

    @property
    def names(self) -> list[str]:
        return [f"c{u}" for u in range(self.selectors)]

    def updates_per_adapter(self, cohort: int) -> int:
        """Return the smallest number of updates of one selector: an even share, but 1 if group sizes are free."""
        return 1 if self.soft_balance else cohort // self.selectors

    def client_rule(self, rule: ClientRule) -> ClientRule:
        return replace(super().client_rule(rule), comparison_share=self.grouping_fraction)

    # --- orders ----------------------------------------------------------------------

    @property
    def warmup_end(self) -> int:
        """The last round of the warm-up."""
        return self.selectors * self.warmup_rounds

    def groups_after(self, rnd: int) -> bool:
        """Whether clients are regrouped in the evaluation after round `rnd`."""
        return rnd >= self.warmup_end and (rnd - self.warmup_end) % self.regroup_every == 0

    def must_evaluate(self, rnd: int) -> bool:
        return self.groups_after(rnd)

    def plan_train(self, state: ServerState, rnd: int, cohort: list[Client]) -> list[Order]:
        ids = [c.id for c in cohort]
        if rnd > self.warmup_end:
            return self._orders(state, ids, self._groups(state, ids))
        if self.warmup == "sequential":
            return self._orders(state, ids, dict.fromkeys(ids, (rnd - 1) // self.warmup_rounds))
        # over U rounds with A clients each, every selector is trained by A clients
        shuffled = rng_for(state.seed, "warmup", rnd).sample(ids, len(ids))
        return self._orders(
            state, ids, {c: (place + rnd) % self.selectors for place, c in enumerate(shuffled)}
        )

    def plan_evaluate(self, state: ServerState, rnd: int, everyone: list[Client]) -> list[Order]:
        """Every client scores its group's selector.

        When clients are regrouped they get all selectors to compare; if adapters can vote, all selectors vote then and
        after the last round.
        """
        state, ids = self.averaged(state), [c.id for c in everyone]
        if rnd > self.warmup_end:
            owners = self._groups(state, ids)
        elif self.warmup == "sequential":  # the selector that was trained last
            owners = dict.fromkeys(ids, max(0, rnd - 1) // self.warmup_rounds)
        else:
            owners = {c: c % self.selectors for c in ids}
        orders = self.with_finish(state, rnd, self._orders(state, ids, owners))
        compare = tuple(self.names) if self.groups_after(rnd) else ()
        options: dict[str, Scalar] = {"race": self.race} if compare and self.race else {}
        if state.votes and (compare or rnd == state.rounds):
            sizes = Counter(state.facts.get("route", {}).values())
            options["vote"] = ",".join(f"{name}:{sizes[name] if sizes else 1}" for name in self.names)
        if not compare and not options:
            return orders
        trees = {a: self.lora.orders(state, [Order(0, {}, a)])[0].trees[a] for a in self.names}
        return [replace(o, trees=trees, compare=compare, options={**o.options, **options}) for o in orders]

    def _orders(self, state: ServerState, ids: Sequence[int], owners: Mapping[int, int]) -> list[Order]:
        return self.lora.orders(state, [Order(c, {}, self.names[owners[c]]) for c in ids])

    def _groups(self, state: ServerState, ids: Sequence[int]) -> dict[int, int]:
        """Return the group of every grouped client and of `ids`; a client without a group joins the smallest."""
        groups = {int(c): self.names.index(name) for c, name in state.facts.get("route", {}).items()}
        return join(groups, [c for c in ids if c not in groups], self.selectors)

    # --- merging -----------------------------------------------------------------------

    def gain(self, state: ServerState, rnd: int, adapter: str, updates: Sequence[Update]) -> float:
        rule = "eq8" if self.server_rule == "auto" else self.server_rule
        if rule == "cluster-norm" or rnd <= self.warmup_end:
            return 1.0
        if rule == "ma":
            return super().gain(state, rnd, adapter, updates)
        return self.weight_sum(state, adapter, updates)

    def merge_train(self, state: ServerState, rnd: int, merged: Merged) -> tuple[ServerState, Metrics]:
        state, metrics = super().merge_train(state, rnd, merged)
        if rnd > self.warmup_end:
            route = {**state.facts.get("route", {}), **{str(u.client): u.adapter for u in merged.updates}}
            state = replace(state, facts={**state.facts, "route": route})
        return state, metrics

    def merge_evaluate(
        self, state: ServerState, rnd: int, updates: list[Update]
    ) -> tuple[ServerState, Metrics]:
        state, metrics = super().merge_evaluate(state, rnd, updates)
        return (self._regroup(state, rnd, updates) if self.groups_after(rnd) else state), metrics

    def _regroup(self, state: ServerState, rnd: int, updates: Sequence[Update]) -> ServerState:
        """Regroup the clients that reported all losses; the others keep their last losses and their group."""
        names, route = self.names, state.facts.get("route", {})
        reported = {u.client: values for u in updates if (values := _losses(u, names))}
        losses = {**state.facts.get("losses", {}), **{str(c): values for c, values in reported.items()}}
        clients = sorted({int(c) for c in (*losses, *route)})
        if not reported:
            return state
        current = [names.index(route[str(c)]) if str(c) in route else None for c in clients]
        if self.grouping == "exact":
            missing = [np.nan] * len(names)
            groups = exact(
                np.array([losses.get(str(c), missing) for c in clients]),
                current=current,
                fixed=[c not in reported for c in clients],
                hysteresis=self.hysteresis,
                softness=self.soft_balance,
            )
            route = {str(c): names[u] for c, u in zip(clients, groups, strict=True)}
        else:
            ids = sorted(reported)
            order = rng_for(state.seed, "regroup", rnd).sample(range(len(ids)), len(ids))
            groups = greedy(np.array([reported[c] for c in ids]), order)
            route = {**route, **{str(c): names[u] for c, u in zip(ids, groups, strict=True)}}
        return replace(state, facts={**state.facts, "route": route, "losses": losses})

    def final(self, state: ServerState) -> dict[str, Tree]:
        """Return every selector, that of the largest group first."""
        sizes = Counter(state.facts.get("route", {}).values())
        adapters = self.averaged(state).adapters
        return {name: adapters[name] for name in sorted(self.names, key=lambda a: -sizes[a])}


def _losses(update: Update, names: Sequence[str]) -> list[float] | None:
    """Return a client's loss under every selector, or None if one is missing or not a number."""
    values = [update.metrics[f"loss/{name}"] for name in names if f"loss/{name}" in update.metrics]
    numbers = [float(loss) for loss in values if isinstance(loss, int | float)]
    return numbers if len(numbers) == len(names) else None


PLUGIN = FedBiscuit
