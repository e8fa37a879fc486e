"""Encode values as Flower records and back. A tree travels as one flat float32 array and its layout."""

import json
import warnings
from collections.abc import Mapping, MutableMapping
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.lib import format as npy

from core.errors import TreeMismatch
from core.factors import is_private
from core.framing import FACTS, Failure, facts_only
from core.tree import Tree, flat, unflat
from core.types import Json, Order, Update

TREE = "tree."
Part = TypeVar("Part", ArrayRecord, ConfigRecord)


# by id of a tree; the tree itself is held so that its id is not reused
EncodedTrees = MutableMapping[int, tuple[Tree, ArrayRecord]]


def encode_order(order: Order, encoded: EncodedTrees | None = None) -> RecordDict:
    """Encode an order. encoded: shared by the orders of a round, so that a tree that all carry is encoded once."""
    facts = {
        "client": order.client,
        "adapter": order.adapter,
        "recall": order.recall,
        "knobs": dict(order.knobs),
    }
    return _encode(order.trees, facts, encoded)


def decode_order(record: RecordDict) -> Order:
    trees, facts = _decode(record)
    return Order(trees=trees, **facts)


def encode_update(update: Update) -> RecordDict:
    facts = {
        "client": update.client,
        "examples": update.examples,
        "tokens": update.tokens,
        "adapter": update.adapter,
        "metrics": dict(update.metrics),
        "kept": update.kept,
        "loads": update.loads,
    }
    return _encode(update.trees, facts)


def decode_update(record: RecordDict) -> Update:
    trees, facts = _decode(record)
    return Update(trees=trees, **facts)


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
