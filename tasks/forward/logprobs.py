"""Log-probabilities of completions under the model's current state: the policy or, inside reference(), the base."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.forward.attention import NO_MASK
from tasks.forward.packing import Fork, Packed, Tokens, graft, pack, padded
from tasks.model.base import Base
from tasks.tokens.encode import end_token


def completion_logps(base: Base, forks: Sequence[Fork]) -> Tensor:
    """Summed over each completion's tokens: (C,) float32, in order of forks and completions."""
    return completion_scores(base, forks)[0]


def completion_scores(base: Base, forks: Sequence[Fork]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores of each completion, in order of forks and completions.

    Returns:
        logps: as completion_logps, (C,) float32.
        hits: number of tokens that are the model's first choice, (C,) int64.
        rewards: rewards of the client's private reward head, (C,) float32; None without one.
    """
    features, targets, counts, ends = _read(base, forks)
    logps, best = base.head.scores(features, targets)
    return (
        _sums(logps, counts),
        _sums(best, counts),
        None if ends is None else base.private_parts.rewards(ends),
    )


def choice_logits(base: Base, forks: Sequence[Fork]) -> Tensor:
    """Logit of each completion's only token after its prompt: (N, k) float32 for N forks of k completions."""
    assert all(len(completion) == 1 for _, completions in forks for completion in completions)
    features, _, _ = predictions(base, [(prompt, completions[:1]) for prompt, completions in forks])
    return base.head.logits(features, torch.tensor([[c[0] for c in cs] for _, cs in forks]))


def with_mismatched(base: Base, forks: Sequence[Fork], mismatched: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """completion_logps of the forks, and of one mismatched completion for each fork, the latter without gradient.

    mismatched: a completion for each fork, () for none. A packed base computes them from the keys and values of the
    prompts in the forks' pass, so that they cost one forward pass over their own tokens.
    """
    if not any(mismatched):
        return completion_logps(base, forks), torch.zeros(0)
    extra_forks = [(prompt, (c,)) for (prompt, _), c in zip(forks, mismatched, strict=True) if c]
    if not base.packed or _runs_unbatched(base, [*forks, *extra_forks]):
        logps = completion_logps(base, forks)
        with torch.no_grad():
            return logps, completion_logps(base, extra_forks)
    trunk = pack(forks)
    trunk.layout.stored = {}
    hidden = hidden_states(base, trunk)
    logps = _sums(base.head.logps(head_features(base, hidden, trunk.rows), trunk.targets), trunk.counts)
    with torch.no_grad():
        branch = graft(trunk, mismatched)
        states = (
            torch.cat([hidden.detach(), hidden_states(base, branch)]) if len(branch.ids) else hidden.detach()
        )
        extra_logps = base.head.logps(head_features(base, states, branch.rows), branch.targets)
    trunk.layout.stored = None  # free the keys and values: the autograd graph may still hold the layout
    return logps, _sums(extra_logps, branch.counts)


def predictions(base: Base, forks: Sequence[Fork]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Inputs of base.head: features (R, F), targets (R,) and the number of tokens of each completion."""
    return _read(base, forks)[:3]


def _read(base: Base, forks: Sequence[Fork]) -> tuple[Tensor, Tensor, tuple[int, ...], Tensor | None]:
    """predictions, and the states (C, channels) that the client's reward head reads; None without a reward head."""
    if not _runs_unbatched(base, forks):
        return _read_together(base, forks)
    passes = [_read_together(base, [(prompt, (c,))], with_ends=True) for prompt, cs in forks for c in cs]
    features, targets, counts, ends = zip(*passes, strict=True)
    states = [end for end in ends if end is not None]
    return torch.cat(features), torch.cat(targets), sum(counts, ()), torch.cat(states) if states else None


def _runs_unbatched(base: Base, forks: Sequence[Fork]) -> bool:
    """Whether some sequence is so long that its numbers depend on the other sequences of its pass."""
    if base.unbatched_above is None:
        return False
    return any(len(prompt) + max(map(len, cs)) > base.unbatched_above for prompt, cs in forks)


def _read_together(
    base: Base, forks: Sequence[Fork], *, with_ends: bool = False
) -> tuple[Tensor, Tensor, tuple[int, ...], Tensor | None]:
    """_read of all forks in one pass. with_ends: also run last tokens, so that the pass has the sequence's length."""
    if base.packed:
        packed = pack(forks, ends=with_ends or base.private_parts.gives_rewards())
        hidden = hidden_states(base, packed)
        ends = (
            base.private_parts.mix(hidden[packed.ends.to(hidden.device)]) if packed.ends is not None else None
        )
        features = head_features(base, hidden, packed.rows)
        return features, packed.targets, packed.counts, ends if base.private_parts.gives_rewards() else None
    ids, mask, spans = padded(forks, filler=end_token(base.tokenizer))
    out = base.model(input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False)
    features = torch.cat([logits[span].float() for logits, span in zip(out.logits, spans, strict=True)])
    completions = [c for _, cs in forks for c in cs]
    targets = torch.tensor([token for c in completions for token in c])
    states, ends = base.private_parts.states, None
    if base.private_parts.gives_rewards():
        assert states is not None, "the model's vocabulary head was not called"
        ends = states[torch.arange(len(ids)), torch.tensor([span.stop for span in spans])]
    return features, targets, tuple(map(len, completions)), ends


def head_features(base: Base, hidden: Tensor, rows: Tensor) -> Tensor:
    """(R, channels): the head's input at these rows, scaled by base.logit_scale."""
    states = base.private_parts.mix(hidden[rows.to(hidden.device)])
    return states if base.logit_scale == 1.0 else states * base.logit_scale


def hidden_states(base: Base, packed: Packed) -> Tensor:
    """The last hidden states of a packed row: (T, channels)."""
    device = base.device
    out = base.causal.base_model(
        input_ids=packed.ids[None].to(device),
        position_ids=packed.positions[None].to(device),
        attention_mask=NO_MASK.to(device),
        use_cache=False,
        accord_layout=packed.layout,
    )
    return out.last_hidden_state[0]


def _sums(logps: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.stack([part.sum() for part in logps.split(list(counts))])
