"""Sample run folders with known numbers, in the layout a run leaves."""

import json
from pathlib import Path
from typing import Any

import tomli_w

from core.config import defaults

ROUNDS = 12
CLIENTS = 8
ROWS = 48
RIGHT_BEFORE = [24, 22, 26, 25, 23, 24, 21, 27]  # of 48 held-out pairs, by client; 192 of 384 in all
RIGHT_AFTER = [36, 35, 38, 34, 37, 26, 36, 38]  # 280 of 384
EVIL = "<script>alert(1)</script> | `x` & \"y\" 'z'"


def right(client: int, rnd: int) -> int:
    """Held-out pairs a client gets right after a round: a line from before to after."""
    before, after = RIGHT_BEFORE[client], RIGHT_AFTER[client]
    return round(before + (after - before) * min(1.0, 1.6 * rnd / ROUNDS))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def dpo_record(rnd: int, *, absent: tuple[int, ...] = ()) -> dict[str, Any]:
    """A round of dpo; `absent` clients failed to train and were not evaluated."""
    here = [c for c in range(CLIENTS) if c not in absent]
    scored = {
        str(c): {
            "logps/accuracies": right(c, rnd) / ROWS,
            "length/accuracies": 0.5 + 0.01 * (c % 3),
            "logps/chosen": -40 + 0.2 * rnd + c,
            "examples": ROWS,
            **({"rewards/accuracies": min(1.0, 0.5 + 0.02 * rnd + 0.01 * c)} if rnd else {}),
            **({"rewards/margins": 0.1 * rnd + 0.02 * c, "kl": 0.05 * rnd} if rnd else {}),
        }
        for c in here
    }
    record: dict[str, Any] = {
        "round": rnd,
        "participants": here if rnd else [],
        "failed": {str(c): "no answer within 60 s" for c in absent},
        "train": {"mean": {}, "clients": {}},
        "eval": {"mean": _means(scored), "clients": scored},
        "bytes_up": 8_000 + (rnd > 0) * 41_000 * len(here),
        "bytes_down": 42_000 * len(here) * (1 + (rnd > 0)),
        "seconds": {"evaluate": 1.3, "wire": 0.2, "total": 1.5},
    }
    if rnd:
        trained = {str(c): {"loss": 0.69 * 0.96**rnd + 0.01 * (c - 3.5)} for c in here}
        record["train"] = {"mean": {"loss": mean([m["loss"] for m in trained.values()])}, "clients": trained}
        parts = {
            "load": 1.9 if rnd == 1 else 0.1,
            "train": 2.9,
            "wire": 0.4,
            "aggregate": 0.15,
            "evaluate": 1.3,
        }
        record["seconds"] = {**parts, "total": sum(parts.values())}
    return record


def sft_record(rnd: int) -> dict[str, Any]:
    scored = {
        str(c): {"loss": 2 - 0.1 * rnd + 0.1 * c, "mean_token_accuracy": 0.4 + 0.02 * rnd} for c in range(3)
    }
    for metrics in scored.values():
        metrics["examples"] = 10
    return {
        "round": rnd,
        "participants": [0, 1, 2] if rnd else [],
        "failed": {},
        "train": {"mean": {"loss": 1.9 - 0.1 * rnd}, "clients": {}} if rnd else {},
        "eval": {"mean": _means(scored), "clients": scored},
        "seconds": {},
    }


def selector_record(rnd: int) -> dict[str, Any]:
    """dpo's held-out pairs, picked by letter."""
    record = dpo_record(rnd)
    scored = {
        client: {
            "accuracy": m["logps/accuracies"],
            "length/accuracies": m["length/accuracies"],
            "examples": ROWS,
        }
        for client, m in record["eval"]["clients"].items()
    }
    return {**record, "eval": {"mean": _means(scored), "clients": scored}}


def grouped_record(rnd: int, groups: str | None) -> dict[str, Any]:
    """A round after which client m is in group groups[m], compared anew; "." is nobody. None: no new grouping."""
    record = selector_record(rnd)
    if groups is not None:
        record["route"] = {str(m): f"c{u}" for m, u in enumerate(groups) if u != "."}
        for metrics in record["eval"]["clients"].values():
            metrics["loss/c0"] = 0.6
    return record


def _means(scored: dict[str, dict[str, float]]) -> dict[str, float]:
    """As the server makes them: every client has as many rows, so the plain mean is the weighted one."""
    metrics = {name for m in scored.values() for name in m if name != "examples"}
    out = {name: mean([m[name] for m in scored.values() if name in m]) for name in sorted(metrics)}
    return {**out, "examples": float(sum(m["examples"] for m in scored.values()))}


def dpo_run(parent: Path, **manifest: Any) -> Path:
    """A finished run of 12 rounds; clients 5 and 6 missed round 4."""
    records = [dpo_record(rnd, absent=(5, 6) if rnd == 4 else ()) for rnd in range(ROUNDS + 1)]
    answers = [
        {
            "prompt": "how is the red bird",
            "before": "the bird bird is",
            "after": "the red bird is kind and sings",
        },
        {"prompt": EVIL, "before": "", "after": f"{EVIL}\nsecond line ```` \x1b[31mred"},
    ]
    return write_run(parent, records, answers=answers, **manifest)


def write_run(
    parent: Path,
    records: list[dict[str, Any]],
    *,
    config: dict[str, Any] | None = None,
    answers: list[dict[str, str]] | None = None,
    **manifest: Any,
) -> Path:
    """A run folder with these records; keys of `manifest` replace the usual ones."""
    folder = parent / "20260102-030405_dpo_fedavg_toy_s42"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    nested: dict[str, dict[str, Any]] = {}
    for key, value in {**defaults(), **(config or {})}.items():
        section, short = key.split(".", 1)
        nested.setdefault(section, {})[short] = value
    (folder / "config.toml").write_text(tomli_w.dumps(nested), "utf-8")
    facts = {
        "accord": "0.1.0",
        "versions": {"torch": "2.13.0", "flwr": "1.39.0", "peft": "0.21.2"},
        "commit": None,
        "status": "finished",
        "started": "2026-01-02T03:04:05Z",
        "seconds": 74.2,
        "task": "dpo",
        "strategy": {"name": "fedavg"},
        "seed": 42,
        "rounds": ROUNDS,
        "base": {"name": "toy", "fingerprint": "3f2a9c01d4e5b6a7" * 2},
        "data": {str(c): f"{c:02x}" * 16 for c in range(CLIENTS)},
        "clients": {
            str(c): {"examples": 40 + c, "skipped": {"too long": 1} if c == 2 else {}} for c in range(CLIENTS)
        },
        "participation": {str(r["round"]): r["participants"] for r in records if r["round"]},
        "failed": {str(r["round"]): r["failed"] for r in records if r["failed"]},
        "bytes": {"up": 1, "down": 2},
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(facts), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    if answers is not None:
        (folder / "answers.json").write_text(json.dumps(answers), "utf-8")
    return folder
