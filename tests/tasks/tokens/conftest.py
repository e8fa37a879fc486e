"""Fixtures of the tests of chat templates."""

import pytest
import transformers.utils.chat_template_utils as chat_template_utils

from tasks.tokens.chat import TODAY
from tests.tasks.tokens.conversations import at


@pytest.fixture
def trls_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock that TRL reads to the date that Accord gives to templates."""
    monkeypatch.setattr(chat_template_utils, "datetime", at(TODAY))
