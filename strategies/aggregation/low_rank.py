"""Sums of products of thin factors: left (out, R) times right (R, in), held as factors and never as a matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO = 1e-8  # of the largest singular value: below it float32 cannot tell one from rounding


@dataclass(frozen=True)
class Factors:
    """left @ right with orthogonal columns and rows of norm sqrt(sigma), largest first; float64.

    lost, whole: squared Frobenius norms of what was cut off, and of the product before that.
    """

    left: Tensor
    right: Tensor
    lost: float
    whole: float


def factorise(left: Tensor, right: Tensor, most: int = 0) -> Factors:
    """The product by QR of both sides and an SVD of the (R, R) core; its `most` largest singular values, 0: all."""
    ql, rl = torch.linalg.qr(left.double())
    qr, rr = torch.linalg.qr(right.double().T)
    u, sigma, vh = torch.linalg.svd(rl @ rr.T, full_matrices=False)
    count = int((sigma > ZERO * sigma[:1]).sum())
    kept = min(count, most) if most else count
    root = sigma[:kept].sqrt()
    squares = sigma.square()
    return Factors(
        ql @ (u[:, :kept] * root),
        (root[:, None] * vh[:kept]) @ qr.T,
        float(squares[kept:count].sum()),
        float(squares.sum()),
    )


class Stack:
    """sum_k w_k left_k right_k of one matrix; holds the factors it was given, and never more than full rank of them."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, Tensor, Tensor]] = []
        self.rank = 0

    def push(self, weight: float, left: Tensor, right: Tensor) -> None:
        self.parts.append((weight, left, right))
        self.rank += len(right)
        if self.rank > min(len(left), right.shape[1]) and len(self.parts) > 1:
            whole = self.factors()
            self.parts, self.rank = [(1.0, whole.left, whole.right)], len(whole.right)

    def factors(self, most: int = 0) -> Factors:
        left = torch.cat([left.double() * weight for weight, left, _ in self.parts], 1)
        return factorise(left, torch.cat([right.double() for _, _, right in self.parts]), most)
