"""Speed and memory of local training on a GPU, compared with TRL and with the estimate; used by benchmarks/gpu.py."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_models import HALF_BILLION, SEED, Row, Size, build_model, loaded, rows_of, settings
from cli.run.footprint import estimate, shape_of
from core import sections
from core.plugins import build
from core.sections import Choice, Config, ModelConfig, TrainConfig
from tasks.forward.reference import reference_logps
from tasks.forward.setup import forget
from tasks.model.adapter import initial_adapter, set_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.training import loop


def speed(device: str, dtype: str, size: Size = HALF_BILLION) -> list[Row]:
    """Tokens per second of DPO and KTO with cached references, compared with TRL, and peak memory with its estimate."""
    with tempfile.TemporaryDirectory() as name:
        folder = build_model(Path(name), "qwen2", size, dtype)
        rows = []
        for task in ("dpo", "kto"):
            rows += speed_of(task, folder, device, dtype, size)
            forget()  # so that the peak of the next task does not include this base
        return rows


def speed_of(task: str, folder: Path, device: str, dtype: str, size: Size) -> list[Row]:
    base = loaded(folder, device, dtype)
    cfg, cache, plugin = settings(task, size), Cache(None), build("tasks", task, {})
    rows = rows_of(task, size, cfg.per_device_batch_size * size.steps)
    reference_logps(base, rows, cache)
    tokens = sum(len(e.prompt) * len(e.completions) + sum(map(len, e.completions)) for e in rows)
    training = {"seed": SEED, "cache": cache}
    seconds, peak = timed(lambda: loop.train(base, plugin, rows, cfg, **training), base, device)
    out = [Row(f"{task}, tokens per second, {dtype}", f"Accord {tokens / seconds:,.0f}")]
    if device.startswith("cuda"):
        bound = bound_of(folder, device, dtype, task, cfg)
        figure = f"{peak / 1e9:.2f} GB; estimate {bound / 1e9:.2f} GB"
        out.append(Row(f"{task}, peak memory, {dtype}", figure, peak <= bound))
    try:
        from tasks.training import trl_engine
    except ModuleNotFoundError as error:
        return [
            *out,
            Row(f"{task}, compared with TRL, {dtype}", f"not measured: {error.name} is not installed"),
        ]
    base.causal.set_attn_implementation("sdpa")
    trl_seconds, trl_peak = timed(lambda: trl_engine.train(base, plugin, rows, cfg, **training), base, device)
    memory = f", peak {trl_peak / 1e9:.2f} GB" if trl_peak else ""
    figure = f"TRL {tokens / trl_seconds:,.0f}{memory}; Accord is {trl_seconds / seconds:.2f} times as fast"
    return [*out, Row(f"{task}, compared with TRL, {dtype}", figure)]


def timed(train: Callable[[], object], base: Base, device: str) -> tuple[float, float]:
    """Seconds of the second of two runs, and its peak of device memory in bytes (0 on the CPU)."""
    cuda = device.startswith("cuda")
    seconds = peak = 0.0
    for _ in range(2):
        set_adapter(base, initial_adapter(base, SEED))
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        train()
        if cuda:
            torch.cuda.synchronize()
            peak = float(torch.cuda.max_memory_allocated())
        seconds = time.perf_counter() - started
    return seconds, peak


def bound_of(folder: Path, device: str, dtype: str, task: str, cfg: TrainConfig) -> float:
    """Estimated bytes on the device (cli/run/footprint.py), without the memory of the process."""
    model = ModelConfig(name=str(folder), device=device, dtype=dtype)  # type: ignore[arg-type]
    chosen = {name: cls() for name, cls in sections.SECTIONS.items()} | {"model": model, "train": cfg}
    choice = Choice("tasks", task, ())
    config = Config(
        **chosen,
        task_choice=choice,
        strategy_choice=choice,
        source_choice=choice,
        benchmarks=(),
        judge=None,
        flat=(),
    )
    shape = shape_of(model)
    assert shape is not None, folder
    expected = estimate(config, shape)
    return expected.total - expected.process
