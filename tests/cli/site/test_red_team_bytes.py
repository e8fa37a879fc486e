"""A hostile relay: bytes that are no message, records that are no order, errors that would quote a row."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from cli.site.policy.guard import GuardedSite
from cli.site.service import Service
from cli.site.site_file import SiteFile
from client_app.main import train
from core import wire
from core.types import Json, Order, Update
from tests.cli.site.lab import BASE, MARKER, POLICY, facts_of, hello, message, order
from tests.loopback import TaskIdentity


class Bomb:
    """Read as a pickle, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def forged(data: bytes | None = None, layout: Json = None, text: str = "", **facts: object) -> RecordDict:
    """A good order with the bytes of its tensors, their layout, or its facts replaced."""
    record = wire.encode_order(order())
    head = record["facts"]
    assert isinstance(head, ConfigRecord)
    if data is not None:
        record["tree.global"] = ArrayRecord({"flat": Array("float32", (4,), "numpy.ndarray", data)})
    layouts = str(head["layouts"]) if layout is None else json.dumps({"global": layout})
    text = text or json.dumps({**json.loads(str(head["json"])), **facts})
    record["facts"] = ConfigRecord({"json": text, "layouts": layouts})
    return record


def own_part() -> RecordDict:
    return forged(layout=[["private.head.w", NAMES[0][1]], *NAMES[1:]])


NAMES = [[name, list(t.shape)] for name, t in BASE.adapter.items()]
MALFORMED: dict[str, Callable[[Path], RecordDict]] = {
    "a pickle": lambda path: forged(pickle.dumps(Bomb(path))),
    "an array of pickles": lambda path: forged(npy(np.array([Bomb(path)], object))),
    "an array of text": lambda path: forged(npy(np.array(["x" * 99]))),
    "an array of float64": lambda path: forged(npy(np.zeros(4))),
    "too few numbers": lambda path: forged(npy(np.zeros(4, np.float32))),
    "a header that says too much": lambda path: forged(npy(np.zeros(4, np.float32))[:-8]),
    "no array": lambda path: forged(b""),
    "a tensor of something else": lambda path: forged(layout=[["embedding", [16384]]]),
    "a tensor too many": lambda path: forged(layout=[*NAMES, ["embedding", [0]]]),
    "a client's private part": lambda path: own_part(),
    "other shapes": lambda path: forged(layout=[[name, shape[::-1]] for name, shape in NAMES]),
    "negative shapes": lambda path: forged(layout=[["x", [-1, -16384]]]),
    "a layout that is none": lambda path: forged(layout=7),
    "JSON without end": lambda path: forged(text="[" * 100_000),
    "no JSON": lambda path: forged(text="{"),
    "fields too many": lambda path: forged(trees={}),
    "a run that is a list": lambda path: forged(run=["r"]),
    "a round that is true": lambda path: forged(round=True),
    "a number without end": lambda path: forged(round=10**400),
    "options that are text": lambda path: forged(options="all"),
    "a comparison of numbers": lambda path: forged(compare=[1]),
    "a field that no order has": lambda path: forged(rows="all"),
    "an adapter that is a list": lambda path: forged(adapter=["global"]),
    "a memory that is a path": lambda path: forged(recall="../../x"),
    "nothing": lambda path: RecordDict(),
}


@pytest.mark.parametrize("what", MALFORMED, ids=lambda name: name.replace(" ", "-"))
def test_what_is_no_order_is_refused_and_nothing_in_it_is_run(lab, tmp_path, what):
    site, bomb = lab(), tmp_path / "went-off"
    for kind in ("train", "evaluate"):
        _, reason = site.send(kind, MALFORMED[what](bomb))["failure"]
        assert 0 < len(reason) < 300
    assert not bomb.exists()
    assert not site.touched


def test_a_clients_own_parts_come_from_nobody_else(lab):
    assert "private tensors must not come from the server" in lab().send("train", own_part())["failure"][1]


def test_a_site_is_as_it_was_after_all_of_these(lab, tmp_path):
    site = lab()
    for make in MALFORMED.values():
        site.send("train", make(tmp_path / "went-off"))
    assert site.order(order())["examples"] == 30


def test_a_forged_order_is_good_where_nothing_is_replaced(lab):
    assert lab().send("train", forged())["examples"] == 30


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        (2**63).to_bytes(8, "little"),
        pickle.dumps({"head": 1}),
        b"\2" + bytes(7) + b"[]",
        message("train", hello())[:-1],
        message("train", hello()) + b"x",
    ],
    ids=["nothing", "noise", "a-length-without-end", "a-pickle", "a-list", "less", "more"],
)
def test_bytes_that_are_no_message_are_refused(lab, data):
    assert lab().raw(data)["failure"][0] == "FrameError"


@pytest.mark.parametrize("kind", ["rows", "__init__", "export", "", "train\nERROR forged"])
def test_a_site_does_three_things(lab, caplog, kind):
    assert lab().send(kind, hello())["failure"][0] in ("SiteError", "FrameError")
    assert "\nERROR forged" not in caplog.text


class Fails(GuardedSite):
    """A site with a fault, whose text quotes a row, as those of libraries do."""

    def train(self, order: Order) -> Update:
        raise ValueError(f"cannot encode '{MARKER} I have had a cough'")


def test_an_unforeseen_error_is_told_without_its_text(lab, caplog):
    site = lab()
    service = Service(SiteFile("unix:/nowhere", 0, 3), lambda one, claim: Fails(one, POLICY, claim))
    site.answers.append(service.answer(message("train", wire.encode_order(order()))))
    kind, reason = facts_of(site.answers[-1])["failure"]
    assert (kind, reason.partition(":")[0]) == ("ValueError", "unexpected error at test_red_team_bytes.py")
    assert "in train" in caplog.text


def test_a_client_without_a_site_process_keeps_an_errors_text_as_well(caplog):
    """Flower would send the text of an exception to the server and write it into its log."""
    TaskIdentity.node_id = 1
    record = RecordDict({"facts": ConfigRecord({"json": json.dumps({MARKER: 1}), "layouts": "{}"})})
    asked = Message(record, dst_node_id=1, message_type="train")
    node = {"partition-id": 0, "num-partitions": 2}
    answer = train(asked, Context(7, 1, node, RecordDict(), {})).content["facts"]
    assert isinstance(answer, ConfigRecord)
    kind, reason = json.loads(str(answer["json"]))["failure"]
    assert kind == "FrameError"
    assert "1 unknown" in reason
    assert MARKER not in reason + caplog.text
