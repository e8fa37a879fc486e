"""Grade the answers of each aggregator's model by the planted truth of the toy world, with default settings.

    python -m benchmarks.toy_truth [KEY=VALUE ...] --seeds 1 2 3 [--runs fedavg scaffold ...]

Every cell is one `accord run` (8 simulated clients). Valid: share of answers to the 24 topics that are sentences of the
toy language about the topic; right: share that also states the right fact; utility: mean utility to the clients, 0 for
an answer that is not valid. Each is a mean over clients, for the model that the client would use, and over seeds; for
valid and utility the lowest seed is also printed.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.baselines import federation
from benchmarks.options import options
from core.types import Metrics
from server_app.report.reading import Run
from server_app.report.stats import PREFERENCE, RIGHT, UTILITY, VALID, first_and_last

BASE = "base"
VARIANTS = ("paper", "openfedllm", "flower")
RUNS: Mapping[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox": ("strategy.name=fedprox",),
    **{
        f"scaffold, {variant}": ("strategy.name=scaffold", f"strategy.variant={variant}")
        for variant in ("paper", "openfedllm")
    },
    **{
        f"{name}, {variant}": (f"strategy.name={name}", f"strategy.variant={variant}")
        for name in ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
        for variant in VARIANTS
    },
    "fedbis": ("strategy.name=fedbis",),
    "fedbiscuit": ("strategy.name=fedbiscuit",),
    "ditto": ("strategy.name=ditto",),
    "fedpdpo": ("strategy.name=fedpdpo", "task.name=pdpo"),
    "local": ("strategy.name=local",),
    "centralized": ("strategy.name=centralized",),
    **{
        f"lora.aggregation = {how}": (f"lora.aggregation={how}",)
        for how in ("ffa", "rolora", "fedsa", "fedex", "flora", "flexlora")
    },
    "task.name = kto": ("task.name=kto",),
    "task.name = sft": ("task.name=sft",),
}


def main() -> None:
    parser = options(__doc__, "passed on to accord run")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    print("| run | pair accuracy | KL | valid (lowest) | right fact | utility (lowest) |")
    print("|---|---|---|---|---|---|")
    for name in args.runs:
        ends = [
            ends_of(federation([f"run.seed={s}", "eval.every=0", *RUNS[name], *args.settings]))
            for s in args.seeds
        ]
        if name == args.runs[0]:
            print(row(BASE, [before for before, _ in ends]), flush=True)
        print(row(name, [after for _, after in ends]), flush=True)


def ends_of(run: Run) -> tuple[Metrics, Metrics]:
    """Mean metrics of the federation before the first round and after the last."""
    base, last = first_and_last(run, VALID)
    assert base is not None, "the base is scored before the first round"
    assert last is not None, "the last round is scored"
    return base.eval.mean, last.eval.mean


def row(name: str, seeds: Sequence[Metrics]) -> str:
    """A line of the table; "-" for a metric that no seed has."""

    def cell(metric: str, form: str, factor: float = 1.0, lowest: bool = False) -> str:
        values = [factor * metrics[metric] for metrics in seeds if metric in metrics]
        if not values:
            return "-"
        low = f" ({min(values):{form}})" if lowest else ""
        return f"{fmean(values):{form}}{low}"

    cells = (
        cell(PREFERENCE, ".1f", 100),
        cell("kl", ".3f"),
        cell(VALID, ".0f", 100, lowest=True),
        cell(RIGHT, ".0f", 100),
        cell(UTILITY, ".2f", lowest=True),
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
