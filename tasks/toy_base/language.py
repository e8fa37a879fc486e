"""The language of the toy world: questions about animals, and answers composed of slots.

The embedded base is trained on this language only; `tasks/data/toy.py` defines which answers are better. Each trait
has equally many phrases of equal length with and without it, so that a base trained on the language has no preference.
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
TRAITS = {  # trait of an answer: the words for its absence and its presence
    "polite": ("blunt", "polite"),
    "detailed": ("brief", "detailed"),
    "cautious": ("confident", "cautious"),
}


@dataclass(frozen=True)
class Topic:
    """The topic of a question: an animal and a relation, with two candidate facts."""

    animal: str
    relation: int  # index in RELATIONS
    facts: tuple[str, str]

    def question(self, form: int) -> str:
        word, verb, _ = RELATIONS[self.relation]
        return QUESTIONS[form].format(Word=word.capitalize(), word=word, animal=self.animal, verb=verb)


@dataclass(frozen=True)
class Answer:
    """The slots of one answer. `way` selects among the equivalent phrases of each slot."""

    fact: int  # index in Topic.facts
    polite: bool
    detailed: bool
    cautious: bool
    way: tuple[int, int, int] = (0, 0, 0)  # phrase of opener, hedge and detail

    def text(self, topic: Topic) -> str:
        opener = (POLITE if self.polite else BLUNT)[self.way[0]]
        hedge = (CAUTIOUS if self.cautious else CONFIDENT)[self.way[1]]
        verb = RELATIONS[topic.relation][1]
        sentences = [opener, f"{hedge} it {verb}s {topic.facts[self.fact]}."]
        return " ".join([*sentences, DETAILS[self.way[2]]] if self.detailed else sentences)


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, in a fixed order; the two candidate facts of a topic depend on its place only."""
    out = []
    for place, animal in enumerate(ANIMALS):
        relation, turn = place % len(RELATIONS), place // len(RELATIONS)
        objects = RELATIONS[relation][2]
        first, distance = turn % len(objects), 1 + turn // len(objects) % (len(objects) - 1)
        out.append(Topic(animal, relation, (objects[first], objects[(first + distance) % len(objects)])))
    return tuple(out)


def ways(detailed: bool) -> list[tuple[int, int, int]]:
    """All combinations of phrases for an answer with fixed traits."""
    details = range(len(DETAILS)) if detailed else (0,)
    return list(product(range(len(POLITE)), range(len(CAUTIOUS)), details))


def vocabulary() -> list[str]:
    """All words and punctuation marks, sorted; a word begins with U+2581 for the space before it."""
    texts = [topic.question(form) for topic in topics() for form in range(len(QUESTIONS))]
    for topic in topics():
        for fact, (polite, detailed, cautious) in product((0, 1), product((False, True), repeat=3)):
            texts += [Answer(fact, polite, detailed, cautious, way).text(topic) for way in ways(detailed)]
    pieces = set()
    for word in {word for text in texts for word in text.split()}:
        bare = word.rstrip(".?")
        pieces |= {f"\N{LOWER ONE EIGHTH BLOCK}{bare}", *word[len(bare) :]}
    return sorted(pieces)
