"""What the name of a column says about it; and which names may be shown."""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

LONGEST_NAME, LONGEST_FACT, MOST_NAMES = 32, 200, 20


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words in the names of columns. The last one says what a column is: question_id is an id, system_prompt a prompt.
FACTS = _listed(
    """id ids idx index uuid guid hash sha md fingerprint key url uri link path file filename source origin dataset
    corpus split subset batch fold domain subdomain category subcategory tag tags type subtype kind format
    subreddit lang language locale country model models engine policy sampler annotator rater labeler labeller
    worker author user username client clients site hospital owner group cluster team timestamp time date
    datetime day month year created updated modified version revision license licence copyright seed epoch step
    temperature utc meta metadata info"""
)
COUNTS = _listed("n num number count counts total length len tokens chars characters words top")
CONTEXT = _listed(
    """prompt prompts system instruction instructions history context contexts input inputs question questions
    query queries request message messages conversation conversations dialogue dialog chat turns turn document
    documents passage passages article post background persona premise knowledge evidence tools functions"""
)
MEDIA = _listed("image images picture pictures audio video videos")
JUDGEMENT = _listed(
    """label labels rating ratings rated score scores star stars reward rewards grade grades vote votes upvote
    upvotes downvote downvotes thumb thumbs like likes liked dislike dislikes disliked feedback preference
    preferences preferred winner verdict judgement judgment quality helpful helpfulness harmless honesty correct
    correctness accepted accept approved rejected rank ranking sentiment toxic toxicity safe unsafe safety
    harmful satisfaction satisfied useful usefulness relevance confidence probability weight margin desirable
    positive negative success passed valid flagged reaction good bad"""
)
VERDICTS = _listed(
    """good bad yes no up down true false positive negative like dislike liked disliked accept accepted reject
    rejected pass passed fail failed correct incorrect right wrong helpful unhelpful safe unsafe chosen
    thumbs_up thumbs_down great poor 👍 👎"""
)


def is_fact(name: str, value: Any) -> bool:
    """Whether a column says something about the row (an id, a source, a date), in a value as short as that."""
    words = _words(name)
    if not words:
        return False
    is_count = bool({words[0], words[-1]} & COUNTS) and not has_word(name, JUDGEMENT)  # like_count judges
    if not is_count and words[-1] not in FACTS:
        return False
    return not isinstance(value, str) or (len(value) <= LONGEST_FACT and "\n" not in value.strip())


def has_word(name: str, words: Collection[str]) -> bool:
    return any(word in words for word in _words(name))


def may_judge(name: str, value: Any) -> bool:
    """A judgement by its name, or a number, a bool or a verdict under a name that says nothing."""
    if has_word(name, JUDGEMENT) or isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and (value.strip().lower() in VERDICTS or _is_number(value))


def column_names(raw: Mapping[str, Any]) -> str:  # Any: not checked yet
    """The names of columns; what does not look like a name may be somebody's words, and is counted."""
    return "+".join(safe_names(raw)) or "none"


def safe_names(columns: Iterable[str]) -> list[str]:
    every = list(columns)
    names = sorted(name for name in every if is_name(name))[:MOST_NAMES]
    return names + ([f"{len(every) - len(names)} others"] if len(names) < len(every) else [])


def shown(name: str) -> str:
    return name if is_name(name) else "(its name is not shown)"


def is_name(name: str) -> bool:
    return str(name).isidentifier() and len(name) <= LONGEST_NAME


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d{1,9}(\.\d{0,9})?(\s*/\s*\d{1,3})?\s*%?\s*", text) is not None


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """systemPrompt, system_prompt and system-prompt2 are the same two words."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return tuple(word.lower() for word in re.split(r"[^A-Za-z]+", parts) if word)
