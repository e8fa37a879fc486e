"""A site with private rows behind its policy, at the door that takes a relay's bytes; and the same without a policy."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import RecordDict

from cli.site.policy.guard import GuardedSite
from cli.site.policy.rules import Policy
from cli.site.service import Service
from cli.site.site_file import SiteFile
from client_app.relay import FORMAT
from core import __version__, wire
from core.config import parse
from core.framing import pack, unpack
from core.types import Json, Order, Update
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter

MARKER = "marker-7f3a"  # in every private row
KEYS = {"data.source": "jsonl", "data.eval-fraction": 0.4, "train.local-steps": 3, "run.num-server-rounds": 3}
BASE = load_base(parse({}).model, parse({}).lora)
POLICY = Policy(
    tasks=("dpo",), strategies=("fedavg", "fedbiscuit"), models=(("toy", BASE.fingerprint[:16]),), max_runs=2,
    max_rounds=3, max_total_rounds=4, max_order_bytes=1 << 20, max_norm=0.01,
)  # fmt: skip


def message(kind: str, record: RecordDict, keys: dict = KEYS, owner: str = "anna") -> bytes:
    head = {
        "format": FORMAT,
        "accord": __version__,
        "kind": kind,
        "run": "7",
        "owner": owner,
        "app": "x",
        "keys": keys,
    }
    return pack(head, record)


def facts_of(answer: bytes) -> Json:
    """{"failure": [kind, reason]}, or what the site says."""
    return json.loads(str(unpack(answer)[1].config_records["facts"]["json"]))


def refused(said: Json) -> str:
    """Why; "" for an answer."""
    return said.get("failure", ["", ""])[1]


@dataclass
class Lab:
    path: Path
    policy: Policy | None = POLICY
    own_file: bool = True
    answers: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)
        write_rows(self.path / "rows.jsonl")

    def send(self, kind: str, record: RecordDict, keys: dict = KEYS, owner: str = "anna") -> Json:
        return self.raw(message(kind, record, keys, owner))

    def order(self, order: Order, kind: str = "train", keys: dict = KEYS, owner: str = "anna") -> Json:
        return self.send(kind, wire.encode_order(order), keys, owner)

    def raw(self, data: bytes) -> Json:
        """The answer of a process that has just been started: what it remembers is on its disk."""
        self.answers.append(self._service().answer(data))
        return facts_of(self.answers[-1])

    def update(self) -> Update:
        """The last answer as the server decodes it."""
        return wire.decode_update(unpack(self.answers[-1])[1])

    @property
    def touched(self) -> bool:
        """Whether anything was trained or remembered."""
        return (self.path / "state" / "memory").exists()

    def _service(self) -> Service:
        data, policy = str(self.path / "rows.jsonl") if self.own_file else "", self.policy
        file = SiteFile("unix:/nowhere", 0, 3, data_path=data, state_dir=str(self.path / "state"))
        return Service(file, lambda site, claim: GuardedSite(site, policy, claim) if policy else site)


def write_rows(path: Path, count: int = 60) -> None:
    rows = [
        {
            "prompt": f"{MARKER} what is water {i} ?",
            "chosen": f"wet {MARKER} .",
            "rejected": "i do not know .",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def order(rnd: int = 1, run: str = "r", recall: int = 0, base=BASE, shift: float = 0.0) -> Order:
    tree = {n: t + shift for n, t in initial_adapter(base, 42).items()}
    common = {"run": run, "base": base.fingerprint, "round": rnd, "clients": 3, "cohort": 3}
    return Order(0, {"global": tree}, recall=recall, **common)


def hello(run: str = "r", **more: object) -> RecordDict:
    return wire.encode_facts({"run": run, "base": BASE.fingerprint, "simulation": False, **more})
