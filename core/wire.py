"""Values to Flower records and back. An adapter travels as one flat float32 array with its layout beside it."""

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


Seen = MutableMapping[int, tuple[Tree, ArrayRecord]]  # trees already encoded, by identity


def encode_order(order: Order, seen: Seen | None = None) -> RecordDict:
    """`seen` lets the orders of a round share one encoding of the tree that all of them carry."""
    facts = {
        "client": order.client,
        "adapter": order.adapter,
        "recall": order.recall,
        "knobs": dict(order.knobs),
    }
    return _encode(order.trees, facts, seen)


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
    """A message without tensors: the hello."""
    return facts_only(facts)


def decode_facts(record: RecordDict) -> Json:
    return _decode(record)[1]


def failure_of(message: Message) -> Failure | None:
    """Why a reply carries no result, or None: an error of Flower's, or one our client put into words."""
    if message.has_error():
        return Failure("Flower", message.error.reason or f"error code {message.error.code}")
    record = message.content.get(FACTS)
    facts = json.loads(str(record["json"])) if isinstance(record, ConfigRecord) and "json" in record else None
    if not isinstance(facts, dict):
        return Failure("Flower", "the reply holds no Accord record")
    return Failure(*facts["failure"]) if "failure" in facts else None


def size_of(record: RecordDict) -> int:
    """Bytes of the payload: tensors and facts, without the transport's framing."""
    # record.array_records would be shorter, but is a cycle that keeps the tensors until the garbage collector comes
    tensors = sum(len(a.data) for r in record.values() if isinstance(r, ArrayRecord) for a in r.values())
    return tensors + sum(
        len(str(v)) for r in record.values() if isinstance(r, ConfigRecord) for v in r.values()
    )


def _encode(trees: Mapping[str, Tree], facts: Json, seen: Seen | None = None) -> RecordDict:
    record, layouts = RecordDict(), {}
    seen = {} if seen is None else seen
    for name, tree in trees.items():
        if private := [key for key in tree if is_private(key)]:
            raise TreeMismatch(f"{name}: {private[0]!r} is a client's own and goes into no message")
        layouts[name] = [(key, list(t.shape)) for key, t in tree.items()]
        if id(tree) not in seen:
            seen[id(tree)] = tree, ArrayRecord({"flat": Array(_float32(tree))})
        record[TREE + name] = seen[id(tree)][1]
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
        raise TreeMismatch(f"{name!r} is a {type(part).__name__}, a {kind.__name__} is expected")
    return part


def _float32(tree: Tree) -> np.ndarray:
    # float32 always: numpy has no bfloat16, and Flower's Array goes through numpy
    return flat({n: t.detach().to("cpu", torch.float32) for n, t in tree.items()}).numpy()


def _numbers(array: Array) -> torch.Tensor:
    """The numbers of a flat array where they lie in the message: read-only, not copied as Array.numpy() would."""
    stream = BytesIO(array.data)
    if npy.read_magic(stream) != (1, 0):
        raise TreeMismatch("the array is not in numpy's format 1.0")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    if dtype != np.float32 or len(shape) != 1:
        raise TreeMismatch(f"a flat float32 array is expected, {dtype} of shape {shape} arrived")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(array.data, dtype=np.float32, offset=stream.tell()))
