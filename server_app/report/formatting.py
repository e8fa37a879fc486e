"""Formatting of numbers and sentences, shared by terminal, report and model card. A missing value is "-"."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.types import Scalar
from server_app.report.reading import Run, rounds_history
from server_app.report.stats import UTILITY, VALID, Estimate, by_key

ABSENT = "-"
WIDTH = 100  # of the terminal
# Beyond these thresholds the verdict calls the trained model's text worse than the base's (docs/aggregators.md).
MAX_REPETITION_RISE = 0.1  # of the share of repeated 4-grams
MAX_KL = 0.5  # nats per token; counts only if the chosen answers also became less likely
MAX_VALID_DROP = 0.05  # of the share of valid answers, where the truth is planted


@dataclass(frozen=True)
class Table:
    """Plain text cells; `numbers` are the indices of columns that are right-aligned."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


def aligned(table: Table) -> list[str]:
    """The table as aligned lines for the terminal."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    return [
        "  ".join(
            f"{cell:>{width}}" if i in table.numbers else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """Four significant digits; an exponent only below 1e-4 and from 1e6 on."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    return f"{value:.2e}" if abs(value) < 1e-4 or abs(value) >= 1e6 else f"{value:.4g}"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def points(share: float, *, signed: bool = True) -> str:
    """Percentage points of a difference of shares; a value that rounds to zero has no sign."""
    text = f"{100 * share:z.1f}"
    return f"+{text}" if signed and float(text) > 0 else text


def value(estimate: Estimate) -> str:
    if estimate.unit == "share":
        return percent(estimate.value)
    if estimate.unit == "points":
        return f"{points(estimate.value, signed=estimate.key == 'gain')} points"
    return number(estimate.value)


def interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ABSENT
    signed = estimate.unit == "points"
    return f"{points(estimate.low, signed=signed)} to {points(estimate.high, signed=signed)}"


def sample_size(estimate: Estimate) -> str:
    return ABSENT if estimate.n is None else counted(estimate.n, estimate.of.removesuffix("s"))


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def scalar(config_value: Scalar) -> str:
    """A configuration value as TOML writes it."""
    if isinstance(config_value, bool):
        return str(config_value).lower()
    return f'"{config_value}"' if isinstance(config_value, str) else str(config_value)


def printable(text: str) -> str:
    """Untrusted text without control characters, including terminal escapes; line breaks are kept."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", " ", text)


def plain(text: str) -> str:
    """Untrusted text without control characters, on one line."""
    return " ".join(printable(text).split())


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def state(run: Run) -> str:
    """The state of the run in one sentence: finished, not finished or failed, and its rounds."""
    progress = f"{run.completed} of {counted(run.rounds, 'round')}"
    if run.status == "finished":
        history = f" ({rounds})" if (rounds := rounds_history(run.manifest)) else ""
        return f"Finished: {progress} in {duration(run.manifest.get('seconds'))}{plain(history)}."
    if run.status == "running":
        return f"Not finished: still running, or killed, with {progress} complete."
    reason = plain(run.status.removeprefix("failed").lstrip(": ")) or "no reason given"
    return f"Failed with {progress} complete: {reason}"


def verdict(estimates: Sequence[Estimate]) -> str | None:
    """Sentences on the alignment: preference accuracy, then quality of the text that the model generates."""
    return " ".join(part for part in (_accuracy_verdict(estimates), _text_verdict(estimates)) if part) or None


def _accuracy_verdict(estimates: Sequence[Estimate]) -> str:
    by_name = by_key(list(estimates))
    before, after, change = (by_name.get(key) for key in ("before", "after", "gain"))
    if not before or not after:
        return ""
    text = (
        f"On held-out pairs the trained model prefers the chosen answer {percent(after.value)} of the time; "
        f"the base model, {percent(before.value)}."
    )
    if change and change.low is not None and change.high is not None:
        if change.low > 0:
            text += " The gain is larger than variation between clients would explain."
        elif change.high < 0:
            text += " The trained model is worse than the base."
        else:
            text += " The interval of the gain includes zero."
    return text


def _text_verdict(estimates: Sequence[Estimate]) -> str:
    """How far the model's text is from the base's, and whether it has degenerated (docs/aggregators.md)."""
    values = {e.key: e.value for e in estimates}
    parts = [f"KL to the base {number(values['kl'])} nats per token"] if "kl" in values else []
    for key, name, show in (
        ("repetition", "repeated 4-grams", percent),
        (VALID, "valid answers", percent),
        (UTILITY, "utility", number),
    ):
        before, after = values.get(f"{key} before"), values.get(f"{key} after")
        if after is not None:
            parts.append(f"{name} {show(after)}" + (f" (base {show(before)})" if before is not None else ""))
    text = f"Text quality: {', '.join(parts)}." if parts else ""
    reasons = degenerate(values)
    return f"{text} Its text is worse than that of the base: {'; '.join(reasons)}." if reasons else text


def degenerate(values: Mapping[str, float]) -> list[str]:
    """Reasons why the trained model's text is worse than the base's; empty if it is not. values: by headline key."""
    reasons = []
    if _change(values, "repetition") > MAX_REPETITION_RISE:
        reasons.append("its answers are repetitive")
    if values.get("kl", 0.0) > MAX_KL and values.get("chosen", 0.0) < 0:
        reasons.append("it is far from the base and makes even the chosen answers less likely")
    if _change(values, VALID) < -MAX_VALID_DROP:
        reasons.append("fewer of its answers are valid sentences of the toy world")
    if _change(values, UTILITY) < 0:
        reasons.append("its answers have a lower utility for the clients")
    return reasons


def _change(values: Mapping[str, float], key: str) -> float:
    """After minus before; 0 if either was not measured."""
    before, after = values.get(f"{key} before"), values.get(f"{key} after")
    return after - before if before is not None and after is not None else 0.0


def hacking(turn: int) -> str:
    """The alarm for a policy whose held-out judgement fell after epoch `turn`."""
    return (
        f"reward hacking: after epoch {turn} the held-out judgement fell while the selectors' signal kept rising; "
        f"the policy of epoch {turn} is kept"
    )


def alarms(run: Run) -> list[str]:
    """A sentence for each policy that hacks its reward."""
    turns = {name: policy.get("turned") for name, policy in run.policies.items()}
    return [f"Policy {name}: {hacking(turn)}." for name, turn in turns.items() if turn is not None]


def ranges(ids: Sequence[int]) -> str:
    """Sorted ids, with consecutive ones joined: "0-3, 7"."""
    spans: list[list[int]] = []
    for i in ids:
        if spans and i == spans[-1][1] + 1:
            spans[-1][1] = i
        else:
            spans.append([i, i])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
