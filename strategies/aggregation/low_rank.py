"""Sums of low-rank products, left (out, R) times right (R, in), stored as factors and never as a full matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO = 1e-8  # relative to the largest singular value: smaller ones are float32 rounding


@dataclass(frozen=True)
class Factors:
    """left @ right, with orthogonal columns and rows of norm sqrt(sigma) in descending order; float64.

    lost, whole: squared Frobenius norms of the part that was cut off, and of the whole product.
    """

    left: Tensor
    right: Tensor
    lost: float
    whole: float


def factorise(left: Tensor, right: Tensor, max_rank: int = 0) -> Factors:
    """Factorise left @ right by QR of both factors and an SVD of the (R, R) core.

    max_rank: the number of largest singular values that remain; 0: all.
    """
    ql, rl = torch.linalg.qr(left.double())
    qr, rr = torch.linalg.qr(right.double().T)
    u, sigma, vh = torch.linalg.svd(rl @ rr.T, full_matrices=False)
    count = int((sigma > ZERO * sigma[:1]).sum())
    rank = min(count, max_rank) if max_rank else count
    root = sigma[:rank].sqrt()
    squares = sigma.square()
    return Factors(
        ql @ (u[:, :rank] * root),
        (root[:, None] * vh[:rank]) @ qr.T,
        float(squares[rank:count].sum()),
        float(squares.sum()),
    )


class Stack:
    """sum_k w_k left_k right_k of one matrix; holds the factors, and compresses them once they exceed full rank."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, Tensor, Tensor]] = []
        self.rank = 0

    def push(self, weight: float, left: Tensor, right: Tensor) -> None:
        self.parts.append((weight, left, right))
        self.rank += len(right)
        if self.rank > min(len(left), right.shape[1]) and len(self.parts) > 1:
            total = self.factors()
            self.parts, self.rank = [(1.0, total.left, total.right)], len(total.right)

    def factors(self, max_rank: int = 0) -> Factors:
        left = torch.cat([left.double() * weight for weight, left, _ in self.parts], 1)
        return factorise(left, torch.cat([right.double() for _, _, right in self.parts]), max_rank)
