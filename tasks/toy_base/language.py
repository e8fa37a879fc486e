"""The small language of the toy world: questions about animals, and answers made of slots.

Its words are all that the embedded base knows; which answers are better is decided in `tasks/data/toy.py`.
Every slot has as many ways to be filled on one side as on the other, equally long, so that a base that
knows the language prefers neither side.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

ANIMALS = (
    "fox", "owl", "bear", "frog", "hare", "crow", "deer", "wolf", "mole", "swan", "duck", "goat",
    "lynx", "seal", "toad", "crab", "moth", "newt", "boar", "hawk", "mouse", "otter", "badger", "beaver",
)  # fmt: skip
RELATIONS = (  # question word, verb, objects
    ("what", "eat", ("berries", "fish", "grass", "honey")),
    ("where", "sleep", ("in caves", "in trees", "under leaves", "near rivers")),
    ("what", "fear", ("thunder", "smoke", "snow", "dogs")),
)
QUESTIONS = (
    "{Word} does the {animal} {verb}?",
    "Tell me {word} the {animal} {verb}s.",
    "Do you know {word} the {animal} {verb}s?",
    "I wonder {word} the {animal} {verb}s.",
)
POLITE = ("Happy to help.", "Thanks for asking.", "A lovely question.")
BLUNT = ("Look it up.", "Stop asking me.", "Everyone knows this.")
CAUTIOUS = ("Perhaps", "Probably")
CONFIDENT = ("Surely", "Clearly")
DETAILS = (
    "It learned this from its mother.",
    "It does so every single day.",
    "People see this in every season.",
)
TRAITS = {  # of an answer: what it is called without and with it
    "polite": ("blunt", "polite"),
    "detailed": ("brief", "detailed"),
    "cautious": ("confident", "cautious"),
}


@dataclass(frozen=True)
class Topic:
    """Something one can ask: an animal and a relation, with its two candidate facts."""

    animal: str
    relation: int  # of RELATIONS
    facts: tuple[str, str]

    def question(self, form: int) -> str:
        word, verb, _ = RELATIONS[self.relation]
        return QUESTIONS[form].format(Word=word.capitalize(), word=word, animal=self.animal, verb=verb)


@dataclass(frozen=True)
class Answer:
    """The slots of one answer. `way` says in which of its equal ways each slot is filled."""

    fact: int  # of Topic.facts
    polite: bool
    detailed: bool
    cautious: bool
    way: tuple[int, int, int] = (0, 0, 0)  # opening, hedge, detail

    def text(self, topic: Topic) -> str:
        opening = (POLITE if self.polite else BLUNT)[self.way[0]]
        hedge = (CAUTIOUS if self.cautious else CONFIDENT)[self.way[1]]
        verb = RELATIONS[topic.relation][1]
        words = [opening, f"{hedge} it {verb}s {topic.facts[self.fact]}."]
        return " ".join([*words, DETAILS[self.way[2]]] if self.detailed else words)


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic, in a fixed order; a topic's two candidate facts depend on its place only."""
    out = []
    for place, animal in enumerate(ANIMALS):
        relation, turn = place % len(RELATIONS), place // len(RELATIONS)
        objects = RELATIONS[relation][2]
        first, distance = turn % len(objects), 1 + turn // len(objects) % (len(objects) - 1)
        out.append(Topic(animal, relation, (objects[first], objects[(first + distance) % len(objects)])))
    return tuple(out)


def ways(detailed: bool) -> list[tuple[int, int, int]]:
    """Every way to fill the slots of an answer whose features are fixed."""
    details = range(len(DETAILS)) if detailed else (0,)
    return list(product(range(len(POLITE)), range(len(CAUTIOUS)), details))


def words() -> list[str]:
    """Every word and punctuation mark, sorted; a word carries the space before it as U+2581."""
    texts = [topic.question(form) for topic in topics() for form in range(len(QUESTIONS))]
    for topic in topics():
        for fact, (polite, detailed, cautious) in product((0, 1), product((False, True), repeat=3)):
            texts += [Answer(fact, polite, detailed, cautious, way).text(topic) for way in ways(detailed)]
    found = set()
    for word in {word for text in texts for word in text.split()}:
        bare = word.rstrip(".?")
        found |= {f"\N{LOWER ONE EIGHTH BLOCK}{bare}", *word[len(bare) :]}
    return sorted(found)
