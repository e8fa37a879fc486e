"""Download a model and a data set from a Hub on the loopback: eight simulated clients, and three sites."""

import sys
from collections.abc import Iterator

import pytest
from datasets import Dataset

from tests import tiny
from tests.federation.conftest import ROOT, Place, environment
from tests.federation.deployment import LONG_S, SITES, Resident
from tests.hub import Hub

pytestmark = pytest.mark.slow
WORDS = ["model.name=org/tiny", "data.source=hub", "data.dataset=org/prefs", "data.partitioner=iid"]
SHORT = ["run.num-server-rounds=1", "train.local-steps=1", "train.per-device-batch-size=2", "eval.every=0"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    hub, root = Hub(), tmp_path_factory.mktemp("hub")
    hub.model("org/tiny", tiny.folder(root / "tiny", shard_size="50KB"))
    rows = [{"prompt": f"question {n}", "chosen": "yes, please", "rejected": f"no {n}"} for n in range(64)]
    (root / "rows").mkdir()
    Dataset.from_list(rows).to_parquet(root / "rows" / "train.parquet")
    hub.dataset("org/prefs", root / "rows")
    yield hub
    hub.close()


@pytest.fixture
def online(hub, tmp_path) -> Iterator[Place]:
    hub.forget()
    env = {k: v for k, v in environment(tmp_path).items() if k != "HF_HUB_OFFLINE"}
    place = Place(tmp_path, {**env, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")})
    yield place
    place.end()


def test_eight_simulated_clients_download_once(hub, online):
    output = online.accord("run", *WORDS, *SHORT, "federation.num-supernodes=8", timeout=400).stdout
    assert "model    org/tiny at main" in output, "the download is announced before Flower starts"
    assert output.index("model    org/tiny") < output.index("start    SuperLink")
    assert "8/8" in output
    assert set(hub.weights_sent("org/tiny")) == {1.0}
    assert hub.fetched("org/prefs/train.parquet") == 1


class OnHub(Resident):
    """Sites with separate caches, as on separate machines, and without a data-path."""

    def site(self, site: int):
        file, home = self.place.path / f"site-{site}.toml", self.place.path / f"home-{site}"
        file.write_text(
            f'address = "unix:{site}.sock"\npartition-id = {site}\nnum-partitions = {SITES}\n'
            f'state-dir = "home-{site}"\n'
        )
        return self.place.start(
            sys.executable, str(ROOT / "accord"), "site", str(file), log=f"resident-{site}.log",
            ACCORD_HOME=str(home), HF_HOME=str(home / "hf"),
        )  # fmt: skip


def test_each_of_three_sites_downloads_for_itself(hub, online):
    deployment = OnHub(online)
    words = [*WORDS, *SHORT, f"strategy.min-available-nodes={SITES}", "site.mode=resident"]
    assert deployment.accord("run", *words).wait(LONG_S) == 0, deployment.log()
    assert f"{SITES}/{SITES}" in deployment.log()
    assert set(hub.weights_sent("org/tiny")) == {1.0 + SITES}, "the server's and each site's"
    assert hub.fetched("org/prefs/train.parquet") == SITES
    for site in range(SITES):
        lines = [line for line in deployment.site_log(site).splitlines() if "org/tiny at main" in line]
        assert len(lines) == 2, "one when the download begins, one when it is complete"
