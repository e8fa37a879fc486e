"""How many clients run at a time, on machines of all kinds, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from cli.run.client_packing import Machine, Packing, pack, visible_gpus
from cli.run.footprint import estimate, shape_of
from core.config import parse
from core.errors import ConfigError

GB = 1e9
FEDERATION = {"num-supernodes": 8, "client-cpus": 1.0, "client-gpus": 0.0}
TOY = parse({})
SHAPE = shape_of(TOY.model)
assert SHAPE is not None
ONE = estimate(TOY, SHAPE)


def test_with_memory_enough_there_are_as_many_as_cores_or_clients() -> None:
    assert pack(TOY, FEDERATION, Machine(4, 64 * GB))[0] == Packing(4, 0.0)
    assert pack(TOY, FEDERATION, Machine(64, 64 * GB))[0] == Packing(8, 0.0)
    assert pack(TOY, {**FEDERATION, "client-cpus": 3.0}, Machine(8, 64 * GB))[0] == Packing(2, 0.0)


def test_memory_holds_them_back() -> None:
    free = (3.5 * ONE.total + ONE.base + ONE.process) / 0.9
    packing, told = pack(TOY, FEDERATION, Machine(8, free))
    assert packing == Packing(3, 0.0)
    assert len(told) == 1
    assert "3 at a time on 8 cores" in told[0]


def test_one_is_tried_where_even_that_may_be_too_much() -> None:
    packing, told = pack(TOY, FEDERATION, Machine(8, 0.5 * GB))
    assert packing.at_once == 1
    assert "train.max-length" in told[1]


@pytest.mark.parametrize(
    ("gpus", "cores", "want"),
    [
        ((40 * GB,), 16, Packing(8, 0.125)),  # more would fit than there are clients
        ((40 * GB,) * 2, 16, Packing(8, 0.25)),
        ((ONE.total * 3.4,) * 2, 64, Packing(6, 0.3333)),
        ((ONE.total * 3.4, ONE.total * 1.5), 64, Packing(2, 1.0)),  # the fullest GPU counts
        ((40 * GB,), 2, Packing(2, 0.5)),
        ((0.1 * GB,), 2, Packing(1, 1.0)),
    ],
)
def test_gpus_are_shared_by_as_many_as_fit(gpus: tuple[float, ...], cores: int, want: Packing) -> None:
    packing, told = pack(TOY, FEDERATION, Machine(cores, 256 * GB, gpus))
    assert packing.at_once == want.at_once
    assert packing.share == pytest.approx(want.share)
    assert packing.share * (want.at_once / len(gpus)) <= 1
    assert "free each" in told[0]


def test_a_share_that_was_asked_for_stays() -> None:
    federation = {**FEDERATION, "client-gpus": 0.5}
    assert pack(TOY, federation, Machine(16, 256 * GB, (40 * GB,) * 2))[0] == Packing(4, 0.5)
    on_cpu = replace(TOY, model=replace(TOY.model, device="cpu"))
    assert pack(on_cpu, FEDERATION, Machine(4, 64 * GB, (40 * GB,)))[0] == Packing(4, 0.0)


def test_of_pickled_weights_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"-")
    unknown = replace(TOY, model=replace(TOY.model, name=str(tmp_path)))
    packing, told = pack(unknown, FEDERATION, Machine(4, 64 * GB))
    assert packing == Packing(4, 0.0)
    assert "unknown" in told[0]


TABLE = "0, GPU-aaaa, 40000\n1, GPU-bbbb, 20000\n2, MIG-cccc, [N/A]\n"


@pytest.mark.parametrize(
    ("visible", "mib"),
    [
        (None, [40000, 20000]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [20000]),
        ("1,0", [20000, 40000]),
        ("GPU-b,7,0", [20000]),
    ],
)
def test_gpus_that_cuda_visible_devices_hides_are_none(visible: str | None, mib: list[int]) -> None:
    """CUDA reads the list up to the first entry that is no GPU."""
    assert visible_gpus(TABLE, visible) == tuple(n * 2**20 for n in mib)


def test_a_model_that_is_not_there_is_refused_before_anything_starts() -> None:
    missing = replace(TOY, model=replace(TOY.model, name="/no/such/model"))
    with pytest.raises(ConfigError, match="no such folder"):
        pack(missing, FEDERATION, Machine(4, 64 * GB))
