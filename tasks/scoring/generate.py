"""A model that talks: greedy and sampled answers, and the log-probability of given ones."""

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
REPEATED = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
)  # of a cache: keys and values alone, which repeat for each answer


@dataclass(frozen=True)
class Sampling:
    """How several answers to one prompt are drawn."""

    completions: int
    temperature: float
    top_p: float
    new_tokens: int


@dataclass(frozen=True)
class Talker:
    """The base under its current adapter or, `frozen`, without it; what evals/base.py asks for."""

    base: Base
    encoder: Encoder
    frozen: bool = False
    new_tokens: int = NEW_TOKENS

    def generate(self, prompts: Sequence[str]) -> list[str]:
        with self._mode():
            ends = self.encoder.ends
            return [greedy(self.base, self.encoder.prompt(p), self.new_tokens, ends=ends) for p in prompts]

    def generate_together(self, prompts: Sequence[str]) -> list[str]:
        """As generate(), the prompts of one length in one batch; in low precision a near tie may fall otherwise."""
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

    def sample(self, prompt: str, how: Sampling, *, seed: int) -> list[str]:
        """Several answers; the same arguments give the same answers on the same machine."""
        with self._mode():
            return sampled(self.base, self.encoder.prompt(prompt), how, seed=seed, ends=self.encoder.ends)

    def logprob(self, prompt: str, answers: Sequence[str]) -> list[float]:
        example = self.encoder.example(prompt, list(answers))
        assert example is not None, "an encoder that truncates skips nothing"
        with self._mode(), torch.no_grad():
            return completion_logps(self.base, [(example.prompt, example.completions)]).tolist()

    def _mode(self) -> AbstractContextManager[None]:
        return reference(self.base) if self.frozen else nullcontext()


def greedy(
    base: Base, ids: Sequence[int], new_tokens: int = NEW_TOKENS, *, ends: Collection[int] = ()
) -> str:
    """The model's own continuation of one prompt, up to one of its own end tokens or of `ends`."""
    (text,) = _continued(base, [ids], ends, max_new_tokens=new_tokens, do_sample=False)
    return text


def sampled(
    base: Base, ids: Sequence[int], how: Sampling, *, seed: int, ends: Collection[int] = ()
) -> list[str]:
    """`how.completions` continuations of one prompt, which is read once. The global generators are left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "tokens"))
        return _continued(
            base,
            [ids],
            ends,
            count=how.completions,
            max_new_tokens=how.new_tokens,
            do_sample=True,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=0,
        )


@torch.no_grad()
def _continued(
    base: Base, prompts: Sequence[Sequence[int]], ends: Collection[int], *, count: int = 1, **how: Any
) -> list[str]:  # Any: transformers' own settings
    """The texts after prompts of one length, `count` after each, cut off by number of tokens, without special tokens
    and the space around them."""
    base.model.eval()
    prompt = torch.tensor([list(ids) for ids in prompts], device=base.device)
    most = learned_positions(base.causal)
    if most is not None:  # the last token of an answer is not read, and needs no position
        how["max_new_tokens"] = min(how["max_new_tokens"], max(1, most + 1 - prompt.shape[1]))
    own = base.causal.generation_config.eos_token_id
    own = own if isinstance(own, list) else [] if own is None else [own]
    stops = list(dict.fromkeys([*own, *ends]))
    if count > 1 and prompt.shape[1] > 1 and (cache := _prompt_cache(base, prompt)):
        cache.batch_repeat_interleave(count)
        how["past_key_values"] = cache
    prompt = prompt.repeat_interleave(count, 0)
    made = base.causal.generate(  # type: ignore[operator]  # transformers types it as a module attribute
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=base.tokenizer.pad_token_id,
        eos_token_id=stops or None,
        **how,
    )
    answers = [_until(row, stops) for row in made[:, prompt.shape[1] :].tolist()]
    texts = base.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _prompt_cache(base: Base, prompt: Tensor) -> DynamicCache | None:
    """Keys and values of all of the prompt but its last token; None where a model keeps more than those, or where a
    token's depend on the length of the sequence: then every answer reads the prompt by itself."""
    if base.unbatched_above is not None and prompt.shape[1] > base.unbatched_above:
        return None
    read = base.causal.generate(  # type: ignore[operator]  # transformers types it as a module attribute
        input_ids=prompt[:, :-1],
        attention_mask=torch.ones_like(prompt[:, :-1]),
        pad_token_id=base.tokenizer.pad_token_id,
        max_new_tokens=1,  # which is not read: positions and masks are those of generation, nothing else is wanted
        do_sample=False,
        return_dict_in_generate=True,
    )
    cache = read.get("past_key_values")
    if not isinstance(cache, DynamicCache) or not all(type(layer) in REPEATED for layer in cache.layers):
        return None
    return cache if cache.get_seq_length() == prompt.shape[1] - 1 else None  # empty: a model without one


def _until(ids: Sequence[int], stops: Collection[int]) -> list[int]:
    """What stands before the first of `stops`: not every tokenizer calls the end of a turn special."""
    return list(takewhile(lambda token: token not in stops, ids))
