"""Check from its configuration that a model is a causal decoder."""

from pathlib import Path

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from core.errors import ConfigError


def refuse_encoders(folder: Path) -> None:
    """Raise ConfigError for encoders and encoder-decoders, before weights are loaded."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return  # loading the model reports the reason
    if config.is_encoder_decoder:
        raise ConfigError(
            f"model.name: {config.model_type} in {folder} is an encoder-decoder; "
            "Accord aligns decoder-only models: use a causal language model"
        )
    switched = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "is_decoder" in config.to_dict()
    if switched and not config.is_decoder:
        raise ConfigError(
            f"model.name: {config.model_type} in {folder} attends in both directions (is_decoder = false in its "
            "config.json); use a causal language model"
        )
