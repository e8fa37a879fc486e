"""SuperNodes that relay to resident sites: the simulation's bytes, and one load of the base model per site."""

import json

import pytest

from tests.faults.federation import files, run_of, whole
from tests.federation.conftest import metrics_of
from tests.federation.deployment import LONG_S, SITES, Resident, words

pytestmark = pytest.mark.slow
MARKER = b"marker-7f3a"


def test_resident_sites_give_the_simulations_adapter(place):
    (place.path / "runs").mkdir()
    resident = Resident(place)
    going = resident.run(run__num_server_rounds=3, site__mode="resident")
    reference = place.path / "whole"
    simulated = whole([*words(), "run.num-server-rounds=3", f"data.path={resident.files}"], reference)
    assert going.wait(LONG_S) == 0, resident.log()
    run = run_of(place.path)

    assert files(run / "adapter") == files(simulated / "adapter")
    assert metrics_of(run) == metrics_of(simulated)
    for site in range(SITES):
        memories = [
            files(p / f"home-{site}" / "memory" / r.name)
            for p, r in ((place.path, run), (reference, simulated))
        ]
        assert memories[0] == memories[1] != {}
        assert resident.site_log(site).count(" train ends: ") == 3
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["base_loads"] == {str(site): 1 for site in range(SITES)}

    paths = [p for p in place.path.glob("**/*") if p.is_file() and "sites" not in p.parts]
    private = [p for p in paths if "cache" not in p.parts and MARKER in p.read_bytes()]
    assert not private, "a private row left its site"
