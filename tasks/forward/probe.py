"""A few arbitrary sequences, and measurements on them that tell how a base computes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.forward.logprobs import predictions
from tasks.forward.packing import Fork, Tokens
from tasks.model.base import Base

SHAPES = ((5, (4, 6)), (3, (1, 7)), (4, (3,)))  # tokens of the prompt and of each completion
TOKENS = 1000  # of which the probe takes what it needs


@dataclass(frozen=True)
class Probe:
    """Forks; the same with other tokens in the first branch and in the whole second fork; and rows by number:
    `still`, which must not move when those tokens change (a branch of the first fork, the third fork), and `lone`,
    which are also read by themselves (the last of each fork)."""

    forks: tuple[Fork, ...]
    changed: tuple[Fork, ...]
    still: tuple[int, ...] = (1, 4)
    lone: tuple[int, ...] = (1, 3, 4)

    @property
    def sequences(self) -> list[Fork]:
        """The lone rows, each as a fork of its own."""
        return [(prompt, completions[-1:]) for prompt, completions in self.forks]


def make_probe(base: Base, settings: Mapping[str, Any]) -> Probe:
    """settings: the configuration of the model's text part."""
    tokens = _tokens(base, settings)
    forks = [(_take(tokens, stem), tuple(_take(tokens, n) for n in sizes)) for stem, sizes in SHAPES]
    (stem, branches), _, third = forks
    second = (_take(tokens, SHAPES[1][0]), tuple(_take(tokens, n) for n in SHAPES[1][1]))
    return Probe(tuple(forks), ((stem, (_take(tokens, len(branches[0])), *branches[1:])), second, third))


def token_logps(base: Base, forks: Sequence[Fork]) -> list[Tensor]:
    """Log-probabilities of the tokens of each completion, float32 on the CPU."""
    return tokens_of_rows(base, *predictions(base, forks))


def tokens_of_rows(base: Base, features: Tensor, targets: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(base.head.logps(features, targets).detach().float().cpu().split(list(counts)))


def later_token_effect(features: Tensor, counts: Sequence[int]) -> float:
    """How far two completions of one prompt differ, in nats, in what they say of their first token: nothing, if no
    token is read before its turn. features: logits (R, V) of a padded batch of the probe's forks."""
    starts = [sum(counts[:row]) for row in range(len(counts))]
    logps = features[starts].float().log_softmax(-1)
    return float((logps[0::2][:2] - logps[1::2]).abs().max())  # rows 0 and 1, rows 2 and 3


def largest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of a token, in nats."""
    return float(_differences(one, other).abs().max())


def typical(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The root mean square of the tokens' differences, in nats."""
    return float(_differences(one, other).square().mean().sqrt())


def middle(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The median of the tokens' differences, in nats."""
    return float(_differences(one, other).abs().median())


def rows_of(logps: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    return [logps[row] for row in rows]


def _differences(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(one)).double() - torch.cat(list(other)).double()


def _tokens(base: Base, settings: Mapping[str, Any]) -> Iterator[int]:
    """Token ids all over the vocabulary, without those that mean something to a model, like an image."""
    weight = base.causal.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    size = min(base.causal.config.get_text_config().vocab_size, len(weight))
    special = set(base.tokenizer.all_special_ids) | set(base.tokenizer.added_tokens_decoder)
    for known in (settings, vars(base.causal.config)):
        special |= {
            v for k, v in known.items() if k.endswith(("_token_id", "_token_index")) and type(v) is int
        }
    arbitrary = ((7 * i + i * i // 3) % size for i in range(1, TOKENS))
    return (token for token in arbitrary if token not in special)


def _take(tokens: Iterator[int], count: int) -> Tokens:
    return tuple(next(tokens) for _ in range(count))
