"""Compare the advice of `accord advise` on planted worlds with the option that measured best.

    python -m benchmarks.advice [KEY=VALUE ...] --worlds shared clustered individual --seeds 1 2 3

shared: one type of client. clustered: two types with opposite preferences, six clients of each, with few rows.
individual: four types, two clients of each, with many rows. All have eight rounds. For each world and seed it prints
the advice, the mean accuracy of the advised option, the option with the highest mean, its gain over the advised one
with an interval over clients, and the adjusted Rand index of the map's clusters and the planted types. The advice is
"best" if both options are the same, and "as good" if the difference is not significant. Since the advice is based on
these very numbers, each world ends with the value of each seed's advice on the other seeds: the mean of the advised
option there, and the highest mean. --keep keeps the folders.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from benchmarks.options import options
from cli.advice.recommend import ORDER, gain, is_significant, mean
from core.types import Json
from server_app.report.formatting import ABSENT, interval, percent

ROOT = Path(__file__).parents[1]
CONFLICT = ["data.type-weight=6.0", "data.type-differs=0.6"]
BUDGET = ["run.num-server-rounds=8", "data.eval-rows-per-client=96"]
WORLDS = {
    "shared": ["data.types=1"],
    "clustered": [*CONFLICT, "data.types=2", "data.rows-per-client=24", "federation.num-supernodes=12"],
    "individual": [*CONFLICT, "data.types=4", "data.rows-per-client=192"],
}
HEAD = (
    f"{'world':<12}{'seed':>5}  {'advice':<22}{'its mean':>10}  {'best':<10}{'mean':>8}{'above, 95 %':>17}"
    f"{'':>10}{'rand':>7}"
)


def main() -> None:
    parser = options(__doc__, "passed on to accord advise")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--keep", type=Path, help="a folder for the advice folders")
    args = parser.parse_args()
    print(HEAD)
    for world in args.worlds:
        by_seed: dict[int, Json] = {}
        for seed in args.seeds:
            by_seed[seed] = advised([f"run.seed={seed}", *BUDGET, *WORLDS[world], *args.settings], args.keep)
            print(line(world, seed, by_seed[seed]), flush=True)
        if len(by_seed) > 1:
            print("\n".join(elsewhere(by_seed)), flush=True)


def advised(settings: list[str], keep: Path | None) -> Json:
    """Run one `accord advise` in a new process and read its advice.json."""
    with tempfile.TemporaryDirectory() as scratch:
        parent = Path(tempfile.mkdtemp(prefix="advice-", dir=keep)) if keep else Path(scratch)
        command = [sys.executable, str(ROOT / "accord"), "advise", *settings, f"run.dir={parent}"]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stdout}{process.stderr}")
        (folder,) = parent.iterdir()
        return json.loads((folder / "advice.json").read_text())


def line(world: str, seed: int, advice: Json) -> str:
    """One line: the advice, and the option with the highest mean, on a tie the simplest one."""
    scores = {
        name: {int(c): v for c, v in result["clients"].items()} for name, result in advice["options"].items()
    }
    option = advice["option"]
    best = max(ORDER, key=lambda name: (mean(scores[name]), -ORDER.index(name)))
    above = gain(scores[option], scores[best], seed=seed)
    judged = "best" if best == option else "worse" if is_significant(above) else "as good"
    rand = advice.get("adjusted_rand")
    return (
        f"{world:<12}{seed:>5}  {advice['word']:<22}{percent(mean(scores[option])):>10}  {best:<10}"
        f"{percent(mean(scores[best])):>8}{interval(above):>17}{judged:>10}"
        f"{ABSENT if rand is None else f'{rand:.2f}':>7}"
    )


def elsewhere(by_seed: dict[int, Json]) -> Iterator[str]:
    """For each seed, the value of its advice on the other seeds, which have other rows, clients and initial weights."""
    for seed, advice in by_seed.items():
        rest = [result for s, result in by_seed.items() if s != seed]
        means = {name: fmean(mean(result["options"][name]["clients"]) for result in rest) for name in ORDER}
        best = max(ORDER, key=lambda name: (means[name], -ORDER.index(name)))
        yield (
            f"{'':<12}{seed:>5}  on the other seeds: {advice['option']} {percent(means[advice['option']])}, "
            f"highest {best} {percent(means[best])}"
        )


if __name__ == "__main__":
    main()
