"""A site on the real toy model."""

import pytest

from client_app.node import Node
from client_app.site import Site
from core.config import parse
from tests.client_app.orders import SMALL


@pytest.fixture
def site(tmp_path):
    def make(client: int = 0, clients: int = 3, **keys):
        flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
        return Site(
            parse({**SMALL, **flat}), Node(client, clients, state_dir=str(tmp_path / f"home-{client}"))
        )

    return make
