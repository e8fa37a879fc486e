"""Compare shared, personal and mixed models on the toy world with conflicting clients.

    python -m benchmarks.personalisation [KEY=VALUE ...] --seeds 1 2 3 --methods dpo fedpdpo

Every cell is one `accord run` with the same steps per client and round (ditto takes twice as many, finish a few more at
the end). It prints held-out accuracies of each client's own model in the last round: of the policy alone (logps), of
the implicit reward, of the explicit reward, and of both; per seed and with a 95 % interval of the mean over seeds (t).
"""

from benchmarks.baselines import interval, scores
from benchmarks.options import options

PDPO = ["task.name=pdpo"]
METHODS: dict[str, tuple[str, list[str]]] = {
    "dpo": ("fedavg", []),
    "local": ("local", []),
    "finish": ("fedavg", ["strategy.finish-steps=20"]),
    "fedprox": ("fedprox", []),
    "ditto": ("ditto", []),
    "fedsa": ("fedavg", ["lora.aggregation=fedsa"]),
    "fedrep": ("fedpdpo", [*PDPO, "task.parts=head", "task.order=alternating"]),
    "pdpo-local": ("local", PDPO),
    "fedpdpo": ("fedpdpo", PDPO),
    "fedpdpo-margin": ("fedpdpo", [*PDPO, "task.objective=margin"]),
    "fedpdpo-composed": ("fedpdpo", [*PDPO, "task.objective=composed"]),
    "fedpdpo-alternating": ("fedpdpo", [*PDPO, "task.order=alternating"]),
}
METRICS = ("logps/accuracies", "rewards/accuracies", "explicit/accuracies", "combined/accuracies")


def main() -> None:
    parser = options(__doc__, "passed on to accord run")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    print(
        f"{'held-out accuracy, %':<44}"
        + "".join(f"{f'seed {s}':>9}" for s in args.seeds)
        + f"{'mean':>9}  95 %"
    )
    for method in args.methods:
        strategy, settings = METHODS[method]
        lasts = [scores(seed, strategy, [*settings, *args.settings])[1] for seed in args.seeds]
        for metric in METRICS:
            if values := [last[metric] for last in lasts if metric in last]:
                print(
                    f"{f'{method} | {metric}':<44}"
                    + "".join(f"{100 * v:9.1f}" for v in values)
                    + interval(values)
                )


if __name__ == "__main__":
    main()
