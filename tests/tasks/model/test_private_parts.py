"""Private parts: published vectors, no effect initially, and comparison with a plain implementation."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from core.errors import TreeMismatch
from core.sections import LoraConfig, ModelConfig
from core.tree import Tree
from tasks.base import Example, Parts
from tasks.forward.logprobs import completion_logps, completion_scores
from tasks.forward.modes import reference
from tasks.forward.packing import Fork
from tasks.forward.setup import load_base
from tasks.model import head as head_module
from tasks.model.adapter import get_adapter, get_private, is_untouched, set_adapter
from tasks.model.base import Base
from tasks.model.head import Head
from tasks.model.private_parts import DOWN, GATE, LEFT, REWARD, RIGHT, UP, PrivateParts
from tasks.scoring.evaluate import exact_kl
from tasks.scoring.generate import greedy
from tests import tiny
from tests.vectors import FEDBISCUIT

ALL = Parts("gate", 8, True, 3, True)
FULL = Parts("residual", 0, True, 0, True)
FORKS: list[Fork] = [((1, 5, 6, 7), ((20, 21, 22, 2), (30, 2))), ((1, 9), ((40, 41, 2), (50, 51, 52, 53)))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("personal")
    return {name: str(tiny.folder(path / name, name)) for name in ("llama", "gpt2", "gemma2")}


def loaded(folders: dict[str, str], name: str, parts: Parts) -> Base:
    return load_base(ModelConfig(name=folders[name]), LoraConfig(r=4, target_modules="all-linear"), parts)


def moved(base: Base, seed: int = 0) -> Tree:
    """A random adapter and random private parts."""
    rng = torch.Generator().manual_seed(seed + 1)
    private = {n: torch.randn(t.shape, generator=rng) * 0.1 for n, t in base.private_parts.tensors.items()}
    return {**tiny.random_adapter(base, seed), **private}


def slowly(base: Base, forks: list[Fork], tree: Tree) -> tuple[Tensor, Tensor]:
    """Log-probabilities and rewards of each completion by the formulas, one sequence at a time, without anything of
    ours but the adapter: Z, W Z + U V Z, w Z at the last token. tree: leaves with gradient."""
    logps, rewards = [], []
    head = base.causal.get_output_embeddings()
    for prompt, completions in forks:
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            inner = base.causal.base_model(input_ids=ids, use_cache=False)
            z = h = inner.last_hidden_state[0]
            if DOWN in tree:
                more = linear(gelu(linear(h, tree[DOWN])), tree[UP])
                gate = torch.sigmoid(h @ tree[GATE])[:, None] if GATE in tree else torch.zeros(1)
                z = gate * h + (1 - gate) * (h + more)
            logits = linear(z, head.weight.detach())  # type: ignore[union-attr]
            if LEFT in tree:
                logits = logits + linear(linear(z, tree[RIGHT]) if RIGHT in tree else z, tree[LEFT])
            log_p = logits[len(prompt) - 1 : -1].log_softmax(1)
            logps.append(log_p.gather(1, ids[0, len(prompt) :, None]).sum())
            rewards.append(z[-1] @ tree[REWARD])
    return torch.stack(logps), torch.stack(rewards)


def test_the_bottleneck_equals_its_vector() -> None:
    """A gate whose weights are zero is a half. Float32 against eleven printed digits."""
    vector = FEDBISCUIT["fedpdpo_reconstruction"]["bottleneck"]
    given = {DOWN: torch.tensor(vector["W_down"]), UP: torch.tensor(vector["W_up"])}
    for mix, name in (("residual", "residual_out"), ("gate", "gate_half_out")):
        own = PrivateParts(Parts(mix, 2), torch.zeros(5, 4))  # type: ignore[arg-type]
        own.put(given | ({GATE: torch.zeros(4)} if mix == "gate" else {}))
        assert own.mix(torch.tensor(vector["h"])).tolist() == pytest.approx(vector[name], abs=1e-6)


@pytest.mark.parametrize("parts", [ALL, FULL, Parts(head=True, rank=3)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_heads_gradients_equal_autograds(
    parts: Parts, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of the states, of U and of V; 11 rows in chunks of 4."""
    monkeypatch.setattr(head_module, "CHUNK_ROWS", 4)
    rng = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 9, bias=bias).requires_grad_(False)
    own = PrivateParts(parts, layer.weight)
    own.put({n: torch.randn(t.shape, generator=rng) for n, t in own.tensors.items()})
    z, weights = torch.randn(11, 6, generator=rng), torch.randn(11, generator=rng)
    targets = torch.randint(0, 9, (11,), generator=rng)
    found = []
    for fused in (True, False):
        features, head = z.clone().requires_grad_(), Head(layer, own)
        for t in own.tensors.values():
            t.grad = None
        if fused:
            got = head.logps(features, targets)
        else:
            s = linear(features, own.tensors[RIGHT]) if parts.rank else features
            logits = layer(features) + linear(s, own.tensors[LEFT])
            got = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        (got * weights).sum().backward()
        grads = [t.grad for n, t in own.tensors.items() if n in (LEFT, RIGHT)]
        assert all(g is not None and g.any() for g in grads)
        found.append([got.detach(), features.grad, *(g.clone() for g in grads if g is not None)])
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    own.tensors[LEFT].requires_grad_(False)
    own.tensors[LEFT].grad = None
    Head(layer, own).logps(z.clone().requires_grad_(), targets).sum().backward()
    assert own.tensors[LEFT].grad is None


def test_the_change_of_the_head_applies_to_single_logits_and_all_probabilities() -> None:
    layer = torch.nn.Linear(6, 9, bias=False).requires_grad_(False)
    own = PrivateParts(Parts(head=True, rank=2), layer.weight)
    own.put({n: torch.randn(t.shape) for n, t in own.tensors.items()})
    z = torch.randn(5, 6)
    want = layer(z) + z @ own.tensors[RIGHT].T @ own.tensors[LEFT].T
    targets = torch.randint(0, 9, (5, 2))
    torch.testing.assert_close(Head(layer, own).logits(z, targets), want.gather(1, targets))
    ((_, log_p),) = Head(layer, own).log_softmax(z)
    torch.testing.assert_close(log_p, want.log_softmax(1))
    with own.off():
        ((_, log_p),) = Head(layer, own).log_softmax(z)
    torch.testing.assert_close(log_p, layer(z).log_softmax(1))


@pytest.mark.parametrize("parts", [ALL, FULL])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_packed_forks_and_padded_batches_equal_the_formulas(name: str, parts: Parts, folders) -> None:
    """Values and the gradient of every private tensor and of the adapter. gpt2's head is tied to its embeddings."""
    base = loaded(folders, name, parts)
    tree = moved(base)
    set_adapter(base, tree)
    assert base.packed
    leaves = {n: t.clone().requires_grad_() for n, t in get_private(base).items()}
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])

    def gradients() -> Tensor:
        out = torch.cat([g.clone() for g in base.flat.gradients])
        base.flat.zero_grad()
        return out

    base.flat.zero_grad()
    want = slowly(base, FORKS, leaves)
    sum(((v * weights).sum() for v in want), torch.zeros(())).backward()
    of_adapter = gradients()
    own = torch.cat([leaves[n].grad.flatten() for n in base.private_parts.tensors])  # type: ignore[union-attr]
    head = base.head
    try:
        for packed in (True, False):
            base.packed, base.head = packed, head if packed else Head(None)
            logps, _, rewards = completion_scores(base, FORKS)
            assert rewards is not None
            torch.testing.assert_close(logps, want[0], rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(rewards, want[1], rtol=1e-5, atol=1e-4)
            ((logps * weights).sum() + (rewards * weights).sum()).backward()
            found = gradients()
            torch.testing.assert_close(found[: -len(own)], of_adapter[: -len(own)], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found[-len(own) :], own, rtol=1e-3, atol=1e-4)
    finally:
        base.packed, base.head = True, head


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_initially_the_model_equals_the_one_without_parts_to_the_bit(name: str, folders) -> None:
    plain = loaded(folders, name, Parts())
    base = loaded(folders, name, Parts("gate", 8, True, 3))
    adapter = tiny.random_adapter(plain)
    set_adapter(plain, adapter)
    set_adapter(base, {**adapter, **base.private_parts.start(0, 1)})
    assert base.private_parts.tensors[DOWN].any()
    with torch.no_grad():
        assert torch.equal(completion_logps(base, FORKS), completion_logps(plain, FORKS))
        assert greedy(base, (1, 5, 6)) == greedy(plain, (1, 5, 6))
    assert base.fingerprint == plain.fingerprint


def test_a_padded_model_applies_its_parts_before_capping_logits(folders) -> None:
    """gemma2 caps its logits after the head; a change moves them, the reference stays, and rewards are read."""
    base = loaded(folders, "gemma2", ALL)
    assert not base.packed
    set_adapter(base, tiny.random_adapter(base))
    with torch.no_grad():
        before = completion_logps(base, FORKS)
    set_adapter(base, moved(base))
    with torch.no_grad():
        logps, _, rewards = completion_scores(base, FORKS)
    assert rewards is not None
    assert len(set(rewards.tolist())) == 4
    assert not torch.allclose(logps, before)


def test_the_reference_ignores_private_parts(folders) -> None:
    for name in ("llama", "gemma2"):
        base, plain = loaded(folders, name, ALL), loaded(folders, name, Parts())
        set_adapter(base, moved(base))
        with reference(base):
            logps, _, rewards = completion_scores(base, FORKS)
        with reference(plain):
            assert torch.equal(logps, completion_logps(plain, FORKS))
        assert rewards is None


def test_kl_is_from_the_frozen_head_to_the_clients(folders) -> None:
    """The adapter at rest, so that both read the same states: sum p (log p - log q) by hand."""
    base = loaded(folders, "llama", Parts(head=True, rank=3))
    zero = {n: torch.zeros_like(t) for n, t in get_adapter(base).items()}
    private = {n: t for n, t in moved(base).items() if n not in zero}
    set_adapter(base, {**zero, **private})
    prompt, (completion, _) = FORKS[0]
    with torch.no_grad():
        states = base.causal.base_model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False)
        h = states.last_hidden_state[0, len(prompt) - 1 : -1]
        logits = linear(h, base.causal.get_output_embeddings().weight)  # type: ignore[union-attr]
        own = logits + linear(linear(h, private[RIGHT]), private[LEFT])
        p, q = own.log_softmax(1), logits.log_softmax(1)
        got = exact_kl(base, [Example(prompt, (completion,))])
    assert got == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)
    assert got > 1e-3


def test_generation_uses_private_parts(folders) -> None:
    base = loaded(folders, "llama", Parts(head=True, rank=1))
    start = base.private_parts.start(0, 0)
    push = torch.zeros(base.private_parts.tensors[LEFT].shape)
    push[20] = 1e4  # either always or never this token, as V z is above or below zero
    said = []
    for sign in (1.0, -1.0):
        set_adapter(base, {**get_adapter(base), **start, LEFT: push * sign})
        said.append(greedy(base, (1, 5, 6), 1))
    assert said[0] != said[1]
    assert base.tokenizer.decode([20]) in said


def test_private_parts_of_one_client_do_not_affect_the_next(folders) -> None:
    """A tree without private tensors has no effect; both trees are read back separately."""
    base = loaded(folders, "llama", ALL)
    tree = moved(base)
    set_adapter(base, tree)
    assert all(torch.equal(tree[n], t) for n, t in {**get_adapter(base), **get_private(base)}.items())
    assert not get_adapter(base).keys() & get_private(base).keys()
    set_adapter(base, get_adapter(base))
    assert not any(t.any() for t in get_private(base).values())
    with pytest.raises(TreeMismatch, match="private parts: names differ"):
        set_adapter(base, {**get_adapter(base), LEFT: tree[LEFT]})


def test_only_parts_that_change_the_policy_count_as_a_change(folders) -> None:
    base = loaded(folders, "llama", ALL)
    lora = {n: torch.zeros_like(t) for n, t in get_adapter(base).items()}
    start = base.private_parts.start(0, 0)
    set_adapter(base, {**lora, **start, REWARD: torch.ones(32), GATE: torch.ones(32)})
    assert is_untouched(base)
    with torch.no_grad():
        assert base.private_parts.gives_rewards()
    for name in (UP, LEFT):
        set_adapter(base, {**lora, **start, name: start[name] + 1})
        assert not is_untouched(base)
        assert base.private_parts.gives_rewards(), "it may learn"
        with torch.no_grad():
            assert not base.private_parts.gives_rewards()


def test_initial_parts_depend_on_client_and_seed() -> None:
    own = PrivateParts(ALL, torch.zeros(9, 32))
    one = own.start(1, 0)
    assert {n for n, t in one.items() if t.any()} == {DOWN, RIGHT}
    assert one[DOWN].abs().max() <= 32**-0.5
    assert torch.equal(own.start(1, 0)[DOWN], one[DOWN])
    assert not torch.equal(own.start(2, 0)[DOWN], one[DOWN])
    assert not torch.equal(own.start(1, 1)[DOWN], one[DOWN])
    assert {
        n: tuple(t.shape) for n, t in PrivateParts(Parts("residual"), torch.zeros(9, 512)).tensors.items()
    } == {
        DOWN: (32, 512),
        UP: (512, 32),
    }
