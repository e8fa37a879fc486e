"""Attach LoRA to a model by peft, and write the configuration with which peft loads it again."""

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

PREFIX = "base_model.model."  # with which peft begins every name in a tree


def attach(causal: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Add float32 LoRA weights of one rank to the modules that lora.target-modules names; evaluation mode.

    Raises:
        ConfigError: a target does not exist, or fused experts are combined with settings that they do not support.
    """
    target_names = _target_names(causal, lora.target_modules)
    targets = choose_targets(causal, target_names, lora.target_modules)
    if targets.experts:
        _check_experts(lora)
    renamed = _renamed_by_peft(causal, targets.linear)
    plain = [name for name in targets.linear if name not in renamed]
    config = PeftConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_peft_target_modules(causal, target_names, targets, plain)
        if plain or targets.experts
        else DUMMY_TARGET_MODULES,
        target_parameters=list(targets.experts) or None,
        fan_in_fan_out=bool(plain) and all(isinstance(causal.get_submodule(name), Conv1D) for name in plain),
        task_type="CAUSAL_LM",
    )
    # peft initialises weights from the global generator; Accord sets its own initial weights later
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by transformers for code of peft
        adapted = get_peft_model(causal, config)
        assert isinstance(adapted, PeftModel)
        if renamed:
            _attach_by_name(adapted, renamed)
    _check_adapted(adapted, targets)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _log_warnings(adapted, targets, lora.r)
    adapted.eval()
    return adapted


def adapted_layers(adapted: PeftModel) -> dict[str, LoraLayer]:
    """The modules that hold LoRA factors, by their name in the whole model."""
    return {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}


def unnamed_layers(adapted: PeftModel) -> list[str]:
    """Adapted linear layers that peft's configuration cannot name, since it takes their names for those of experts."""
    target_names = adapted.peft_config["default"].to_dict()["target_modules"]
    layers = [
        n.removeprefix(PREFIX) for n, m in adapted_layers(adapted).items() if not isinstance(m, ParamWrapper)
    ]
    return [name for name in layers if not any(matching([name], target) for target in target_names)]


def config_to_load(adapted: PeftModel, rank: int, alpha: int, base: str) -> PeftConfig:
    """The configuration with which PeftModel.from_pretrained loads the adapter's tensors into the right modules.

    Unnamed layers are listed in target_parameters by the names of their weights. peft allows no dropout there, which
    does not matter for loading.
    """
    config = adapted.peft_config["default"].to_dict()
    parameters = [*(config["target_parameters"] or ()), *(f"{n}.weight" for n in unnamed_layers(adapted))]
    config |= {"r": rank, "lora_alpha": alpha, "base_model_name_or_path": base, "inference_mode": True}
    if parameters:
        config |= {"target_parameters": sorted(parameters), "lora_dropout": 0.0}
    saved = PeftConfig(**config)
    saved.target_modules = sorted(config["target_modules"])  # the order of a set differs between processes
    return saved


def targets_of(config: Mapping[str, object]) -> str:
    """The value of lora.target-modules for an adapter_config.json that `config_to_load` wrote."""
    modules, parameters = config["target_modules"], config.get("target_parameters") or []
    assert isinstance(modules, list), modules
    assert isinstance(parameters, list), parameters
    return ",".join([*modules, *parameters])


def _target_names(causal: PreTrainedModel, value: str) -> list[str]:
    """lora.target-modules as a list of names; auto is replaced by peft's choice for the architecture."""
    if value != "auto":
        target_names = [target.strip() for target in value.split(",")]
        if not all(target_names):
            raise ConfigError(
                f"{KEY} = {value!r} has an empty name; give comma-separated names, {ALL!r} or 'auto'"
            )
        return target_names
    names = [name for name, _ in causal.named_modules()]
    for kind in (causal.config.model_type, causal.config.get_text_config().model_type):
        choice: str | list[str] = AUTO_TARGETS.get(kind, [])
        if isinstance(choice, str):
            target_names = [name for name in names if re.fullmatch(choice, name)]
        else:
            target_names = [target for target in choice if matching(names, target)]
        if target_names:
            return target_names
    return [ALL]


def _peft_target_modules(
    causal: PreTrainedModel, target_names: Sequence[str], targets: Targets, plain: Sequence[str]
) -> str | list[str]:
    """The shortest value of peft's target_modules that selects exactly the `plain` modules."""
    wanted = set(plain)
    if list(target_names) == [ALL] and wanted == linear_layers(causal) and not _renames(causal, ALL):
        return ALL
    names = [name for name, _ in causal.named_modules()]
    suffixes = dict.fromkeys(
        target_names if ALL not in target_names else (name.rsplit(".", 1)[-1] for name in plain)
    )
    used = [target for target in suffixes if matching(plain, target)]
    return used if {name for target in used for name in matching(names, target)} == wanted else list(plain)


def _renamed_by_peft(causal: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Linear layers that peft renames, taking them for experts of transformers 4 by the ends of their names."""
    renamed = {suffix for suffix in {name.rsplit(".", 1)[-1] for name in names} if _renames(causal, suffix)}
    return [name for name in names if name.rsplit(".", 1)[-1] in renamed]


def _renames(causal: PreTrainedModel, name: str) -> bool:
    config = PeftConfig(target_modules=name if name == ALL else [name])
    try:
        convert_peft_config_for_transformers(config, causal, None)
    except ValueError:  # the name is one of several that peft would fuse
        return True
    targets = config.target_modules or ()
    return name != targets and name not in targets


def _attach_by_name(adapted: PeftModel, names: Sequence[str]) -> None:
    """Add linear layers to the adapter by injecting a state dict with their names."""
    config = adapted.peft_config["default"]
    assert isinstance(config, PeftConfig), config
    parameters, config.target_parameters = config.target_parameters, None  # peft does not allow both
    if config.target_modules == DUMMY_TARGET_MODULES:  # no other layer is adapted
        config.target_modules = []
    state = dict.fromkeys((f"{name}.lora_A.weight" for name in names), torch.empty(0))
    with warnings.catch_warnings():
        # peft warns that the configuration does not name these layers
        warnings.simplefilter("ignore", RuntimeWarning)
        adapted.base_model.inject_adapter(adapted.get_base_model(), "default", state_dict=state)  # type: ignore[operator]  # a BaseTuner
    config.target_parameters = parameters


def _check_adapted(adapted: PeftModel, targets: Targets) -> None:
    """Assert that peft adapted exactly the targets: it drops names that it cannot match and rewrites others."""
    layers = adapted_layers(adapted)
    stacks = [f"{n}.{m.parameter_name}" for n, m in layers.items() if isinstance(m, ParamWrapper)]
    adapted_names = {n for n, m in layers.items() if not isinstance(m, ParamWrapper)}
    adapted_names |= {name.replace(".base_layer.", ".") for name in stacks}
    target_names = {f"{PREFIX}{name}" for name in (*targets.linear, *targets.experts)}
    assert adapted_names == target_names, (
        f"peft adapted other modules than the targets: {sorted(adapted_names ^ target_names)[:4]}"
    )


def _check_experts(lora: LoraConfig) -> None:
    if lora.dropout:
        raise ConfigError(
            f"lora.dropout = {lora.dropout} cannot be used with fused experts in {KEY} = {lora.target_modules!r}: "
            "peft has no dropout for them; set it to 0 or leave out the experts"
        )
    if lora.aggregation in ("fedex", "flora", "flexlora"):
        raise ConfigError(
            f"lora.aggregation = {lora.aggregation!r} cannot be used with fused experts in {KEY} = "
            f"{lora.target_modules!r}: their A and B are not the factors of one matrix; use separate | ffa | rolora | "
            "fedsa, or leave out the experts"
        )


def _log_warnings(adapted: PeftModel, targets: Targets, rank: int) -> None:
    kind = type(adapted.get_base_model()).__name__
    if targets.left_out:
        log.warning("%s: %s", kind, targets.left_out)
    shapes = {n: (m.in_features, m.out_features) for n, m in adapted_layers(adapted).items()}
    full_ranks = {n: min(size for size in shape if size) for n, shape in shapes.items()}
    exceeded = {n: full_rank for n, full_rank in full_ranks.items() if full_rank < rank}
    if exceeded:
        name = next(iter(exceeded))
        log.warning(
            "%s: lora.r = %d is above the full rank of %s (%d) and of %d adapted layers in all: correct, but wasteful",
            kind, rank, name.removeprefix(PREFIX), exceeded[name], len(exceeded),
        )  # fmt: skip
