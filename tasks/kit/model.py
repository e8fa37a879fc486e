"""The base model with one LoRA adapter: loaded once per process, adapters in and out as trees. Peft is met here."""

import gc
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tasks.kit import quantized  # first: it decides whether peft finds bitsandbytes

# isort: split
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from core import factors
from core.errors import ConfigError, TreeMismatch
from core.sections import LoraConfig, ModelConfig
from core.tree import Tree, same_layout
from tasks.base import NO_PARTS, Parts
from tasks.kit.attach import attach, config_to_load
from tasks.kit.base_model import Base
from tasks.kit.beside import Beside
from tasks.kit.causal import refuse_encoders
from tasks.kit.fingerprint import fingerprint
from tasks.kit.flat import Flat
from tasks.kit.head import Head
from tasks.kit.linear import use_onednn
from tasks.kit.loading import check_vocabulary, load_causal, load_tokenizer
from tasks.kit.modes import reference as reference  # for those who have a base from here
from tasks.kit.modes import training as training
from tasks.kit.path import choose_path
from tasks.kit.personal import Personal
from tasks.kit.snapshot import check_folder, fetch

log = logging.getLogger(__name__)

_forgotten = 0  # bases loaded by this process and let go of


@cache
def load_base(model: ModelConfig, lora: LoraConfig, parts: Parts = NO_PARTS) -> Base:
    """The base for these settings, loaded once per process and kept; loads() counts.

    parts: what a task adds for each client alone; the server's base has none.

    Raises ConfigError for a model that is not there, a placement or quantization that cannot run here, and a
    tokenizer without an end-of-text token.
    """
    if model.cpu_threads:
        torch.set_num_threads(model.cpu_threads)
    folder = resolve(model)
    placement = _placement(model)
    quantization = quantized.settings(model)
    refuse_encoders(
        folder
    )  # first: an encoder's tokenizer may have no end of text, which is not what is wrong
    tokenizer = load_tokenizer(folder)
    causal = load_causal(folder, model, placement, quantization)
    check_vocabulary(tokenizer, causal, folder)
    if quantization is not None:
        causal = quantized.prepared(causal)
    if model.gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = attach(causal, lora)
    weights = {_name(n): p for n, p in adapted.named_parameters() if p.requires_grad}
    personal = _personal(causal, parts)
    flat = Flat({**weights, **personal.tensors})
    numerics = f"{model.dtype}-{model.quantization}"
    layers = {
        name: adapted.get_submodule(name.split(".lora_A.")[0]) for name in weights if factors.is_a(name)
    }
    base = Base(
        adapted, tokenizer, fingerprint(folder, tokenizer), numerics, flat, personal, Beside(layers), lora.r,
        Head(None), False,
    )  # fmt: skip
    choose_path(base)
    use_onednn(adapted)
    parameters = sum(p.numel() for p in causal.parameters())
    log.info(
        "base model=%s fingerprint=%s parameters=%d lora=%d private=%d path=%s device=%s",
        model.name, base.fingerprint[:12], parameters - count(weights), count(weights), count(personal.tensors),
        "packed" if base.packed else "padded", base.device,
    )  # fmt: skip
    return base


def loads() -> int:
    """How many bases this process has loaded."""
    return _forgotten + load_base.cache_info().misses


def forget() -> None:
    """Let go of every base of this process, and of its memory once nobody else holds it."""
    global _forgotten
    _forgotten = loads()
    load_base.cache_clear()
    resolve.cache_clear()
    is_pickled.cache_clear()
    gc.collect()  # modules and hooks are cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cache
def resolve(model: ModelConfig) -> Path:
    """The folder of a model (tasks/kit/snapshot.py), the same for the life of the process until forget()."""
    return fetch(model)


@cache
def is_pickled(model: ModelConfig) -> bool:
    """Whether a model comes as pickled files (pytorch_model.bin), which are converted before they are loaded."""
    return check_folder(resolve(model)).pickled


def initial_adapter(base: Base, seed: int, adapter: str = "global") -> Tree:
    """LoRA's start under this seed, at the full rank."""
    return factors.first(base.adapter, seed, adapter)


def get_adapter(base: Base) -> Tree:
    """A float32 copy on the CPU at the rank in use, under peft's state-dict names."""
    return _copied(_places(base, base.rank))


def get_private(base: Base) -> Tree:
    """The same of the client's own parts: what never leaves it."""
    return _copied(base.personal.tensors)


def set_adapter(base: Base, tree: Mapping[str, Tensor], merged: Mapping[str, Tensor] | None = None) -> None:
    """Copy `tree` into the adapter, and put the frozen factors `merged` beside it; None takes away what was there.

    A tree of a smaller rank r_k trains as that: above it A and B are zero, where no gradient reaches either, and
    the scale is alpha / r_k. Private parts that the tree lacks are zero, as if they were not there.
    TreeMismatch on other names or shapes.
    """
    private = {n: t for n, t in tree.items() if factors.is_private(n)}
    tree = {n: t for n, t in tree.items() if n not in private}
    rank = _rank(base, tree)
    places = _places(base, rank)
    same_layout(places, tree, where="adapter")
    base.beside.put(merged or {})
    base.personal.put(private)
    with torch.no_grad():
        if rank < base.rank:
            for parameter in base.adapter.values():
                parameter.zero_()
        for name, place in places.items():
            place.copy_(tree[name])
    if rank != base.rank:
        alpha = _peft(base)["lora_alpha"]
        for layer in base.beside.layers.values():
            layer.scaling["default"] = alpha / rank  # type: ignore[index]  # a dict of peft's
        base.rank = rank


def is_untouched(base: Base) -> bool:
    """Whether nothing was learned: every B is zero, nothing is merged or the client's own, so policy and reference are
    one function."""
    b = (p for name, p in base.adapter.items() if factors.is_b(name))
    return not base.beside.factors and not base.personal.moves_policy() and not any(p.any() for p in b)


def save_adapter(
    base: Base,
    tree: Mapping[str, Tensor],
    folder: Path,
    *,
    base_name: str,
    merged: Mapping[str, Tensor] | None = None,
) -> None:
    """A folder that PeftModel.from_pretrained loads on top of the model called `base_name`.

    With `merged` it is one LoRA of rank r + R and scale 1: A over the merged A, s B beside the merged B.
    """
    rank = _rank(base, tree)
    same_layout(_places(base, rank), tree, where="adapter")
    folder.mkdir(parents=True, exist_ok=True)
    alpha = _peft(base)["lora_alpha"]
    if merged:
        tree = _joined(tree, merged, alpha / rank)
        rank = alpha = factors.rank_of(tree)
    config_to_load(base.model, rank, alpha, public_name(base_name)).save_pretrained(str(folder))
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tree.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def public_name(model: str) -> str:
    """A model's name for others to read: of a local folder its own name, without the path to it."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.is_dir() else model


def _peft(base: Base) -> dict[str, Any]:
    """peft's configuration of the adapter. Any: it has fields of every kind."""
    return base.model.peft_config["default"].to_dict()


def _rank(base: Base, tree: Mapping[str, Tensor]) -> int:
    """The rank of a tree, at most the base's. The A of fused experts has as many rows for each of them."""
    most, adapter = _peft(base)["r"], base.adapter
    ranks = [len(a) * most // len(adapter[n]) for n, a in tree.items() if factors.is_a(n) and n in adapter]
    return min(max(ranks, default=most), most)


def _places(base: Base, rank: int) -> Mapping[str, Tensor]:
    """The adapter's weights up to a rank. TreeMismatch for a smaller one of fused experts, whose rows are by expert."""
    adapter, most = base.adapter, _peft(base)["r"]
    if rank == most:
        return adapter
    if stacks := [name for name, t in adapter.items() if factors.is_a(name) and len(t) != most]:
        raise TreeMismatch(f"adapter: rank {rank} of {most} is not for fused experts, as in {stacks[0]!r}")
    return factors.cut(adapter, rank)


def _joined(tree: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float) -> Tree:
    """scale B A + the merged product as one pair of factors a module, all of one rank: zeros fill up."""
    more, out = factors.modules(merged), {}
    rank = factors.rank_of(tree) + factors.rank_of(merged)
    for name, (b, a) in factors.modules(tree).items():
        left, right = more.get(name, (b[:, :0], a[:0]))
        fill = rank - len(a) - len(right)
        out[name] = torch.cat([a, right, a.new_zeros(fill, a.shape[1])])
        out[factors.b_of(name)] = torch.cat([scale * b, left, b.new_zeros(len(b), fill)], 1)
    return out


def _placement(model: ModelConfig) -> str | dict[str, str]:
    wants_cuda = model.device.startswith("cuda") or model.device == "balanced"
    if wants_cuda and not torch.cuda.is_available():
        raise ConfigError(
            f"model.device = {model.device!r}, but torch sees no CUDA device here; use 'auto' or 'cpu'"
        )
    if model.device == "balanced":
        return "balanced"
    if model.device == "auto":
        return {"": "cuda" if torch.cuda.is_available() else "cpu"}
    if model.device != "cpu" and not wants_cuda:
        raise ConfigError(f"model.device must be auto | cpu | cuda | cuda:N | balanced, got {model.device!r}")
    return {"": model.device}


def _name(parameter: str) -> str:
    """peft's state-dict name: without the adapter's own name."""
    for factor in ("lora_A", "lora_B"):
        parameter = parameter.replace(f".{factor}.default.", f".{factor}.")
    return parameter


def _personal(causal: PreTrainedModel, parts: Parts) -> Personal:
    head = causal.get_output_embeddings()
    if parts == NO_PARTS:
        return Personal(parts, torch.empty(0, 0))
    if head is None:
        raise ConfigError(
            f"{type(causal).__name__} has no vocabulary head for a client's own parts to stand before"
        )
    personal = Personal(parts, head.weight)  # type: ignore[arg-type]  # typed as Tensor | Module
    personal.join(head)
    return personal


def _copied(parameters: Mapping[str, Tensor]) -> Tree:
    return {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in parameters.items()}


def count(parameters: Mapping[str, Tensor]) -> int:
    return sum(p.numel() for p in parameters.values())
