"""Numbers as people read them: one spelling for terminal, report and card. An absent value is "-"."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.types import Scalar
from server_app.report.reading import Run, asked_for
from server_app.report.stats import UTILITY, VALID, Estimate, by_key

ABSENT = "-"
# Above these the text of a trained model is called worse than the base's (docs/aggregators.md).
MORE_REPETITION = 0.1  # rise of the share of repeated 4-grams
FAR_KL = 0.5  # nats a token, where the chosen answers became less likely as well
FEWER_VALID = 0.05  # fall of the share of valid answers, where the truth is planted


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


def sample_size(estimate: Estimate) -> str:
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
    """What the headline says about the alignment: the preference, then the text that the model itself writes."""
    return " ".join(part for part in (_preference(estimates), _writing(estimates)) if part) or None


def _preference(estimates: Sequence[Estimate]) -> str:
    known = by_key(list(estimates))
    before, after, change = (known.get(key) for key in ("before", "after", "gain"))
    if not before or not after:
        return ""
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


def _writing(estimates: Sequence[Estimate]) -> str:
    """How far the model's text went from the base's, and whether it degenerates (docs/aggregators.md)."""
    values = {e.key: e.value for e in estimates}
    parts = [f"KL to the base {number(values['kl'])} nats a token"] if "kl" in values else []
    for key, name, show in (
        ("repetition", "repeated 4-grams", percent),
        (VALID, "valid answers", percent),
        (UTILITY, "utility", number),
    ):
        before, after = values.get(f"{key} before"), values.get(f"{key} after")
        if after is not None:
            parts.append(f"{name} {show(after)}" + (f" (base {show(before)})" if before is not None else ""))
    text = f"Of its text: {', '.join(parts)}." if parts else ""
    reasons = degenerate(values)
    return f"{text} It writes worse than the base: {'; '.join(reasons)}." if reasons else text


def degenerate(values: Mapping[str, float]) -> list[str]:
    """Why the trained model's text is worse than the base's, by the keys of the headline; empty where it is not."""
    reasons = []
    if _change(values, "repetition") > MORE_REPETITION:
        reasons.append("its answers repeat themselves")
    if values.get("kl", 0.0) > FAR_KL and values.get("chosen", 0.0) < 0:
        reasons.append("it is far from the base and finds even the chosen answers less likely")
    if _change(values, VALID) < -FEWER_VALID:
        reasons.append("fewer of its answers are sentences of the planted world")
    if _change(values, UTILITY) < 0:
        reasons.append("its answers are worth less to the clients")
    return reasons


def _change(values: Mapping[str, float], key: str) -> float:
    """After minus before; 0 where either was not measured."""
    before, after = values.get(f"{key} before"), values.get(f"{key} after")
    return after - before if before is not None and after is not None else 0.0


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
