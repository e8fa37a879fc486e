"""How a base computes: packed forks, padded batches, or one sequence at a time; decided by construction and by trial.

Packed is taken where every layer's attention goes through tasks/forward/attention.py, nothing else mixes tokens, and
the head is linear. What the parts do not show, a trial does, in the dtype and the quantisation that will run: changed
tokens of one branch must not move the other rows, and packed rows must be the model's own numbers, both held against
how far the same rows move when they are batched in another way.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from core.errors import ConfigError
from tasks.forward import attention, rope
from tasks.forward.logits import logit_scale
from tasks.forward.logprobs import head_features, hidden_states, predictions
from tasks.forward.modes import reference, training
from tasks.forward.packing import Fork, pack
from tasks.forward.probe import (
    Probe,
    largest,
    later_token_effect,
    make_probe,
    middle,
    rows_of,
    token_logps,
    tokens_of_rows,
    typical,
)
from tasks.model.base import Base
from tasks.model.head import Head

log = logging.getLogger(__name__)

FLOOR = 1e-5  # nats: float32 rounds log-probabilities of about -10 to 1e-6
LEAK = 4.0  # times the noise
CORRECT = 8.0  # times the noise: at most 4 was measured, over 60 architectures (docs/models.md)
REST = 4.0  # times the noise
FINE, COARSE = 1e-3, 0.3  # nats a token by which padding may move a float32 model, and one of fewer bits
ATTENDING = {
    "full_attention",
    "sliding_attention",
    "sparse",
    "dense",
}  # layer types of which nothing else mixes tokens


@dataclass(frozen=True)
class Trial:
    """A base on padded batches of a probe, in nats a token: what it computes, and how far that moves by itself.

    single: log-probabilities of the lone rows, each read by itself. typical, median, most: their distance to the same
    rows in a batch. grain: one rounding of a log-probability. by_content: rows are computed together, as in mixtures of
    experts and in 8 bits, so that the numbers of one depend a little on the tokens of the others.
    """

    base: Base
    settings: Mapping[str, Any]  # of the text part
    probe: Probe
    single: list[Tensor]
    batched: list[Tensor]
    typical: float
    median: float
    most: float
    grain: float
    by_content: bool

    def noise_of_content(self) -> float:
        """How far rows of a padded batch move when the tokens of its other rows change."""
        changed = token_logps(self.base, self.probe.changed)
        still = self.probe.still
        moved = largest(rows_of(self.batched, still), rows_of(changed, still))
        return max(FLOOR, moved, self.most if self.by_content else 0.0)


@torch.no_grad()
def choose_path(base: Base) -> None:
    """Set up how the base computes: base.packed, head, path_reason, logit_scale and alone_above.

    Raises ConfigError for a model that cannot score plain tokens, is not causal, or differs from its reference before
    it has learned.
    """
    causal = base.causal
    settings = causal.config.get_text_config().to_dict()
    base.alone_above = rope.alone_above(causal, settings)
    usual = causal.config._attn_implementation or "eager"
    trial = _padded_trial(base, settings)
    noise = trial.noise_of_content() if trial.by_content else FLOOR
    reason = _obstacle(causal, settings)
    if not reason:
        try:
            reason = _packed_trial(trial, noise)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError) as failure:
            known = isinstance(failure, NotImplementedError) and str(failure)
            reason = str(failure) if known else f"a trial failed with {type(failure).__name__}"
    if reason:
        base.packed, base.head, base.logit_scale = False, Head(None), 1.0
        causal.set_attn_implementation(usual)
        if trial.typical > (COARSE if trial.grain > 1e-3 else FINE):
            base.alone_above = 0
            reason += f"; one sequence at a time, since padding moves its numbers by {trial.typical:.0e} nats a token"
        _check_rest(trial, token_logps(base, trial.probe.forks))
        log.warning("%s runs on padded batches with full logits: %s", type(causal).__name__, reason)
    base.path_reason = reason


def _padded_trial(base: Base, settings: Mapping[str, Any]) -> Trial:
    name, probe = type(base.causal).__name__, make_probe(base, settings)
    try:
        features, targets, counts = predictions(base, probe.forks)
        single = [token_logps(base, [sequence])[0] for sequence in probe.sequences]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as failure:
        problem = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:200]}"
        raise ConfigError(f"model.name: {name} cannot score a few plain tokens ({problem})") from failure
    batched = tokens_of_rows(base, features, targets, counts)
    lone = rows_of(batched, probe.lone)
    eight_bits = base.numerics.endswith("8bit")
    grain = 2**-7 if eight_bits else torch.finfo(base.causal.dtype).eps
    trial = Trial(
        base, settings, probe, single, batched, typical(lone, single), middle(lone, single), largest(lone, single),
        grain * float(torch.cat(single).square().mean().sqrt()),
        eight_bits or any("expert" in key and type(value) is int and value > 1 for key, value in settings.items()),
    )  # fmt: skip
    moved = later_token_effect(features, counts)
    if not moved <= LEAK * FLOOR and not moved <= LEAK * trial.noise_of_content():  # so that nan fails
        raise ConfigError(
            f"model.name: {name} is not causal: later tokens move the log-probability of an earlier one by {moved:.0e} "
            "nats; use a model that reads from left to right"
        )
    return trial


def _obstacle(causal: PreTrainedModel, settings: Mapping[str, Any]) -> str:
    """Why a model cannot be packed, as far as its parts say; "" for nothing."""
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or any(p.requires_grad for p in head.parameters()):
        return "its head is not a plain frozen linear layer"
    if chunk := settings.get("attention_chunk_size"):
        return f"it attends in chunks of {chunk}"
    if others := sorted(set(settings.get("layer_types") or ()) - ATTENDING):
        return f"it has layers of {', '.join(others)}"
    if any(isinstance(module, nn.Conv1d | nn.RNNBase) for module in causal.get_decoder().modules()):
        return "it has layers that carry a state from token to token"
    if causal.base_model is causal or not causal._can_set_attn_implementation():
        return "its attention is its own, not one that transformers exchanges"
    return ""


def _packed_trial(trial: Trial, noise: float) -> str:
    """Set the base up for packed forks and try it; why it failed, or "". noise: of content, in nats."""
    base, probe, causal = trial.base, trial.probe, trial.base.causal
    scale = logit_scale(base, probe.sequences[-1])
    if isinstance(scale, str):
        return scale
    base.packed, base.head, base.logit_scale = (
        True,
        Head(causal.get_output_embeddings(), base.private_parts),
        scale,
    )
    causal.set_attn_implementation(attention.NAME)
    row = pack(probe.forks)
    row.layout.calls = calls = []
    features = head_features(base, hidden_states(base, row), row.rows)
    if reason := _attends_elsewhere(calls, causal.config.get_text_config()):
        return reason
    packed, changed = (
        tokens_of_rows(base, features, row.targets, row.counts),
        token_logps(base, probe.changed),
    )
    leak = largest(rows_of(packed, probe.still), rows_of(changed, probe.still))
    if not leak <= LEAK * noise:  # so that nan fails
        return f"a branch moves the rows beside it by {leak:.0e} nats, {leak / noise:.0e} times the noise"
    measure, own = (middle, trial.median) if trial.by_content else (typical, trial.typical)
    error, limit = measure(rows_of(packed, probe.lone), trial.single), max(CORRECT * own, trial.grain, FLOOR)
    if not error <= limit:
        return f"packed rows are off by {error:.0e} nats a token, where {limit:.0e} is the noise"
    return _check_rest(trial, packed)


def _attends_elsewhere(calls: Sequence[tuple[nn.Module, int | None]], config: PreTrainedConfig) -> str:
    """Why not all that attends is packed attention, called once a layer with the window of the layer; or ""."""
    settings, layers, modules = config.to_dict(), config.num_hidden_layers, {module for module, _ in calls}
    if not len(calls) == len(modules) == layers:
        through = f"{len(calls)} calls of {len(modules)} modules"
        return f"of its {layers} layers, {through} went through the attention that transformers exchanges"
    if not settings.get("sliding_window"):
        return ""
    types = settings.get("layer_types") or ["sliding_attention"] * layers
    windows = [window is not None for _, window in calls]
    return (
        ""
        if windows == [kind == "sliding_attention" for kind in types]
        else "its windows are not its attention's"
    )


def _check_rest(trial: Trial, evaluated: list[Tensor]) -> str:
    """Policy at rest is reference, in training too: "" or, of a packed base, why not. ConfigError if no path is left.

    evaluated: the probe's forks in evaluation mode; a pass in training that gives them to the bit repeats itself.
    """
    base, probe, name = trial.base, trial.probe, type(trial.base.causal).__name__
    repeated, rest = rest_errors(base, probe.forks, evaluated)
    if not repeated <= (0.0 if base.device.type == "cpu" else LEAK * max(trial.most, trial.grain)):
        raise ConfigError(
            f"model.name: {name} gives other log-probabilities, by {repeated:.0e} nats, when the same rows are read "
            "twice in training: something in it draws at random; use another model"
        )
    if rest <= max(REST * trial.typical, trial.grain, FLOOR):
        return ""
    if base.packed:
        return f"in training it is off the reference by {rest:.0e} nats a token"
    raise ConfigError(
        f"model.name: {name} in training differs from the reference by {rest:.0e} nats a token before anything is "
        f"learned, where batching changes {trial.typical:.0e}; use another model"
    )


def rest_errors(
    base: Base, forks: Sequence[Fork], evaluated: Sequence[Tensor] | None = None
) -> tuple[float, float]:
    """How far two equal passes in training lie apart, and the first of them from the reference, in nats a token.

    evaluated: the log-probabilities in evaluation mode. Where a pass in training repeats them to the bit, it repeats
    itself, and the second one is saved.
    """
    with training(base, dropout=False, seed=0), torch.enable_grad():
        first = token_logps(base, forks)
        repeated = largest(first, evaluated) if evaluated is not None else math.inf
        if repeated:
            repeated = largest(first, token_logps(base, forks))
    with reference(base):
        frozen = [logps for fork in forks[:2] for logps in token_logps(base, [fork])]
    return repeated, typical(first[: len(frozen)], frozen)
