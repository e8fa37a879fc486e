"""The checks of `make gpu`: on a GPU if there is one, and on the CPU with tiny shapes to test the script."""

import pytest
import torch

from benchmarks import gpu, gpu_checks, gpu_models, gpu_speed

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize(
    "check", gpu.checks("cuda", quick=True), ids=lambda check: f"{check.func.__name__} {check.args[1]}"
)
def test_the_checks_pass_on_a_gpu(check) -> None:
    assert [row for row in check() if row.passed is False] == []


def test_the_packing_check_passes_on_the_cpu() -> None:
    """Packed and padded models against plain transformers; every row is a check and passes."""
    rows = gpu_checks.packing("cpu", "float32", gpu_models.TINY)
    assert [row.passed for row in rows] == [True] * len(rows)
    assert {row.figure.split(":")[0] for row in rows} == {"packed", "padded"}


def test_a_wrong_log_probability_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_checks.completion_logps
    monkeypatch.setattr(gpu_checks, "completion_logps", lambda base, forks: real(base, forks) + 0.01)
    assert not any(row.passed for row in gpu_checks.packing("cpu", "float32", gpu_models.TINY))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_leak_check_passes_on_the_cpu(dtype: str) -> None:
    rows = gpu_checks.leaks("cpu", dtype, gpu_models.TINY)
    assert [row for row in rows if not row.passed] == []
    assert len(rows) == 3 + 3 + 3 + 2  # gemma2 is padded, without a planted leak


@pytest.mark.slow
def test_speed_is_measured_on_any_device() -> None:
    figures = [row.figure for row in gpu_speed.speed("cpu", "float32", gpu_models.TINY)]
    assert sum(figure.startswith("Accord ") for figure in figures) == 2


def test_without_a_gpu_the_script_fails_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no CUDA device"):
        list(gpu.run("cuda", quick=True))
