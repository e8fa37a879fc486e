"""Probe: a few arbitrary sequences, and the log-probabilities and differences measured on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.forward.logprobs import predictions
from tasks.forward.packing import Fork, Tokens
from tasks.model.base import Base

SHAPES = ((5, (4, 6)), (3, (1, 7)), (4, (3,)))  # tokens of the prompt and of each completion
TOKENS = 1000  # arbitrary token ids to choose from


@dataclass(frozen=True)
class Probe:
    """Forks for a trial, and the numbers of the rows (completions) that it compares.

    Attributes:
        forks: three forks.
        changed: the same with other tokens in the first branch of the first fork and in the whole second fork.
        still: rows whose results must not depend on those tokens (second branch of the first fork, third fork).
        lone: rows that are also run by themselves (the last of each fork).
    """

    forks: tuple[Fork, ...]
    changed: tuple[Fork, ...]
    still: tuple[int, ...] = (1, 4)
    lone: tuple[int, ...] = (1, 3, 4)

    @property
    def sequences(self) -> list[Fork]:
        """The lone rows, each as a fork of its own."""
        return [(prompt, completions[-1:]) for prompt, completions in self.forks]


def make_probe(base: Base, settings: Mapping[str, Any]) -> Probe:
    """Draw a probe's tokens from the vocabulary. settings: the configuration of the model's text part."""
    tokens = _tokens(base, settings)
    forks = [(_take(tokens, stem), tuple(_take(tokens, n) for n in sizes)) for stem, sizes in SHAPES]
    (stem, branches), _, third = forks
    second = (_take(tokens, SHAPES[1][0]), tuple(_take(tokens, n) for n in SHAPES[1][1]))
    return Probe(tuple(forks), ((stem, (_take(tokens, len(branches[0])), *branches[1:])), second, third))


def token_logps(base: Base, forks: Sequence[Fork]) -> list[Tensor]:
    """Log-probabilities of the tokens of each completion, float32 on the CPU."""
    return tokens_of_rows(base, *predictions(base, forks))


def tokens_of_rows(base: Base, features: Tensor, targets: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """token_logps from the output of `predictions`."""
    return list(base.head.logps(features, targets).detach().float().cpu().split(list(counts)))


def later_token_effect(features: Tensor, counts: Sequence[int]) -> float:
    """The largest difference, in nats, between the distributions of the first token of two completions of one prompt.

    It is zero in a causal model. features: logits (R, V) of a padded batch of the probe's forks.
    """
    starts = [sum(counts[:row]) for row in range(len(counts))]
    logps = features[starts].float().log_softmax(-1)
    return float((logps[0::2][:2] - logps[1::2]).abs().max())  # rows 0 and 1, rows 2 and 3


def max_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest absolute difference of a token, in nats."""
    return float(_differences(a, b).abs().max())


def rms_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The root mean square of the tokens' differences, in nats."""
    return float(_differences(a, b).square().mean().sqrt())


def median_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The median of the tokens' absolute differences, in nats."""
    return float(_differences(a, b).abs().median())


def rows_of(logps: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """The log-probabilities of some rows."""
    return [logps[row] for row in rows]


def _differences(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(a)).double() - torch.cat(list(b)).double()


def _tokens(base: Base, settings: Mapping[str, Any]) -> Iterator[int]:
    """Token ids from the whole vocabulary, without special tokens, such as a placeholder for an image."""
    weight = base.causal.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    size = min(base.causal.config.get_text_config().vocab_size, len(weight))
    special = set(base.tokenizer.all_special_ids) | set(base.tokenizer.added_tokens_decoder)
    for options in (settings, vars(base.causal.config)):
        special |= {
            v for k, v in options.items() if k.endswith(("_token_id", "_token_index")) and type(v) is int
        }
    arbitrary = ((7 * i + i * i // 3) % size for i in range(1, TOKENS))
    return (token for token in arbitrary if token not in special)


def _take(tokens: Iterator[int], count: int) -> Tokens:
    return tuple(next(tokens) for _ in range(count))
