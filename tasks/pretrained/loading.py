"""A tokenizer and a causal language model from a checked folder: whole, without code of its own, or one clear error."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from core.errors import ConfigError
from core.sections import ModelConfig
from tasks.pretrained.convert import weights_of
from tasks.pretrained.weights import CONFIG, counted_names, read_config

SAMPLE = "The answer is 42."  # plain text, of which every vocabulary knows something
# What transformers raises for files that it cannot make sense of.
UNUSABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)

MEDIA = ("image", "audio", "video")  # a special token by such a name stands for what is not text

log = logging.getLogger(__name__)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ConfigError without an end-of-text token; without a padding token that one is used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot parse
        raise ConfigError(
            f"no usable tokenizer in {folder}: {_line(error)}; it needs tokenizer_config.json with tokenizer.json (or "
            "tokenizer.model, vocab.json and merges.txt), and no code of its own"
        ) from error
    if not tokenizer(SAMPLE, add_special_tokens=False).input_ids:
        raise ConfigError(
            f"the tokenizer in {folder} has no vocabulary: tokenizer.json (or tokenizer.model, vocab.json and "
            "merges.txt) is missing; copy or download it"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {folder} has no eos_token: a model cannot learn where an answer ends; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal(
    folder: Path, model: ModelConfig, placement: Any, quantization: BitsAndBytesConfig | None
) -> PreTrainedModel:
    """The model with every tensor that it needs from the checked files, and none drawn at random.

    placement: transformers' own union. Raises ConfigError for a model that transformers does not know, and for tensors
    that are missing, of another shape, or unreadable.
    """
    _check_native(folder, model)
    weights = weights_of(folder)
    options = {"quantization_config": quantization} if quantization else {}
    transformers_logging.disable_progress_bar()  # of the weights: a log has no place for it
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of missing tensors: ours is one line
    try:
        with weights.opened() as view:
            loaded: Any = (
                AutoModelForCausalLM.from_pretrained(  # Any: a pair, which its annotation leaves out
                    view,
                    dtype=getattr(torch, model.dtype),
                    device_map=placement,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below
                    **options,
                )
            )
    except UNUSABLE as error:
        raise ConfigError(f"model.name = {model.name!r} cannot be loaded: {_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    causal, report = loaded
    _check_report(report, model, [file.name for file in weights.files])
    causal.config.name_or_path = causal.name_or_path = str(folder)
    return causal


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, causal: PreTrainedModel, folder: Path) -> None:
    """Raises ConfigError for a token beyond the embedding that texts can hold.

    The token that stands for an image or a sound may be there, since no text is made of it (gemma-3-1b-it has one): a
    row that spells it out is a bad row.
    """
    rows = embedding_rows(causal)
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if not beyond:
        return
    number, token = beyond[0]
    some = f"{len(beyond)} token{'s' if len(beyond) > 1 else ''} ({token!r} is {number})"
    media = {text for name, text in tokenizer.special_tokens_map.items() if name.startswith(MEDIA)}
    if media.issuperset(text for _, text in beyond):
        log.warning("the tokenizer in %s has %s beyond the embedding: no row may hold it", folder, some)
        return
    raise ConfigError(
        f"the tokenizer in {folder} has {some} beyond the {rows} rows of the model's embedding; use the tokenizer that "
        "belongs to the model, or resize_token_embeddings() and save both"
    )


def embedding_rows(causal: PreTrainedModel) -> int:
    """How many token ids the model knows."""
    return len(causal.get_input_embeddings().weight)  # type: ignore[arg-type]  # typed as Tensor | Module


def check_length(causal: PreTrainedModel, max_length: int, name: str) -> None:
    """Raises ConfigError where rows of `max_length` tokens are longer than the positions that a model has learned."""
    most = learned_positions(causal)
    if most is not None and max_length > most:
        raise ConfigError(
            f"train.max-length = {max_length} is longer than the {most} positions that model.name = {name!r} has; set "
            f"train.max-length to at most {most}"
        )


def learned_positions(causal: PreTrainedModel) -> int | None:
    """How many tokens a row can have where positions are rows of a table; None for rotary, ALiBi and computed ones."""
    config = causal.config.get_text_config()
    named = config.to_dict().get(config.attribute_map.get(POSITIONS, POSITIONS))
    if not isinstance(named, int):
        return None
    tables = [
        m.num_embeddings for n, m in causal.named_modules() if isinstance(m, nn.Embedding) and _is_table(n)
    ]
    tables += [
        len(b) for n, b in causal.named_buffers() if b.dim() == 2 and _is_table(n)
    ]  # sines, as GPT-J keeps them
    return named if any(0 <= rows - named <= RESERVED for rows in tables) else None


POSITIONS = "max_position_embeddings"
RESERVED = 8  # rows of a table that stand for no position: OPT and BioGPT have two


def _is_table(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return leaf in ("wpe", "pos_encoding") or ("position" in leaf and leaf != "position_ids")


def _check_native(folder: Path, model: ModelConfig) -> None:
    """Raises ConfigError for an architecture that comes as code beside the weights, and for an unknown one."""
    page = read_config(folder)
    kind = page.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except UNUSABLE as error:
            raise ConfigError(
                f"model.name = {model.name!r}: {folder / CONFIG} is unusable: {_line(error)}"
            ) from error
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return
        if not page.get("auto_map"):
            raise ConfigError(
                f"model.name = {model.name!r} is of type {kind!r}, which is no causal language model of transformers; "
                "choose one that writes text from left to right"
            )
    if page.get("auto_map"):
        raise ConfigError(
            f"model.name = {model.name!r} needs code of its own (auto_map in {CONFIG}), which Accord never runs; "
            "choose a model that transformers itself knows"
        )
    raise ConfigError(
        f"model.name = {model.name!r}: model_type in {folder / CONFIG} is {str(kind)[:60]!r}, which this version of "
        "transformers does not know; choose another model, or a newer transformers"
    )


def _check_report(report: dict[str, Any], model: ModelConfig, files: Collection[str]) -> None:
    """Raises ConfigError for tensors that were not loaded. report: transformers' loading info."""
    where = f"model.name = {model.name!r}: {min(files)}{' and its other shards' if len(files) > 1 else ''}"
    if missing := report["missing_keys"]:
        raise ConfigError(
            f"{where} lacks {counted_names(missing)}, which would start at random numbers; use a whole checkpoint "
            "of this architecture"
        )
    if mismatched := report["mismatched_keys"]:
        name, stored, expected = min(mismatched)
        raise ConfigError(
            f"{where} has {counted_names([m[0] for m in mismatched])} of another shape than {CONFIG} says: {name} is "
            f"{tuple(stored)}, expected {tuple(expected)}; use files that belong together"
        )
    if report["error_msgs"]:
        raise ConfigError(f"{where} cannot be loaded: {report['error_msgs'][0].splitlines()[0]}")
    if unexpected := report["unexpected_keys"]:
        log.warning("%s has %s that the architecture does not use", where, counted_names(unexpected))


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
