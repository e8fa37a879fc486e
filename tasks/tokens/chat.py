"""Chat templates: conversations as the text that a tokenizer's own template renders, or the reason why it does not.

Turns go to the template as they come, with tool calls and whatever other keys they have, as in TRL 1.16. Deviations:
content in parts is joined for a template that takes strings only (TRL would write the parts as Python prints them, or
fail), and a string becomes one part for a template that takes parts only (as TRL does for processors). A template that
reads the clock sees TODAY, on every machine and on every day, so that equal rows are equal tokens.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

import jinja2
from jinja2 import meta, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.ext import Extension
from jinja2.parser import Parser

from core.errors import ConfigError
from tasks.tokens.formats import Message, Unsuited, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)  # what Llama 3's template writes where it has no clock
CLOCK = "strftime_now"  # transformers gives it to every template
DIRECTIVES = (*"aAbBcdDeFGhHIjmMpRStTuUVwWxXyYzZ", *(f"-{letter}" for letter in "deHIjmMS"))
GIVEN = {CLOCK, "raise_exception", "dict", "namespace", *DEFAULT_NAMESPACE}  # functions of every template
# what a template may raise when it computes with the values of a row
COMPUTING = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
PROBE, ANSWER = "Hi", "Yo"


class _Generation(Extension):
    """transformers' {% generation %} block, which marks what an assistant says and renders as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it like this

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises ConfigError, naming tokenizer and template, for a template that no conversation can be rendered with: one
    that cannot be parsed, that calls what transformers does not provide, or a set of templates without a default.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        try:
            self._source = tokenizer.get_chat_template()
        except ValueError:
            raise ConfigError(f"{self._name}: it has several, and none is called 'default'") from None
        self._missing: set[str] = set()
        self._literals: set[str] = set()
        self._joins = self._wraps = False
        self._probe(PROBE)  # refuses what cannot be parsed
        self._missing, self._literals = _names(self._source)
        self.reads_clock = CLOCK in self._source
        if self.reads_clock:
            self._source = _clock() + self._source
        self.writes_calls = "tool_calls" in self._source
        plain, parts = self._probe(PROBE), self._probe([{"type": "text", "text": PROBE}])
        takes_parts = PROBE in parts and not re.search(f"[\"']text[\"']: ?[\"']{PROBE}", parts)
        self._joins = PROBE in plain and not takes_parts
        self._wraps = takes_parts and PROBE not in plain
        self.unshared = self._unshared()

    @property
    def _name(self) -> str:
        return (
            f"the chat template of the tokenizer in {self._tokenizer.name_or_path or 'memory'} cannot be used"
        )

    def render(self, turns: Sequence[Message], *, generation: bool = False) -> str:
        """The text of a conversation, with what starts an answer after it if `generation`.

        Raises Unsuited for turns that the template refuses or cannot compute with, without their text.
        """
        shaped = [self._shaped(turn) for turn in turns]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    shaped, chat_template=self._source, tokenize=False, add_generation_prompt=generation
                )
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{self._name}: line {error.lineno}: {error.message}") from None
        except jinja2.TemplateError as error:
            raise self._refusal(error) from None
        except COMPUTING as error:
            raise Unsuited(f"the chat template cannot render its turns ({type(error).__name__})") from None

    def prompt(self, turns: Sequence[Message]) -> list[str]:
        """A prompt to answer: alone, and with an answer where the template takes one after these turns."""
        alone = self.render(turns, generation=True)
        try:
            return [alone, self.render([*turns, _assistant(ANSWER)])]
        except Unsuited:
            return [alone]

    def notes(self) -> list[str]:
        """What a reader of the plan may not expect of this template."""
        notes = []
        if self.unshared:
            notes.append(
                f"the chat template ends a prompt with {self.unshared!r} only where no answer follows: "
                "training and answers leave it out"
            )
        if self.reads_clock:
            notes.append(f"the chat template writes today's date: it is {TODAY:%d %b %Y} in every run")
        if self.end_of_turn is None:
            notes.append("the chat template writes no end token after an answer: the model learns none")
        return notes

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template writes after an answer, where it is one of the tokenizer's added tokens."""
        try:
            text = self.render([_user(PROBE), _assistant(ANSWER)])
        except Unsuited:
            return None
        after = text.rpartition(ANSWER)[2].lstrip()
        ids = self._tokenizer(after, add_special_tokens=False).input_ids
        return ids[0] if ids and ids[0] in self._tokenizer.added_tokens_decoder else None

    def _unshared(self) -> str:
        """The end of a prompt alone that is not there before an answer; "" for most templates."""
        try:
            alone, *answered = self.prompt([_user(PROBE)])
        except Unsuited:
            return ""
        return alone[common(alone, answered[0]) :] if answered else ""

    def _probe(self, content: object) -> str:
        try:
            return self.render([{"role": "user", "content": content}], generation=True)
        except Unsuited:
            return ""

    def _shaped(self, turn: Message) -> Message:
        content = turn.get("content")
        if isinstance(content, list) and self._joins:
            return {**turn, "content": text_of(turn)}
        if isinstance(content, str) and self._wraps:
            return {**turn, "content": [{"type": "text", "text": content}]}
        return turn

    def _refusal(self, error: jinja2.TemplateError) -> Unsuited:
        """What the template says of turns that it refuses, where these are its own words and none of the turns'."""
        message = str(error)
        if isinstance(error, jinja2.UndefinedError):
            for name in self._missing:
                if message == f"{name!r} is undefined":
                    raise ConfigError(f"{self._name}: transformers has no function {name}()")
        words = f": {message}" if message in self._literals else ""
        return Unsuited(f"the chat template does not take its turns{words}")


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """How long the two are the same, from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _names(source: str) -> tuple[set[str], set[str]]:
    """The functions that a template calls and nobody provides, and the strings that are written in it."""
    environment = jinja2.Environment(
        extensions=[_Generation, "jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True
    )
    tree = environment.parse(source)
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    literals = {const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)}
    return (called & meta.find_undeclared_variables(tree)) - GIVEN, literals


def _clock() -> str:
    """A macro in the place of the clock, which formats TODAY. jinja2 trims the line break after it."""
    filters = "".join(f"|replace('%{d}', '{TODAY.strftime(f'%{d}')}')" for d in DIRECTIVES)
    return (
        f"{{% macro {CLOCK}(format) %}}{{{{ format|replace('%%', '\\x00'){filters}|replace('\\x00', '%') }}}}"
        "{% endmacro %}\n"
    )


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
