"""lora.aggregation: which of A and B trains and travels, and how the clients' products B_k A_k become one.

s_k = alpha / r_k; p_k = w_k / sum w. x = (A, B) is the adapter, M the frozen product beside it, B A theirs with s.
separate, FedIT (Zhang et al. 2024, arXiv:2305.05644): mean of A, mean of B.
ffa, FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): B alone. rolora, RoLoRA (Chen et al. 2025, arXiv:2502.01755): B in
odd rounds, A in even ones. fedsa, FedSA-LoRA (Guo et al. 2025, arXiv:2410.01463): both train, A alone travels.
fedex, FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): the means, M + s (sum_k p_k B_k A_k - mean B mean A).
flora, FLoRA (Wang et al. 2024, arXiv:2409.05976): M + sum_k p_k s_k B_k A_k; A starts anew, B = 0.
flexlora, FlexLoRA (Bai et al. 2024, arXiv:2402.11505): the best factors of sum_k p_k s_k B_k A_k at each client's rank.
Deviations: M is never added into the base's weights, which stay the reference of preference tasks. Where flexlora's
sum has fewer directions than places, the rest start as LoRA does. flexlora's B takes s_k up: B_k = (r_k / r) B.
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
from strategies.clients.rule import PLAIN, ClientRule

OF_RANKS = ("flora", "flexlora")  # clients may have ranks of their own
KEEPS = ("fedex", "flora")  # something is merged beside the adapter
BY_PRODUCT = (*KEEPS, "flexlora")


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
    """lora.* as an algorithm reads it."""

    aggregation: str = "separate"
    r: int = 8  # the server's rank, the largest
    alpha: int = 16
    client_ranks: tuple[int, ...] = ()  # by client in turn; (): r for all
    residual_rank: int = 0  # the most that M may have; 0: exact

    @staticmethod
    def read(lora: LoraConfig) -> "Lora":
        """Raises ConfigError for a key without effect and for ranks that cannot be."""
        method = f"lora.aggregation = {lora.aggregation!r}"
        if lora.client_ranks and lora.aggregation not in OF_RANKS:
            raise ConfigError(
                f"lora.client-ranks = {lora.client_ranks!r} needs lora.aggregation = {' or '.join(OF_RANKS)}: "
                f"{method} adds tensors of one shape"
            )
        if lora.residual_rank and lora.aggregation not in KEEPS:
            raise ConfigError(
                f"lora.residual-rank = {lora.residual_rank} has no effect with {method}; "
                f"it is for {' and '.join(KEEPS)}"
            )
        ranks = tuple(_whole(word) for word in lora.client_ranks.split(",")) if lora.client_ranks else ()
        if not all(0 < rank <= lora.r for rank in ranks):
            raise ConfigError(
                f"lora.client-ranks must be whole numbers of 1..lora.r = {lora.r} by comma, got {lora.client_ranks!r}"
            )
        return Lora(lora.aggregation, lora.r, lora.alpha, ranks, lora.residual_rank)

    @property
    def by_product(self) -> bool:
        """Whether the clients' products are added up, and not their factors."""
        return self.aggregation in BY_PRODUCT

    @property
    def rule(self) -> ClientRule:
        return RULES.get(self.aggregation, PLAIN)

    def rank(self, client: int) -> int:
        return self.client_ranks[client % len(self.client_ranks)] if self.client_ranks else self.r

    def scale(self, rank: int) -> float:
        return self.alpha / rank

    # --- down -------------------------------------------------------------------

    def orders(self, state: ServerState, orders: Sequence[Order]) -> list[Order]:
        """Orders with the adapter as their client takes it, and with M where there is one."""
        made: dict[tuple[str, int], dict[str, Tree]] = {}
        for order in orders:
            key = order.adapter, self.rank(order.client)
            if key not in made:
                made[key] = self._trees(state, *key)
        return [replace(o, trees={**o.trees, **made[o.adapter, self.rank(o.client)]}) for o in orders]

    def _trees(self, state: ServerState, adapter: str, rank: int) -> dict[str, Tree]:
        """What never travels up stays at the common start, which the client can make itself."""
        tree = {
            n: t
            for n, t in state.adapters[adapter].items()
            if self.rule.shares(n, 1) or self.rule.shares(n, 2)
        }
        if rank < self.r:
            tree = _times(rank / self.r, cut(tree, rank))
        merged = state.memory.get(_memory(adapter), {})
        return {adapter: tree, MERGED: merged} if merged else {adapter: tree}

    # --- up -----------------------------------------------------------------------

    def fold(self, state: ServerState, share: Callable[[Update, str], Share]) -> Fold:
        """What the clients' products are added up in."""
        if self.aggregation == "fedex":
            return Residual(share, self.scale(self.r))
        began: dict[tuple[str, int], Tree] = {}

        def product(update: Update, factor: float) -> Tree:
            key = update.adapter, self.rank(update.client)
            if key not in began:
                began[key] = self._trees(state, *key)[update.adapter]
            after = add(began[key], scale(update.trees["delta"], factor))
            return _times(self.scale(key[1]), after)

        return Products(share, product)

    def place(
        self, state: ServerState, rnd: int, adapter: str, trees: Mapping[str, Tree]
    ) -> tuple[ServerState, Metrics]:
        """The next state from what `fold` made of an adapter's updates."""
        x, memory = state.adapters[adapter], state.memory
        if self.aggregation == "flexlora":
            x, metrics = self._best(start(x, state.seed, adapter, rnd), trees["product"])
        else:
            x = add(x, trees["delta"]) if "delta" in trees else start(x, state.seed, adapter, rnd)
            merged, metrics = _sum(memory.get(_memory(adapter), {}), trees["product"], self.residual_rank)
            memory = {**memory, _memory(adapter): merged}
        return replace(state, adapters={**state.adapters, adapter: x}, memory=memory), metrics

    def _best(self, x: Tree, product: Tree) -> tuple[Tree, Metrics]:
        """The factors of rank r nearest to `product`; where it has fewer directions, the rest are those of `x`."""
        root, parts = sqrt(self.scale(self.r)), {}
        for name, (left, right) in modules(product).items():
            best = parts[name] = factorise(left, right, self.r)
            x[name][: len(best.right)] = best.right / root
            x[b_of(name)][:, : len(best.right)] = best.left / root
        return x, _lost(parts)


class Products:
    """A Fold: sum_k p_k left_k right_k of every module, as factors; it holds the factors that came, up to full rank.

    term(update, clip): a tree with left under the name of B and right under that of A.
    """

    def __init__(self, share: Callable[[Update, str], Share], term: Callable[[Update, float], Tree]) -> None:
        self.share, self.term = share, term
        self.stacks: dict[str, dict[str, Stack]] = {}
        self.weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        counts = self.share(update, "delta")
        self.weights[update.adapter] = self.weights.get(update.adapter, 0.0) + counts.weight
        self.push(update.adapter, counts.weight, self.term(update, counts.factor))

    def push(self, adapter: str, weight: float, tree: Tree) -> None:
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
    """A Fold: the mean deltas of A and B, and what the product of means lacks of the mean of products.

    sum p B_k A_k - mean B mean A = sum p b_k a_k - mean b mean a, with a_k and b_k the deltas. The means are taken in
    float64: rounded ones would leave a product of full rank, small as it is.
    """

    def __init__(self, share: Callable[[Update, str], Share], s: float) -> None:
        super().__init__(share, lambda update, factor: _times(s, scale(update.trees["delta"], factor)))
        self.s = s
        self.sums: dict[str, Tree] = {}

    def push(self, adapter: str, weight: float, tree: Tree) -> None:
        super().push(adapter, weight, tree)
        news = {n: weight * t.double() for n, t in tree.items()}
        self.sums[adapter] = add(self.sums[adapter], news) if adapter in self.sums else news

    def result(self) -> Trees:
        out: dict[str, Mapping[str, Tree]] = {}
        for adapter, weight in self.weights.items():
            mean = scale(self.sums[adapter], 1 / weight)
            super().push(adapter, -weight, mean)
            delta = _times(1 / self.s, mean)
            out[adapter] = {"delta": {n: t.float() for n, t in delta.items()}}
        return {adapter: {**out[adapter], **trees} for adapter, trees in super().result().items()}


def _times(s: float, tree: Tree) -> Tree:
    """s B A, where the tree has B A."""
    return {n: t * s if is_b(n) else t for n, t in tree.items()}


def _memory(adapter: str) -> str:
    return f"{adapter}.{MERGED}"


def _tree(parts: Mapping[str, Factors], factor: float = 1.0) -> Tree:
    """float32 factors under the names of A and B; a product of zero has none."""
    out: Tree = {}
    for name, part in parts.items():
        if len(part.right):
            out[name] = part.right.float().contiguous()
            out[b_of(name)] = (part.left * factor).float().contiguous()
    return out


def _sum(one: Tree, other: Tree, most: int) -> tuple[Tree, Metrics]:
    """The sum of two products, each module at its `most` largest singular values (0: all)."""
    here, there = modules(one), modules(other)
    parts = {}
    for name in here | there:
        pairs = [known[name] for known in (here, there) if name in known]
        left, right = torch.cat([p[0] for p in pairs], 1), torch.cat([p[1] for p in pairs])
        parts[name] = factorise(left, right, most)
    merged = _tree(parts)
    return merged, {"lora/rank": float(rank_of(merged)), **(_lost(parts) if most else {})}


def _lost(parts: Mapping[str, Factors]) -> Metrics:
    """The Frobenius norm of what was cut off, as a share of the whole; absent where there is nothing."""
    whole = sum(part.whole for part in parts.values())
    return {"lora/lost": sqrt(sum(part.lost for part in parts.values()) / whole)} if whole else {}


def _whole(word: str) -> int:
    return int(word) if word.strip().isdecimal() else 0
