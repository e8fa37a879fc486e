"""One client-round of local training, timed side by side: TRL as it comes, TRL tuned, and Accord's engine.

Every side trains the same tokens in the same order from the same adapter; the losses and LoRA gradients
of the first step are compared before anything is timed. See benchmarks/README.md.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 33)}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SIDES = ("trl-default", "trl-tuned", "accord-first", "accord")
ROWS = {"dpo": 8, "kto": 16, "sft": 16}  # rows (pairs for dpo) of one optimiser step
# name: hidden, intermediate, layers, heads, key-value heads, vocabulary; the head is tied to the embedding
MODELS = {
    "tiny": (128, 352, 4, 4, 4, 8_192),
    "15m": (288, 768, 6, 6, 6, 32_000),
    "135m": (576, 1536, 30, 9, 3, 49_152),
}
SEED = 20
# Of a random model a response's log-probability is near -1500, which float32 holds to 6e-5; times beta, that is
# 1e-5 of the gradient on every side alike (measured against float64), and two sides may be off in opposite ways.
TOLERANCE = 3e-5


@dataclass(frozen=True)
class Options:
    model: str
    vocabulary: int
    steps: int
    repeats: int
    threads: int


def main(argv: list[str]) -> None:
    page = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page.add_argument("--task", choices=(*ROWS, "all"), default="all")
    page.add_argument("--model", choices=MODELS, default="15m")
    page.add_argument("--vocabulary", type=int, default=0, help="0: the model's own")
    page.add_argument("--steps", type=int, default=10)
    page.add_argument("--repeats", type=int, default=3)
    page.add_argument("--threads", type=int, default=2)
    page.add_argument("--json", type=Path, help="write the figures here")
    page.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)  # a child process of this script
    page.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = page.parse_args(argv)
    same_settings(args.threads)
    from transformers.utils import logging

    logging.disable_progress_bar()
    vocabulary = args.vocabulary or MODELS[args.model][-1]
    options = Options(args.model, vocabulary, args.steps, args.repeats, args.threads)
    if args.peak_of:
        print(json.dumps(peak(make_case(options, args.task, args.folder), args.peak_of)))
        return
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder), options)
        for task in ROWS if args.task == "all" else (args.task,):
            figures.append(measure(make_case(options, task, Path(folder))))
            show(figures[-1])
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def same_settings(threads: int) -> None:
    """Start this process anew unless thread counts and allocator thresholds are as they are for every side.

    Without the thresholds glibc gives large tensors back to the system and faults them in again at every step.
    """
    wanted = {**ALLOCATOR, **QUIET, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def build_model(folder: Path, options: Options) -> None:
    """A Llama with random weights and a tokenizer whose words are its token ids, saved under `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, kv_heads, _ = MODELS[options.model]
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, options.vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )


@dataclass
class Case:
    """What every side of one task trains on: the same rows in the same order, as text and as tokens."""

    options: Options
    name: str
    folder: Path
    task: Any  # a plugin of tasks/
    cfg: Any  # core.config.TrainConfig
    text: list[dict[str, Any]]  # in the order of training
    examples: list[Any]  # in the order from which Accord's draw makes that of training

    def base(self) -> Any:
        """A base of its own for each side, with an adapter that is not the reference."""
        import torch

        from core.config import LoraConfig, ModelConfig
        from tasks.kit.model import initial_adapter, load_base, set_adapter

        model = ModelConfig(name=str(self.folder), device="cpu", cpu_threads=self.options.threads)
        base = load_base.__wrapped__(model, LoraConfig(target_modules="q_proj,v_proj"))
        draw = torch.Generator().manual_seed(SEED)
        tree = initial_adapter(base, SEED)
        for name in sorted(tree):
            if ".lora_B." in name:
                tree[name].normal_(0, 0.02, generator=draw)
        set_adapter(base, tree)
        return base


def make_case(options: Options, name: str, folder: Path) -> Case:
    """Prompts and responses of 64-256 words, uniformly; a response's last token is EOS."""
    from transformers import AutoTokenizer

    from core.config import TrainConfig
    from core.plugins import build
    from tasks.base import Example
    from tasks.kit.loop import local_batches
    from tasks.kto import rotated

    task = build("tasks", name, {})
    cfg = TrainConfig(
        learning_rate=1e-3, local_steps=options.steps, per_device_batch_size=ROWS[name], max_length=512
    )
    draw = random.Random(SEED)

    def words(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, options.vocabulary) for _ in range(draw.randint(least, most)))

    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    count, width = options.steps * ROWS[name], 2 if name == "dpo" else 1
    ordered = [
        Example(
            words(64, 256),
            tuple((*words(63, 255), eos) for _ in range(width)),
            bool(i % 2) if name == "kto" else None,
        )
        for i in range(count)
    ]
    if name == "kto":
        ordered = rotated(ordered, ROWS[name], max_length=cfg.max_length)  # TRL's pairing, on every side
    order = [
        row
        for micro in local_batches(count, cfg, steps=options.steps, seed=SEED)
        for batch in micro
        for row in batch
    ]
    examples = [ordered[order.index(row)] for row in range(count)]
    return Case(options, name, folder, task, cfg, [as_text(name, e) for e in ordered], examples)


def as_text(name: str, example: Any) -> dict[str, Any]:
    """The row from which TRL's tokenisation makes these tokens; it adds EOS itself."""
    prompt, *responses = (
        "".join(f" w{i}" for i in ids if i > 1) for ids in (example.prompt, *example.completions)
    )
    if name == "dpo":
        return {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
    return {"prompt": prompt, "completion": responses[0]} | (
        {"label": example.label} if name == "kto" else {}
    )


Round = Callable[
    ..., tuple[float, dict[str, Any]]
]  # (steps, keep gradients?) -> mean loss, gradients of step 1


def make_side(case: Case, side: str) -> tuple[Callable[[], None], Round]:
    """(back to the starting adapter, one client-round)."""
    from tasks.kit.cache import Cache
    from tasks.kit.loop import train
    from tasks.kit.model import get_adapter, set_adapter
    from tasks.kit.reference import reference_logps

    base = case.base()
    start = get_adapter(base)
    filled = Cache(None)
    if case.task.needs_reference and side in ("trl-tuned", "accord"):
        reference_logps(base, case.examples, filled)  # made in an earlier round
    if side.startswith("trl"):
        from tasks.kit.trl_engine import train as train_trl

        base.causal.set_attn_implementation("sdpa")

    def one_round(steps: int, keep: bool = False) -> tuple[float, dict[str, Any]]:
        gradients: dict[str, Any] = {}

        def correct(name: str, _: Any, gradient: Any) -> Any:
            gradients.setdefault(name, gradient.clone())
            return gradient

        if side == "trl-default":
            return trl_default(case, base, steps, keep)
        common = {"seed": SEED, "steps": steps, "correct": correct if keep else None}
        if side == "trl-tuned":
            with compact_head():
                report = train_trl(base, case.task, case.examples, case.cfg, cache=filled, **common)
        else:
            cache = filled if side == "accord" else Cache(None)
            report = train(base, case.task, case.examples, case.cfg, cache=cache, **common)
        return report.metrics["loss"], gradients

    return lambda: set_adapter(base, start), one_round


def trl_default(case: Case, base: Any, steps: int, keep: bool) -> tuple[float, dict[str, Any]]:
    """TRL as the reference implementations use it: text in, a new trainer every round, its own defaults.

    Set besides batch size, steps and rate: float32 instead of autocast, the order of rows, a constant rate, and
    the "ref" adapter deleted, so that all sides compute the same thing; and nothing written or reported.
    """
    import trl
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            for name, parameter in base.flat.parameters.items():
                gradients.setdefault(name, parameter.grad.clone())

    gradients: dict[str, Any] = {}
    kind = case.name.upper()
    with tempfile.TemporaryDirectory() as folder:
        args = getattr(trl, f"{kind}Config")(
            output_dir=folder,
            per_device_train_batch_size=case.cfg.per_device_batch_size,
            max_steps=steps,
            learning_rate=case.cfg.learning_rate,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            max_grad_norm=0 if keep else 1.0,  # the callback comes after clipping
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = getattr(trl, f"{kind}Trainer")(
            model=base.model,
            args=args,
            train_dataset=Dataset.from_list(case.text),
            processing_class=base.tokenizer,
            callbacks=[Keep()] if keep else None,
        )
        trainer.remove_callback(PrinterCallback)
        if "ref" in base.model.peft_config:
            base.model.delete_adapter("ref")
        loss = trainer.train().training_loss
    return loss, gradients


@contextmanager
def compact_head() -> Iterator[None]:
    """TRL's vocabulary head on completion rows only, which it does on CUDA and leaves out on the CPU."""
    from trl.trainer import utils

    usual = utils._use_triton
    utils._use_triton = lambda device: True  # asked in this module only for the choice of rows
    try:
        yield
    finally:
        utils._use_triton = usual


def measure(case: Case) -> dict[str, Any]:
    """Compare the sides' first steps, then time their rounds in turn, then their memory in processes of their own."""
    sides = {
        side: make_side(case, side) for side in SIDES if case.task.needs_reference or side != "accord-first"
    }
    firsts = {}
    for side, (reset, one_round) in sides.items():
        firsts[side] = one_round(1, keep=True)
        reset()
    error = {side: distance(first, firsts["trl-default"]) for side, first in firsts.items()}
    assert max(map(max, error.values())) < TOLERANCE, f"the sides do not compute the same step: {error}"
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    loss = {}
    for _ in range(case.options.repeats):
        for side, (reset, one_round) in sides.items():
            reset()
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            loss[side], _ = one_round(case.options.steps)
            seconds[side].append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu = {side: statistics.median(c for c, _ in times) for side, times in seconds.items()}
    return {
        "task": case.name,
        **asdict(case.options),
        "rows_per_step": ROWS[case.name],
        "sides": {
            side: {
                "cpu_s": round(cpu[side], 3),
                "wall_s": round(statistics.median(w for _, w in seconds[side]), 3),
                "faster_than_default": round(cpu["trl-default"] / cpu[side], 2),
                "faster_than_tuned": round(cpu["trl-tuned"] / cpu[side], 2),
                "peak_mb": peak_in_child(case, side),
                "loss": loss[side],
                "first_loss_error": error[side][0],
                "first_gradient_error": error[side][1],
            }
            for side in sides
        },
    }


def distance(a: tuple[float, dict[str, Any]], b: tuple[float, dict[str, Any]]) -> tuple[float, float]:
    """Relative difference of two losses, and of two gradients in L2."""
    import torch

    flat = [torch.cat([gradients[name].flatten() for name in sorted(b[1])]) for _, gradients in (a, b)]
    return abs(a[0] - b[0]) / abs(b[0]), float((flat[0] - flat[1]).norm() / flat[1].norm())


def peak_in_child(case: Case, side: str) -> float:
    """A peak does not fall, so every side gets a process; three steps show it."""
    o = case.options
    own = {"--task": case.name, "--model": o.model, "--vocabulary": o.vocabulary, "--steps": min(3, o.steps)}
    own |= {"--threads": o.threads, "--folder": case.folder, "--peak-of": side}
    command = [sys.executable, __file__, *(str(part) for pair in own.items() for part in pair)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(out.stdout.splitlines()[-1])["peak_mb"]


def peak(case: Case, side: str) -> dict[str, float]:
    """MB by which resident memory rises above the loaded model during a round (Linux)."""
    _, one_round = make_side(case, side)
    if side == "trl-default":
        import trl  # noqa: F401  # its import is not the round's memory
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    loaded = status_mb("VmRSS")
    one_round(case.options.steps)
    return {"peak_mb": round(status_mb("VmHWM") - loaded, 1)}


def status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def show(figures: dict[str, Any]) -> None:
    print(
        f"\n{figures['task']}: one client-round of {figures['steps']} steps of {figures['rows_per_step']} "
        f"{'pairs' if figures['task'] == 'dpo' else 'rows'}, {figures['model']} Llama, vocabulary "
        f"{figures['vocabulary']}, {figures['threads']} threads, median of {figures['repeats']}"
    )
    print(
        f"{'side':14}{'CPU s':>9}{'wall s':>9}{'x default':>11}{'x tuned':>9}{'peak MB':>9}{'loss':>9}{'grad error':>12}"
    )
    for side, f in figures["sides"].items():
        print(
            f"{side:14}{f['cpu_s']:9.2f}{f['wall_s']:9.2f}{f['faster_than_default']:11.2f}"
            f"{f['faster_than_tuned']:9.2f}{f['peak_mb']:9.0f}{f['loss']:9.4f}{f['first_gradient_error']:12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    main(sys.argv[1:])
