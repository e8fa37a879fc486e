"""Node: a client's identity and paths, from the node config of its SuperNode."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import ConfigError
from core.types import Scalar


@dataclass(frozen=True)
class Node:
    """A client's identity and paths, from its node config."""

    client: int  # partition-id
    clients: int  # num-partitions
    data_path: str = ""  # the client's own private file; "": its share of the configured source
    state_dir: str = ""
    name: str = ""  # given by `accord provision`
    data_source: str = ""  # the data source that reads data_path; "": the one that its ending names
    simulated: bool = False  # the node config holds only the two numbers above, as in a simulation

    @staticmethod
    def read(node_config: Mapping[str, Scalar]) -> "Node":
        """Raises ConfigError if the node config lacks partition-id or num-partitions, or they are out of range."""
        try:
            client, clients = int(node_config["partition-id"]), int(node_config["num-partitions"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "a SuperNode needs --node-config 'partition-id=I num-partitions=N', "
                f"got the keys {sorted(node_config)}"
            ) from error
        if not 0 <= client < clients:
            raise ConfigError(
                f"partition-id must be from 0 to num-partitions - 1 = {clients - 1}, got {client}"
            )
        keys = ("data-path", "state-dir", "site-name", "data-source")
        texts = [str(node_config.get(key, "")) for key in keys]
        return Node(client, clients, *texts, simulated=len(node_config) == 2)
