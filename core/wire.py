"""Values to Flower records and back. An adapter travels as one flat float32 array with its layout beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from core.errors import TreeMismatch
from core.tree import Tree
from core.types import Json, Order, Update

TREE, FACTS = "tree.", "facts"


@dataclass(frozen=True)
class Failure:
    """A client that could not do what it was asked; `reason` is one line, free of private text."""

    kind: str
    reason: str


def encode_order(order: Order) -> RecordDict:
    facts = {
        "client": order.client,
        "adapter": order.adapter,
        "recall": order.recall,
        "knobs": dict(order.knobs),
    }
    return _encode(order.trees, facts)


def decode_order(record: RecordDict) -> Order:
    trees, facts = _decode(record)
    return Order(trees=trees, **facts)


def encode_update(update: Update) -> RecordDict:
    facts = {
        "client": update.client,
        "examples": update.examples,
        "adapter": update.adapter,
        "metrics": dict(update.metrics),
        "kept": update.kept,
    }
    return _encode(update.trees, facts)


def decode_update(record: RecordDict) -> Update:
    trees, facts = _decode(record)
    return Update(trees=trees, **facts)


def encode_facts(facts: Json) -> RecordDict:
    """A message without tensors: the hello, a failure."""
    return _encode({}, facts)


def decode_facts(record: RecordDict) -> Json:
    return _decode(record)[1]


def encode_failure(failure: Failure) -> RecordDict:
    return encode_facts({"failure": [failure.kind, failure.reason]})


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
    tensors = sum(len(a.data) for r in record.array_records.values() for a in r.values())
    return tensors + sum(len(str(v)) for r in record.config_records.values() for v in r.values())


def _encode(trees: Mapping[str, Tree], facts: Json) -> RecordDict:
    record = RecordDict()
    layouts: dict[str, list[tuple[str, list[int]]]] = {}
    for name, tree in trees.items():
        layouts[name] = [(key, list(t.shape)) for key, t in tree.items()]
        record[TREE + name] = ArrayRecord({"flat": Array(_flat(tree))})
    record[FACTS] = ConfigRecord({"json": json.dumps(facts), "layouts": json.dumps(layouts)})
    return record


def _decode(record: RecordDict) -> tuple[dict[str, Tree], Json]:
    facts = record.config_records[FACTS]
    trees: dict[str, Tree] = {}
    for name, layout in json.loads(str(facts["layouts"])).items():
        flat = torch.from_numpy(record.array_records[TREE + name]["flat"].numpy())
        trees[name] = _unflat(name, flat, layout)
    return trees, json.loads(str(facts["json"]))


def _flat(tree: Tree) -> np.ndarray:
    # float32 always: numpy has no bfloat16, and Flower's Array goes through numpy
    if not tree:
        return np.zeros(0, dtype=np.float32)
    return torch.cat([t.detach().reshape(-1).to("cpu", torch.float32) for t in tree.values()]).numpy()


def _unflat(name: str, flat: Tensor, layout: list[tuple[str, list[int]]]) -> Tree:
    sizes = [prod(shape) for _, shape in layout]
    if flat.dtype != torch.float32 or flat.dim() != 1 or len(flat) != sum(sizes) or any(s < 0 for s in sizes):
        raise TreeMismatch(f"{name}: {len(flat)} numbers arrived, the layout names {sum(sizes)}")
    return {
        key: part.view(shape).clone() for (key, shape), part in zip(layout, flat.split(sizes), strict=True)
    }
