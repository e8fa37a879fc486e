"""The federation's own keys, and when a simulation has a client for each owner of its rows."""

from collections.abc import Mapping

from core.config import defaults
from core.plugins import knobs, plugin
from core.types import Scalar

# Not knobs of the app: how many clients a simulation has and what each may use, or which deployment to ask.
FEDERATION: dict[str, Scalar] = {"num-supernodes": 8, "client-cpus": 1.0, "client-gpus": 0.0, "superlink": ""}
PLACES = ("path", "dataset")  # of a source, where its rows are


def has_owners(keys: Mapping[str, Scalar]) -> bool:
    """Whether a simulation has a client for each owner that the rows of its source name."""
    known = {**defaults(), **keys}
    own = knobs(plugin("tasks.data", str(known["data.source"])))
    named = any(known[f"data.{key}"] for key in PLACES if key in own)
    return known["data.partitioner"] == "natural" and "client-column" in own and named
