import tomllib
from dataclasses import fields

import pytest

from core import __version__, config
from core.config import CHOOSERS, defaults, parse
from core.errors import ConfigError
from core.plugins import default_options, names, plugin
from core.sections import SECTIONS
from tests.paths import ROOT

RLFT = {"task.name": "reward", "rlft.epochs": 1}
PLUGINS = {**CHOOSERS, "eval": ("eval.benchmarks", "evals")}


def test_the_version_is_said_twice_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_the_page_and_the_shared_dataclasses_agree():
    for section, cls in SECTIONS.items():
        for field in fields(cls):
            key = f"{section}.{field.name.replace('_', '-')}"
            assert defaults()[key] == field.default, key
            assert type(defaults()[key]) is type(field.default), key


def test_every_option_of_a_plugin_is_on_the_page_with_its_default():
    for section, (_, package) in PLUGINS.items():
        for name in names(package):
            for short, default in default_options(plugin(package, name)).items():
                key = f"{section}.{short}"
                assert key in defaults(), f"{package}.{name} has {key}, pyproject.toml does not"
                advised = short in getattr(plugin(package, name), "recommended_options", ())
                assert defaults()[key] == (0.0 if advised else default), key


def test_a_key_left_at_0_takes_what_fits_the_rows_and_else_the_tasks_own_default():
    """The toy world's pairs need another beta than text; what the user sets is kept, and sft has none."""
    own = {"data.source": "jsonl", "data.path": "rows.jsonl"}
    assert dict(parse({}).flat)["task.beta"] == 3.0
    assert parse({**own, "task.name": "kto"}).task_choice.build().beta == 0.1
    assert parse({"task.beta": 0.2}).task_choice.build().beta == 0.2
    assert dict(parse({"task.name": "sft"}).flat)["task.beta"] == 0.0


def test_every_key_on_the_page_is_read_by_something():
    read = {f"{s}.{f.name.replace('_', '-')}" for s, cls in SECTIONS.items() for f in fields(cls)}
    read |= {chooser for chooser, _ in CHOOSERS.values()}
    for section, (_, package) in PLUGINS.items():
        read |= {f"{section}.{k}" for name in names(package) for k in default_options(plugin(package, name))}
    assert set(defaults()) == read


def test_the_default_parses_and_is_hashable():
    assert hash(parse({})) == hash(parse(defaults()))
    assert parse({}).model.name == "toy"


def test_an_override_arrives():
    parsed = parse({"task.name": "kto", "train.learning-rate": 1, "strategy.name": "local"})
    assert parsed.train.learning_rate == 1.0
    assert type(parsed.train.learning_rate) is float
    assert parsed.task_choice.name == "kto"
    assert dict(parsed.flat)["task.name"] == "kto"


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (
            {"train.lerning-rate": 1.0},
            "unknown key 'train.lerning-rate'; did you mean 'train.learning-rate'?",
        ),
        ({"rlft.beta": 0.2}, "rlft.beta has no effect with rlft.epochs = 0"),
        ({"data.flipped-clients": 1.0}, "data.flipped-clients must be in"),
        ({**RLFT, "data.flipped-clients": 0.2}, "rlft.judge = 'auto' knows what clients want"),
        (
            {"rlft.epochs": 1},
            "needs one of the tasks reward, selector, whose adapters can judge answers; 'dpo'",
        ),
        ({**RLFT, "strategy.name": "local"}, "the server has no selector"),
        ({**RLFT, "lora.aggregation": "fedsa"}, "the server has no selector"),
        ({**RLFT, "rlft.policy": "both"}, "rlft.policy = 'both' makes a policy for each selector"),
        ({**RLFT, "rlft.min-confidence": 0.4}, "rlft.min-confidence must be in [0.5, 1), got 0.4"),
        ({**RLFT, "rlft.completions": 1}, "rlft.completions must be at least 2, got 1"),
        ({**RLFT, "rlft.heldout": 1.0}, "rlft.heldout must be in (0, 1), got 1.0"),
        ({**RLFT, "rlft.top-p": 0.0}, "rlft.top-p must be in (0, 1], got 0.0"),
        ({**RLFT, "eval.pairs": "x"}, "eval.pairs = 'x' has no effect"),
        ({"train.learning-rate": "oops"}, "train.learning-rate must be float, got 'oops' (str)"),
        ({"train.local-steps": 1.5}, "train.local-steps must be int, got 1.5 (float)"),
        ({"train.local-steps": True}, "train.local-steps must be int, got True (bool)"),
        ({"train.local-steps": 0}, "train.local-steps must be above 0, got 0"),
        ({"train.learning-rate": float("nan")}, "train.learning-rate must be a finite number"),
        ({"train.max-grad-norm": -1.0}, "train.max-grad-norm must not be negative, got -1.0"),
        ({"strategy.fraction-train": 1.5}, "strategy.fraction-train must be in (0, 1], got 1.5"),
        ({"model.dtype": "fp8"}, "model.dtype must be one of float32 | bfloat16 | float16, got 'fp8'"),
        ({"strategy.name": "fedavgg"}, "no strategies/fedavgg.py; did you mean 'fedavg'?"),
        (
            {"task.name": "sft", "task.desirable-weight": "1.5"},
            "task.desirable-weight = '1.5' has no effect with task.name = 'sft'",
        ),
        (
            {"strategy.weighting": "big"},
            "strategy.weighting must be one of auto | examples | uniform | tokens, got",
        ),
        ({"strategy.robust": "median", "strategy.weighting": "tokens"}, "'median' ignores weights"),
        ({"fault.min-fraction": 1.5}, "fault.min-fraction must be in [0, 1], got 1.5"),
        (
            {"strategy.sampling": "some"},
            "strategy.sampling must be one of uniform | weighted | all | openfedllm",
        ),
        ({"fault.min-replies": 9}, "fault.min-replies = 9 is above strategy.min-available-nodes = 2"),
        (
            {"data.allocation": "ktor"},
            "data.allocation = 'ktor' has no effect with task.name = 'dpo'; it is for kto",
        ),
        ({"lora.dropout": 0.1}, "lora.dropout = 0.1 has no effect with task.name = 'dpo'; it is for sft"),
        (
            {"task.name": "selector", "data.prompt-format": "alpaca"},
            "data.prompt-format = 'alpaca' has no effect with task.name = 'selector'",
        ),
        (
            {"train.engine": "trl", "task.name": "kto", "task.reference-point": "pooled"},
            "task.reference-point = 'pooled' needs train.engine = 'accord'",
        ),
        (
            {"train.optimizer-state": "keep", "train.engine": "trl"},
            "train.optimizer-state = 'keep' needs train.engine = 'accord'",
        ),
        (
            {"train.optimizer-state": "keep", "train.optimizer": "sgd"},
            "train.optimizer-state = 'keep' has no effect with train.optimizer = 'sgd'",
        ),
        (
            {"train.local-epochs": 1.0, "train.total-epochs": 3.0},
            "train.local-epochs = 1.0 and train.total-epochs = 3.0 both set how many steps a client takes",
        ),
        (
            {"train.min-learning-rate": 1e-6},
            "train.min-learning-rate = 1e-06 has no effect with train.lr-schedule = 'constant'",
        ),
        (
            {"train.min-learning-rate": 1.0, "train.lr-schedule": "cosine", "train.learning-rate": 0.002},
            "train.min-learning-rate = 1.0 is above train.learning-rate = 0.002",
        ),
        ({"train.local-epochs": float("nan")}, "train.local-epochs must be a finite number"),
    ],
)
def test_bad_input_is_one_clear_line(flat, message):
    with pytest.raises(ConfigError) as caught:
        parse(flat)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flatten_is_dotted():
    assert config.flatten({"a": {"b": 1, "c": {"d": "x"}}, "e": True}) == {"a.b": 1, "a.c.d": "x", "e": True}


@pytest.mark.parametrize(
    "key", ["train.learning-rate", "train.local-epochs", "fault.round-deadline-s", "task.beta"]
)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 10**400])
def test_a_number_that_is_not_finite_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} must be a finite number"):
        parse({key: value})


def test_a_number_that_flower_cannot_carry_is_refused():
    with pytest.raises(ConfigError, match=r"run.seed must be a finite number of magnitude below"):
        parse({"run.seed": 2**63})
