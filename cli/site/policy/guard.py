"""A site behind its policy: the same three answers, each checked before the work is done and before it leaves."""

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
class Guarded:
    """A Site to ask in its place; every answer raises PolicyRefused where the policy says so."""

    site: Site
    policy: Policy
    claim: Claim

    def hello(self, knobs: Json) -> Json:
        with self._in_few_words("hello"):
            order = Order(self.site.node.client, {}, "", knobs=knobs)
            self._admit("hello", order)
            self._enough("hello", order)
            return release_facts(self.policy, self.site.hello(knobs))

    def train(self, order: Order) -> Update:
        with self._in_few_words("train"):
            return self._act("train", order)

    def evaluate(self, order: Order) -> Update:
        with self._in_few_words("evaluate"):
            return self._act("evaluate", order)

    @contextmanager
    def _in_few_words(self, kind: str) -> Iterator[None]:
        """Errors as the server may read them: of others than these it gets the kind, and the log the text."""
        try:
            yield
        except (PolicyRefused, BaseMismatch):
            raise
        except AccordError as error:
            log.error("%s: %s: %s", kind, type(error).__name__, error)
            raise SiteError(f"{kind} ended in a {type(error).__name__}; this site's log says more") from None

    def _act(self, kind: str, order: Order) -> Update:
        self._admit(kind, order)
        run, ledger = str(order.knobs["run"]), self.ledger
        ledger.check(self.policy, run, kind, order)
        self._enough(kind, order)
        update = self.site.train(order) if kind == "train" else self.site.evaluate(order)
        update = release(self.policy, self.site.config, kind, order, update, ledger.secret())
        ledger.spend(self.policy, run, kind, order, update)
        return update

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.site.state_dir / "policy" / str(self.site.node.client))

    def _admit(self, kind: str, order: Order) -> None:
        """All that can be known before the base is loaded; then the base; then the run's account is opened."""
        policy, config = self.policy, self.site.config
        policy.admit(self.claim, config)
        admit_order(policy, config, self.site.node.client, kind, order)
        if not policy.allow_bin:
            policy.check_files(config.model.name, pickled=is_pickled(config.model))
        policy.check_base(config.model.name, self.site.base(str(order.knobs["base"])).fingerprint)
        self.ledger.enter(policy, str(order.knobs["run"]), self.claim.owner, config)

    def _enough(self, kind: str, order: Order) -> None:
        """Raises PolicyRefused where the numbers asked for would be over too few rows to hide one of them."""
        train, aside, heldout = self.site.counts()
        over = [
            train if kind == "hello" else heldout if kind == "evaluate" else self.site.drawn(order, train)
        ]
        if "compare" in order.knobs:
            over.append(min(aside, FIRST) if order.knobs.get("race") else aside)
        if min(over) < self.policy.min_rows:
            raise PolicyRefused(
                f"{kind} over fewer than the {self.policy.min_rows} rows that this site asks for"
            )
