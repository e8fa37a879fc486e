"""Encode values as Flower records and back. A tree travels as one flat float32 array and its layout."""

import json
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from io import BytesIO
from typing import Any, TypeVar, get_origin, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.lib import format as npy

from core.errors import FrameError, TreeMismatch
from core.factors import is_private
from core.framing import FACTS, Failure, facts_only
from core.tree import Tree, flat, unflat
from core.types import HelloRequest, Json, Order, Update

TREE = "tree."
Part = TypeVar("Part", ArrayRecord, ConfigRecord)
MessageType = type[Order] | type[Update] | type[HelloRequest]


# by id of a tree; the tree itself is held so that its id is not reused
EncodedTrees = MutableMapping[int, tuple[Tree, ArrayRecord]]


def encode_order(order: Order, encoded: EncodedTrees | None = None) -> RecordDict:
    """Encode an order. encoded: shared by the orders of a round, so that a tree that all carry is encoded once."""
    return _encode(order.trees, _facts(Order, order), encoded)


def decode_order(record: RecordDict) -> Order:
    """Decode what `encode_order` encoded. Raises FrameError for a missing, unknown or mistyped field."""
    trees, facts = _decode(record)
    return Order(trees=trees, **_fields(Order, facts))


def encode_update(update: Update) -> RecordDict:
    return _encode(update.trees, _facts(Update, update))


def decode_update(record: RecordDict) -> Update:
    """Decode what `encode_update` encoded. Raises FrameError for a missing, unknown or mistyped field."""
    trees, facts = _decode(record)
    return Update(trees=trees, **_fields(Update, facts))


def encode_hello_request(request: HelloRequest) -> RecordDict:
    return facts_only(_facts(HelloRequest, request))


def decode_hello_request(record: RecordDict) -> HelloRequest:
    """Decode what `encode_hello_request` encoded. Raises FrameError for a missing, unknown or mistyped field."""
    return HelloRequest(**_fields(HelloRequest, _decode(record)[1]))


def encode_facts(facts: Json) -> RecordDict:
    """Encode a message without tensors: a hello."""
    return facts_only(facts)


def decode_facts(record: RecordDict) -> Json:
    return _decode(record)[1]


def failure_of(message: Message) -> Failure | None:
    """Return why a reply has no result: an error of Flower, or a Failure of the client; None if it has one."""
    if message.has_error():
        return Failure("Flower", message.error.reason or f"error code {message.error.code}")
    record = message.content.get(FACTS)
    facts = json.loads(str(record["json"])) if isinstance(record, ConfigRecord) and "json" in record else None
    if not isinstance(facts, dict):
        return Failure("Flower", "the reply holds no Accord record")
    return Failure(*facts["failure"]) if "failure" in facts else None


def size_of(record: RecordDict) -> int:
    """Return the payload's bytes: tensors and facts, without the transport's framing."""
    # not record.array_records: it makes a reference cycle that keeps the tensors until a garbage collection
    tensors = sum(len(a.data) for r in record.values() if isinstance(r, ArrayRecord) for a in r.values())
    return tensors + sum(
        len(str(v)) for r in record.values() if isinstance(r, ConfigRecord) for v in r.values()
    )


def _facts(kind: MessageType, message: Order | Update | HelloRequest) -> dict[str, Json]:
    """Return the fields of a message as JSON values; its trees travel as tensors.

    kind: its class, so that a field of a subclass is not sent.
    """
    values = {f.name: getattr(message, f.name) for f in fields(kind) if f.name != "trees"}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _fields(message: MessageType, facts: Json) -> dict[str, Any]:
    """Return the fields of a message from JSON; the other side is not trusted. A tuple holds strings.

    Raises:
        FrameError: A field is missing, unknown or of another type.
    """
    name, hints = message.__name__, {k: v for k, v in get_type_hints(message).items() if k != "trees"}
    if not isinstance(facts, dict) or facts.keys() != hints.keys():
        # names of fields, but not their content, which may be private
        missing = sorted(hints.keys() - facts.keys()) if isinstance(facts, dict) else sorted(hints)
        unknown = len(facts.keys() - hints.keys()) if isinstance(facts, dict) else 0
        raise FrameError(
            f"a message {name} lacks {', '.join(missing) or 'no field'} and has {unknown} unknown fields; do server "
            "and site run the same version of Accord?"
        )
    for key, hint in hints.items():
        kind = get_origin(hint) or hint
        want = {tuple: list, Mapping: dict}.get(kind, kind)
        is_valid = type(facts[key]) is want
        if is_valid and want is list:
            is_valid = all(type(item) is str for item in facts[key])
        if not is_valid:
            raise FrameError(
                f"{key} in a message {name} must be a {want.__name__}, got a {type(facts[key]).__name__}"
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def _encode(trees: Mapping[str, Tree], facts: Json, encoded: EncodedTrees | None = None) -> RecordDict:
    record, layouts = RecordDict(), {}
    encoded = {} if encoded is None else encoded
    for name, tree in trees.items():
        if private := [key for key in tree if is_private(key)]:
            raise TreeMismatch(f"{name}: {private[0]!r} is private to a client and must not be sent")
        layouts[name] = [(key, list(t.shape)) for key, t in tree.items()]
        if id(tree) not in encoded:
            encoded[id(tree)] = tree, ArrayRecord({"flat": Array(_float32(tree))})
        record[TREE + name] = encoded[id(tree)][1]
    record[FACTS] = ConfigRecord({"json": json.dumps(facts), "layouts": json.dumps(layouts)})
    return record


def _decode(record: RecordDict) -> tuple[dict[str, Tree], Json]:
    facts = _part(record, FACTS, ConfigRecord)
    trees: dict[str, Tree] = {}
    for name, layout in json.loads(str(facts["layouts"])).items():
        try:
            trees[name] = unflat(_numbers(_part(record, TREE + name, ArrayRecord)["flat"]), dict(layout))
        except TreeMismatch as error:
            raise TreeMismatch(f"{name}: {error}") from error
    return trees, json.loads(str(facts["json"]))


def _part(record: RecordDict, name: str, kind: type[Part]) -> Part:
    part = record[name]
    if not isinstance(part, kind):
        raise TreeMismatch(f"{name!r} is a {type(part).__name__}, expected a {kind.__name__}")
    return part


def _float32(tree: Tree) -> np.ndarray:
    # always float32: Flower's Array is made from numpy, which has no bfloat16
    return flat({n: t.detach().to("cpu", torch.float32) for n, t in tree.items()}).numpy()


def _numbers(array: Array) -> torch.Tensor:
    """Return the numbers of a flat array as a read-only view of the message; Array.numpy() would copy them."""
    stream = BytesIO(array.data)
    if npy.read_magic(stream) != (1, 0):
        raise TreeMismatch("the array is not in numpy format 1.0")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    if dtype != np.float32 or len(shape) != 1:
        raise TreeMismatch(f"expected a flat float32 array, got {dtype} of shape {shape}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(array.data, dtype=np.float32, offset=stream.tell()))
