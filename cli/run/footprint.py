"""Estimate the memory of a client from the model's config.json and the settings, before anything is loaded.

It is an upper bound, used to decide how many clients run at a time: every row is assumed to have the maximum length.
Weights are counted in the headers of safetensors files; activations are those that a Llama-like layer with LoRA stores
for the backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from core.sections import Config, ModelConfig
from core.types import Json
from tasks.pretrained.snapshot import check_folder, fetch
from tasks.pretrained.weights import read_config

PROCESS = 600_000_000  # bytes: Python with torch, transformers and peft, and their buffers; measured
LOGITS = 100_000_000  # bytes: a chunk of logits in tasks/model/head.py, its softmax and gradient, 32 MB each
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
QUANTIZED = {"8bit": 1.1, "4bit": 0.6}  # bytes per weight, with quantisation scales
COPIES = 6  # float32 copies of an adapter: weights, gradients, Adam's two moments, initial adapter, update
# Sequences of max-length stored for the backward pass per row; 2 for other tasks (pairs, or two orders).
ROWS = {"kto": 1, "sft": 1}


@dataclass(frozen=True)
class Shape:
    """The sizes in a model's config.json that the estimate needs."""

    parameters: int
    layers: int
    hidden: int
    inner: int  # of the feed-forward block
    keys: int  # width of keys and of values


@dataclass(frozen=True)
class Estimate:
    """Bytes of the base, the adapter with its optimiser state, the activations of a step, and the Python process."""

    base: float
    adapter: float
    step: float
    process: float = PROCESS

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.step + self.process


def shape_of(model: ModelConfig) -> Shape | None:
    """The shape of a model; None for pickled weights and for unknown keys in config.json. ConfigError as fetch()."""
    page, parameters = _described(model)
    hidden = _first(page, "hidden_size", "n_embd", "d_model")
    layers = _first(page, "num_hidden_layers", "n_layer")
    if not hidden or not layers or not parameters:
        return None
    heads = _first(page, "num_attention_heads", "n_head") or 1
    keys = hidden * (_first(page, "num_key_value_heads") or heads) // heads
    inner = _first(page, "intermediate_size", "n_inner") or 4 * hidden
    return Shape(parameters, layers, hidden, inner, keys)


def estimate(config: Config, shape: Shape) -> Estimate:
    """Estimate the memory of one local training with this configuration."""
    model, train, r = config.model, config.train, config.lora.r
    width = WIDTH[model.dtype]
    h, i, k = shape.hidden, shape.inner, shape.keys
    # LoRA on every linear layer, the maximum
    adapter = shape.layers * r * (4 * h + 2 * (h + k) + 3 * (h + i))
    tokens = train.per_device_batch_size * train.max_length * ROWS.get(config.task_choice.name, 2)
    # numbers stored per token and layer: inputs of every product, norms, gate, activation
    stored = 12 * h + 4 * k + 6 * i
    layers = 1 if model.gradient_checkpointing else shape.layers
    step = tokens * width * (layers * stored + (shape.layers * h if model.gradient_checkpointing else 0))
    return Estimate(
        shape.parameters * QUANTIZED.get(model.quantization, width), adapter * 4 * COPIES, step + LOGITS
    )


def _described(model: ModelConfig) -> tuple[Json, int]:
    """config.json and the number of weights (0 if pickled); downloads a model of the Hub.

    Raises:
        ConfigError: the model does not exist or is incomplete.
    """
    folder = fetch(model, progress=True)
    weights = check_folder(folder)
    files = [] if weights.pickled else [folder / name for name in weights.files]
    return read_config(folder), sum(map(_count, files))


def _count(path: Path) -> int:
    with safe_open(path, "np") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no mapping


def _first(page: Mapping[str, Json], *names: str) -> int:
    return next((int(page[name]) for name in names if page.get(name)), 0)
