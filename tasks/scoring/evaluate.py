"""Evaluate held-out examples under the current adapter, with TRL's metric names; metrics without data are absent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.types import Metrics
from tasks.base import REWARDS, Batch, Example, Row, Task
from tasks.forward.batches import by_budget
from tasks.forward.logprobs import choice_logits, completion_scores, predictions
from tasks.forward.modes import reference
from tasks.forward.reference import fork_of, forks_of, reference_logps, tokens_of
from tasks.model.adapter import is_untouched
from tasks.model.base import Base
from tasks.scoring.combine import Combination, cross_fitted_scores
from tasks.tokens.cache import Cache
from tasks.tokens.choice import calibration_error, log_odds, margins, share_right
from tasks.tokens.encode import Encoder, key_of

TOKENS = 4096  # scored in one pass
# names and patterns of what evaluate() returns, by Task.reads; for choices those of the task's loss come on top
SCORES: Mapping[str, tuple[str, ...]] = {
    "logps": (
        *REWARDS, "logps/accuracies", "length/accuracies", "kl", "loss", "mean_token_accuracy",
        "explicit/margins", "explicit/accuracies", "combined/accuracies", "combined/weight", "combined/lambda",
    ),
    "choices": ("loss", "ece", "length/accuracies"),
}  # fmt: skip
KL_ROWS = 32  # rows whose exact KL is computed; each takes two passes, and two full vocabularies per token


def evaluate(
    base: Base, task: Task, examples: Sequence[Example], *, cache: Cache | None = None, kl_rows: int = KL_ROWS
) -> Metrics:
    """Metrics of pairs, of labelled or unlabelled single completions or, for a task that reads them, of choices.

    All examples must be of one kind, which selects the metrics; those of choices include the task's loss. kl is
    computed over the first kl_rows examples.
    """
    if not examples:
        return {}
    base.model.eval()
    with torch.no_grad():
        if task.reads == "choices":
            return {"examples": float(len(examples)), **_choices(base, task, examples)}
        if len(examples[0].completions) == 1 and examples[0].label is None:
            return {"examples": float(len(examples)), **_language(base, examples)}
        scores = _scores(base, examples, cache or Cache(None))
        if len(examples[0].completions) == 2:
            metrics = pair_metrics(scores, task.reward_scale)
            metrics["kl"] = exact_kl(base, examples[:kl_rows])
        else:
            metrics = unpaired_metrics(scores, [bool(e.label) for e in examples], task.reward_scale)
    return {"examples": float(len(examples)), **metrics}


def choice_batch(base: Base, examples: Sequence[Example]) -> Batch:
    """Examples of choices with their logits under the current adapter, as one batch without gradient.

    `margins` and `preference` of tasks.tokens.choice compute the model's preference for each pair from it.
    """
    with torch.no_grad():
        groups = by_budget(examples, tokens_of, TOKENS)
        parts = [choice_logits(base, [fork for e in group for fork in forks_of(e)]) for group in groups]
    logits = torch.cat(parts).flatten()
    index = tuple(tuple(range(4 * i, 4 * i + 4)) for i in range(len(examples)))
    return Batch(tuple(examples), logits, None, torch.ones_like(logits, dtype=torch.int64), index)


def heldout_examples(rows: Sequence[Row], encode: Encoder, task: Task) -> list[Example]:
    """Encode canonical rows as examples for evaluate(): pairs, thumbs, plain completions or choices."""
    if task.reads == "choices":
        return task.examples(rows, encode)
    out = []
    for i, row in enumerate(rows):
        if "chosen" in row:
            example = encode.example(row["prompt"], (row["chosen"], row["rejected"]), row=i)
        else:
            example = encode.example(row["prompt"], (row["completion"],), row.get("label"), row=i)
        out += [example] if example else []
    return out


@dataclass(frozen=True)
class Scores:
    """Scores of N examples; every tensor is (N, completions), float64."""

    logps: Tensor  # summed log-probabilities under the policy
    ref_logps: Tensor  # the same under the reference
    tokens: Tensor  # lengths of the completions
    explicit: Tensor | None = None  # rewards of the client's reward head; None without a trained one


def pair_metrics(scores: Scores, reward_scale: float) -> Metrics:
    """Metrics of (chosen, rejected) pairs.

    rewards/accuracies counts strictly larger rewards, as TRL does, and is absent if policy and reference agree on every
    row; logps/accuracies compares log-probabilities of the policy alone. explicit/accuracies is that of the client's
    reward head, combined/accuracies that of both rewards, with weights fitted to the other half of the pairs
    (tasks/scoring/combine.py); in these two a tie counts as half.
    """
    rewards = reward_scale * (scores.logps - scores.ref_logps)
    chosen, rejected = rewards.mean(0).tolist()
    logp_chosen, logp_rejected = scores.logps.mean(0).tolist()
    longer = scores.tokens[:, 0] - scores.tokens[:, 1]
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "logps/chosen": logp_chosen,
        "logps/rejected": logp_rejected,
        "logps/accuracies": _share(scores.logps[:, 0] > scores.logps[:, 1]),
        "length/accuracies": share_right(
            longer
        ),  # accuracy of preferring the longer answer; a tie counts as half
    }
    if rewards.any():
        metrics["rewards/accuracies"] = _share(rewards[:, 0] > rewards[:, 1])
    return metrics | _explicit(rewards, scores.explicit)


def _explicit(rewards: Tensor, explicit: Tensor | None) -> Metrics:
    if explicit is None:
        return {}
    implicit_margins, explicit_margins = rewards[:, 0] - rewards[:, 1], explicit[:, 0] - explicit[:, 1]
    return {
        "explicit/margins": float(explicit_margins.mean()),
        "explicit/accuracies": share_right(explicit_margins),
        "combined/accuracies": share_right(cross_fitted_scores(implicit_margins, explicit_margins)),
        **_weights(Combination.fit(implicit_margins, explicit_margins)),
    }


def _weights(combination: Combination) -> Metrics:
    weights = {"combined/weight": combination.weight, "combined/lambda": combination.factor}
    return {name: value for name, value in weights.items() if 0 <= value < math.inf}


def unpaired_metrics(scores: Scores, labels: Sequence[bool], reward_scale: float) -> Metrics:
    """Metrics of labelled single completions.

    rewards/accuracies is the share of (desirable, undesirable) pairs of rows in which the desirable one has the larger
    reward (the Mann-Whitney statistic; a tie counts as half).
    """
    rewards = reward_scale * (scores.logps - scores.ref_logps)[:, 0]
    desirable = torch.tensor(labels)
    metrics: Metrics = {}
    for name, rows in (("chosen", desirable), ("rejected", ~desirable)):
        if rows.any():
            metrics[f"rewards/{name}"] = float(rewards[rows].mean())
            metrics[f"logps/{name}"] = float(scores.logps[:, 0][rows].mean())
    if desirable.any() and not desirable.all():
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        if rewards.any():
            gaps = rewards[desirable][:, None] - rewards[~desirable][None, :]
            metrics["rewards/accuracies"] = float((gaps.sign() + 1).mean() / 2)
    return metrics


def exact_kl(base: Base, examples: Sequence[Example]) -> float:
    """KL(pi || pi_ref) of the next token, in nats: the mean over the tokens of each example's first completion."""
    if is_untouched(base):
        return 0.0
    total, count = 0.0, 0
    for group in by_budget(examples, tokens_of, TOKENS):
        forks = [(e.prompt, e.completions[:1]) for e in group]
        with torch.no_grad():
            policy, _, _ = predictions(base, forks)
        with reference(base):
            frozen, _, _ = predictions(base, forks)
        for rows, log_p in base.head.log_softmax(policy):
            with reference(base):
                (_, log_q) = next(base.head.log_softmax(frozen[rows]))
            total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        count += len(policy)
    return total / count


def _choices(base: Base, task: Task, examples: Sequence[Example]) -> Metrics:
    batch = choice_batch(base, examples)
    output = task.loss(batch)
    z = margins(batch)
    longer = torch.tensor([first - second for first, second in (e.lengths for e in examples)])
    return {
        "loss": float(output.loss),
        **output.metrics,
        "ece": calibration_error(log_odds(z, task.reward_scale)),
        "length/accuracies": share_right(longer),
    }


def _scores(base: Base, examples: Sequence[Example], cache: Cache) -> Scores:
    references = reference_logps(base, examples, cache)
    frozen = [references[key_of(e)] for e in examples]
    rewarded = base.private_parts.gives_rewards()
    logps, explicit = frozen, []
    if rewarded or not is_untouched(base):
        logps, explicit = _policy_scores(base, examples)
    if is_untouched(base):  # equal bits, not equal up to rounding
        logps = frozen
    tokens = [[len(c) for c in e.completions] for e in examples]
    policy, refs, lengths = (torch.tensor(rows, dtype=torch.float64) for rows in (logps, frozen, tokens))
    return Scores(policy, refs, lengths, torch.tensor(explicit, dtype=torch.float64) if rewarded else None)


def _policy_scores(base: Base, examples: Sequence[Example]) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probabilities under the current adapter, and rewards if the client has a reward head."""
    logps: list[list[float]] = []
    explicit: list[list[float]] = []
    for group in by_budget(examples, tokens_of, TOKENS):
        values, _, rewards = completion_scores(base, [fork_of(e) for e in group])
        logps += values.view(len(group), -1).tolist()
        explicit += [] if rewards is None else rewards.view(len(group), -1).tolist()
    return logps, explicit


def _language(base: Base, examples: Sequence[Example]) -> Metrics:
    loss, hits, count = 0.0, 0.0, 0
    for group in by_budget(examples, tokens_of, TOKENS):
        features, targets, _ = predictions(base, [fork_of(e) for e in group])
        for rows, logp in base.head.log_softmax(features):
            target = targets[rows].to(logp.device)
            loss -= float(logp.gather(1, target[:, None]).sum(dtype=torch.float64))
            hits += float((logp.argmax(1) == target).sum())
        count += len(targets)
    return {"loss": loss / count, "mean_token_accuracy": hits / count}


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
