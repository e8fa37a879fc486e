"""A model that talks: greedy answers, and the log-probability of given ones."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tasks.kit.encode import Encoder
from tasks.kit.logprobs import completion_logps
from tasks.kit.model import Base, reference

NEW_TOKENS = 64


@dataclass(frozen=True)
class Talker:
    """The base under its current adapter or, `frozen`, without it; what evals/base.py asks for."""

    base: Base
    encoder: Encoder
    frozen: bool = False

    def generate(self, prompts: Sequence[str]) -> list[str]:
        with self._mode():
            return [greedy(self.base, self.encoder.prompt(prompt)) for prompt in prompts]

    def logprob(self, prompt: str, answers: Sequence[str]) -> list[float]:
        example = self.encoder.example(prompt, list(answers))
        assert example is not None, "an encoder that truncates skips nothing"
        with self._mode(), torch.no_grad():
            return completion_logps(self.base, [(example.prompt, example.completions)]).tolist()

    def _mode(self) -> AbstractContextManager[None]:
        return reference(self.base) if self.frozen else nullcontext()


@torch.no_grad()
def greedy(base: Base, ids: Sequence[int], new_tokens: int = NEW_TOKENS) -> str:
    """The model's own continuation of one prompt, up to its end token."""
    base.model.eval()
    prompt = torch.tensor([list(ids)], device=base.device)
    made = base.causal.generate(  # type: ignore[operator]  # transformers types it as a module attribute
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=base.tokenizer.pad_token_id,
    )
    return str(base.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)).strip()
