"""Shared machinery of the tasks: the base model, tokens, the training engine, rows."""

import logging
import warnings

# Said at import by libraries that peft pulls in, about kernels and decorators that Accord does not use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
