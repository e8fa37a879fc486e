"""Keys of the section `federation`, and whether a simulation has one client per owner of rows."""

from collections.abc import Mapping

from core.config import defaults
from core.plugins import default_options, plugin
from core.types import Scalar

# Not part of the app's configuration: number of clients of a simulation and resources of each, or the SuperLink.
FEDERATION: dict[str, Scalar] = {"num-supernodes": 8, "client-cpus": 1.0, "client-gpus": 0.0, "superlink": ""}
LOCATION_KEYS = ("path", "dataset")  # options of a data source that say where its rows are


def has_owners(keys: Mapping[str, Scalar]) -> bool:
    """Whether a simulation has one client for each owner named in its rows."""
    config = {**defaults(), **keys}
    options = default_options(plugin("tasks.data", str(config["data.source"])))
    has_location = any(config[f"data.{key}"] for key in LOCATION_KEYS if key in options)
    return config["data.partitioner"] == "natural" and "client-column" in options and has_location
