"""The base model with one LoRA adapter: its parts, and adapters in and out of it.

peft imports bitsandbytes where it finds it, which takes a second of every process. Without a GPU few runs need it, so
it is hidden here, before any module of this package imports peft; tasks/model/quantized.py shows it when needed.
"""

import sys

import torch

# Not torch.cuda.is_available(), which would read CUDA_VISIBLE_DEVICES for good before Ray has set it.
if not torch.cuda.device_count():
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # None: as if not installed
