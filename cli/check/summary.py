"""Describe a run before it starts: files, rows, lengths, model, memory, steps and warnings (`accord check`).

Each section is a function of a Plan that yields lines; SECTIONS and WARNINGS are in the order of printing.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from cli.check.holdings import Holding
from cli.run.client_packing import Machine, pack
from core.naming import client_label, shown_name
from core.sections import Config
from core.types import Json, Order, Scalar
from server_app.report.clients import facts_of, notes
from server_app.report.columns import column_lines
from server_app.report.console import toy_warning
from server_app.report.formatting import counted, percent, size
from server_app.report.reading import names_of
from tasks.model.adapter import count
from tasks.model.base import Base
from tasks.training import schedule

LABEL = 9  # columns of a section's name
MOST_CLIENTS = 20  # listed individually
MOST_NAMES = 8  # of files
CUT = 0.1  # a run warns if a larger share of the rows fills train.max-length
LONGEST_FIT = 64  # a proposed train.max-length is a multiple of this
LOPSIDED = (0.1, 0.9)  # a run warns if the share of desirable rows is outside


@dataclass(frozen=True)
class Plan:
    """A run before its start. holdings: the rows of a simulation's clients; empty for a deployment."""

    config: Config
    federation: Mapping[str, Scalar]
    machine: Machine
    base: Base | None  # None if the server is another machine
    holdings: Sequence[Holding] = ()

    @property
    def rows(self) -> list[int]:
        return [holding.train for holding in self.holdings]


Section = Callable[[Plan], Iterator[str]]


def lines(plan: Plan) -> Iterator[str]:
    """Every section, each with its name in the first column, then the warnings."""
    for name, section in SECTIONS.items():
        for number, line in enumerate(section(plan)):
            yield f"{name if not number else '':<{LABEL}}{line}"
    yield from warnings(plan)
    if warning := toy_warning(dict(plan.config.flat)):  # the plan of a run prints it as well
        yield warning


def warnings(plan: Plan) -> Iterator[str]:
    """Problems that do not keep the run from starting."""
    for warning in WARNINGS:
        for line in warning(plan):
            yield f"{'warning':<{LABEL}}{line}"


def _run(plan: Plan) -> Iterator[str]:
    c, link = plan.config, plan.federation["superlink"]
    where = f"deployment {link!r}" if link else counted(int(plan.federation["num-supernodes"]), "client")
    yield f"{c.task_choice.name} with {c.strategy_choice.name}, {where}, seed {c.run.seed}"


def _files(plan: Plan) -> Iterator[str]:
    source = plan.config.source_choice
    if plan.federation["superlink"]:
        yield "each site reads its own files; check them with `accord doctor KIT` at the site"
        return
    stamp = source.build().stamp()
    names = [str(entry[0]) for entry in stamp] if _is_listing(stamp) else []
    if not names:
        yield f"none: data.source = {source.name!r}"
        return
    total = sum(int(entry[2]) for entry in stamp)
    listing = ", ".join(names[:MOST_NAMES]) + (
        f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    )
    yield f"{counted(len(names), 'file')}, {size(total)}: {listing}"


def _is_listing(stamp: Json) -> bool:
    """Whether a source's stamp is a list of files as (name, time, bytes)."""
    return isinstance(stamp, tuple) and all(isinstance(e, tuple) and len(e) == 3 for e in stamp)


def _rows(plan: Plan) -> Iterator[str]:
    if not plan.holdings:
        return
    rows, heldout = plan.rows, [holding.heldout for holding in plan.holdings]
    yield (
        f"{counted(len(rows), 'client')}, {sum(rows):,} rows to train on ({_spread(rows)} each), "
        f"{sum(heldout):,} held out ({_spread(heldout)} each)"
    )
    if len(rows) <= MOST_CLIENTS:
        names = {holding.client: shown_name(holding.hello.get("name")) for holding in plan.holdings}
        yield f"{'train':>8}{'held out':>10}  client"
        for holding in plan.holdings:
            yield f"{holding.train:>8}{holding.heldout:>10}  {client_label(holding.client, names)}"
    facts = facts_of({holding.client: holding.hello for holding in plan.holdings})
    yield from notes(facts, names_of(facts))


def _columns(plan: Plan) -> Iterator[str]:
    """For rows from files: which columns are read, and which files and columns are not."""
    if plan.config.source_choice.name != "toy":
        yield from (line[LABEL:] for line in column_lines(holding.hello for holding in plan.holdings))


def _spread(counts: Sequence[int]) -> str:
    if len(set(counts)) == 1:
        return str(counts[0])
    return f"{min(counts)} to {max(counts)}, median {statistics.median(counts):g}"


def _refused(plan: Plan) -> Iterator[str]:
    reasons: Counter[str] = Counter()
    for holding in plan.holdings:
        reasons.update(holding.skipped)
    for reason, number in reasons.most_common():
        yield f"{number:,} x {reason}"


def _lengths(plan: Plan) -> Iterator[str]:
    lengths = sorted(length for holding in plan.holdings for length in holding.lengths)
    if not lengths:
        return
    limit, most = plan.config.train.max_length, lengths[-1]
    p95 = lengths[ceil(0.95 * len(lengths)) - 1]
    long = sum(length > limit for length in lengths)
    yield (
        f"{statistics.median(lengths):g} tokens in the median row, at most {p95} in 95 % of the rows, "
        f"{most} in the longest"
    )
    if not long:
        yield f"no row is above train.max-length = {limit}"
        return
    fate = {"truncate": "is cut", "skip": "is left out", "error": "stops the run"}[
        plan.config.train.on_long_row
    ]
    yield (
        f"{percent(long / len(lengths))} above train.max-length = {limit}: each {fate}; "
        f"train.max-length={_fitting(p95)} holds 95 % of the rows, {_fitting(most)} all"
    )


def _fitting(length: int) -> int:
    """The smallest multiple of LONGEST_FIT that holds `length` tokens."""
    return ceil(length / LONGEST_FIT) * LONGEST_FIT


def _model(plan: Plan) -> Iterator[str]:
    model, base = plan.config.model, plan.base
    if base is None:
        yield f"{model.name}: the server is another machine; it loads the model when the run starts"
        return
    dtype = model.dtype if model.quantization == "none" else f"{model.dtype}, {model.quantization}"
    adapter = count(base.adapter)
    parameters = sum(p.numel() for p in base.causal.parameters()) - adapter
    yield f"{model.name}: {parameters:,} parameters, {dtype}, on {base.device}; LoRA adds {adapter:,}"
    path = "packed rows" if base.packed else f"padded batches with full logits: {base.path_reason}"
    yield f"fingerprint {base.fingerprint[:12]}, {path}"


def _memory(plan: Plan) -> Iterator[str]:
    if plan.federation["superlink"]:
        return
    _, explanation = pack(plan.config, plan.federation, plan.machine)
    yield from (line[LABEL:] for line in explanation)


def _steps(plan: Plan) -> Iterator[str]:
    train, rounds = plan.config.train, plan.config.run.num_server_rounds
    batch = train.per_device_batch_size * train.gradient_accumulation_steps
    if not plan.holdings:
        yield f"{counted(rounds, 'round')} of {train.local_steps} steps x {counted(batch, 'row')} per client"
        return
    clients = len(plan.holdings)
    cohort = max(1, round(plan.config.strategy.fraction_train * clients))
    order = Order(0, {}, round=1, clients=clients, cohort=cohort)
    steps = [schedule.local_steps(train, rows, order, rounds) for rows in plan.rows]
    passes = [n * batch / rows for n, rows in zip(steps, plan.rows, strict=True)]
    each = f"{min(passes):.2g}" if len(set(passes)) == 1 else f"{min(passes):.2g} to {max(passes):.2g}"
    yield (
        f"{counted(rounds, 'round')} of {counted(cohort, 'client')}; {_spread(steps)} steps x "
        f"{counted(batch, 'row')} per client and round: {each} passes over its rows"
    )


def _labels(plan: Plan) -> Iterator[str]:
    desirable, undesirable = _thumbs(plan)
    if desirable or undesirable:
        share = desirable / (desirable + undesirable)
        yield f"{desirable:,} desirable, {undesirable:,} undesirable rows ({percent(share)} desirable)"


def _thumbs(plan: Plan) -> tuple[int, int]:
    """The desirable and the undesirable training rows of task kto; (0, 0) for other tasks."""
    totals: Counter[str] = Counter()
    for holding in plan.holdings:
        totals.update({name: int(value) for name, value in holding.row_counts.items()})
    return totals["n_desirable"], totals["n_undesirable"]


def _warn_of_cuts(plan: Plan) -> Iterator[str]:
    full, rows = sum(holding.full for holding in plan.holdings), sum(plan.rows)
    limit = plan.config.train.max_length
    if rows and full / rows > CUT and not any(holding.lengths for holding in plan.holdings):
        yield (
            f"{percent(full / rows)} of the rows fill train.max-length = {limit} and may be cut; "
            "`accord check` with the same arguments prints the length that would hold them"
        )


def _warn_of_lopsided_labels(plan: Plan) -> Iterator[str]:
    desirable, undesirable = _thumbs(plan)
    total = desirable + undesirable
    if total and not LOPSIDED[0] <= desirable / total <= LOPSIDED[1]:
        yield f"{percent(desirable / total)} of the rows are desirable; check that label is not inverted"


def _warn_of_missing_files(plan: Plan) -> Iterator[str]:
    if plan.base is None and plan.config.eval.prompts:
        yield f"eval.prompts = {plan.config.eval.prompts!r} is a file on the server and was not checked"


SECTIONS: Mapping[str, Section] = {
    "run": _run,
    "files": _files,
    "columns": _columns,
    "rows": _rows,
    "refused": _refused,
    "lengths": _lengths,
    "model": _model,
    "memory": _memory,
    "steps": _steps,
    "labels": _labels,
}
WARNINGS: Sequence[Section] = (
    _warn_of_cuts,
    _warn_of_lopsided_labels,
    _warn_of_missing_files,
)


def row_lines(rows: Sequence[Sequence[tuple[str, str]]], width: int = 100) -> Iterator[str]:
    """Rows as the model will see them, wrapped at `width`; unprintable characters are written as escapes."""
    for number, parts in enumerate(rows, 1):
        for name, text in parts:
            printable = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
            for part, line in enumerate(
                printable[i : i + width] for i in range(0, max(1, len(printable)), width)
            ):
                head = f"row {number}" if not part and name == parts[0][0] else ""
                yield f"{head:<{LABEL}}{name if not part else '':<12}{line}"
