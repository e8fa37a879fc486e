"""lora.aggregation: which of A and B train and travel, and how the clients' products B_k A_k are aggregated.

s_k = alpha / r_k; p_k = w_k / sum w. x = (A, B) is the adapter, M the merged factors' frozen product.
separate, FedIT (Zhang et al. 2024, arXiv:2305.05644): mean of A, mean of B.
ffa, FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): B alone. rolora, RoLoRA (Chen et al. 2025, arXiv:2502.01755): B in
odd rounds, A in even ones. fedsa, FedSA-LoRA (Guo et al. 2025, arXiv:2410.01463): both train, A alone travels.
fedex, FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): the means, M + s (sum_k p_k B_k A_k - mean B mean A).
flora, FLoRA (Wang et al. 2024, arXiv:2409.05976): M + sum_k p_k s_k B_k A_k; A is drawn anew, B = 0.
flexlora, FlexLoRA (Bai et al. 2024, arXiv:2402.11505): factors nearest to sum_k p_k s_k B_k A_k, at each client's rank.
Deviations: M is never added to the base's weights, which remain the reference of preference tasks. Where
flexlora's sum has a rank below r, the other rows of A and columns of B start as in LoRA. B absorbs s_k:
B_k = (r_k / r) B.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch

from core.errors import ConfigError
from core.factors import MERGED, b_of, cut, is_a, is_b, modules, rank_of, start
from core.sections import LoraConfig
from core.tree import Tree, add, scale
from core.types import Metrics, Order, ServerState, Update
from strategies.aggregation.fold import Fold, Share, Trees
from strategies.aggregation.low_rank import Factors, Stack, factorise
from strategies.clients.rule import DEFAULT_RULE, ClientRule

MIXED_RANKS = ("flora", "flexlora")  # methods in which clients may have different ranks
MERGING = ("fedex", "flora")  # methods with merged factors
BY_PRODUCT = (*MERGING, "flexlora")


def only_a(name: str, rnd: int) -> bool:
    return is_a(name)


def only_b(name: str, rnd: int) -> bool:
    return is_b(name)


def in_turn(name: str, rnd: int) -> bool:
    return is_b(name) if rnd % 2 else is_a(name)


RULES: Mapping[str, ClientRule] = {
    "ffa": ClientRule(shares=only_b, trains=only_b),
    "rolora": ClientRule(shares=in_turn, trains=in_turn),
    "fedsa": ClientRule(shares=only_a),
}


@dataclass(frozen=True)
class Lora:
    """The settings lora.*, and the aggregation that they name."""

    aggregation: str = "separate"
    r: int = 8  # the server's rank, which is the largest
    alpha: int = 16
    client_ranks: tuple[int, ...] = ()  # assigned to clients in turn; (): r for all
    residual_rank: int = 0  # largest rank of M; 0: no limit, exact

    @staticmethod
    def read(lora: LoraConfig) -> "Lora":
        """Read the section lora. Raises ConfigError for a key without effect and for invalid ranks."""
        method = f"lora.aggregation = {lora.aggregation!r}"
        if lora.client_ranks and lora.aggregation not in MIXED_RANKS:
            raise ConfigError(
                f"lora.client-ranks = {lora.client_ranks!r} needs lora.aggregation = {' or '.join(MIXED_RANKS)}: "
                f"{method} needs tensors of equal shape"
            )
        if lora.residual_rank and lora.aggregation not in MERGING:
            raise ConfigError(
                f"lora.residual-rank = {lora.residual_rank} has no effect with {method}; "
                f"it is for {' and '.join(MERGING)}"
            )
        ranks = tuple(_rank(text) for text in lora.client_ranks.split(",")) if lora.client_ranks else ()
        if not all(0 < rank <= lora.r for rank in ranks):
            raise ConfigError(
                f"lora.client-ranks must be comma-separated integers from 1 to lora.r ({lora.r}), "
                f"got {lora.client_ranks!r}"
            )
        return Lora(lora.aggregation, lora.r, lora.alpha, ranks, lora.residual_rank)

    @property
    def by_product(self) -> bool:
        """Whether the clients' products are aggregated, not their factors."""
        return self.aggregation in BY_PRODUCT

    @property
    def rule(self) -> ClientRule:
        return RULES.get(self.aggregation, DEFAULT_RULE)

    def rank(self, client: int) -> int:
        """Return the rank of a client's adapter."""
        return self.client_ranks[client % len(self.client_ranks)] if self.client_ranks else self.r

    def scale(self, rank: int) -> float:
        """Return s = alpha / rank."""
        return self.alpha / rank

    # --- server to client -------------------------------------------------------

    def orders(self, state: ServerState, orders: Sequence[Order]) -> list[Order]:
        """Add to each order the adapter at its client's rank, and M if there is one."""
        trees: dict[tuple[str, int], dict[str, Tree]] = {}
        for order in orders:
            key = order.adapter, self.rank(order.client)
            if key not in trees:
                trees[key] = self._trees(state, *key)
        return [replace(o, trees={**o.trees, **trees[o.adapter, self.rank(o.client)]}) for o in orders]

    def _trees(self, state: ServerState, adapter: str, rank: int) -> dict[str, Tree]:
        """Return an adapter at a rank, and M. Tensors that never travel are omitted: clients know their start."""
        tree = {
            n: t
            for n, t in state.adapters[adapter].items()
            if self.rule.shares(n, 1) or self.rule.shares(n, 2)
        }
        if rank < self.r:
            tree = _times(rank / self.r, cut(tree, rank))
        merged = state.memory.get(_memory(adapter), {})
        return {adapter: tree, MERGED: merged} if merged else {adapter: tree}

    # --- client to server -----------------------------------------------------------

    def fold(self, state: ServerState, share: Callable[[Update, str], Share]) -> Fold:
        """Return the Fold that aggregates the clients' products."""
        if self.aggregation == "fedex":
            return Residual(share, self.scale(self.r))
        starts: dict[tuple[str, int], Tree] = {}

        def product(update: Update, factor: float) -> Tree:
            key = update.adapter, self.rank(update.client)
            if key not in starts:
                starts[key] = self._trees(state, *key)[update.adapter]
            after = add(starts[key], scale(update.trees["delta"], factor))
            return _times(self.scale(key[1]), after)

        return Products(share, product)

    def merge(
        self, state: ServerState, rnd: int, adapter: str, trees: Mapping[str, Tree]
    ) -> tuple[ServerState, Metrics]:
        """Return the next state and metrics, from the aggregate of an adapter's updates."""
        x, memory = state.adapters[adapter], state.memory
        if self.aggregation == "flexlora":
            x, metrics = self._nearest(start(x, state.seed, adapter, rnd), trees["product"])
        else:
            x = add(x, trees["delta"]) if "delta" in trees else start(x, state.seed, adapter, rnd)
            merged, metrics = _add_products(
                memory.get(_memory(adapter), {}), trees["product"], self.residual_rank
            )
            memory = {**memory, _memory(adapter): merged}
        return replace(state, adapters={**state.adapters, adapter: x}, memory=memory), metrics

    def _nearest(self, x: Tree, product: Tree) -> tuple[Tree, Metrics]:
        """Return `x` with the factors of rank r nearest to `product`; beyond the rank of `product`, its own values."""
        root, parts = sqrt(self.scale(self.r)), {}
        x = {name: t.clone() for name, t in x.items()}
        for name, (left, right) in modules(product).items():
            nearest = parts[name] = factorise(left, right, self.r)
            x[name][: len(nearest.right)] = nearest.right / root
            x[b_of(name)][:, : len(nearest.right)] = nearest.left / root
        return x, _truncation(parts)


class Products:
    """A Fold: sum_k p_k left_k right_k of every module, stored as factors of at most full rank.

    term(update, clip): a tree with left_k under the name of B and right_k under the name of A.
    """

    def __init__(self, share: Callable[[Update, str], Share], term: Callable[[Update, float], Tree]) -> None:
        self.share, self.term = share, term
        self.stacks: dict[str, dict[str, Stack]] = {}
        self.weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        share = self.share(update, "delta")
        self.weights[update.adapter] = self.weights.get(update.adapter, 0.0) + share.weight
        self.push(update.adapter, share.weight, self.term(update, share.factor))

    def push(self, adapter: str, weight: float, tree: Tree) -> None:
        """Add `weight` times the product of every module of `tree`."""
        stacks = self.stacks.setdefault(adapter, {})
        for name, (left, right) in modules(tree).items():
            stacks.setdefault(name, Stack()).push(weight, left, right)

    def result(self) -> Trees:
        return {
            adapter: {
                "product": _tree({n: s.factors() for n, s in stacks.items()}, 1 / self.weights[adapter])
            }
            for adapter, stacks in self.stacks.items()
        }


class Residual(Products):
    """A Fold: the mean deltas of A and B, and the mean of products minus the product of means.

    sum p B_k A_k - mean B mean A = sum p b_k a_k - mean b mean a, with a_k and b_k the deltas. The means are in
    float64: rounded to float32 they would leave a residual of full rank, though a small one.
    """

    def __init__(self, share: Callable[[Update, str], Share], s: float) -> None:
        super().__init__(share, lambda update, factor: _times(s, scale(update.trees["delta"], factor)))
        self.s = s
        self.sums: dict[str, Tree] = {}

    def push(self, adapter: str, weight: float, tree: Tree) -> None:
        super().push(adapter, weight, tree)
        weighted = {n: weight * t.double() for n, t in tree.items()}
        self.sums[adapter] = add(self.sums[adapter], weighted) if adapter in self.sums else weighted

    def result(self) -> Trees:
        out: dict[str, Mapping[str, Tree]] = {}
        for adapter, weight in self.weights.items():
            mean = scale(self.sums[adapter], 1 / weight)
            super().push(adapter, -weight, mean)
            delta = _times(1 / self.s, mean)
            out[adapter] = {"delta": {n: t.float() for n, t in delta.items()}}
        return {adapter: {**out[adapter], **trees} for adapter, trees in super().result().items()}


def _times(s: float, tree: Tree) -> Tree:
    """Scale a tree's products B A by s, through B."""
    return {n: t * s if is_b(n) else t for n, t in tree.items()}


def _memory(adapter: str) -> str:
    return f"{adapter}.{MERGED}"


def _tree(parts: Mapping[str, Factors], factor: float = 1.0) -> Tree:
    """Return float32 factors under the names of A and B; a zero product has none. factor: multiplies each product."""
    out: Tree = {}
    for name, part in parts.items():
        if len(part.right):
            out[name] = part.right.float().contiguous()
            out[b_of(name)] = (part.left * factor).float().contiguous()
    return out


def _add_products(first: Tree, second: Tree, max_rank: int) -> tuple[Tree, Metrics]:
    """Return the sum of two trees' products, each module at its `max_rank` largest singular values (0: all)."""
    terms = modules(first), modules(second)
    parts = {}
    for name in terms[0] | terms[1]:
        pairs = [term[name] for term in terms if name in term]
        left, right = torch.cat([p[0] for p in pairs], 1), torch.cat([p[1] for p in pairs])
        parts[name] = factorise(left, right, max_rank)
    merged = _tree(parts)
    return merged, {"lora/rank": float(rank_of(merged)), **(_truncation(parts) if max_rank else {})}


def _truncation(parts: Mapping[str, Factors]) -> Metrics:
    """Return the Frobenius norm of what was cut off relative to that of the product; absent if the product is zero."""
    whole = sum(part.whole for part in parts.values())
    return {"lora/lost": sqrt(sum(part.lost for part in parts.values()) / whole)} if whole else {}


def _rank(text: str) -> int:
    """Parse a rank; 0, which is invalid, for anything but digits."""
    return int(text) if text.strip().isdecimal() else 0
