"""Load a tokenizer and a causal language model from a checked folder, without random tensors or custom code."""

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

SAMPLE = "The answer is 42."  # plain text that every vocabulary covers at least partly
# What transformers raises for files that it cannot load.
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

MEDIA = ("image", "audio", "video")  # prefixes of the names of special tokens that stand for media

log = logging.getLogger(__name__)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; EOS is used for padding if it has no padding token.

    Raises ConfigError for a tokenizer that cannot be loaded, has no vocabulary, or has no EOS token.
    """
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
    """Load a model with every tensor from the checked files; none is initialised at random.

    placement: the device_map of from_pretrained(). Raises ConfigError for a model type that transformers does not
    know, and for tensors that are missing, of another shape, or unreadable.
    """
    _check_native(folder, model)
    weights = weights_of(folder)
    options = {"quantization_config": quantization} if quantization else {}
    transformers_logging.disable_progress_bar()  # the output may be a log
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # hide its table of missing tensors; _check_report has one line for it
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
    """Raises ConfigError for a tokenizer with token ids beyond the rows of the model's embedding.

    Placeholder tokens for images or sound are allowed there (gemma-3-1b-it has one), because text is not encoded as
    them; a row that spells one out is a bad row.
    """
    rows = embedding_rows(causal)
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if not beyond:
        return
    number, token = beyond[0]
    excess = f"{len(beyond)} token{'s' if len(beyond) > 1 else ''} ({token!r} is {number})"
    media = {text for name, text in tokenizer.special_tokens_map.items() if name.startswith(MEDIA)}
    if media.issuperset(text for _, text in beyond):
        log.warning("the tokenizer in %s has %s beyond the embedding: no row may hold it", folder, excess)
        return
    raise ConfigError(
        f"the tokenizer in {folder} has {excess} beyond the {rows} rows of the model's embedding; use the tokenizer "
        "that belongs to the model, or resize_token_embeddings() and save both"
    )


def embedding_rows(causal: PreTrainedModel) -> int:
    """The number of token ids that the model has an embedding for."""
    return len(causal.get_input_embeddings().weight)  # type: ignore[arg-type]  # typed as Tensor | Module


def check_length(causal: PreTrainedModel, max_length: int, name: str) -> None:
    """Raises ConfigError if `max_length` exceeds the number of positions that a model has learned."""
    limit = learned_positions(causal)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"train.max-length = {max_length} is longer than the {limit} positions that model.name = {name!r} has; set "
            f"train.max-length to at most {limit}"
        )


def learned_positions(causal: PreTrainedModel) -> int | None:
    """The longest row, in tokens, of a model with a table of positions; None for rotary, ALiBi and computed ones."""
    config = causal.config.get_text_config()
    limit = config.to_dict().get(config.attribute_map.get(POSITIONS, POSITIONS))
    if not isinstance(limit, int):
        return None
    # a table counts as positions if it has about as many rows as the configuration says
    tables = [
        m.num_embeddings for n, m in causal.named_modules() if isinstance(m, nn.Embedding) and _is_table(n)
    ]
    tables += [
        len(b) for n, b in causal.named_buffers() if b.dim() == 2 and _is_table(n)
    ]  # sines, as GPT-J keeps them
    return limit if any(0 <= rows - limit <= RESERVED for rows in tables) else None


POSITIONS = "max_position_embeddings"
RESERVED = 8  # most rows of a table that are not positions: OPT and BioGPT have two


def _is_table(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return leaf in ("wpe", "pos_encoding") or ("position" in leaf and leaf != "position_ids")


def _check_native(folder: Path, model: ModelConfig) -> None:
    """Raises ConfigError for an architecture that needs code from the model folder, and for an unknown one."""
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
                f"model.name = {model.name!r} is of type {kind!r}, which is not a causal language model of "
                "transformers; choose one that writes text from left to right"
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
