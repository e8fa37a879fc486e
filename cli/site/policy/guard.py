"""GuardedSite: a site whose orders and answers are checked against its policy."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cli.site.policy.ledger import Ledger
from cli.site.policy.order import admit_hello, admit_order
from cli.site.policy.release import release, release_facts
from cli.site.policy.rules import Policy
from client_app.claim import Claim
from client_app.site import Site
from core.errors import AccordError, BaseMismatch, PolicyRefused, SiteError
from core.types import HelloRequest, Json, Order, Update
from strategies.clients.rule import FINISH
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

    def hello(self, request: HelloRequest) -> Json:
        with self._errors_without_details("hello"):
            self._admit_run()
            admit_hello(request)
            self._enter(request)
            train, _, _ = self.site.counts()
            self._check_row_counts("hello", [train])
            return release_facts(self.policy, self.site.hello(request))

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
        self._admit_run()
        admit_order(self.policy, self.site.config, self.site.node.client, kind, order)
        self._enter(order)
        run, ledger = order.run, self.ledger
        ledger.check(self.policy, run, kind, order)
        self._check_row_counts(kind, self._rows_of(kind, order))
        update = self.site.train(order) if kind == "train" else self.site.evaluate(order)
        update = release(self.policy, self.site.config, kind, order, update, ledger.secret())
        ledger.spend(self.policy, run, kind, order, update)
        return update

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.site.state_dir / "policy" / str(self.site.node.client))

    def _admit_run(self) -> None:
        """Check what needs no message: origin and configuration of the run."""
        self.policy.admit(self.claim, self.site.config)

    def _enter(self, message: Order | HelloRequest) -> None:
        """Check the base model, which loads it, then enter the run in the ledger."""
        policy, config = self.policy, self.site.config
        if not policy.allow_bin:
            policy.check_files(config.model.name, pickled=is_pickled(config.model))
        policy.check_base(config.model.name, self.site.base(message.base).fingerprint)
        self.ledger.enter(policy, message.run, self.claim.owner, config)

    def _rows_of(self, kind: str, order: Order) -> list[int]:
        """Return the numbers of rows that each part of an answer would be computed from."""
        train, comparison, heldout = self.site.counts()
        row_counts = [heldout if kind == "evaluate" else self.site.drawn(order, train)]
        if steps := int(order.options.get(FINISH, 0)):
            cfg = self.site.config.train
            batch = cfg.per_device_batch_size * cfg.gradient_accumulation_steps
            row_counts.append(min(train, steps * batch))
        if order.compare:
            row_counts.append(min(comparison, FIRST) if order.options.get("race") else comparison)
        return row_counts

    def _check_row_counts(self, kind: str, row_counts: list[int]) -> None:
        """Raise PolicyRefused if an answer would be computed from so few rows that it could reveal one."""
        if min(row_counts) < self.policy.min_rows:
            raise PolicyRefused(
                f"{kind} would use fewer rows than this site's policy requires, min-rows = {self.policy.min_rows}"
            )
