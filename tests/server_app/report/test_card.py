"""The model card: a header that parses, code that loads the adapter, counts instead of texts."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from server_app.report.card import write_card
from tests.paths import ROOT
from tests.server_app.report.sample import EVIL, dpo_record, dpo_run, write_run


def written(folder) -> tuple[dict, str]:
    write_card(folder)
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def code(body: str) -> str:
    match = re.search(r"```python\n(.*?)```", body, re.S)
    assert match
    ast.parse(match.group(1))
    return match.group(1)


def test_the_toy_base_is_not_a_hub_model_and_is_loaded_from_accord(tmp_path):
    head, body = written(dpo_run(tmp_path))
    assert head["library_name"] == "peft"
    assert "base_model" not in head
    assert head["tags"] == ["federated-learning", "flower", "lora", "dpo", "fedavg"]
    assert "base = embedded_model('toy')" in code(body)
    assert "| Preference accuracy, round 12 | 72.9 % | 68.3 to 77.1 | 384 rows |" in body
    assert "348 training rows of 8 clients" in body  # 40 + 41 + ... + 47
    assert "| 2 | 42 | 1 | `02020202020202020202020202020202` |" in body


def test_a_card_reports_shared_prompts_and_names_no_client(tmp_path):
    """A card is published with the adapter; terminal and report are for the operator of the run."""
    clients = {
        str(c): {"examples": 9, "name": f"person {c}", "heldout": {"rows": c, "unit": "row", "shared": 1.0}}
        for c in range(8)
    }
    left_out = {"smaller": {"owners": 2, "rows": 7, "names": ["person 8", "person 9"]}}
    records = [dpo_record(0), dpo_record(1)]
    reason = "failed: round 2: 0 of 8 clients answered (client person 3 (3): no answer)"
    _, body = written(write_run(tmp_path, records, clients=clients, left_out=left_out, status=reason))
    assert "person" not in body
    assert "Not finished: 1 of 12 rounds" in body
    assert "2 owners of 7 rows are left out" in body
    assert "100.0 % of 28 held-out rows have a prompt that the same client trains on" in body


def test_the_code_for_the_toy_base_works_from_any_folder(tmp_path):
    """Also next to modules of the user that are called like Accord's own; it needs the package `accord` only."""
    _, body = written(dpo_run(tmp_path))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "accord").symlink_to(ROOT / "accord")
    for name in ("core", "tasks"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the module of the user')\n")
    lines = [line for line in code(body).splitlines() if "embedded_model" in line]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ACCORD_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", "\n".join([*lines, "print(base)"])]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / "model.safetensors").is_file()
    assert result.stdout.startswith(str(tmp_path / "home"))


def test_a_hub_model_is_named_with_its_revision(tmp_path):
    config = {"model.name": "org/some-model-1.5B", "model.revision": "abc", "model.dtype": "bfloat16"}
    head, body = written(write_run(tmp_path, [dpo_record(0)], config=config))
    assert head["base_model"] == "org/some-model-1.5B"
    assert "from_pretrained(base, revision='abc', dtype=torch.bfloat16)" in code(body)


@pytest.mark.parametrize("make", [True, False])
def test_a_local_path_is_not_published(tmp_path, make):
    local = tmp_path / "secret" / "my-base"
    if make:
        local.mkdir(parents=True)
    head, body = written(write_run(tmp_path, [dpo_record(0)], config={"model.name": str(local)}))
    assert "base_model" not in head
    assert "my-base" in body
    assert "secret" not in body


def test_the_card_has_no_prompt_and_no_answer(tmp_path):
    _, body = written(dpo_run(tmp_path))
    assert EVIL not in body
    assert "red bird" not in body


def test_the_numerics_are_the_keys_that_the_run_used(tmp_path):
    _, body = written(write_run(tmp_path, [dpo_record(0)], config={"run.seed": 7, "task.beta": 0.3}))
    assert "- `run.seed` = `7`" in body
    assert "- `task.beta` = `0.3`" in body
    assert "desirable-weight" not in body  # of kto


def test_a_baseline_is_not_described_as_a_federated_adapter(tmp_path):
    config = {"strategy.name": "local"}
    _, body = written(write_run(tmp_path, [dpo_record(0)], config=config, strategy={"name": "local"}))
    assert "trained alone" in body
    assert "Only adapter updates" not in body


def test_a_shared_part_is_not_described_as_the_whole_model_of_a_client(tmp_path):
    config = {"task.name": "pdpo", "strategy.name": "fedpdpo"}
    _, body = written(write_run(tmp_path, [dpo_record(0)], config=config))
    assert "Every client kept private parts" in body
    _, other = written(dpo_run(tmp_path / "other"))
    assert "private parts" not in other


def test_an_unfinished_run_says_so_on_its_card(tmp_path):
    _, body = written(write_run(tmp_path, [], status="running"))
    assert "**Not finished" in body
    assert "Nothing was evaluated." in body
