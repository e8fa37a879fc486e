"""A toy source: generated pairs of answers in the toy language, with a planted truth.

The second answer of a pair is a rewrite of the first: another fact in 75 % of the pairs, politeness changed in 33 %,
and each feature that some client type cares for changed in a share `type_differs`. An answer's utility has a part
that all clients share, the right fact (3) and politeness (1.5), and a part for the client's planted type
(`type_weight`): types 0 and 1 prefer brief and detailed answers, types 2 and 3 cautious and confident ones. So the
federation can learn together what no client has enough rows for, while clients may disagree about an answer; above a
weight of 4.5 the type decides every pair whose answers differ in its feature. Which of a topic's two facts is right
is drawn from the run's seed; the base model gives both the same probability. Training labels are flipped with
probability `label_noise`; held-out labels are clean, and held-out pairs use, for every topic, a form of question that
no training pair uses.
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
from tasks.data.base import SourceRow
from tasks.toy_base.language import QUESTIONS, Answer, topics, ways

FACT, POLITE = 3.0, 1.5
FACT_DIFFERS = 0.75
POLITE_DIFFERS = 0.33
TASTES = (("detailed", False), ("detailed", True), ("cautious", True), ("cautious", False))
PROMPTS = 6


@dataclass(frozen=True)
class World:
    """The planted truth under one seed."""

    right: tuple[int, ...]  # the right fact of each topic
    unseen: tuple[int, ...]  # for each topic, the form of question reserved for held-out pairs

    @staticmethod
    def draw(seed: int) -> "World":
        rng, count = rng_for(seed, "toy", "world"), len(topics())
        right = tuple(rng.randrange(2) for _ in range(count))
        return World(right, tuple(rng.randrange(len(QUESTIONS)) for _ in range(count)))


@dataclass(frozen=True)
class Toy:
    """A source of generated pairs; see the docstring of the module."""

    types: int = 2
    rows_per_client: int = 48
    eval_rows_per_client: int = 48
    label_noise: float = 0.1
    type_weight: float = 2.0
    type_differs: float = 0.33  # in the answers of this share of the pairs

    # the two answers of a pair differ in a word or two, so margins are small (docs/aggregators.md)
    RECOMMENDED: ClassVar[Mapping[str, Scalar]] = {"task.beta": 3.0}

    def __post_init__(self) -> None:
        if not 1 <= self.types <= len(TASTES):
            raise ConfigError(f"data.types must be in 1..{len(TASTES)}, got {self.types}")
        if not 0 <= self.label_noise < 1:
            raise ConfigError(f"data.label-noise must be in [0, 1), got {self.label_noise!r}")
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

    def rows(self, seed: int, clients: int) -> Iterator[SourceRow]:
        world = World.draw(seed)
        for client in range(clients):
            for heldout, count in ((False, self.rows_per_client), (True, self.eval_rows_per_client)):
                rng = rng_for(seed, "toy", "heldout" if heldout else "train", client, clients)
                for number in range(count):
                    row = self._pair(rng, world, client, heldout=heldout)
                    yield SourceRow(f"toy client {client} row {number}", row, f"client-{client}", heldout)

    def stamp(self) -> Json:
        return ()

    def prompts(self) -> list[str]:
        """The first forms of question about some topics, the same under every seed."""
        all_topics = topics()
        return [topic.question(0) for topic in all_topics[:: len(all_topics) // PROMPTS]]

    def truth(self, client: int) -> int | None:
        return client % self.types

    def utility(self, answer: Answer, client: int, *, right: int) -> float:
        """How much the client likes an answer; `right` is the right fact of its topic."""
        feature, preferred_value = TASTES[client % self.types]
        suits_type = getattr(answer, feature) == preferred_value
        return FACT * (answer.fact == right) + self.type_weight * suits_type + POLITE * answer.polite

    def questions(self) -> list[str]:
        """Every form of question about every topic."""
        return list(_topic_of_question())

    def probes(self) -> list[str]:
        """One question about every topic, in its first form."""
        return [topic.question(0) for topic in topics()]

    def states_fact(self, seed: int, prompt: str, answer: str) -> bool | None:
        number = _topic_of_question().get(prompt)
        parsed = None if number is None else _answers(number).get(answer)
        return None if number is None or parsed is None else parsed.fact == World.draw(seed).right[number]

    def utility_of(self, seed: int, prompt: str, answer: str, client: int) -> float | None:
        number = _topic_of_question().get(prompt)
        if number is None:
            return None
        parsed = _answers(number).get(answer)
        return self.utility(parsed, client, right=World.draw(seed).right[number]) if parsed else 0.0

    def _pair(self, rng: random.Random, world: World, client: int, *, heldout: bool) -> Row:
        number = rng.randrange(len(world.right))
        topic, unseen = topics()[number], world.unseen[number]
        form = unseen if heldout else rng.choice([f for f in range(len(QUESTIONS)) if f != unseen])
        while True:
            first = _answer(rng)
            second = self._rewrite(first, rng)
            gain = self.utility(first, client, right=world.right[number])
            gain -= self.utility(second, client, right=world.right[number])
            if gain:  # draw again if the two answers are worth the same to the client
                break
        mislabelled = not heldout and rng.random() < self.label_noise
        chosen, rejected = (first, second) if (gain > 0) != mislabelled else (second, first)
        return {
            "prompt": topic.question(form),
            "chosen": chosen.text(topic),
            "rejected": rejected.text(topic),
        }

    def _rewrite(self, answer: Answer, rng: random.Random) -> Answer:
        """The answer with each feature flipped at random, with its own probability."""
        shares = {"polite": POLITE_DIFFERS}
        # sorted, because the order of the features is the order of the random draws
        shares |= dict.fromkeys(sorted({feature for feature, _ in TASTES[: self.types]}), self.type_differs)
        flips = {name: getattr(answer, name) ^ (rng.random() < share) for name, share in shares.items()}
        return replace(answer, fact=answer.fact ^ (rng.random() < FACT_DIFFERS), **flips)


@cache
def _topic_of_question() -> dict[str, int]:
    """The number of the topic of every question."""
    return {topic.question(form): i for i, topic in enumerate(topics()) for form in range(len(QUESTIONS))}


@cache
def _answers(number: int) -> dict[str, Answer]:
    """Every answer to the topic of this number, by its text."""
    topic, flags = topics()[number], (False, True)
    answers = (
        Answer(fact, polite, detailed, cautious, way)
        for fact, polite, detailed, cautious in product((0, 1), flags, flags, flags)
        for way in ways(detailed=detailed)
    )
    return {answer.text(topic): answer for answer in answers}


def _answer(rng: random.Random) -> Answer:
    """A random answer, with every feature and every wording equally likely."""
    polite, detailed, cautious = (rng.random() < 0.5 for _ in range(3))
    return Answer(rng.randrange(2), polite, detailed, cautious, rng.choice(ways(detailed=True)))


PLUGIN = Toy
