"""GuardedSite: a site whose orders and answers are checked against its policy."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cli.site.policy.ledger import Ledger
from cli.site.policy.order import admit_order
from cli.site.policy.release import release, release_facts
from cli.site.policy.rules import Policy
from client_app.claim import Claim
from client_app.site import Site
from core.errors import AccordError, BaseMismatch, PolicyRefused, SiteError
from core.types import Json, Order, Update
from tasks.forward.setup import is_pickled
from tasks.scoring.race import FIRST

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardedSite:
    """Answers in a Site's place: checks each order before the work, and each answer before it leaves.

    Every method raises PolicyRefused if the policy forbids the order or the answer.
    """

    site: Site
    policy: Policy
    claim: Claim

    def hello(self, knobs: Json) -> Json:
        with self._errors_without_details("hello"):
            order = Order(self.site.node.client, {}, "", knobs=knobs)
            self._admit("hello", order)
            self._check_row_counts("hello", order)
            return release_facts(self.policy, self.site.hello(knobs))

    def train(self, order: Order) -> Update:
        with self._errors_without_details("train"):
            return self._act("train", order)

    def evaluate(self, order: Order) -> Update:
        with self._errors_without_details("evaluate"):
            return self._act("evaluate", order)

    @contextmanager
    def _errors_without_details(self, kind: str) -> Iterator[None]:
        """Reduce errors to what the server may read: refusals pass, of others only the type; the log has the rest."""
        try:
            yield
        except (PolicyRefused, BaseMismatch):
            raise
        except AccordError as error:
            log.error("%s: %s: %s", kind, type(error).__name__, error)
            raise SiteError(f"{kind} failed with {type(error).__name__}; see this site's log") from None

    def _act(self, kind: str, order: Order) -> Update:
        self._admit(kind, order)
        run, ledger = str(order.knobs["run"]), self.ledger
        ledger.check(self.policy, run, kind, order)
        self._check_row_counts(kind, order)
        update = self.site.train(order) if kind == "train" else self.site.evaluate(order)
        update = release(self.policy, self.site.config, kind, order, update, ledger.secret())
        ledger.spend(self.policy, run, kind, order, update)
        return update

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.site.state_dir / "policy" / str(self.site.node.client))

    def _admit(self, kind: str, order: Order) -> None:
        """Check the order: first what needs no base model, then the base model; then enter the run in the ledger."""
        policy, config = self.policy, self.site.config
        policy.admit(self.claim, config)
        admit_order(policy, config, self.site.node.client, kind, order)
        if not policy.allow_bin:
            policy.check_files(config.model.name, pickled=is_pickled(config.model))
        policy.check_base(config.model.name, self.site.base(str(order.knobs["base"])).fingerprint)
        self.ledger.enter(policy, str(order.knobs["run"]), self.claim.owner, config)

    def _check_row_counts(self, kind: str, order: Order) -> None:
        """Raise PolicyRefused if an answer would be computed from so few rows that it could reveal one."""
        train, comparison, heldout = self.site.counts()
        row_counts = [
            train if kind == "hello" else heldout if kind == "evaluate" else self.site.drawn(order, train)
        ]
        if "compare" in order.knobs:
            row_counts.append(min(comparison, FIRST) if order.knobs.get("race") else comparison)
        if min(row_counts) < self.policy.min_rows:
            raise PolicyRefused(
                f"{kind} would use fewer rows than this site's policy requires, min-rows = {self.policy.min_rows}"
            )
