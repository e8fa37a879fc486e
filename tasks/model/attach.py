"""LoRA put into a model by peft, and the configuration with which peft loads it again."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as AUTO_TARGETS
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import ConfigError
from core.sections import LoraConfig
from tasks.model.targets import ALL, KEY, Targets, choose_targets, linear_layers, matching

log = logging.getLogger(__name__)

PREFIX = "base_model.model."  # peft's, of every name in a tree


def attach(causal: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """The model with LoRA of one rank on what lora.target-modules names, in float32 and in evaluation mode.

    Raises ConfigError for targets that are not there, and for what cannot go with fused experts.
    """
    words = _words(causal, lora.target_modules)
    targets = choose_targets(causal, words, lora.target_modules)
    if targets.experts:
        _check_experts(lora)
    renamed = _renamed_by_peft(causal, targets.linear)
    plain = [name for name in targets.linear if name not in renamed]
    config = PeftConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_spelling(causal, words, targets, plain)
        if plain or targets.experts
        else DUMMY_TARGET_MODULES,
        target_parameters=list(targets.experts) or None,
        fan_in_fan_out=bool(plain) and all(isinstance(causal.get_submodule(name), Conv1D) for name in plain),
        task_type="CAUSAL_LM",
    )
    # peft draws its start from the global generator; Accord's is set later
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, to peft
        adapted = get_peft_model(causal, config)
        assert isinstance(adapted, PeftModel)
        if renamed:
            _attach_by_name(adapted, renamed)
    _check_all_there(adapted, targets)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _say(adapted, targets, lora.r)
    adapted.eval()
    return adapted


def adapted_layers(adapted: PeftModel) -> dict[str, LoraLayer]:
    """By name in the whole model, what holds an A and a B."""
    return {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}


def unnamed_layers(adapted: PeftModel) -> list[str]:
    """Adapted linear layers that peft's own configuration cannot name: it takes their names for those of experts."""
    words = adapted.peft_config["default"].to_dict()["target_modules"]
    layers = [
        n.removeprefix(PREFIX) for n, m in adapted_layers(adapted).items() if not isinstance(m, ParamWrapper)
    ]
    return [name for name in layers if not any(matching([name], word) for word in words)]


def config_to_load(adapted: PeftModel, rank: int, alpha: int, base: str) -> PeftConfig:
    """What PeftModel.from_pretrained needs to put the adapter's tensors where they belong.

    It reads an unnamed layer from target_parameters, by the name of its weight; there it allows no dropout, which has
    no part in loading anyway.
    """
    config = adapted.peft_config["default"].to_dict()
    parameters = [*(config["target_parameters"] or ()), *(f"{n}.weight" for n in unnamed_layers(adapted))]
    config |= {"r": rank, "lora_alpha": alpha, "base_model_name_or_path": base, "inference_mode": True}
    if parameters:
        config |= {"target_parameters": sorted(parameters), "lora_dropout": 0.0}
    saved = PeftConfig(**config)
    saved.target_modules = sorted(config["target_modules"])  # a set has another order in every process
    return saved


def targets_of(config: Mapping[str, object]) -> str:
    """lora.target-modules for an adapter_config.json written from `config_to_load`."""
    modules, parameters = config["target_modules"], config.get("target_parameters") or []
    assert isinstance(modules, list), modules
    assert isinstance(parameters, list), parameters
    return ",".join([*modules, *parameters])


def _words(causal: PreTrainedModel, value: str) -> list[str]:
    """lora.target-modules as single words, with peft's choice for the architecture in the place of auto."""
    if value != "auto":
        words = [word.strip() for word in value.split(",")]
        if not all(words):
            raise ConfigError(f"{KEY} = {value!r} has an empty name; give names by comma, {ALL!r} or 'auto'")
        return words
    names = [name for name, _ in causal.named_modules()]
    for kind in (causal.config.model_type, causal.config.get_text_config().model_type):
        choice: str | list[str] = AUTO_TARGETS.get(kind, [])
        if isinstance(choice, str):
            words = [name for name in names if re.fullmatch(choice, name)]
        else:
            words = [word for word in choice if matching(names, word)]
        if words:
            return words
    return [ALL]


def _spelling(
    causal: PreTrainedModel, words: Sequence[str], targets: Targets, plain: Sequence[str]
) -> str | list[str]:
    """The shortest way to tell peft of the `plain` modules."""
    whole = set(plain)
    if list(words) == [ALL] and whole == linear_layers(causal) and not _renames(causal, ALL):
        return ALL
    names = [name for name, _ in causal.named_modules()]
    ends = dict.fromkeys(words if ALL not in words else (name.rsplit(".", 1)[-1] for name in plain))
    used = [word for word in ends if matching(plain, word)]
    return used if {name for word in used for name in matching(names, word)} == whole else list(plain)


def _renamed_by_peft(causal: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Linear layers that peft takes for experts of transformers 4, since their names end like those."""
    ends = {name.rsplit(".", 1)[-1] for name in names}
    return [name for name in names if name.rsplit(".", 1)[-1] in {e for e in ends if _renames(causal, e)}]


def _renames(causal: PreTrainedModel, name: str) -> bool:
    config = PeftConfig(target_modules=name if name == ALL else [name])
    try:
        convert_peft_config_for_transformers(config, causal, None)
    except ValueError:  # one of several that it would fuse
        return True
    targets = config.target_modules or ()
    return name != targets and name not in targets


def _attach_by_name(adapted: PeftModel, names: Sequence[str]) -> None:
    """More linear layers for the same adapter: those whose tensors a state dict would bring."""
    config = adapted.peft_config["default"]
    assert isinstance(config, PeftConfig), config
    parameters, config.target_parameters = config.target_parameters, None  # peft allows one or the other
    if config.target_modules == DUMMY_TARGET_MODULES:  # nothing but these
        config.target_modules = []
    state = dict.fromkeys((f"{name}.lora_A.weight" for name in names), torch.empty(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the configuration does not name them
        adapted.base_model.inject_adapter(adapted.get_base_model(), "default", state_dict=state)  # type: ignore[operator]  # a BaseTuner
    config.target_parameters = parameters


def _check_all_there(adapted: PeftModel, targets: Targets) -> None:
    """peft drops what it cannot match, and rewrites names: nothing of that may pass unseen."""
    layers = adapted_layers(adapted)
    stacks = [f"{n}.{m.parameter_name}" for n, m in layers.items() if isinstance(m, ParamWrapper)]
    got = {n for n, m in layers.items() if not isinstance(m, ParamWrapper)}
    got |= {name.replace(".base_layer.", ".") for name in stacks}
    want = {f"{PREFIX}{name}" for name in (*targets.linear, *targets.experts)}
    assert got == want, f"peft adapted other modules than it was given: {sorted(got ^ want)[:4]}"


def _check_experts(lora: LoraConfig) -> None:
    if lora.dropout:
        raise ConfigError(
            f"lora.dropout = {lora.dropout} cannot go with fused experts in {KEY} = {lora.target_modules!r}: "
            "peft has none for them; set it to 0 or leave the experts out"
        )
    if lora.aggregation in ("fedex", "flora", "flexlora"):
        raise ConfigError(
            f"lora.aggregation = {lora.aggregation!r} cannot go with fused experts in {KEY} = "
            f"{lora.target_modules!r}: their A and B are no two factors of one matrix; use separate | ffa | rolora | "
            "fedsa, or leave the experts out"
        )


def _say(adapted: PeftModel, targets: Targets, rank: int) -> None:
    kind = type(adapted.get_base_model()).__name__
    if targets.left_out:
        log.warning("%s: %s", kind, targets.left_out)
    sides = {n: (m.in_features, m.out_features) for n, m in adapted_layers(adapted).items()}
    low = {n: min(size for size in pair if size) for n, pair in sides.items()}
    low = {n: size for n, size in low.items() if size < rank}
    if low:
        name = next(iter(low))
        log.warning(
            "%s: lora.r = %d is above the full rank of %s (%d) and of %d adapted layers in all: right, but wasteful",
            kind, rank, name.removeprefix(PREFIX), low[name], len(low),
        )  # fmt: skip
