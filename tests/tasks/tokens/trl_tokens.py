"""The tokens that TRL 1.16 makes of a row."""

from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tasks.base import Row
from tests import tiny
from tests.tasks.tokens.conversations import Ids


class Trl:
    """The three trainers of TRL, made once, whose tokenisation takes any tokenizer."""

    def __init__(self, folder: str) -> None:
        causal = AutoModelForCausalLM.from_pretrained(folder)
        rows = [
            {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "b", "label": i > 0}
            for i in range(2)
        ]
        args = {"output_dir": folder, "report_to": [], "use_cpu": True, "bf16": False, "max_length": None}
        kinds: list[tuple[Any, Any, list[str]]] = [
            (DPOTrainer, DPOConfig, ["prompt", "chosen", "rejected"]),
            (KTOTrainer, KTOConfig, ["prompt", "completion", "label"]),
            (SFTTrainer, SFTConfig, ["prompt", "completion"]),
        ]
        self._made = {}
        for trainer, config, columns in kinds:
            cfg = config(**args, per_device_train_batch_size=2)
            data = Dataset.from_list(rows).select_columns(columns)
            model = causal if trainer is SFTTrainer else AutoModelForCausalLM.from_pretrained(folder)
            made = trainer(model=model, args=cfg, train_dataset=data, processing_class=tiny.tokenizer())
            self._made[trainer] = (made, cfg)

    def _prepared(self, trainer: Any, row: Row, tokenizer: PreTrainedTokenizerFast, *more: Any) -> Row:
        made, cfg = self._made[trainer]
        made._tokenizer = tokenizer
        return made._prepare_dataset(Dataset.from_list([row, row]), tokenizer, cfg, *more, "eval")[0]

    def dpo(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        made = self._prepared(DPOTrainer, row, tokenizer)
        return made["prompt_ids"], made["chosen_ids"], made["rejected_ids"]

    def kto(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        thumb = {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
        made = self._prepared(KTOTrainer, thumb, tokenizer)
        return made["prompt_ids"], made["completion_ids"]

    def kto_batch(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerFast, max_length: int
    ) -> list[list[int]]:
        """Each prompt with its mismatched completion, as the model sees them."""
        made, cfg = self._made[KTOTrainer]
        made._tokenizer = tokenizer
        cfg = KTOConfig(cfg.output_dir, per_device_train_batch_size=len(rows), max_length=max_length, use_cpu=True,
                        bf16=False)  # fmt: skip
        data = made._prepare_dataset(Dataset.from_list(rows), tokenizer, cfg, "eval")
        collate = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=max_length)
        seen = collate([{**row, "label": True} for row in data])
        return [
            ids[mask.bool()].tolist()
            for ids, mask in zip(seen["KL_input_ids"], seen["KL_attention_mask"], strict=True)
        ]

    def sft(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> Ids:
        demonstration = {"prompt": row["prompt"], "completion": row["chosen"]}
        made = self._prepared(SFTTrainer, demonstration, tokenizer, False, None)
        learned = [token for token in made["labels"] if token != -100]
        return made["input_ids"][: len(made["input_ids"]) - len(learned)], learned
