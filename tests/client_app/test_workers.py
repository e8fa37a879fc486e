"""A site of two processes: it answers as one does, but for rounding, and both end together."""

import psutil
import pytest
import torch

from client_app.node import Node
from client_app.site import Site
from core import wire
from core.config import parse
from core.types import HelloRequest, Order
from tasks.model.adapter import initial_adapter
from tests.cli.site.resident import SMALL, Place

pytestmark = pytest.mark.slow
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_processes_answer_as_one(tmp_path):
    here = Site(parse(dict(SMALL)), Node(1, 3, state_dir=str(tmp_path / "here")))
    base = here.base()
    trees = {"global": initial_adapter(base, 42)}
    orders = [Order(1, trees, run="r", base=base.fingerprint, round=rnd) for rnd in (1, 2)]
    with Place(tmp_path, launcher=LAUNCHER).going() as place:
        process = place.ready()
        hello = wire.decode_facts(
            place.ask("hello", wire.encode_hello_request(HelloRequest("r", base.fingerprint)))
        )
        assert hello["examples"] == 12
        for order in orders:
            alone = here.train(order)
            together = wire.decode_update(place.ask("train", wire.encode_order(order)))
            for name, tensor in alone.trees["delta"].items():
                torch.testing.assert_close(together.trees["delta"][name], tensor, atol=1e-6, rtol=1e-3)
            assert together.metrics["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)
        scored = wire.decode_update(place.ask("evaluate", wire.encode_order(orders[1])))
        assert scored.metrics == here.evaluate(orders[1]).metrics
        ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(process.pid).children()}
        assert ranks.keys() == {0, 1}
        ranks[0].terminate()
        assert process.wait(60) == 0, "the leader ends the others, and the launcher ends with them"
    assert place.log.count(": ready") == 1
