"""A frozen low-rank part beside the adapter: left (right x) added to what an adapted layer gives."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from core.errors import TreeMismatch
from core.factors import MERGED, modules


class Beside:
    """The factors at each adapted layer, float32 and without gradient; a layer whose adapters are off leaves them out.

    A hook and not a second peft adapter: its rank may change from round to round, and what peft and TRL do to
    adapters must not reach it.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        """layers: by the name of A in the adapter's tree."""
        self.layers = dict(layers)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: dict[str, RemovableHandle] = {}

    def put(self, tree: Mapping[str, Tensor]) -> None:
        """Replace what is there; TreeMismatch for layers that are not adapted."""
        factors = modules(tree)
        if unknown := sorted(factors.keys() - self.layers.keys()):
            raise TreeMismatch(f"{MERGED}: no adapted layer has {unknown[0]!r} ({len(unknown)} in all)")
        for name in self._hooks.keys() - factors.keys():
            self._hooks.pop(name).remove()
        self.factors = {name: self._placed(name, *pair) for name, pair in factors.items()}
        for name in factors.keys() - self._hooks.keys():
            self._hooks[name] = self.layers[name].register_forward_hook(self._adder(name))

    def _placed(self, name: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.layers[name].parameters()).device
        return left.to(device), right.to(device)

    def _adder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
            if layer.disable_adapters:
                return result
            left, right = self.factors[name]
            more = linear(linear(inputs[0].to(right.dtype), right), left)
            return (result + more).to(result.dtype)

        return add
