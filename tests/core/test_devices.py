"""What a machine can run, by the number of CUDA devices that it has."""

import pytest

from core.devices import check_device
from core.errors import ConfigError
from core.sections import ModelConfig


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        ({"device": "cuda"}, 0, "model.device = 'cuda', but torch sees no CUDA device"),
        ({"device": "balanced"}, 0, "model.device = 'balanced', but torch sees no CUDA device"),
        ({"device": "cuda:0"}, 0, "model.device = 'cuda:0', but torch sees no CUDA device"),
        ({"device": "cuda:2"}, 2, "has CUDA devices 0 to 1 only"),
        ({"device": "cpu", "dtype": "float16"}, 8, "model.dtype = 'float16' needs a GPU"),
        ({"device": "auto", "dtype": "float16"}, 0, "use 'bfloat16' or 'float32'"),
        ({"device": "cuda:x"}, 2, "model.device must be auto"),
        ({"device": "cudaa"}, 2, "model.device must be auto"),
        ({"device": "mps"}, 0, "model.device must be auto"),
    ],
)
def test_what_cannot_run_is_refused(settings: dict, gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_device(ModelConfig(**settings), gpus)


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"device": "auto"}, 0),
        ({"device": "cpu", "dtype": "bfloat16"}, 0),
        ({"device": "auto", "dtype": "float16"}, 1),
        ({"device": "cuda:1", "dtype": "float16"}, 2),
        ({"device": "balanced"}, 1),
    ],
)
def test_what_can_run_passes(settings: dict, gpus: int) -> None:
    check_device(ModelConfig(**settings), gpus)
