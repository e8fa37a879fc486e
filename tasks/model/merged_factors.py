"""Merged factors: a frozen low-rank product that is added to the output of each adapted layer."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from core.errors import TreeMismatch
from core.factors import MERGED, modules


class MergedFactors:
    """The factors (B, A) of each adapted layer, float32 and without gradient: B A x is added to the layer's output.

    Layers with disabled adapters skip them, so that they are not part of the reference. They are applied by forward
    hooks instead of a second peft adapter, since their rank may change every round, and whatever peft and TRL do to
    adapters must not affect them.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        """layers: by the name of the layer's A in the adapter's tree."""
        self.layers = dict(layers)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: dict[str, RemovableHandle] = {}

    def put(self, tree: Mapping[str, Tensor]) -> None:
        """Replace all factors; an empty tree removes them. TreeMismatch for a layer that is not adapted."""
        factors = modules(tree)
        if unknown := sorted(factors.keys() - self.layers.keys()):
            raise TreeMismatch(f"{MERGED}: no adapted layer has {unknown[0]!r} ({len(unknown)} in all)")
        for name in self._hooks.keys() - factors.keys():
            self._hooks.pop(name).remove()
        self.factors = {name: self._on_device(name, *pair) for name, pair in factors.items()}
        for name in factors.keys() - self._hooks.keys():
            self._hooks[name] = self.layers[name].register_forward_hook(self._make_hook(name))

    def _on_device(self, name: str, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.layers[name].parameters()).device
        return b.to(device), a.to(device)

    def _make_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_product(layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
            if layer.disable_adapters:
                return result
            b, a = self.factors[name]
            product = linear(linear(inputs[0].to(a.dtype), a), b)
            return (result + product).to(result.dtype)

        return add_product
