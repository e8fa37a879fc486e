"""Reference log-probabilities of examples under the frozen base, computed once and cached."""

from collections.abc import Sequence

from tasks.base import Example
from tasks.forward import processes
from tasks.forward.batches import by_budget
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.forward.packing import Fork
from tasks.model.base import Base
from tasks.tokens.cache import Cache, reference_key
from tasks.tokens.encode import key_of

GPU_TOKENS = 16384


def reference_logps(base: Base, examples: Sequence[Example], cache: Cache) -> dict[str, tuple[float, ...]]:
    """For each example key: the base's log-probability of every completion, then of the mismatched one, if any.

    On the CPU each example is scored alone, so that its values do not depend on the examples that were missing from
    the cache: a run without its cache gives the same bytes. Processes of one site share the missing examples.
    """
    model = reference_key(base.fingerprint, base.numerics)
    cached = cache.references(model)
    rows = {key_of(example): example for example in examples}
    missing_by_rank = processes.gather([key for key in rows if key not in cached])
    missing = list(dict.fromkeys(key for keys in missing_by_rank for key in keys))
    if not missing:
        return cached
    added: dict[str, tuple[float, ...]] = {}
    budget = 1 if base.device.type == "cpu" else GPU_TOKENS
    base.model.eval()
    with reference(base):
        for group in by_budget(
            [(key, rows[key]) for key in processes.part(missing)], lambda item: tokens_of(item[1]), budget
        ):
            forks = [fork_of(example, mismatched=True) for _, example in group]
            values = iter(completion_logps(base, forks).tolist())
            for (key, _), (_, completions) in zip(group, forks, strict=True):
                added[key] = tuple(next(values) for _ in completions)
    for added_by_rank in processes.gather(added):
        added |= added_by_rank
    cache.add_references(model, added)
    return cache.references(model)


def fork_of(example: Example, *, mismatched: bool = False) -> Fork:
    """The fork of an example; mismatched: with the mismatched completion, if any, as the last branch."""
    extra = (example.mismatched,) if mismatched and example.mismatched else ()
    return example.prompt, example.completions + extra


def forks_of(example: Example) -> list[Fork]:
    """The forks of an example: its prompt and, if any, its twin prompt, each with the completions."""
    return [(prompt, example.completions) for prompt in (example.prompt, example.twin) if prompt]


def tokens_of(example: Example) -> int:
    """Number of tokens of prompts and completions, as the cost of scoring the example."""
    prompts = len(example.prompt) + len(example.twin)
    return prompts + sum(map(len, example.completions)) + len(example.mismatched)
