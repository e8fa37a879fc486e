"""Choose how a base computes: packed forks, padded batches, or one sequence at a time.

Packing requires that the attention of every layer goes through tasks/forward/attention.py, that nothing else mixes
tokens, and that the head is linear. The modules show some of this; a trial, in the dtype and quantisation of the run,
tests the rest: changed tokens of one branch must not change the results of other rows, and packed rows must give the
model's own log-probabilities. The thresholds are multiples of the noise: how far the same rows differ when they are
batched in another way.
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
    later_token_effect,
    make_probe,
    max_difference,
    median_difference,
    rms_difference,
    rows_of,
    token_logps,
    tokens_of_rows,
)
from tasks.model.base import Base
from tasks.model.head import Head

log = logging.getLogger(__name__)

FLOOR = 1e-5  # nats: float32 rounds log-probabilities of about -10 to 1e-6
# Bounds in multiples of the noise:
LEAK = 4.0  # of the effect of one branch on other rows
CORRECT = 8.0  # of the error of packed rows; at most 4 was measured, over 60 architectures (docs/models.md)
UNTRAINED = 4.0  # of the difference between reference and untrained policy
FINE, COARSE = (
    1e-3,
    0.3,
)  # nats per token by which padding may change a float32 model, and one of lower precision
# Layer types in which only attention mixes tokens; sparse and dense refer to the feed-forward block.
ATTENDING = {"full_attention", "sliding_attention", "sparse", "dense"}


@dataclass(frozen=True)
class Trial:
    """Results of a base on padded batches of a probe, and their noise, in nats per token.

    Attributes:
        settings: the configuration of the model's text part.
        single: log-probabilities of the lone rows, each run by itself.
        batched: log-probabilities of all rows in one padded batch.
        rms, median, largest: differences of the lone rows between `single` and `batched`.
        grain: one rounding of a log-probability.
        by_content: the results of a row depend slightly on the tokens of other rows, since rows are computed together,
            as in mixtures of experts and in 8 bits.
    """

    base: Base
    settings: Mapping[str, Any]
    probe: Probe
    single: list[Tensor]
    batched: list[Tensor]
    rms: float
    median: float
    largest: float
    grain: float
    by_content: bool

    def noise_of_content(self) -> float:
        """How far rows of a padded batch change with the tokens of the other rows, in nats."""
        changed = token_logps(self.base, self.probe.changed)
        still = self.probe.still
        moved = max_difference(rows_of(self.batched, still), rows_of(changed, still))
        return max(FLOOR, moved, self.largest if self.by_content else 0.0)


@torch.no_grad()
def choose_path(base: Base) -> None:
    """Set base.packed, head, path_reason, logit_scale and unbatched_above.

    Raises:
        ConfigError: the model cannot score plain tokens, is not causal, or differs from its reference before it has
            been trained.
    """
    causal = base.causal
    settings = causal.config.get_text_config().to_dict()
    base.unbatched_above = rope.unbatched_above(causal, settings)
    default_attention = causal.config._attn_implementation or "eager"
    trial = _padded_trial(base, settings)
    noise = trial.noise_of_content() if trial.by_content else FLOOR
    reason = _obstacle(causal, settings)
    if not reason:
        try:
            reason = _packed_trial(trial, noise)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError) as failure:
            uncovered = str(failure) if isinstance(failure, NotImplementedError) else ""
            reason = uncovered or f"a trial failed with {type(failure).__name__}"
    if reason:
        base.packed, base.head, base.logit_scale = False, Head(None), 1.0
        causal.set_attn_implementation(default_attention)
        if trial.rms > (COARSE if trial.grain > 1e-3 else FINE):
            base.unbatched_above = 0
            reason += f"; one sequence at a time, since padding changes its results by {trial.rms:.0e} nats per token"
        _check_untrained_policy(trial, token_logps(base, trial.probe.forks))
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
        base, settings, probe, single, batched,
        rms_difference(lone, single), median_difference(lone, single), max_difference(lone, single),
        grain * float(torch.cat(single).square().mean().sqrt()),
        eight_bits or any("expert" in key and type(value) is int and value > 1 for key, value in settings.items()),
    )  # fmt: skip
    moved = later_token_effect(features, counts)
    if not moved <= LEAK * FLOOR and not moved <= LEAK * trial.noise_of_content():  # so that nan fails
        raise ConfigError(
            f"model.name: {name} is not causal: later tokens change the log-probability of an earlier one by "
            f"{moved:.0e} nats; use a causal language model"
        )
    return trial


def _obstacle(causal: PreTrainedModel, settings: Mapping[str, Any]) -> str:
    """Why the modules or the configuration of a model rule out packing; "" if they do not."""
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or any(p.requires_grad for p in head.parameters()):
        return "its head is not a plain frozen linear layer"
    if chunk := settings.get("attention_chunk_size"):
        return f"it attends in chunks of {chunk}"
    if other_types := sorted(set(settings.get("layer_types") or ()) - ATTENDING):
        return f"it has layers of {', '.join(other_types)}"
    if any(isinstance(module, nn.Conv1d | nn.RNNBase) for module in causal.get_decoder().modules()):
        return "it has layers that carry a state from token to token"
    if causal.base_model is causal or not causal._can_set_attn_implementation():
        return "transformers cannot replace its attention"
    return ""


def _packed_trial(trial: Trial, noise: float) -> str:
    """Set the base up for packed forks and test it. Returns why it failed, or "".

    noise: effect of other rows' tokens in padded batches, in nats.
    """
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
    leak = max_difference(rows_of(packed, probe.still), rows_of(changed, probe.still))
    if not leak <= LEAK * noise:  # so that nan fails
        return f"a branch changes other rows by {leak:.0e} nats, {leak / noise:.0e} times the noise"
    measure, noise_of_batching = (
        (median_difference, trial.median) if trial.by_content else (rms_difference, trial.rms)
    )
    error, limit = (
        measure(rows_of(packed, probe.lone), trial.single),
        max(CORRECT * noise_of_batching, trial.grain, FLOOR),
    )
    if not error <= limit:
        return f"packed rows are off by {error:.0e} nats per token; the limit is {limit:.0e}"
    return _check_untrained_policy(trial, packed)


def _attends_elsewhere(calls: Sequence[tuple[nn.Module, int | None]], config: PreTrainedConfig) -> str:
    """Why some attention is not packed attention, called once per layer with the layer's window; "" if all is."""
    settings, layers, modules = config.to_dict(), config.num_hidden_layers, {module for module, _ in calls}
    if not len(calls) == len(modules) == layers:
        through = f"{len(calls)} calls of {len(modules)} modules"
        return f"of its {layers} layers, {through} went through the attention that transformers can replace"
    if not settings.get("sliding_window"):
        return ""
    types = settings.get("layer_types") or ["sliding_attention"] * layers
    windows = [window is not None for _, window in calls]
    return (
        ""
        if windows == [kind == "sliding_attention" for kind in types]
        else "its attention does not use the windows of its configuration"
    )


def _check_untrained_policy(trial: Trial, evaluated: list[Tensor]) -> str:
    """Check that in training the untrained policy equals the reference, and that a pass can be repeated.

    Returns "" or, for a packed base, the reason why it is not usable. evaluated: log-probabilities of the probe's forks
    in evaluation mode.

    Raises:
        ConfigError: the model draws at random in training, or a padded base differs from its reference.
    """
    base, probe, name = trial.base, trial.probe, type(trial.base.causal).__name__
    repeated, difference = untrained_errors(base, probe.forks, evaluated)
    if not repeated <= (0.0 if base.device.type == "cpu" else LEAK * max(trial.largest, trial.grain)):
        raise ConfigError(
            f"model.name: {name} gives log-probabilities that differ by {repeated:.0e} nats when the same rows are run "
            "twice in training: something in it draws at random; use another model"
        )
    if difference <= max(UNTRAINED * trial.rms, trial.grain, FLOOR):
        return ""
    if base.packed:
        return f"in training it differs from the reference by {difference:.0e} nats per token"
    raise ConfigError(
        f"model.name: {name} in training differs from the reference by {difference:.0e} nats per token before it has "
        f"been trained, while batching changes it by {trial.rms:.0e}; use another model"
    )


def untrained_errors(
    base: Base, forks: Sequence[Fork], evaluated: Sequence[Tensor] | None = None
) -> tuple[float, float]:
    """Differences of an untrained policy in training, in nats per token.

    Returns the largest difference between two equal passes, and the root mean square difference of the first from the
    reference. evaluated: log-probabilities in evaluation mode; if the first pass equals them to the bit, it counts as
    repeatable and the second pass is skipped.
    """
    with training(base, dropout=False, seed=0), torch.enable_grad():
        first = token_logps(base, forks)
        repeated = max_difference(first, evaluated) if evaluated is not None else math.inf
        if repeated:
            repeated = max_difference(first, token_logps(base, forks))
    with reference(base):
        frozen = [logps for fork in forks[:2] for logps in token_logps(base, [fork])]
    return repeated, rms_difference(first[: len(frozen)], frozen)
