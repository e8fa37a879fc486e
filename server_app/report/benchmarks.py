"""Results of the benchmarks of evals/, base against trained, under the names that each plugin gives its metrics."""

import math

from core.types import Metrics
from server_app.report.formatting import ABSENT, Table, interval, plain, sample_size, value
from server_app.report.reading import Run
from server_app.report.stats import Estimate, is_share, wilson

ROWS = "examples"  # the metric that counts a benchmark's rows
METHOD = "Benchmarks: 95 % Wilson score interval over a benchmark's rows, for shares of them."


def benchmark_table(run: Run) -> Table:
    """One row per benchmark and metric; columns without any interval are omitted. Without benchmarks it has no rows."""
    rows = []
    for name, results in run.benchmarks.items():
        before, after = results.get("before", {}), results.get("after", {})
        for metric in dict.fromkeys([*before, *after]):
            estimates = [_estimate(metrics, metric) for metrics in (before, after)]
            if metric == ROWS or not any(estimates):
                continue
            cells = [text for e in estimates for text in ((value(e), interval(e)) if e else (ABSENT, ABSENT))]
            count = next((sample_size(e) for e in reversed(estimates) if e), ABSENT)
            rows.append((plain(name), plain(metric), *cells, count))
    head = ("benchmark", "metric", "base", "95 % interval", "trained", "95 % interval", "over")
    empty = [
        i for i, title in enumerate(head) if "interval" in title and all(row[i] == ABSENT for row in rows)
    ]
    head, *rows = (tuple(cell for i, cell in enumerate(row) if i not in empty) for row in (head, *rows))
    return Table(head, tuple(rows), numbers=tuple(range(2, len(head))))


def benchmark_method(table: Table) -> str:
    """How the intervals of the table are computed; "" if it has none."""
    return METHOD if table.rows and "95 % interval" in table.head else ""


def _estimate(metrics: Metrics, metric: str) -> Estimate | None:
    """A metric with Wilson's interval where it is a share of the benchmark's rows; None if it was not measured."""
    amount, count = metrics.get(metric, math.nan), metrics.get(ROWS, 0.0)
    if not math.isfinite(amount):
        return None
    n = int(count) if math.isfinite(count) and count > 0 else None
    if not is_share(metric):
        return Estimate(metric, metric, amount, n=n, unit="number")
    counted = n is not None and 0 <= amount <= 1 and math.isclose(amount * n, round(amount * n), abs_tol=1e-6)
    low, high = wilson(amount, n) if n and counted else (None, None)
    return Estimate(metric, metric, amount, low, high, n)
