"""Checks that need a GPU, as functions that return rows of a table; `python -m benchmarks.gpu` prints them.

The models have random weights. Neither Flower nor Ray is imported. Every function takes the device, so that the same
code runs on the CPU with small shapes (tests/benchmarks/test_gpu.py).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu_models import (
    PAD,
    SEED,
    SMALL,
    Row,
    Size,
    build_model,
    loaded,
    moved,
    rows_of,
    settings,
)
from core.plugins import build
from core.tree import flat
from tasks.forward import packing_choice, probe
from tasks.forward.logprobs import completion_logps
from tasks.forward.packing import Fork
from tasks.forward.setup import forget
from tasks.model.adapter import get_adapter
from tasks.model.base import Base
from tasks.tokens.cache import Cache
from tasks.training import loop

FAMILIES = ("llama", "qwen2", "mistral", "gemma2")

# --- packed against padded -----------------------------------------------------------------


def packing(device: str, dtype: str, size: Size = SMALL) -> list[Row]:
    """Compare Accord's log-probabilities with a plain forward pass of each sequence alone.

    The noise is the difference between the same sequences in one padded batch and alone.
    """
    out = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            base = loaded(build_model(Path(folder), family, size), device, dtype)
            moved(base)
            forks = [(e.prompt, e.completions) for e in rows_of("dpo", size, 4)]
            with torch.no_grad():
                logps = completion_logps(base, forks).cpu()
            base.causal.set_attn_implementation(
                "sdpa" if base.packed else base.causal.config._attn_implementation
            )
            alone, together = plain_logps(base, forks, batched=False), plain_logps(base, forks, batched=True)
        error, noise = float((logps - alone).abs().max()), float((together - alone).abs().max())
        path = "packed" if base.packed else "padded"
        figure = (
            f"{path}: off by {error:.1e} nats; batched against alone {noise:.1e}, of {alone.abs().max():.0f}"
        )
        out.append(Row(f"log-probabilities, {family} {dtype}", figure, error <= 4 * noise + 1e-3))
        forget()
    return out


@torch.no_grad()
def plain_logps(base: Base, forks: Sequence[Fork], *, batched: bool) -> Tensor:
    """Summed log-probabilities of the completions, (C,), by transformers alone, in float32 after the head."""
    sequences = [(prompt, completion) for prompt, completions in forks for completion in completions]
    groups = [sequences] if batched else [[sequence] for sequence in sequences]
    out = []
    for group in groups:
        longest = max(len(prompt) + len(completion) for prompt, completion in group)
        ids = torch.full((len(group), longest), PAD)
        mask = torch.zeros_like(ids)
        for i, (prompt, completion) in enumerate(group):
            ids[i, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
            mask[i, : len(prompt) + len(completion)] = 1
        logits = base.model(input_ids=ids.to(base.device), attention_mask=mask.to(base.device)).logits.float()
        for i, (prompt, completion) in enumerate(group):
            part = logits[i, len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1).cpu()
            out.append(part.gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(out)


# --- leaks between rows, and the untrained policy -----------------------------------------------


def leaks(device: str, dtype: str, size: Size = SMALL) -> list[Row]:
    """Measure leaks between rows, and the difference between an untrained policy and its reference.

    A leak is a change of a row's result with the tokens of other rows; another one is planted in the first layer to
    show that it is detected. A pass in training is compared with its repetition and with the reference.
    """
    out = []
    for base, name in fresh_bases(device, dtype, size):
        sample = probe.make_probe(base, base.causal.config.get_text_config().to_dict())
        computed = probe.token_logps(base, sample.forks)
        alone = [probe.token_logps(base, [sequence])[0] for sequence in sample.sequences]
        noise = max(packing_choice.FLOOR, probe.rms_difference(probe.rows_of(computed, sample.lone), alone))
        leak = leak_of(base, sample)
        limit = (
            packing_choice.LEAK * packing_choice.FLOOR
        )  # for dense models, whose rows are computed independently
        out.append(Row(f"leak between rows, {name} {dtype}", f"{leak:.1e} nats", leak <= limit))
        if base.packed:
            with shifted(base):
                planted = leak_of(base, sample)
            figure = f"{planted:.1e} nats, {planted / limit:.0f} times the threshold"
            out.append(Row(f"a planted leak, {name} {dtype}", figure, planted >= 100 * limit))
        repeated, difference = packing_choice.untrained_errors(base, sample.forks)
        figure = (
            f"{difference:.1e} nats from the reference, {repeated:.1e} from itself; "
            f"batched against alone {noise:.1e}"
        )
        passed = (
            difference <= max(packing_choice.UNTRAINED * noise, packing_choice.FLOOR)
            and repeated <= packing_choice.LEAK * noise
        )
        out.append(Row(f"untrained policy in training, {name} {dtype}", figure, passed))
    return out


def fresh_bases(device: str, dtype: str, size: Size) -> Iterator[tuple[Base, str]]:
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            base = loaded(build_model(Path(folder), family, size), device, dtype)
            yield base, f"{family} ({'packed' if base.packed else 'padded'})"
        forget()


@torch.no_grad()
def leak_of(base: Base, sample: probe.Probe) -> float:
    """The largest change, in nats, of a row whose own tokens are the same."""
    computed, changed = (probe.token_logps(base, forks) for forks in (sample.forks, sample.changed))
    return probe.max_difference(probe.rows_of(computed, sample.still), probe.rows_of(changed, sample.still))


@contextmanager
def shifted(base: Base) -> Iterator[None]:
    """Plant a leak: half of each channel of the first layer's input comes from the previous token of the packed row."""
    layers = next(m for m in base.causal.get_decoder().modules() if isinstance(m, nn.ModuleList))

    def shift(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + 0.5 * nn.functional.pad(args[0], (0, 0, 1, -1)), *args[1:])

    hook = layers[0].register_forward_pre_hook(shift)
    try:
        yield
    finally:
        hook.remove()


# --- repetition ------------------------------------------------------------------------------


def trained(folder: Path, device: str, dtype: str, size: Size, seed: int) -> str:
    """The digest of the adapter after local training with dpo."""
    base = loaded(folder, device, dtype)
    cfg, rows = settings("dpo", size), rows_of("dpo", size, size.pairs * size.steps)
    loop.train(base, build("tasks", "dpo", {}), rows, cfg, seed=seed, cache=Cache(None))
    return hashlib.sha256(flat(get_adapter(base)).numpy().tobytes()).hexdigest()


def repetition(device: str, dtype: str, size: Size = SMALL) -> list[Row]:
    """Train twice in one process and once in another; then two clients at a time, in two processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = build_model(Path(name), "qwen2", size)
        first, second = (trained(folder, device, dtype, size, SEED) for _ in range(2))
        other = trained(folder, device, dtype, size, SEED + 1)
        (alone,) = side_by_side(folder, device, dtype, size, [SEED])
        pair = side_by_side(folder, device, dtype, size, [SEED, SEED + 1])
        forget()
    same = {
        "twice in one process": first == second,
        "in another process": first == alone,
        "two clients at a time, as two processes": pair == [first, other],
    }
    rows = [
        Row(f"adapter bytes, {dtype}, {name}", "identical" if equal else "different", equal)
        for name, equal in same.items()
    ]
    return [
        *rows,
        Row(
            f"adapter bytes, {dtype}, another seed",
            "different" if first != other else "identical",
            first != other,
        ),
    ]


def side_by_side(folder: Path, device: str, dtype: str, size: Size, seeds: Sequence[int]) -> list[str]:
    """Call `trained` in one process per seed, all at the same time."""
    code = (
        "import json, sys; from pathlib import Path; from benchmarks import gpu_checks as g; "
        "a = json.loads(sys.argv[1]); "
        "print(g.trained(Path(a['folder']), a['device'], a['dtype'], g.Size(**a['size']), a['seed']))"
    )
    arguments = {"folder": str(folder), "device": device, "dtype": dtype, "size": size.__dict__}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps({**arguments, "seed": seed})],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    outputs = [child.communicate()[0] for child in children]
    return [output.strip().splitlines()[-1] if output.strip() else "no answer" for output in outputs]
