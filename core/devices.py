"""Check model.device and model.dtype against the machine's GPUs, before anything is loaded."""

from core.errors import ConfigError
from core.sections import ModelConfig


def check_device(model: ModelConfig, gpus: int) -> None:
    """Raise ConfigError for a model.device or model.dtype that needs more than `gpus` CUDA devices."""
    index = model.device.removeprefix("cuda:")
    if not (
        model.device in ("auto", "cpu", "cuda", "balanced") or (index != model.device and index.isdecimal())
    ):
        raise ConfigError(f"model.device must be auto | cpu | cuda | cuda:N | balanced, got {model.device!r}")
    if wants_cuda(model) and not gpus:
        raise ConfigError(
            f"model.device = {model.device!r}, but torch sees no CUDA device here; use 'auto' or 'cpu'"
        )
    if index.isdecimal() and int(index) >= gpus:
        raise ConfigError(
            f"model.device = {model.device!r}, but this machine has CUDA devices 0 to {gpus - 1} only"
        )
    if model.dtype == "float16" and (model.device == "cpu" or not gpus):
        raise ConfigError(
            f"model.dtype = 'float16' needs a GPU, and model.device = {model.device!r} is a CPU here; use 'bfloat16' "
            "or 'float32'"
        )


def wants_cuda(model: ModelConfig) -> bool:
    return model.device.startswith("cuda") or model.device == "balanced"
