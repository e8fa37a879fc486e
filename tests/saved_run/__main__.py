"""Write tests/saved_run/server and tests/saved_run/site-*: a SCAFFOLD run at rank 1 with kept optimiser moments."""

import shutil
import tempfile
from pathlib import Path

from core.config import parse
from tests.sites import federate

HERE = Path(__file__).parent
KEYS = {
    "strategy.name": "scaffold",
    "strategy.min-available-nodes": 2,
    "lora.r": 1,
    "lora.target-modules": "q_proj",
    "train.local-steps": 2,
    "train.optimizer-state": "keep",
    "data.rows-per-client": 12,
    "data.eval-rows-per-client": 6,
    "run.num-server-rounds": 2,
    "eval.every": 0,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folder, _ = federate(parse({**KEYS, "run.dir": str(place / "runs")}), place, 1, clients=2)
        folder.write_config(parse(KEYS))
        shutil.rmtree(HERE / "server", ignore_errors=True)
        shutil.copytree(folder.path, HERE / "server")
        for node in (10, 11):
            site = HERE / f"site-{node}"
            shutil.rmtree(site, ignore_errors=True)
            shutil.copytree(place / site.name / "memory", site / "memory")


if __name__ == "__main__":
    main()
