"""Records as bytes: whole there and back, refused when anything is missing, too much or not what it says."""

import json
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from core import wire
from core.errors import FrameError
from core.framing import LENGTH, pack, unpack
from core.types import Order

TREES = {
    "global": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([float("nan"), -0.0])},
    "control": {},
}
ORDER = Order(3, TREES, recall=2, run="r", round=4, options={"x": 0.1})


def framed(header: object, tail: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(LENGTH, "little") + text + tail


def test_a_record_comes_back_bit_by_bit():
    record = wire.encode_order(ORDER)
    head, back = unpack(pack({"kind": "train"}, record))
    assert head == {"kind": "train"}
    assert list(back) == list(record)
    for name, part in record.array_records.items():
        assert [a.data for a in back.array_records[name].values()] == [a.data for a in part.values()]
    assert dict(back.config_records) == dict(record.config_records)
    order = wire.decode_order(back)
    assert replace(order, trees={}) == replace(ORDER, trees={})


def test_every_cut_is_refused():
    data = pack({}, wire.encode_order(ORDER))
    for end in range(len(data)):
        with pytest.raises(FrameError, match="not a message of Accord"):
            unpack(data[:end])
    with pytest.raises(FrameError):
        unpack(data + b"x")


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"head": {}},
        {"head": {}, "record": [["x", [["k", "float32", [2], "numpy.ndarray", -8]]]]},
        {"head": {}, "record": [["x", [["k", "float32", [2], "numpy.ndarray", 1 << 60]]]]},
        {"head": {}, "record": [["x", [["k", "float32", [2], "numpy.ndarray", True]]]]},
        {"head": {}, "record": [["x", {"k": {"deep": 1}}]]},
        {"head": {}, "record": [["x", [["k"]]]]},
        {"head": {}, "record": 3},
    ],
)
def test_a_header_that_lies_is_refused(header):
    with pytest.raises(FrameError, match="not a message of Accord"):
        unpack(framed(header, b"12345678"))


@pytest.mark.parametrize("part", [MetricRecord({"a": 1.0}), ConfigRecord({"a": b"bytes"})])
def test_what_no_message_of_ours_holds_is_not_passed_on(part):
    with pytest.raises(FrameError):
        pack({}, RecordDict({"x": part}))
