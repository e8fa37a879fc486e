"""Which weights of a model LoRA adapts: lora.target-modules, read against the modules that are there.

By default every linear layer of the language model but its vocabulary head and the routers of its experts. A vision or
audio part is never adapted: no gradient of a text reaches it. Fused experts (one parameter for all experts of a layer)
are adapted only where they are named.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import ConfigError

KEY = "lora.target-modules"
ALL = "all-linear"
OTHER_MEDIA = ("vision", "visual", "image", "video", "audio", "speech", "multi_modal", "vq_")
# peft refuses LoRA on the output projection of these, whose kernels read its weight without calling it
MAMBA, FUSED_OUTPUT = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), "out_proj"
FROM_ENCODERS = ("cross_attn", "crossattention", "encoder_attn")  # attention to what only an encoder makes


@dataclass(frozen=True)
class Targets:
    """Full names inside the model, in its own order."""

    linear: tuple[str, ...]
    experts: tuple[str, ...] = ()  # of 3-D parameters: (experts, _, _)
    left_out: str = ""  # what one may expect to be adapted and is not, in one line


def choose_targets(causal: PreTrainedModel, words: Sequence[str], value: str) -> Targets:
    """words: `all-linear`, names of modules or parameters, or ends of such names that begin at a dot.

    Raises ConfigError for a word that names nothing that can be adapted.
    """
    parts = Parts.of(causal, value)
    linear: set[str] = set()
    experts: set[str] = set()
    for word in words:
        if word == ALL:
            linear |= parts.usual.keys()
        elif layers := parts.layers_named(word.removesuffix(".weight")):
            linear |= set(layers)
        elif stacks := matching(parts.experts, word):
            experts |= set(stacks)
        else:
            raise ConfigError(parts.refusal(word))
    if not linear and not experts:
        raise ConfigError(f"{parts.key}: {type(causal).__name__} has no linear layer to adapt")
    return Targets(
        tuple(name for name in parts.modules if name in linear),
        tuple(name for name in parts.experts if name in experts),
        parts.rest_of_experts(experts),
    )


def linear_layers(causal: PreTrainedModel) -> set[str]:
    """All but the vocabulary head: what peft makes of all-linear where it rewrites nothing."""
    head = causal.get_output_embeddings()
    return {n for n, m in causal.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}


def matching(names: Iterable[str], word: str) -> list[str]:
    """peft's rule: the name itself, or one that ends with a dot and it."""
    return [name for name in names if name == word or name.endswith(f".{word}")]


@dataclass(frozen=True)
class Parts:
    """A model's modules by what LoRA may do with them."""

    key: str  # lora.target-modules and its value, for messages
    causal: PreTrainedModel
    modules: Mapping[str, nn.Module]
    text: frozenset[str]  # modules of the language model
    experts: Mapping[str, nn.Parameter]  # fused weights in it
    routers: frozenset[str]

    @staticmethod
    def of(causal: PreTrainedModel, value: str) -> "Parts":
        modules = dict(causal.named_modules())
        text = frozenset(_text_modules(causal, modules))
        holders = [n for n in text if "Expert" in type(modules[n]).__name__ and not _is_linear(modules[n])]
        experts = {
            f"{holder}.{name}": parameter
            for holder in sorted(holders, key=list(modules).index)
            for name, parameter in modules[holder].named_parameters(recurse=False)
            if parameter.dim() > 1 and not name.endswith("bias")
        }
        blocks = {name.rsplit(".", 2)[0] for name in experts}
        routers = frozenset(name for name in text if any(_routes(modules, name, block) for block in blocks))
        return Parts(f"{KEY} = {value!r}", causal, modules, text, experts, routers)

    @property
    def usual(self) -> dict[str, nn.Module]:
        """The linear layers that are adapted unless others are named."""
        head = self.causal.get_output_embeddings()
        return {
            n: m
            for n, m in self.modules.items()
            if n in self.text
            and _is_linear(m)
            and m is not head
            and n not in self.routers
            and not self._is_fused(n)
        }

    def _is_fused(self, name: str) -> bool:
        return self.causal.config.model_type in MAMBA and name.rsplit(".", 1)[-1] == FUSED_OUTPUT

    def layers_named(self, word: str) -> list[str]:
        """The linear layers of the language model that a word names; ConfigError where one cannot be adapted."""
        names = [n for n in matching(self.modules, word) if n in self.text]
        layers = [n for n in names if _is_linear(self.modules[n])]
        if layers and (others := [n for n in names if n not in layers]):
            raise ConfigError(
                f"{self.key}: {word!r} names linear layers and {others[0]!r}, which is a "
                f"{type(self.modules[others[0]]).__name__}; use longer names, of linear layers only"
            )
        for name in layers:
            self._check(word, name)
        return layers

    def _check(self, word: str, name: str) -> None:
        module, head = self.modules[name], self.causal.get_output_embeddings()
        if module is head and module.weight is self.causal.get_input_embeddings().weight:
            raise ConfigError(
                f"{self.key}: {word!r} is the vocabulary head, whose weights are also the input embedding's "
                "(tie_word_embeddings): an adapter of one alone could never be merged; leave it out"
            )
        if self._is_fused(name):
            raise ConfigError(
                f"{self.key}: {word!r} of a {self.causal.config.model_type} model is read by a fused kernel, past any "
                "adapter; leave it out"
            )
        if name in self.routers and type(module).forward is not nn.Linear.forward:
            raise ConfigError(
                f"{self.key}: {word!r} is a router ({type(module).__name__}), which gives more than a linear layer "
                "does; leave it out"
            )

    def refusal(self, word: str) -> str:
        """Why a word names nothing to adapt, and what there is."""
        names = matching(self.modules, word)
        inside = [n for n in names if n in self.text]
        near = difflib.get_close_matches(word, self._short_names(), 3)
        close = f"did you mean {' or '.join(near)}? " if near else ""
        there = f"{close}There are: {', '.join(self._short_names())}"
        if inside:
            kind = type(self.modules[inside[0]]).__name__
            return f"{self.key}: {word!r} ({kind}) is not a linear layer; name linear layers only. {there}"
        if names:
            where = f"only outside the language model ({names[0]}), where no text reaches"
            return f"{self.key}: {word!r} is {where}. {there}"
        return f"{self.key}: {type(self.causal).__name__} has no module {word!r}. {there}"

    def _short_names(self) -> list[str]:
        """The last parts of what can be named."""
        short = dict.fromkeys(name.rsplit(".", 1)[-1] for name in self.usual)
        return [*short, *dict.fromkeys(_short(name) for name in self.experts)]

    def rest_of_experts(self, chosen: set[str]) -> str:
        """A line on fused experts that are not adapted; "" for none."""
        rest = [name for name in self.experts if name not in chosen]
        if not rest:
            return ""
        size = sum(prod(self.experts[name].shape) for name in rest)
        names = ",".join(dict.fromkeys(_short(name) for name in rest))
        return (
            f"{size:,} weights of fused experts are not adapted; {KEY} = '{ALL},{names}' would adapt them "
            "(larger updates, and a changed copy of each layer's experts in memory while it trains)"
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _short(name: str) -> str:
    """experts.down_proj of model.layers.0.mlp.experts.down_proj."""
    return ".".join(name.split(".")[-2:])


def _routes(modules: Mapping[str, nn.Module], name: str, block: str) -> bool:
    """Whether a module decides which of a block's experts a token goes to, or how much they count."""
    if not name.startswith(f"{block}."):
        return False
    first = name.removeprefix(f"{block}.").split(".")[0]
    return (
        first == "gate"
        or ("expert" in first and first.endswith("_gate"))
        or "router" in first.lower()
        or "Router" in type(modules[name]).__name__
    )


def _text_modules(causal: PreTrainedModel, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The modules of the language model: all, or without what is for other media or for an encoder's output."""
    config = causal.config
    media = config.get_text_config() is not config or any(
        w in n for n in config.sub_configs for w in OTHER_MEDIA
    )
    head = causal.get_output_embeddings()
    decoder = causal.get_decoder() if media else causal
    prefix = next(name for name, module in modules.items() if module is decoder)
    foreign = [f"{name}." for name in _foreign(causal, modules, prefix)] if media else []
    for name, module in modules.items():
        inside = not prefix or name == prefix or name.startswith(f"{prefix}.")
        if module is not head and (not inside or any(f"{name}.".startswith(f) for f in foreign)):
            continue
        path = name.split(".")
        if media and any(word in part for part in path for word in OTHER_MEDIA):
            continue
        if not any(part in FROM_ENCODERS for part in path):
            yield name


def _foreign(causal: PreTrainedModel, modules: Mapping[str, nn.Module], prefix: str) -> Iterator[str]:
    """Children of the decoder that hold a pretrained model of their own, as an image encoder is."""
    words = causal.get_input_embeddings()
    for name, child in modules[prefix].named_children():
        inner = list(child.modules())
        if any(isinstance(m, PreTrainedModel) for m in inner) and not any(m is words for m in inner):
            yield f"{prefix}.{name}" if prefix else name
