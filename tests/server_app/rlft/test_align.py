"""RLFT in this process on the toy base: its results, resuming, and the pairs that it trains on."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import store
from core.config import parse
from core.errors import DataError
from server_app.rlft.align import Rlft, Selectors
from tasks.forward.setup import load_base
from tasks.model.adapter import initial_adapter, set_adapter
from tests import tiny

SMALL = {
    "task.name": "reward",
    "strategy.name": "fedbiscuit",
    "strategy.selectors": 2,
    "rlft.epochs": 2,
    "rlft.completions": 3,
    "rlft.max-new-tokens": 12,
    "rlft.labels": "hard",
    "rlft.patience": 0,
    "rlft.learning-rate": 5e-3,
    "train.max-length": 400,
}
PROMPTS = [
    "What does the fox eat?", "Where does the owl sleep?", "What does the bear fear?",
    "Tell me what the deer eats.", "Where does the wolf sleep?", "I wonder what the crow fears.",
]  # fmt: skip


def pipeline(path: Path, **more) -> Rlft:
    """RLFT with two different selectors, of groups of 2 clients and 1."""
    path.mkdir(exist_ok=True)
    (path / "prompts.txt").write_text("\n".join(PROMPTS))
    config = parse({**SMALL, "rlft.prompts": str(path / "prompts.txt"), **more})
    base = load_base(config.model, config.lora)
    trees = {name: tiny.random_adapter(base, seed, 0.3) for seed, name in enumerate(("c0", "c1"))}
    selectors = Selectors(trees, {name: {} for name in trees}, {"c0": [0, 2], "c1": [1]})
    return Rlft(config, path / "run", base, selectors)


def aligned(path: Path, **more) -> Rlft:
    rlft = pipeline(path, **more)
    rlft.run.mkdir(exist_ok=True)
    rlft.align()
    return rlft


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Rlft:
    """RLFT after training the policy of the population and one of each group."""
    return aligned(tmp_path_factory.mktemp("rlft") / "both", **{"rlft.policy": "both"})


def test_every_pair_of_a_prompt_becomes_a_row_and_the_policy_learns_from_it(both):
    """Pairs that are not rows are counted as left out, by reason; the loss falls below ln 2."""
    record = json.loads((both.folder / "record.json").read_text())
    for name in ("population", "c0", "c1"):
        preferences = rows(
            both.folder / ("preferences.jsonl" if name == "population" else f"preferences-{name}.jsonl")
        )
        (labels,) = record["policies"][name]["labels"]
        assert len(preferences) == labels["pairs"]
        assert len(preferences) + sum(labels["left_out"].values()) == 3 * len(both.labels.train)
        assert {row["prompt"] for row in preferences} <= {a.prompt for a in both.labels.train}
        assert all(row["chosen"] != row["rejected"] and row["label_confidence"] >= 0.5 for row in preferences)
        epochs = record["policies"][name]["epochs"]
        assert [e["epoch"] for e in epochs] == [0, 1, 2]
        assert epochs[2]["loss"] < epochs[1]["loss"] < 0.694
        assert epochs[2]["rewards/accuracies"] > 0.7
        assert epochs[0]["kl"] == 0 < epochs[1]["kl"]
        assert epochs[0]["signal/win_rate"] == 0.5, "the untrained policy against itself"
        assert (epochs[0]["judge/win_rate"], epochs[0]["judge/score"]) == (0.5, 0.0)


def test_a_policy_of_a_group_is_labelled_by_its_own_selector(both):
    """Their labels contradict each other somewhere; the population's follow the weighted mean of the log-odds."""
    of_group = {name: rows(both.folder / f"preferences-{name}.jsonl") for name in ("c0", "c1")}
    pairs = [{(r["prompt"], r["chosen"], r["rejected"]) for r in of_group[name]} for name in of_group]
    assert pairs[0] != pairs[1]
    assert all(row["agreement"] == 1.0 for name in of_group for row in of_group[name])
    for row in rows(both.folder / "preferences.jsonl"):
        (scores,) = both.labels.full_ensemble.scores([(row["prompt"], [row["chosen"], row["rejected"]])])
        mean = (2 * scores.odds[0, 0, 1].double() + scores.odds[1, 0, 1].double()) / 3
        assert torch.sigmoid(mean).item() == pytest.approx(row["label_confidence"], abs=1e-4)


def test_each_policy_is_an_adapter_of_its_best_epoch(both):
    record = json.loads((both.folder / "record.json").read_text())
    for name, folder in (("population", "policy"), ("c0", "policies/c0"), ("c1", "policies/c1")):
        best = record["policies"][name]["best"]
        tree = store.load(store.round_folder(both.folder / name / "epochs", best))[0]["policy"]
        saved = store.load_file(both.run / folder / "adapter_model.safetensors")
        assert all(saved[n].equal(t) for n, t in tree.items())
        assert json.loads((both.run / folder / "adapter_config.json").read_text())["r"] == 8
    curve = record["policies"]["population"]["best_of_n"]
    assert [row["n"] for row in curve] == [1, 2, 3]
    assert curve[0]["knockout/signal/score"] == curve[0]["round_robin/signal/score"]
    assert curve[0]["round_robin/signal/score"] <= curve[2]["round_robin/signal/score"]


def test_adams_moments_are_kept_between_epochs(both):
    """Its count of steps, in the last checkpoint, is that of both epochs together."""
    steps = math.ceil(len(rows(both.folder / "preferences.jsonl")) / both.config.rlft.batch_size)
    trees, _ = store.load(store.round_folder(both.folder / "population" / "epochs", 2))
    assert {int(t) for t in trees["adam.step"].values()} == {2 * steps}


@pytest.mark.slow
def test_another_model_can_be_the_policy_and_public_pairs_its_judge(tmp_path):
    """Its answers are its own, its adapter has its layout; the pairs are scored by it, before and after."""
    other = tiny.folder(tmp_path / "other")
    pairs = [{"prompt": p, "chosen": "yes", "rejected": f"no {i}"} for i, p in enumerate(PROMPTS)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    more = {"rlft.judge": "pairs", "eval.pairs": str(tmp_path / "pairs.jsonl"), "rlft.epochs": 1}
    rlft = aligned(tmp_path / "one", **more, **{"rlft.policy-model": str(other)})
    saved = json.loads((rlft.run / "policy" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == other.name
    assert rlft.policy.fingerprint != rlft.base.fingerprint
    epochs = json.loads((rlft.folder / "record.json").read_text())["policies"]["population"]["epochs"]
    assert all(e["judge/n"] == len(PROMPTS) and 0 <= e["judge/accuracy"] <= 1 for e in epochs)
    assert not any("judge/win_rate" in e for e in epochs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost", ["answers.jsonl", "scores.jsonl", "epochs", "record.json", "heldout-scores.jsonl"]
)
def test_lost_results_are_recomputed_with_the_same_bytes(tmp_path, lost):
    """On-policy: the second epoch learns from answers of the first one's policy."""
    more = {"rlft.refresh-every": 1}
    whole = aligned(tmp_path / "one", **more)
    before, policy = files(whole.folder), files(whole.run / "policy")
    assert "population/turn-00001/answers.jsonl" in before
    for path in sorted(whole.folder.rglob(lost)):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".json":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = pipeline(tmp_path / "one", **more)
    resumed.align()
    after = files(resumed.folder)
    assert {n: after[n] for n in before if "cache" not in n} == {
        n: b for n, b in before.items() if "cache" not in n
    }
    assert files(resumed.run / "policy") == policy


@pytest.mark.slow
def test_results_of_other_selectors_are_not_reused(tmp_path):
    rlft = aligned(tmp_path / "one", **{"rlft.epochs": 1})
    before = (rlft.folder / "scores.jsonl").read_bytes()
    more = pipeline(tmp_path / "one", **{"rlft.epochs": 1})
    set_adapter(more.base, initial_adapter(more.base, 0))
    trees = {name: tiny.random_adapter(more.base, seed, 0.3) for seed, name in enumerate(("c0", "c1"), 7)}
    Rlft(more.config, more.run, more.base, replace(more.selectors, trees=trees)).align()
    assert (rlft.folder / "scores.jsonl").read_bytes() != before


def test_equal_answers_make_no_pairs(tmp_path):
    with pytest.raises(DataError, match=r"RLFT has no pair.*\{'the same answer twice'.*rlft\.temperature"):
        aligned(tmp_path / "one", **{"rlft.temperature": 1e-6})
