import pytest

from core.errors import ConfigError
from core.plugins import build, default_options, names, plugin


def test_the_files_are_the_names():
    assert {"fedavg", "local", "centralized"} <= set(names("strategies"))
    assert {"sft", "dpo", "kto"} <= set(names("tasks"))
    assert "base" not in names("strategies")
    assert "kit" not in names("strategies")


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no strategies/fedavgg.py; did you mean 'fedavg'\?"):
        plugin("strategies", "fedavgg")


def test_a_field_is_a_key_in_kebab_case():
    assert default_options(plugin("tasks", "dpo")).keys() == {"beta", "loss-type", "label-smoothing"}
    assert build("tasks", "dpo", {"loss-type": "ipo"}).loss_type == "ipo"
