"""Reference log-probabilities: the frozen base scores every example once, for the whole federation."""

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
    """By example key: the base's log-probability of each completion, then of the mismatched one if there is one.

    On the CPU an example is scored alone, so that its numbers do not depend on what else had to be scored:
    a run that lost its cache repeats the same bytes.
    """
    model = reference_key(base.fingerprint, base.numerics)
    known = cache.references(model)
    rows = {key_of(example): example for example in examples}
    lacking = processes.gather([key for key in rows if key not in known])
    missing = list(dict.fromkeys(key for keys in lacking for key in keys))
    if not missing:
        return known
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
    for some in processes.gather(added):
        added |= some
    cache.add_references(model, added)
    return cache.references(model)


def fork_of(example: Example, *, mismatched: bool = False) -> Fork:
    """An example as the model reads it, with the mismatched completion as one more branch if asked for."""
    extra = (example.mismatched,) if mismatched and example.mismatched else ()
    return example.prompt, example.completions + extra


def forks_of(example: Example) -> list[Fork]:
    """Every prompt of an example with its completions."""
    return [(prompt, example.completions) for prompt in (example.prompt, example.twin) if prompt]


def tokens_of(example: Example) -> int:
    prompts = len(example.prompt) + len(example.twin)
    return prompts + sum(map(len, example.completions)) + len(example.mismatched)
