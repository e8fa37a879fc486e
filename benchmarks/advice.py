"""Is the advice right? `accord advise` on planted worlds: what it says, and what measured best.

    python -m benchmarks.advice [KEY=VALUE ...] --worlds shared clustered individual --seeds 1 2 3

shared: one type of client. clustered: two types that want opposite things, six clients of each with few rows.
individual: four types and two clients of each, with many rows. Eight rounds each. Printed for each world and seed: the
advice, the mean accuracy of the option it means, the option of the highest mean, how much that is above the advised one
with its interval over clients, and the adjusted Rand index of the map's clusters with the planted types. The advice is
"best" if both are the same option, "as good" if the difference is not shown. It cannot be worse by the very numbers it
was made from, so each world ends with what the advice of each seed is worth on the other seeds: the advised option's
mean there, and the highest. Folders are kept where --keep says.
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
        given: dict[int, Json] = {}
        for seed in args.seeds:
            given[seed] = advised([f"run.seed={seed}", *BUDGET, *WORLDS[world], *args.words], args.keep)
            print(line(world, seed, given[seed]), flush=True)
        if len(given) > 1:
            print("\n".join(elsewhere(given)), flush=True)


def advised(words: list[str], keep: Path | None) -> Json:
    """advice.json of one `accord advise` in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        parent = Path(tempfile.mkdtemp(prefix="advice-", dir=keep)) if keep else Path(scratch)
        command = [sys.executable, str(ROOT / "accord"), "advise", *words, f"run.dir={parent}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        (folder,) = parent.iterdir()
        return json.loads((folder / "advice.json").read_text())


def line(world: str, seed: int, found: Json) -> str:
    """One advice against the option of the highest mean, the simpler one on a tie."""
    scores = {name: {int(c): v for c, v in one["clients"].items()} for name, one in found["options"].items()}
    option = found["option"]
    best = max(ORDER, key=lambda name: (mean(scores[name]), -ORDER.index(name)))
    above = gain(scores[option], scores[best], seed=seed)
    judged = "best" if best == option else "worse" if is_significant(above) else "as good"
    rand = found.get("adjusted_rand")
    return (
        f"{world:<12}{seed:>5}  {found['word']:<22}{percent(mean(scores[option])):>10}  {best:<10}"
        f"{percent(mean(scores[best])):>8}{interval(above):>17}{judged:>10}"
        f"{ABSENT if rand is None else f'{rand:.2f}':>7}"
    )


def elsewhere(given: dict[int, Json]) -> Iterator[str]:
    """For each seed, its advice on the others, which are other rows, other clients and other starts."""
    for seed, found in given.items():
        others = [one for s, one in given.items() if s != seed]
        means = {name: fmean(mean(one["options"][name]["clients"]) for one in others) for name in ORDER}
        best = max(ORDER, key=lambda name: (means[name], -ORDER.index(name)))
        yield (
            f"{'':<12}{seed:>5}  on the other seeds: {found['option']} {percent(means[found['option']])}, "
            f"highest {best} {percent(means[best])}"
        )


if __name__ == "__main__":
    main()
