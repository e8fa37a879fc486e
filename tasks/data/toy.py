"""The toy preference world: pairs of answers in the toy language, with a planted truth to be found.

The second answer of a pair is a rewrite of the first: another fact in 75 % of the pairs, politeness in 33 %, each
feature that some type cares for in a share `type_differs`. An answer's utility has a part that everybody shares,
the right fact (3) and politeness (1.5), and a part of the client's planted type (`type_weight`): types 0 and 1 want
it brief and detailed, types 2 and 3 cautious and confident. So a federation can find out together what no client
holds enough rows for, and what pleases one client may not please another; above a weight of 4.5 a client's type
decides wherever it can. Which of a topic's two facts is right is drawn from
the run's seed; the base knows both alike. Training labels are flipped with probability `label_noise`;
held-out labels are clean, and held-out pairs ask every topic in a form in which no training pair asks it.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import ClassVar

from core.errors import ConfigError
from core.seeds import rng_for
from core.types import Json, Scalar
from tasks.base import Row
from tasks.data.base import Found
from tasks.toy_base.language import QUESTIONS, Answer, topics, ways

FACT, POLITE = 3.0, 1.5
FACT_DIFFERS = 0.75
POLITE_DIFFERS = 0.33
TASTES = (("detailed", False), ("detailed", True), ("cautious", True), ("cautious", False))
PROMPTS = 6


@dataclass(frozen=True)
class World:
    """What is true under one seed."""

    right: tuple[int, ...]  # the right fact of each topic
    unseen: tuple[int, ...]  # the form of question that is kept for held-out pairs

    @staticmethod
    def draw(seed: int) -> "World":
        rng, count = rng_for(seed, "toy", "world"), len(topics())
        right = tuple(rng.randrange(2) for _ in range(count))
        return World(right, tuple(rng.randrange(len(QUESTIONS)) for _ in range(count)))


@dataclass(frozen=True)
class Toy:
    types: int = 2
    rows_per_client: int = 48
    eval_rows_per_client: int = 48
    label_noise: float = 0.1
    type_weight: float = 2.0
    type_differs: float = 0.33  # in the answers of this share of the pairs

    # the two answers of a pair differ in a word or two (docs/aggregators.md)
    RECOMMENDED: ClassVar[Mapping[str, Scalar]] = {"task.beta": 3.0}

    def __post_init__(self) -> None:
        if not 1 <= self.types <= len(TASTES):
            raise ConfigError(f"data.types must be in 1..{len(TASTES)}, got {self.types}")
        if self.rows_per_client < 1 or self.eval_rows_per_client < 0:
            raise ConfigError(
                "data.rows-per-client must be above 0 and data.eval-rows-per-client not negative, "
                f"got {self.rows_per_client} and {self.eval_rows_per_client}"
            )
        if not self.type_weight >= 0 or not 0 <= self.type_differs <= 1:
            raise ConfigError(
                "data.type-weight must not be negative and data.type-differs be in 0..1, "
                f"got {self.type_weight} and {self.type_differs}"
            )

    def find(self, seed: int, clients: int) -> Iterator[Found]:
        world = World.draw(seed)
        for client in range(clients):
            for heldout, count in ((False, self.rows_per_client), (True, self.eval_rows_per_client)):
                rng = rng_for(seed, "toy", "heldout" if heldout else "train", client, clients)
                for number in range(count):
                    row = self._pair(rng, world, client, heldout=heldout)
                    yield Found(f"toy client {client} row {number}", row, f"client-{client}", heldout)

    def stamp(self) -> Json:
        return ()

    def prompts(self) -> list[str]:
        """The first forms of question about some topics, the same under every seed."""
        every = topics()
        return [topic.question(0) for topic in every[:: len(every) // PROMPTS]]

    def truth(self, client: int) -> int | None:
        return client % self.types

    def utility(self, answer: Answer, client: int, *, right: int) -> float:
        """How much the client likes an answer; `right` is the right fact of its topic."""
        feature, wanted = TASTES[client % self.types]
        liked = getattr(answer, feature) == wanted
        return FACT * (answer.fact == right) + self.type_weight * liked + POLITE * answer.polite

    def questions(self) -> list[str]:
        """Every form of question about every topic."""
        return list(_asked())

    def probes(self) -> list[str]:
        """One question about every topic, in its first form."""
        return [topic.question(0) for topic in topics()]

    def states_fact(self, seed: int, prompt: str, answer: str) -> bool | None:
        place = _asked().get(prompt)
        meant = None if place is None else _answers(place).get(answer)
        return None if place is None or meant is None else meant.fact == World.draw(seed).right[place]

    def utility_of(self, seed: int, prompt: str, answer: str, client: int) -> float | None:
        place = _asked().get(prompt)
        if place is None:
            return None
        meant = _answers(place).get(answer)
        return self.utility(meant, client, right=World.draw(seed).right[place]) if meant else 0.0

    def _pair(self, rng: random.Random, world: World, client: int, *, heldout: bool) -> Row:
        place = rng.randrange(len(world.right))
        topic, kept = topics()[place], world.unseen[place]
        form = kept if heldout else rng.choice([f for f in range(len(QUESTIONS)) if f != kept])
        while True:
            one = _answer(rng)
            two = self._rewrite(one, rng)
            gain = self.utility(one, client, right=world.right[place])
            gain -= self.utility(two, client, right=world.right[place])
            if gain:  # a rewrite that changes nothing the client cares for says nothing
                break
        flipped = not heldout and rng.random() < self.label_noise
        chosen, rejected = (one, two) if (gain > 0) != flipped else (two, one)
        return {
            "prompt": topic.question(form),
            "chosen": chosen.text(topic),
            "rejected": rejected.text(topic),
        }

    def _rewrite(self, answer: Answer, rng: random.Random) -> Answer:
        shares = {"polite": POLITE_DIFFERS}
        shares |= dict.fromkeys(sorted({feature for feature, _ in TASTES[: self.types]}), self.type_differs)
        flips = {name: getattr(answer, name) ^ (rng.random() < share) for name, share in shares.items()}
        return replace(answer, fact=answer.fact ^ (rng.random() < FACT_DIFFERS), **flips)


@cache
def _asked() -> dict[str, int]:
    """The topic of every question, by its place."""
    return {topic.question(form): i for i, topic in enumerate(topics()) for form in range(len(QUESTIONS))}


@cache
def _answers(place: int) -> dict[str, Answer]:
    """Every answer to a topic, by its text."""
    topic, flags = topics()[place], (False, True)
    made = (
        Answer(fact, polite, detailed, cautious, way)
        for fact, polite, detailed, cautious in product((0, 1), flags, flags, flags)
        for way in ways(detailed=detailed)
    )
    return {answer.text(topic): answer for answer in made}


def _answer(rng: random.Random) -> Answer:
    """An answer with every feature and every way equally likely."""
    polite, detailed, cautious = (rng.random() < 0.5 for _ in range(3))
    return Answer(rng.randrange(2), polite, detailed, cautious, rng.choice(ways(detailed=True)))


PLUGIN = Toy
