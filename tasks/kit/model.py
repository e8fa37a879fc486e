"""The base model with one LoRA adapter: loaded once per process, adapters in and out as trees. Peft is met here."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tasks.kit import quantized  # first: it decides whether peft finds bitsandbytes

# isort: split
import peft
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as AUTO_TARGETS
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from core import factors
from core.devices import check_device
from core.errors import ConfigError
from core.sections import LoraConfig, ModelConfig
from core.tree import Tree, same_layout
from tasks.base import NO_PARTS, Parts, everything
from tasks.kit import toy_base
from tasks.kit.base_model import Base
from tasks.kit.beside import Beside
from tasks.kit.fingerprint import fingerprint
from tasks.kit.flat import Flat
from tasks.kit.head import Head
from tasks.kit.linear import use_onednn
from tasks.kit.path import choose_path
from tasks.kit.personal import Personal

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
    tokenizer = load_tokenizer(folder)
    causal = _load(folder, model, placement, quantization)
    if quantization is not None:
        causal = quantized.prepared(causal)
    if model.gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = _attach(causal, lora)
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
    gc.collect()  # modules and hooks are cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def resolve(model: ModelConfig) -> Path:
    """The folder of a model: Accord's own toy, a local folder, or the local snapshot of a hub id."""
    if model.name in toy_base.FILES:
        return toy_base.folder(model.name)
    try:
        return Path(str(cached_file(model.name, "config.json", revision=model.revision))).parent
    except OSError as error:
        raise ConfigError(
            f"model.name = {model.name!r} (revision {model.revision!r}) is none of {' | '.join(toy_base.FILES)}, no "
            f"folder with a config.json and no hub model that can be reached: {str(error).splitlines()[0]}"
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ConfigError without an end-of-text token; without a padding token that one is used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in {folder}: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {folder} has no eos_token: a model cannot learn where an answer ends; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def initial_adapter(base: Base, seed: int, adapter: str = "global") -> Tree:
    """LoRA's start under this seed, at the full rank."""
    return factors.first(base.adapter, seed, adapter)


def get_adapter(base: Base) -> Tree:
    """A float32 copy on the CPU at the rank in use, under peft's state-dict names."""
    return _copied(factors.cut(base.adapter, base.rank))


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
    rank = min(factors.rank_of(tree), factors.rank_of(base.adapter))
    places = factors.cut(base.adapter, rank)
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
        alpha = base.model.peft_config["default"].to_dict()["lora_alpha"]
        for layer in base.beside.layers.values():
            layer.scaling["default"] = alpha / rank  # type: ignore[index]  # a dict of peft's
        base.rank = rank


def is_untouched(base: Base) -> bool:
    """Whether nothing was learned: every B is zero, nothing is merged or the client's own, so policy and reference are
    one function."""
    b = (p for name, p in base.adapter.items() if factors.is_b(name))
    return not base.beside.factors and not base.personal.moves_policy() and not any(p.any() for p in b)


@contextmanager
def reference(base: Base) -> Iterator[None]:
    """Inside, the model is the frozen base: adapters and private parts off, no gradient."""
    with torch.no_grad(), base.model.disable_adapter(), base.personal.off():
        yield


@contextmanager
def training(
    base: Base, *, dropout: bool, seed: int, trains: Callable[[str], bool] = everything
) -> Iterator[None]:
    """Inside, the base is set up for local steps: LoRA dropout if asked for, checkpointing if configured,
    no gradient for the tensors that do not train.

    The global generators, from which dropout draws, are seeded inside and restored after.
    """
    base.model.eval()
    base.flat.bind(trains)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in base.model.modules():
            if isinstance(module, LoraLayer) and dropout:
                module.lora_dropout.train()  # type: ignore[operator]  # a ModuleDict
            elif isinstance(module, GradientCheckpointingLayer):
                module.training = True  # its own flag only: the layers inside stay without dropout
        try:
            yield
        finally:
            base.model.eval()
            base.flat.bind()


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
    rank = factors.rank_of(tree)
    same_layout(factors.cut(base.adapter, rank), tree, where="adapter")
    folder.mkdir(parents=True, exist_ok=True)
    config = base.model.peft_config["default"].to_dict() | {"r": rank}
    if merged:
        tree = _joined(tree, merged, config["lora_alpha"] / rank)
        config |= {"r": factors.rank_of(tree), "lora_alpha": factors.rank_of(tree)}
    kept = {**config, "base_model_name_or_path": base_name, "inference_mode": True}
    saved = peft.LoraConfig(**kept)
    if isinstance(saved.target_modules, set):  # a set is written in another order by every process
        saved.target_modules = sorted(saved.target_modules)
    saved.save_pretrained(str(folder))
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tree.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


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
    gpus = torch.cuda.device_count() if model.device != "cpu" and torch.cuda.is_available() else 0
    check_device(model, gpus)
    if model.device == "balanced":
        return "balanced"
    if model.device == "auto":
        return {"": "cuda" if gpus else "cpu"}
    return {"": model.device}


def _load(
    folder: Path, model: ModelConfig, placement: Any, quantization: quantized.BitsAndBytesConfig | None
) -> PreTrainedModel:
    # Any: transformers' own union of placements
    options = {"quantization_config": quantization} if quantization else {}
    disable_progress_bar()  # of the weights: a log has no place for it
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, model.dtype), device_map=placement, **options
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name = {model.name!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def _attach(causal: PreTrainedModel, lora: LoraConfig) -> peft.PeftModel:
    targets: str | list[str] | None = lora.target_modules
    if targets == "auto":
        targets = None if causal.config.model_type in AUTO_TARGETS else "all-linear"
    elif targets != "all-linear":
        targets = [name.strip() for name in lora.target_modules.split(",")]
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    # peft draws its start from the global generator; ours is set later
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, to peft
        try:
            adapted = peft.get_peft_model(causal, config)
        except ValueError as error:
            raise ConfigError(f"lora.target-modules = {lora.target_modules!r}: {error}") from error
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if ".lora_A." not in name and ".lora_B." not in name:
                raise ConfigError(
                    f"lora.target-modules: {name!r} is not a linear layer; name linear layers only"
                )
    assert isinstance(adapted, peft.PeftModel)
    adapted.eval()
    return adapted


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
