"""Values and arithmetic that every part of Accord shares."""

import os

__version__ = "0.2.0"  # that of pyproject.toml

os.environ.setdefault(
    "HF_HUB_DISABLE_TELEMETRY", "1"
)  # here, since huggingface_hub reads it when it is imported
