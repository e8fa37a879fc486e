"""The site's file and what it says of an asker and a configuration."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cli.site.policy.rules import OPEN, Policy
from client_app.claim import Claim
from core.config import parse
from core.errors import ConfigError, PolicyRefused
from tests.cli.site.policy.guarded import CLAIM, SMALL, STRICT
from tests.paths import ROOT

DOC = ROOT / "docs" / "policy.md"
OPENED = Policy(**OPEN)


def read(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return Policy.read(path)


def test_an_empty_file_refuses_every_task(tmp_path):
    with pytest.raises(PolicyRefused, match=r"task.name = 'dpo'; this site allows none"):
        read(tmp_path, "").admit(CLAIM, parse(SMALL))


def test_one_line_opens_a_site_for_tries_but_not_its_disk(tmp_path):
    policy = read(tmp_path, "open = true")
    for keys in ({}, {"task.name": "kto"}, {"strategy.name": "probe"}, {"train.engine": "trl"}):
        policy.admit(CLAIM, parse(keys))
    with pytest.raises(PolicyRefused, match="only this site decides"):
        policy.admit(CLAIM, parse({"data.source": "jsonl", "data.path": "/etc"}))


def test_what_the_file_says_goes_before_open(tmp_path):
    policy = read(tmp_path, 'open = true\ntasks = ["sft"]\nmin-rows = 5')
    assert (policy.min_rows, policy.updates) == (5, "clear")
    with pytest.raises(PolicyRefused, match="this site allows sft"):
        policy.admit(CLAIM, parse({}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-round = 3", "policy.toml: unknown key 'max-round'; did you mean 'max-rounds'"),
        ("zebra = 3", "policy.toml: unknown key 'zebra'; have: open, owners"),
        ("tasks = 'dpo'", "tasks must be a list of strings, got 'dpo'"),
        ("tasks = ['dpo', 1]", "tasks must be a list of strings"),
        ("models = ['toy']", r"models must be a table of name .*, got \['toy'\]"),
        ("updates = 'plain'", r"updates must be one of clear \| clipped \| noised, got 'plain'"),
        ("max-rounds = 2.5", "max-rounds must be int, got 2.5"),
        ("max-rounds = true", "max-rounds must be int, got True"),
        ("max-rounds = 0", "max-rounds must be above 0 and finite, got 0"),
        ("max-norm = nan", "max-norm must be above 0 and finite, got nan"),
        ("updates = 'noised'", "updates = 'noised' with a multiplier above 0"),
        ("noise-multiplier = 1.0", "updates = 'noised' with a multiplier above 0"),
        ("min-rows = 5", "round-counts-to = 10 .* min-rows = 5 "),
        ("facts = ['rows']", "facts must be among row-counts, data, skipped, truth, got 'rows'"),
        ("tasks = [", "is not TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*policy.toml: No such file"):
        Policy.read(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task.name": "kto"}, "task.name = 'kto'; this site allows dpo"),
        ({"strategy.name": "fedprox"}, "strategy.name = 'fedprox'; this site allows fedavg"),
        ({"strategy.name": "probe"}, "strategy.name = 'probe'; this site allows fedavg"),
        ({"train.engine": "trl"}, "train.engine = 'trl'; this site allows accord"),
        ({"model.name": "/etc"}, "model.name = '/etc'; this site allows toy"),
        ({"lora.target-modules": "embed_tokens"}, "lora.target-modules = 'embed_tokens'; this site allows"),
        ({"data.source": "hub"}, "data.source = 'hub'; this site allows toy"),
        ({"client.state-dir": "/tmp/x"}, "client.state-dir = '/tmp/x': only this site"),
        ({"run.num-server-rounds": 13}, "run.num-server-rounds = 13; this site allows at most 12"),
        ({"train.local-steps": 1001}, "train.local-steps = 1001; this site allows at most 1000"),
        ({"train.local-epochs": 11.0}, "train.local-epochs = 11.0; this site allows at most 10"),
    ],
)
def test_a_configuration_that_is_not_allowed_is_refused(keys, message):
    STRICT.admit(CLAIM, parse(SMALL))
    OPENED.admit(CLAIM, parse({**keys, "client.state-dir": ""}))  # it is the policy that refuses
    with pytest.raises(PolicyRefused, match=message):
        STRICT.admit(CLAIM, parse(keys))


def test_rows_of_several_sites_are_never_dealt_anew():
    config = parse({"task.name": "kto", "data.allocation": "ktor"})
    with pytest.raises(PolicyRefused, match=r"data.allocation = 'ktor'; this site allows ktoo"):
        OPENED.admit(CLAIM, config)


def test_the_advisor_needs_consent_of_its_own():
    config, asks = (
        parse({"strategy.name": "probe"}),
        {"tasks": ("*",), "models": (("*", ""),), "sources": ("*",)},
    )
    with pytest.raises(PolicyRefused, match="advise = false"):
        Policy(strategies=("*",), **asks).admit(CLAIM, config)
    Policy(strategies=("fedavg",), advise=True, **asks).admit(CLAIM, config)


@pytest.mark.parametrize(
    ("policy", "claim", "message"),
    [
        ({"owners": ("anna",)}, Claim("1", "eve", ""), "runs of 'eve'"),
        ({"owners": ("anna",)}, Claim("1", "", ""), "runs of an unnamed owner"),
        (
            {"apps": ("0123abcd" * 8,)},
            Claim("1", "", "accord.accord-fl.0.1.0.ffffffff"),
            "app 'ffffffff' is not",
        ),
        ({"apps": ("0123abcd" * 8,)}, Claim("1", "", "0123"), "app '0123' is not"),
        ({"apps": ("0123abcd" * 8,)}, Claim("1", "", ""), "app '' is not"),
    ],
)
def test_who_asks_is_checked_as_far_as_it_is_told(policy, claim, message):
    strict = Policy(**{**OPEN, **policy})
    strict.admit(CLAIM, parse(SMALL))
    with pytest.raises(PolicyRefused, match=message):
        strict.admit(claim, parse(SMALL))


def test_a_line_for_both_sides_is_one_line_and_short():
    with pytest.raises(PolicyRefused) as caught:
        STRICT.admit(CLAIM, parse({**SMALL, "model.name": "x\n[ERROR] forged" + "y" * 5000}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_base_is_known_by_its_fingerprint_and_by_how_it_begins():
    policy = Policy(models=(("toy", "abc"), ("*", "d")))
    policy.check_base("toy", "abcdef")
    policy.check_base("other", "def")
    for name, found in (("toy", "def"), ("other", "abc")):
        with pytest.raises(PolicyRefused, match=f"model.name = '{name}' has fingerprint {found} here"):
            policy.check_base(name, found)


def test_the_document_lists_every_key_with_its_default():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| `?([^`|]*)`? \|", DOC.read_text(), re.M))
    assert rows.keys() == {field.name.replace("_", "-") for field in fields(Policy)}
    for field in fields(Policy):
        said, default = rows[field.name.replace("_", "-")].strip(), getattr(Policy(), field.name)
        if isinstance(default, tuple):
            assert said == (", ".join(map(str, default)) or "none")
        else:
            assert said == str(default).lower(), field.name


def test_the_documents_examples_are_policies(tmp_path):
    examples = re.findall(r"```toml\n(.*?)```", DOC.read_text(), re.S)
    assert len(examples) >= 2
    hospital, tries = (read(tmp_path, text) for text in examples[:2])
    assert not hospital.open
    assert tries.open


@pytest.mark.parametrize("text", ["nope = 1", "max-norm = inf", "noise-multiplier = nan", "tasks = 'dpo'"])
def test_what_is_wrong_with_a_policy_is_said_with_its_file(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.toml: (unknown key|.* must be )"):
        Policy.read(tmp_path / "policy.toml")
