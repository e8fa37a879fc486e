"""Numbers as people read them: one spelling for terminal, report and card. An absent value is "-"."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.types import Scalar
from server_app.reading import Run, asked_for
from server_app.stats import Estimate, by_key

ABSENT = "-"


@dataclass(frozen=True)
class Table:
    """Plain text cells; `numbers` are the columns to align right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """Four significant digits, never an exponent in the usual range."""
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
    """What rounds to zero has no sign."""
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


def behind(estimate: Estimate) -> str:
    return ABSENT if estimate.n is None else counted(estimate.n, estimate.of.removesuffix("s"))


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def scalar(config_value: Scalar) -> str:
    """As TOML would write it."""
    if isinstance(config_value, bool):
        return str(config_value).lower()
    return f'"{config_value}"' if isinstance(config_value, str) else str(config_value)


def printable(text: str) -> str:
    """Text of unknown origin without control characters, terminal escapes among them; lines stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", " ", text)


def plain(text: str) -> str:
    """The same on one line."""
    return " ".join(printable(text).split())


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def state(run: Run) -> str:
    """What became of the run, in one sentence."""
    progress = f"{run.done} of {counted(run.rounds, 'round')}"
    if run.status == "finished":
        how = f" ({said})" if (said := asked_for(run.manifest)) else ""
        return f"Finished: {progress} in {duration(run.manifest.get('seconds'))}{plain(how)}."
    if run.status == "running":
        return f"Not finished: still running, or killed, with {progress} complete."
    reason = plain(run.status.removeprefix("failed").lstrip(": ")) or "no reason given"
    return f"Failed with {progress} complete: {reason}"


def verdict(estimates: Sequence[Estimate]) -> str | None:
    """What the headline says about the alignment, in a sentence or two."""
    known = by_key(list(estimates))
    before, after, change = (known.get(key) for key in ("before", "after", "gain"))
    if not before or not after:
        return None
    text = (
        f"On held-out pairs the trained model prefers the chosen answer {percent(after.value)} of the time; "
        f"the base, {percent(before.value)}."
    )
    if change and change.low is not None and change.high is not None:
        if change.low > 0:
            text += " The gain is larger than the variation between clients explains."
        elif change.high < 0:
            text += " It became worse than the base."
        else:
            text += " The interval of the gain includes zero."
    return text


def hacking(turn: int) -> str:
    """The alarm over a policy whose judgement turned after an epoch."""
    return (
        f"reward hacking: after epoch {turn} the held-out judgement fell while the selectors' signal went on rising; "
        f"the policy of epoch {turn} is kept"
    )


def alarms(run: Run) -> list[str]:
    turns = {name: policy.get("turned") for name, policy in run.policies.items()}
    return [f"Policy {name}: {hacking(turn)}." for name, turn in turns.items() if turn is not None]


def ranges(ids: Sequence[int]) -> str:
    """Sorted ids with runs joined: "0-3, 7"."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
