"""Encode a Flower record as bytes and back, and a failure as a record. A relay uses this, so no torch is imported."""

import json
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from core.errors import FrameError

FACTS = "facts"  # the record of a message that is not a tree
LENGTH = 8  # bytes of the header's length, little endian


@dataclass(frozen=True)
class Failure:
    """Why a client could not carry out an order; `reason` is one line without private text."""

    kind: str
    reason: str


def encode_failure(failure: Failure) -> RecordDict:
    return facts_only({"failure": [failure.kind, failure.reason]})


def facts_only(facts: object) -> RecordDict:
    """Return a message without tensors; `facts` must be a JSON value."""
    return RecordDict({FACTS: ConfigRecord({"json": json.dumps(facts), "layouts": "{}"})})


def pack(head: object, record: RecordDict) -> bytes:
    """Encode a head (a JSON value) and a record as a length, JSON, and the bytes of the arrays.

    Raises FrameError if the record holds anything but arrays and plain values.
    """
    layout, buffers = [], []
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            layout.append([name, [[key, a.dtype, a.shape, a.stype, len(a.data)] for key, a in part.items()]])
            buffers += [array.data for array in part.values()]
        elif isinstance(part, ConfigRecord):
            layout.append([name, dict(part)])
        else:
            raise FrameError(f"{name!r} is a {type(part).__name__}; only arrays and plain values can be sent")
    try:
        text = json.dumps({"head": head, "record": layout}).encode()
    except TypeError as error:
        raise FrameError(f"the message holds a value that is not plain: {error}") from error
    return b"".join([len(text).to_bytes(LENGTH, "little"), text, *buffers])


def unpack(data: bytes) -> tuple[object, RecordDict]:
    """Decode what `pack` encoded. Raises FrameError for anything else; sizes are checked against the received bytes."""
    try:
        start = LENGTH + int.from_bytes(data[:LENGTH], "little")
        document = json.loads(data[LENGTH:start])
        record = RecordDict()
        for name, part in document["record"]:
            if isinstance(part, dict):
                record[str(name)] = ConfigRecord(part)
                continue
            arrays = {}
            for key, dtype, shape, stype, size in part:
                if type(size) is not int or not 0 <= size <= len(data) - start:
                    raise ValueError(f"an array of {size!r} bytes")
                arrays[str(key)] = Array(
                    str(dtype), tuple(int(n) for n in shape), str(stype), data[start : start + size]
                )
                start += size
            record[str(name)] = ArrayRecord(arrays)
        if start != len(data):
            raise ValueError(f"{len(data) - start} bytes too many")
        return document["head"], record
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FrameError(f"not a message of Accord: {type(error).__name__}") from error
