"""Generate greedy and sampled answers, and score the log-probability of answers."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from core.seeds import seed_for
from tasks.forward.logprobs import completion_logps
from tasks.forward.modes import reference
from tasks.model.base import Base
from tasks.pretrained.loading import learned_positions
from tasks.tokens.encode import Encoder

NEW_TOKENS = 64
# Cache layers that hold keys and values only, which can be repeated for several answers.
REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling several answers to one prompt."""

    completions: int
    temperature: float
    top_p: float
    new_tokens: int


@dataclass(frozen=True)
class TextGenerator:
    """The base under its current adapter or, if `frozen`, without it; implements the protocol of evals/base.py."""

    base: Base
    encoder: Encoder
    frozen: bool = False
    new_tokens: int = NEW_TOKENS

    def generate(self, prompts: Sequence[str]) -> list[str]:
        with self._mode():
            ends = self.encoder.ends
            return [greedy(self.base, self.encoder.prompt(p), self.new_tokens, ends=ends) for p in prompts]

    def generate_together(self, prompts: Sequence[str]) -> list[str]:
        """As generate(), with prompts of equal length in one batch; in low precision near ties may differ."""
        rows = [self.encoder.prompt(p) for p in prompts]
        answers: dict[int, str] = {}
        with self._mode():
            for length in sorted({len(row) for row in rows}):
                places = [i for i, row in enumerate(rows) if len(row) == length]
                texts = _continued(
                    self.base,
                    [rows[i] for i in places],
                    self.encoder.ends,
                    max_new_tokens=self.new_tokens,
                    do_sample=False,
                )
                answers |= zip(places, texts, strict=True)
        return [answers[i] for i in range(len(rows))]

    def sample(self, prompt: str, sampling: Sampling, *, seed: int) -> list[str]:
        """Sample several answers; the same arguments give the same answers on the same machine."""
        with self._mode():
            return sampled(
                self.base, self.encoder.prompt(prompt), sampling, seed=seed, ends=self.encoder.ends
            )

    def logprob(self, prompt: str, answers: Sequence[str]) -> list[float]:
        example = self.encoder.example(prompt, list(answers))
        assert example is not None, "an encoder that truncates skips no row"
        with self._mode(), torch.no_grad():
            return completion_logps(self.base, [(example.prompt, example.completions)]).tolist()

    def _mode(self) -> AbstractContextManager[None]:
        return reference(self.base) if self.frozen else nullcontext()


def greedy(
    base: Base, ids: Sequence[int], new_tokens: int = NEW_TOKENS, *, ends: Collection[int] = ()
) -> str:
    """The greedy continuation of one prompt, up to an end token of the model or of `ends`."""
    (text,) = _continued(base, [ids], ends, max_new_tokens=new_tokens, do_sample=False)
    return text


def sampled(
    base: Base, ids: Sequence[int], sampling: Sampling, *, seed: int, ends: Collection[int] = ()
) -> list[str]:
    """`sampling.completions` continuations of one prompt, processed once. The global generators are restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "tokens"))
        return _continued(
            base,
            [ids],
            ends,
            count=sampling.completions,
            max_new_tokens=sampling.new_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
        )


@torch.no_grad()
def _continued(
    base: Base, prompts: Sequence[Sequence[int]], ends: Collection[int], *, count: int = 1, **options: Any
) -> list[str]:  # Any: options of transformers' generate()
    """The continuations of prompts of equal length, `count` for each, without special tokens and surrounding space."""
    base.model.eval()
    prompt = torch.tensor([list(ids) for ids in prompts], device=base.device)
    positions = learned_positions(base.causal)
    if positions is not None:  # the last token of an answer is not an input and needs no position
        options["max_new_tokens"] = min(options["max_new_tokens"], max(1, positions + 1 - prompt.shape[1]))
    eos = base.causal.generation_config.eos_token_id
    eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
    stops = list(dict.fromkeys([*eos, *ends]))
    if count > 1 and prompt.shape[1] > 1 and (cache := _prompt_cache(base, prompt)):
        cache.batch_repeat_interleave(count)
        options["past_key_values"] = cache
    prompt = prompt.repeat_interleave(count, 0)
    output = base.causal.generate(  # type: ignore[operator]  # transformers types it as a module attribute
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=base.tokenizer.pad_token_id,
        eos_token_id=stops or None,
        **options,
    )
    answers = [_until(row, stops) for row in output[:, prompt.shape[1] :].tolist()]
    texts = base.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _prompt_cache(base: Base, prompt: Tensor) -> DynamicCache | None:
    """Keys and values of the prompt without its last token, to be shared by several answers.

    None if the model's cache holds other state, or if keys and values depend on the length of the sequence; then every
    answer processes the prompt by itself.
    """
    if base.unbatched_above is not None and prompt.shape[1] > base.unbatched_above:
        return None
    output = base.causal.generate(  # type: ignore[operator]  # transformers types it as a module attribute
        input_ids=prompt[:, :-1],
        attention_mask=torch.ones_like(prompt[:, :-1]),
        pad_token_id=base.tokenizer.pad_token_id,
        max_new_tokens=1,  # discarded; generate() is called for its positions and masks
        do_sample=False,
        return_dict_in_generate=True,
    )
    cache = output.get("past_key_values")
    if not isinstance(cache, DynamicCache) or not all(type(layer) in REPEATABLE for layer in cache.layers):
        return None
    return (
        cache if cache.get_seq_length() == prompt.shape[1] - 1 else None
    )  # an empty cache: the model does not use it


def _until(ids: Sequence[int], stops: Collection[int]) -> list[int]:
    """The ids before the first of `stops`, which not every tokenizer marks as special tokens."""
    return list(takewhile(lambda token: token not in stops, ids))
