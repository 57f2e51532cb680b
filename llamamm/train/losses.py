"""The loss over a large vocabulary, without a table of all its scores.

The scores of 2048 tokens over SmolLM2's 49,152 words take 400 MB in fp32, and PyTorch's cross-entropy keeps several
such tables until `backward`. Here a few rows of the table exist at a time: their gradient, softmax minus one-hot, is
known as soon as the scores are, so it is multiplied through the head at once and the rows are forgotten.

    hidden (N, C), weight (V, C), targets (N,) -> the summed loss; logits (N, V) never exist whole

Sources: "Cut Your Losses in Large-Vocabulary Language Models", arXiv:2411.09009; Liger Kernel, arXiv:2410.10989, whose
way of taking the gradient in the forward pass this is. Built in notebook 10.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llamamm.errors import InputError

IGNORE = -100  # the target of a place where nothing is learned; PyTorch's own default

# Fewer rows read the weight too often, more gain nothing: measured on 2 cores, the time is flat from 32 to 256 MB.
CHUNK_BYTES = 64 * 2**20
MIN_CHUNK = 32


def plain_cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same in plain sight: hidden (N, C), weight (V, C), targets (N,) -> the summed loss."""
    logits = F.linear(hidden, weight)  # (N, V)
    logits = logits.to(_precise(logits.dtype))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


def cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int | None = None) -> Tensor:
    """The cross-entropy summed over all targets but IGNORE, an fp32 number.

    hidden: (N, C), what the head reads; weight: (V, C), the head's matrix; targets: (N,) int64, the right next tokens.
    chunk: rows of logits at a time, by default as many as fill 64 MB. Divide by the number of targets for a mean.
    Raises InputError for shapes, types or targets that do not fit.
    """
    _check(hidden, weight, targets)
    if chunk is None:
        chunk = max(MIN_CHUNK, CHUNK_BYTES // (4 * len(weight)))
    elif chunk < 1:
        raise InputError(f"chunk must be at least 1 row, got {chunk}")
    learned = targets != IGNORE
    hidden, targets = hidden[learned], targets[learned]
    outside = targets[(targets < 0) | (targets >= len(weight))]
    if len(outside):
        raise InputError(f"target {int(outside[0])} is outside the vocabulary of {len(weight)} (0 to "
                         f"{len(weight) - 1}); IGNORE, {IGNORE}, marks a place where nothing is learned")
    return _CrossEntropySum.apply(hidden, weight, targets, chunk, torch.is_grad_enabled())


class _CrossEntropySum(torch.autograd.Function):
    """Takes the gradient in the forward pass; backward only scales it, so that it may run more than once."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, training: bool) -> Tensor:
        dtype, device = _matmul_dtype(hidden), hidden.device.type
        x, w = hidden.to(dtype), weight.to(dtype)
        precise = _precise(dtype)
        loss = torch.zeros((), dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(x) if training and ctx.needs_input_grad[0] else None
        # Chunks are added up in fp32: a sum in bf16 would lose the later ones.
        grad_weight = torch.zeros_like(w, dtype=precise) if training and ctx.needs_input_grad[1] else None

        table = torch.empty(min(chunk, len(x)), len(w), dtype=precise, device=x.device)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(x), chunk):
                rows = x[begin : begin + chunk]  # (n, C)
                right = targets[begin : begin + chunk, None]  # (n, 1)
                logits = table[: len(rows)]  # (n, V); all that follows happens in this memory
                _matmul_into(logits, rows, w.T)
                logits -= logits.amax(dim=-1, keepdim=True)  # so that no exp overflows
                loss -= logits.gather(-1, right).sum()
                total = logits.exp_().sum(dim=-1, keepdim=True)  # (n, 1)
                loss += total.log().sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                logits /= total  # softmax
                logits.scatter_add_(-1, right, logits.new_full(right.shape, -1.0))  # minus one-hot: the gradient
                grad = logits.to(dtype)
                if grad_hidden is not None:
                    torch.mm(grad, w, out=grad_hidden[begin : begin + chunk])
                if grad_weight is not None:
                    _matmul_into(grad_weight, grad.T, rows, add=True)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight = (None if g is None else (g * grad).to(dtype)
                          for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return hidden, weight, None, None, None


def _matmul_into(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """out = a b, or out += a b. Fresh memory costs a CPU as much as a fifth of the product, so `out` is reused."""
    if out.dtype == a.dtype:
        out.addmm_(a, b, beta=int(add))
    elif add:
        out += a @ b
    else:
        out.copy_(a @ b)


def _precise(dtype: torch.dtype) -> torch.dtype:
    """fp32 for everything shorter: the exp of a bf16 score is right to two digits."""
    return torch.promote_types(dtype, torch.float32)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """What `F.linear` would multiply in: autocast changes every type but fp64."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise InputError(f"hidden must be (N, C) and weight (V, C), got {tuple(hidden.shape)} and "
                         f"{tuple(weight.shape)}; flatten (B, T, C) with hidden.flatten(0, 1)")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise InputError(f"targets must be int64 of shape ({len(hidden)},), one for each row of hidden, "
                         f"got {targets.dtype} {tuple(targets.shape)}")
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise InputError(f"hidden is {hidden.dtype} and weight {weight.dtype}; convert one, or use torch.autocast")
