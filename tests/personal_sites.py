"""Sites that train private parts, on the real toy model."""

from pathlib import Path

from client_app import personal_model
from client_app.node import Node
from client_app.private_memory import Memory
from client_app.site import Site
from core.config import parse
from core.sections import Config
from core.types import Order
from tasks.model.adapter import initial_adapter
from tasks.training import engine
from tests.orders import with_fields

SMALL = {
    "data.rows-per-client": 12,
    "data.eval-rows-per-client": 8,
    "train.local-steps": 2,
    "lora.r": 4,
    "run.num-server-rounds": 3,
}
PDPO = {"task.name": "pdpo", "strategy.name": "fedpdpo"}


def configured(path: Path, **more) -> Config:
    return parse({**SMALL, "run.dir": str(path / "runs"), **more})


def here(path: Path, client: int = 0, **more) -> Site:
    return Site(configured(path, **{**PDPO, **more}), Node(client, 3, state_dir=str(path / f"site-{client}")))


def order(site: Site, *, rnd: int = 1, recall: int = 0, **fields) -> Order:
    base = site.base()
    common = {"run": "r", "base": base.fingerprint, "round": rnd}
    adapter = initial_adapter(base, 42)
    return with_fields(Order(site.node.client, {"global": adapter}, recall=recall), **common, **fields)


def own(path: Path, rnd: int, client: int = 0) -> dict:
    return Memory(path / f"site-{client}", "r", client).load(rnd)["own"]


def scored(place: Path, site: Site) -> dict:
    """Held-out scores of an exported model."""
    model = personal_model.load(site.config.model, place)
    return engine.evaluate(model.generator.base, site.task, site.rows().heldout, site.config, site.cache)
