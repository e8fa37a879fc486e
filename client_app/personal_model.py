"""A client's personal model on its own disk: exported after the last round, loaded to generate and rank answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from core import store
from core.errors import BaseMismatch
from core.factors import is_private
from core.sections import Config, LoraConfig, ModelConfig
from core.tree import Tree
from tasks.base import Parts
from tasks.forward.logprobs import completion_logps, completion_scores
from tasks.forward.modes import reference
from tasks.forward.setup import load_base
from tasks.model.adapter import save_adapter, set_adapter
from tasks.model.attach import targets_of
from tasks.model.base import Base
from tasks.scoring.generate import TextGenerator
from tasks.tokens.encode import Encoder

# folders: one for PeftModel.from_pretrained, one for the tensors that peft cannot load
ADAPTER, PRIVATE = "adapter", "private"


def folder(state_dir: Path, run: str, client: int) -> Path:
    return state_dir / "personal" / run / f"client-{client:02d}"


def export(
    base: Base,
    tree: Mapping[str, Tensor],
    merged: Mapping[str, Tensor] | None,
    target: Path,
    config: Config,
    factor: float | None,
) -> None:
    """Write the personal model, the base with `tree` and `merged`, to the folder `target`.

    factor: lambda in the combined reward, implicit + lambda x explicit; None if it was not fitted.
    """
    task, lora = config.task_choice.build(), {n: t for n, t in tree.items() if not is_private(n)}
    with store.writing(target):
        save_adapter(base, lora, target / ADAPTER, base_name=config.model.name, merged=merged)
    facts = {
        "base": base.fingerprint,
        "parts": asdict(task.private_parts),
        "reward_scale": task.reward_scale,
        "lambda": factor,
        "prompt_format": config.data.prompt_format,
        "max_length": config.train.max_length,
    }
    store.save(target / PRIVATE, {PRIVATE: {n: t for n, t in tree.items() if is_private(n)}}, facts)


@dataclass(frozen=True)
class PersonalModel:
    """A client's personal model, loaded."""

    generator: TextGenerator
    reward_scale: float
    factor: float  # lambda

    def rewards(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """Return each answer's reward: implicit + lambda x explicit, the latter if the client has a reward head."""
        example = self.generator.encoder.example(prompt, list(answers))
        assert example is not None, "an encoder that truncates never skips a row"
        base, forks = self.generator.base, [(example.prompt, example.completions)]
        with torch.no_grad():
            logps, _, explicit = completion_scores(base, forks)
        with reference(base):
            implicit = self.reward_scale * (logps - completion_logps(base, forks))
        return (implicit if explicit is None else implicit + self.factor * explicit).tolist()


def load(model: ModelConfig, folder: Path) -> PersonalModel:
    """Load what `export` wrote to `folder`, on the base that `model` names.

    The base is shared by the process: setting another adapter on it changes this model too.

    Raises BaseMismatch if the model was trained on another base.
    """
    trees, facts = store.load(folder / PRIVATE)
    peft = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    lora = LoraConfig(r=peft["r"], alpha=peft["lora_alpha"], target_modules=targets_of(peft))
    base = load_base(model, lora, Parts(**facts["parts"]))
    if base.fingerprint != facts["base"]:
        raise BaseMismatch(
            f"{folder} was trained on base model {facts['base'][:12]}; {model.name!r} is {base.fingerprint[:12]}"
        )
    tree: Tree = load_file(folder / ADAPTER / "adapter_model.safetensors")
    set_adapter(base, {**tree, **trees[PRIVATE]})
    generator = TextGenerator(base, Encoder(base.tokenizer, facts["prompt_format"], facts["max_length"]))
    return PersonalModel(
        generator, facts["reward_scale"], 1.0 if facts["lambda"] is None else facts["lambda"]
    )
