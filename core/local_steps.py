"""The functions by which an algorithm changes the steps of local training; strategies make them, tasks call them."""

from collections.abc import Callable

from torch import Tensor

Correction = Callable[
    [str, Tensor, Tensor], Tensor
]  # (name, parameter, gradient) -> gradient, before clipping
AfterStep = Callable[[str, Tensor], None]  # (name, parameter); modifies the parameter in place, after a step
