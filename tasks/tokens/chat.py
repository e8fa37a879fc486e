"""Render conversations with the chat template of a tokenizer, or say why it cannot render them.

Turns are passed to the template unchanged, with tool calls and all other keys, as in TRL 1.16. Deviations:
content in parts is joined for a template that takes strings only (TRL would write the parts as Python prints them, or
fail), and a string becomes one part for a template that takes parts only (as TRL does for processors). A template that
reads the clock gets TODAY, on every machine and every day, so that equal rows give equal tokens.
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
from tasks.tokens.formats import FormatError, Message, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)  # the date that Llama 3's template writes without a clock
CLOCK = "strftime_now"  # a function that transformers provides to every template
DIRECTIVES = (*"aAbBcdDeFGhHIjmMpRStTuUVwWxXyYzZ", *(f"-{letter}" for letter in "deHIjmMS"))
PROVIDED = {CLOCK, "raise_exception", "dict", "namespace", *DEFAULT_NAMESPACE}  # functions of every template
# Errors that a template may raise when it computes with the values of a row.
RENDER_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
PROBE, ANSWER = "Hi", "Yo"


class _Generation(Extension):
    """The {% generation %} block of transformers, which marks an assistant's text and renders its content."""

    tags = {"generation"}  # noqa: RUF012 - the declaration in jinja2 is mutable

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
        self._probe(PROBE)  # raises ConfigError for a template that cannot be parsed
        self._missing, self._literals = _names_and_literals(self._source)
        self.reads_clock = CLOCK in self._source
        if self.reads_clock:
            self._source = _clock_macro() + self._source
        self.writes_calls = "tool_calls" in self._source
        # Render a string and a list of parts to see which of the two forms the template takes. A template that takes
        # strings only may print the list as Python does, which does not count.
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
        """The text of a conversation. generation: followed by the text that starts an answer.

        Raises FormatError, without text of the turns, for turns that the template refuses or cannot render.
        """
        shaped = [self._shape(turn) for turn in turns]
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
        except RENDER_ERRORS as error:
            raise FormatError(f"the chat template cannot render its turns ({type(error).__name__})") from None

    def prompt(self, turns: Sequence[Message]) -> list[str]:
        """The texts of a prompt: without an answer and, if the template allows an answer next, with a dummy answer."""
        alone = self.render(turns, generation=True)
        try:
            return [alone, self.render([*turns, _assistant(ANSWER)])]
        except FormatError:
            return [alone]

    def notes(self) -> list[str]:
        """Unusual properties of this template, for the plan."""
        notes = []
        if self.unshared:
            notes.append(
                f"the chat template ends a prompt with {self.unshared!r} only if no answer follows: "
                "training and generation leave it out"
            )
        if self.reads_clock:
            notes.append(f"the chat template writes today's date: it is {TODAY:%d %b %Y} in every run")
        if self.end_of_turn is None:
            notes.append(
                "the chat template writes no end token after an answer: the model does not learn to end one"
            )
        return notes

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template writes after an answer, where it is one of the tokenizer's added tokens."""
        try:
            text = self.render([_user(PROBE), _assistant(ANSWER)])
        except FormatError:
            return None
        after = text.rpartition(ANSWER)[2].lstrip()
        ids = self._tokenizer(after, add_special_tokens=False).input_ids
        return ids[0] if ids and ids[0] in self._tokenizer.added_tokens_decoder else None

    def _unshared(self) -> str:
        """The end of a rendered prompt that is missing when an answer follows; "" for most templates."""
        try:
            alone, *answered = self.prompt([_user(PROBE)])
        except FormatError:
            return ""
        return alone[common_length(alone, answered[0]) :] if answered else ""

    def _probe(self, content: object) -> str:
        """The text of a user turn with this content; "" if the template refuses it."""
        try:
            return self.render([{"role": "user", "content": content}], generation=True)
        except FormatError:
            return ""

    def _shape(self, turn: Message) -> Message:
        """The turn with its content as a string or as parts, whichever the template takes."""
        content = turn.get("content")
        if isinstance(content, list) and self._joins:
            return {**turn, "content": text_of(turn)}
        if isinstance(content, str) and self._wraps:
            return {**turn, "content": [{"type": "text", "text": content}]}
        return turn

    def _refusal(self, error: jinja2.TemplateError) -> FormatError:
        """The error for turns that the template refuses, with its message only if that is a literal of the template.

        Any other message may quote the turns. Raises ConfigError if the template calls an unknown function.
        """
        message = str(error)
        if isinstance(error, jinja2.UndefinedError):
            for name in self._missing:
                if message == f"{name!r} is undefined":
                    raise ConfigError(f"{self._name}: transformers has no function {name}()")
        safe_message = f": {message}" if message in self._literals else ""
        return FormatError(f"the chat template does not take its turns{safe_message}")


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """The length of the common prefix of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _names_and_literals(source: str) -> tuple[set[str], set[str]]:
    """The undefined functions that a template calls, and its string literals."""
    environment = jinja2.Environment(
        extensions=[_Generation, "jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True
    )
    tree = environment.parse(source)
    functions = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    literals = {const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)}
    return (functions & meta.find_undeclared_variables(tree)) - PROVIDED, literals


def _clock_macro() -> str:
    """A macro that replaces the clock and formats TODAY. jinja2 trims the line break after it."""
    filters = "".join(f"|replace('%{d}', '{TODAY.strftime(f'%{d}')}')" for d in DIRECTIVES)
    return (
        f"{{% macro {CLOCK}(format) %}}{{{{ format|replace('%%', '\\x00'){filters}|replace('\\x00', '%') }}}}"
        "{% endmacro %}\n"
    )


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
