"""The weights of a model that LoRA adapts: lora.target-modules resolved against the modules of the model.

The default is every linear layer of the language model except its vocabulary head and the routers of its experts.
Vision and audio parts are never adapted, since text gives them no gradient. Fused experts (one parameter for all
experts of a layer) are adapted only if they are named.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import ConfigError
from core.tables import did_you_mean

KEY = "lora.target-modules"
ALL = "all-linear"
OTHER_MEDIA = ("vision", "visual", "image", "video", "audio", "speech", "multi_modal", "vq_")
# peft refuses LoRA on the output projection of these models, whose kernels read its weight without calling the layer.
MAMBA, FUSED_OUTPUT = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), "out_proj"
FROM_ENCODERS = ("cross_attn", "crossattention", "encoder_attn")  # attention to the output of an encoder


@dataclass(frozen=True)
class Targets:
    """Names of modules and parameters in the model, in the order of the model."""

    linear: tuple[str, ...]
    experts: tuple[str, ...] = ()  # names of 3-D parameters (experts, _, _)
    left_out: str = ""  # one line on fused experts that are not adapted; "" for none


def choose_targets(causal: PreTrainedModel, names: Sequence[str], value: str) -> Targets:
    """Resolve names to targets.

    Args:
        names: `all-linear`, names of modules or parameters, or ends of such names that begin at a dot.
        value: lora.target-modules, for messages.

    Raises:
        ConfigError: a name matches nothing that can be adapted.
    """
    parts = Parts.of(causal, value)
    linear: set[str] = set()
    experts: set[str] = set()
    for name in names:
        if name == ALL:
            linear |= parts.usual.keys()
        elif layers := parts.layers_named(name.removesuffix(".weight")):
            linear |= set(layers)
        elif stacks := matching(parts.experts, name):
            experts |= set(stacks)
        else:
            raise ConfigError(parts.refusal(name))
    if not linear and not experts:
        raise ConfigError(f"{parts.key}: {type(causal).__name__} has no linear layer to adapt")
    return Targets(
        tuple(name for name in parts.modules if name in linear),
        tuple(name for name in parts.experts if name in experts),
        parts.note_on_experts(experts),
    )


def linear_layers(causal: PreTrainedModel) -> set[str]:
    """All linear layers except the vocabulary head: peft's all-linear for models whose names it does not rewrite."""
    head = causal.get_output_embeddings()
    return {n for n, m in causal.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}


def matching(names: Iterable[str], target: str) -> list[str]:
    """The names that a target matches by peft's rule: they equal it or end with a dot and it."""
    return [name for name in names if name == target or name.endswith(f".{target}")]


@dataclass(frozen=True)
class Parts:
    """The modules of a model, classified by whether LoRA can adapt them."""

    key: str  # "lora.target-modules = VALUE", for messages
    causal: PreTrainedModel
    modules: Mapping[str, nn.Module]
    text: frozenset[str]  # modules of the language model
    experts: Mapping[str, nn.Parameter]  # fused weights of experts in the language model
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
        """The linear layers that all-linear stands for."""
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

    def layers_named(self, target: str) -> list[str]:
        """The linear layers of the language model that a target matches; ConfigError if one cannot be adapted."""
        names = [n for n in matching(self.modules, target) if n in self.text]
        layers = [n for n in names if _is_linear(self.modules[n])]
        if layers and (not_linear := [n for n in names if n not in layers]):
            raise ConfigError(
                f"{self.key}: {target!r} matches linear layers and {not_linear[0]!r}, which is a "
                f"{type(self.modules[not_linear[0]]).__name__}; use longer names that match linear layers only"
            )
        for name in layers:
            self._check(target, name)
        return layers

    def _check(self, target: str, name: str) -> None:
        module, head = self.modules[name], self.causal.get_output_embeddings()
        if module is head and module.weight is self.causal.get_input_embeddings().weight:
            raise ConfigError(
                f"{self.key}: {target!r} is the vocabulary head, which shares its weights with the input embedding "
                "(tie_word_embeddings), so that an adapter of the head alone could not be merged; leave it out"
            )
        if self._is_fused(name):
            raise ConfigError(
                f"{self.key}: {target!r} of a {self.causal.config.model_type} model is read by a fused kernel, which "
                "would ignore the adapter; leave it out"
            )
        if name in self.routers and type(module).forward is not nn.Linear.forward:
            raise ConfigError(
                f"{self.key}: {target!r} is a router ({type(module).__name__}), which computes more than a linear "
                "layer; leave it out"
            )

    def refusal(self, target: str) -> str:
        """The error message for a target that matches nothing that can be adapted, with the available names."""
        names = matching(self.modules, target)
        inside = [n for n in names if n in self.text]
        hint = did_you_mean(target, self._short_names(), most=3)
        available = f"{hint} Available: {', '.join(self._short_names())}".lstrip()
        if inside:
            kind = type(self.modules[inside[0]]).__name__
            return (
                f"{self.key}: {target!r} ({kind}) is not a linear layer; name linear layers only. {available}"
            )
        if names:
            place = f"only outside the language model ({names[0]}), which text does not reach"
            return f"{self.key}: {target!r} is {place}. {available}"
        return f"{self.key}: {type(self.causal).__name__} has no module {target!r}. {available}"

    def _short_names(self) -> list[str]:
        """The last components of the names that can be adapted."""
        short = dict.fromkeys(name.rsplit(".", 1)[-1] for name in self.usual)
        return [*short, *dict.fromkeys(_short(name) for name in self.experts)]

    def note_on_experts(self, chosen: set[str]) -> str:
        """One line on fused experts that are not adapted; "" for none."""
        omitted = [name for name in self.experts if name not in chosen]
        if not omitted:
            return ""
        size = sum(prod(self.experts[name].shape) for name in omitted)
        names = ",".join(dict.fromkeys(_short(name) for name in omitted))
        return (
            f"{size:,} weights of fused experts are not adapted; {KEY} = '{ALL},{names}' would adapt them "
            "(with larger updates, and a modified copy of each layer's experts in memory during training)"
        )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _short(name: str) -> str:
    """The last two components: experts.down_proj of model.layers.0.mlp.experts.down_proj."""
    return ".".join(name.split(".")[-2:])


def _routes(modules: Mapping[str, nn.Module], name: str, block: str) -> bool:
    """Whether a module selects or weighs the experts of a block for each token."""
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
    """Names of the language model's modules, without those for other media and for the output of an encoder."""
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
    """Children of the decoder that contain another pretrained model, such as an image encoder."""
    embeddings = causal.get_input_embeddings()
    for name, child in modules[prefix].named_children():
        inner = list(child.modules())
        if any(isinstance(m, PreTrainedModel) for m in inner) and not any(m is embeddings for m in inner):
            yield f"{prefix}.{name}" if prefix else name
