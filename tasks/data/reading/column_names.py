"""What the name of a column says about its role, and which names may appear in messages."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from core.caches import Holds, cached

MAX_NAME_LENGTH, MAX_FACT_LENGTH, MAX_NAMES = 32, 200, 20


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in the names of columns. The last word decides what a column is: question_id is an id, system_prompt a prompt.
FACTS = _word_set(
    """id ids idx index uuid guid hash sha md fingerprint key url uri link path file filename source origin dataset
    corpus split subset batch fold domain subdomain category subcategory tag tags type subtype kind format
    subreddit lang language locale country model models engine policy sampler annotator rater labeler labeller
    worker author user username client clients site hospital owner group cluster team timestamp time date
    datetime day month year created updated modified version revision license licence copyright seed epoch step
    temperature utc meta metadata info"""
)
COUNTS = _word_set("n num number count counts total length len tokens chars characters words top")
CONTEXT = _word_set(
    """prompt prompts system instruction instructions history context contexts input inputs question questions
    query queries request message messages conversation conversations dialogue dialog chat turns turn document
    documents passage passages article post background persona premise knowledge evidence tools functions"""
)
MEDIA = _word_set("image images picture pictures audio video videos")
JUDGEMENT = _word_set(
    """label labels rating ratings rated score scores star stars reward rewards grade grades vote votes upvote
    upvotes downvote downvotes thumb thumbs like likes liked dislike dislikes disliked feedback preference
    preferences preferred winner verdict judgement judgment quality helpful helpfulness harmless honesty correct
    correctness accepted accept approved rejected rank ranking sentiment toxic toxicity safe unsafe safety
    harmful satisfaction satisfied useful usefulness relevance confidence probability weight margin desirable
    positive negative success passed valid flagged reaction good bad"""
)
VERDICTS = _word_set(
    """good bad yes no up down true false positive negative like dislike liked disliked accept accepted reject
    rejected pass passed fail failed correct incorrect right wrong helpful unhelpful safe unsafe chosen
    thumbs_up thumbs_down great poor 👍 👎"""
)


def is_fact(name: str, value: Any) -> bool:
    """Whether a column holds metadata of the row (an id, a source, a date) and its value is short enough for that."""
    parts = _name_words(name)
    if not parts:
        return False
    is_count = bool({parts[0], parts[-1]} & COUNTS) and not has_word(name, JUDGEMENT)  # like_count judges
    if not is_count and parts[-1] not in FACTS:
        return False
    return not isinstance(value, str) or (len(value) <= MAX_FACT_LENGTH and "\n" not in value.strip())


def has_word(name: str, vocabulary: Collection[str]) -> bool:
    return any(word in vocabulary for word in _name_words(name))


def may_judge(name: str, value: Any) -> bool:
    """Whether a column may hold a judgement: by its name, or because its value is a number, a bool or a verdict."""
    if has_word(name, JUDGEMENT) or isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and (value.strip().lower() in VERDICTS or _is_number(value))


def column_names(raw: Mapping[str, Any]) -> str:  # Any: not checked yet
    """The names of columns for a message; see safe_names."""
    return "+".join(safe_names(raw)) or "none"


def safe_names(columns: Iterable[str]) -> list[str]:
    """The names that may be printed, and a count of the rest, which may quote a person's text."""
    columns = list(columns)
    names = sorted(name for name in columns if is_name(name))[:MAX_NAMES]
    return names + ([f"{len(columns) - len(names)} others"] if len(names) < len(columns) else [])


def printable_name(name: str) -> str:
    return name if is_name(name) else "(its name is not shown)"


def is_name(name: str) -> bool:
    """Whether a string looks like the name of a column: a short identifier."""
    return str(name).isidentifier() and len(name) <= MAX_NAME_LENGTH


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d{1,9}(\.\d{0,9})?(\s*/\s*\d{1,3})?\s*%?\s*", text) is not None


@cached(Holds.RUN, maxsize=4096)  # names of columns may be private
def _name_words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: systemPrompt, system_prompt and system-prompt2 all give (system, prompt)."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return tuple(word.lower() for word in re.split(r"[^A-Za-z]+", parts) if word)
