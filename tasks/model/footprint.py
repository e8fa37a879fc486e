"""How much memory a client takes, from the model's config.json and the settings, before anything is loaded.

An upper bound meant for packing clients: every row is taken to be as long as it may be. Weights are counted in the
safetensors headers; activations are what a Llama-like layer with LoRA keeps for the way back.
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
LOGITS = (
    100_000_000  # bytes: tasks/model/head.py's chunk of logits, its softmax and gradient, at most 32 MB each
)
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
QUANTIZED = {"8bit": 1.1, "4bit": 0.6}  # bytes a weight, with the scales
COPIES = 6  # of an adapter in float32: weights, gradients, Adam's two moments, the start, what is sent
ROWS = {
    "kto": 1,
    "sft": 1,
}  # sequences of max-length per row that are kept for the way back; pairs, two orders: 2


@dataclass(frozen=True)
class Shape:
    """What of a model's config.json the estimate needs."""

    parameters: int
    layers: int
    hidden: int
    inner: int  # of the feed-forward block
    keys: int  # width of keys and of values


@dataclass(frozen=True)
class Estimate:
    """Bytes: the base, an adapter with its optimizer state, the activations of a step, the process around them."""

    base: float
    adapter: float
    step: float
    process: float = PROCESS

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.step + self.process


def shape_of(model: ModelConfig) -> Shape | None:
    """None for pickled weights, and for a model whose config.json has other names; ConfigError as fetch()."""
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
    """For one local training of this configuration."""
    model, train, r = config.model, config.train, config.lora.r
    width = WIDTH[model.dtype]
    h, i, k = shape.hidden, shape.inner, shape.keys
    adapter = (
        shape.layers * r * (4 * h + 2 * (h + k) + 3 * (h + i))
    )  # on every linear layer: the most there is
    tokens = train.per_device_batch_size * train.max_length * ROWS.get(config.task_choice.name, 2)
    kept = (
        12 * h + 4 * k + 6 * i
    )  # numbers per token and layer: inputs of every product, norms, gate, activation
    layers = 1 if model.gradient_checkpointing else shape.layers
    step = tokens * width * (layers * kept + (shape.layers * h if model.gradient_checkpointing else 0))
    return Estimate(
        shape.parameters * QUANTIZED.get(model.quantization, width), adapter * 4 * COPIES, step + LOGITS
    )


def _described(model: ModelConfig) -> tuple[Json, int]:
    """config.json, and how many weights there are; downloads a model of the Hub. Raises ConfigError for one that is not
    there or not whole.
    """
    folder = fetch(model, progress=True)
    stored = check_folder(folder)
    files = [] if stored.pickled else [folder / name for name in stored.files]
    return read_config(folder), sum(map(_count, files))


def _count(path: Path) -> int:
    with safe_open(path, "np") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no mapping


def _first(page: Mapping[str, Json], *names: str) -> int:
    return next((int(page[name]) for name in names if page.get(name)), 0)
