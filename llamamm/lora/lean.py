"""A block of the Llama, trained with less kept for its gradients and fewer trips to memory: the same numbers.

    x -> norm -> q, k, v, turned -> attention -> x + o_proj -> norm -> gate, up -> x + down_proj

For `backward`, PyTorch keeps what enters each operation: of a block of SmolLM2 some 10,000 numbers a token. Here three
functions stand in place of some forty operations. They keep what is dear, the products (5,800 numbers), and compute
again what costs one pass over memory: normalised inputs, SiLU, what enters down_proj. An adapter is added to its
linear's output where that lies, and adapters that read the same input read it together.

It takes blocks of which adapters train, or nothing does, in fp32. Whatever else there is, autocast, dropout, DoRA, a
hook, a part of your own, a block that is spread over processes, it leaves to the block itself.

Sources: gradients by hand, Unsloth (https://github.com/unslothai/unsloth); recomputing, arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llamamm.lora.lora import LoraLinear
from llamamm.text import attention
from llamamm.text.attention import GroupedQueryAttention
from llamamm.text.layers import FeedForward, Linear, RMSNorm
from llamamm.text.model import TransformerBlock

# What is computed here is what these do; a lesson or a test may have put something else in their place.
_PARTS = (TransformerBlock, GroupedQueryAttention, FeedForward, RMSNorm, Linear, LoraLinear)
_FORWARDS = {part: part.forward for part in _PARTS}
_APPLY_ROPE = attention.apply_rope


@contextmanager
def lean_blocks(model: nn.Module) -> Iterator[None]:
    """Inside, the model's blocks run as this module says wherever gradients are due and they are as it needs them."""
    blocks = [m for m in model.modules() if type(m) is TransformerBlock and "forward" not in m.__dict__]
    for block in blocks:
        block.forward = lean_forward(block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def lean_forward(block: nn.Module) -> Callable[..., Tensor]:
    """What to call in place of a block's `forward`; of any other module, its own."""
    return partial(_run, block) if type(block) is TransformerBlock else type(block).forward.__get__(block)


def _run(
    block: TransformerBlock, x: Tensor, cos: Tensor, sin: Tensor, *, mask: Tensor | None = None, cache: Any = None
) -> Tensor:
    """What the block's own `forward` does. (B, T, C) -> (B, T, C)."""
    # FSDP2 gives a block another class, perhaps after it was given this forward.
    linears = None if cache is not None or type(block) is not TransformerBlock else _linears(block, x)
    if linears is None:
        return type(block).forward(block, x, cos, sin, mask=mask, cache=cache)
    q, k, v, o, gate, up, down = linears
    attend, norm, second = block.self_attn, block.input_layernorm, block.post_attention_layernorm
    turned = _Queries.apply(x, norm.weight, norm.eps, cos, sin, attend.head_dim, *q, *k, *v)
    out = attend.attend(*turned, mask)  # (B, H, T, D)
    x = _Output.apply(x, out.transpose(1, 2).flatten(2), *o)
    return _FeedForward.apply(x, second.weight, second.eps, *gate, *up, *down)


# ---- a linear and its adapter ----


class _Read(NamedTuple):
    """y = x Wᵀ + scale (x Aᵀ) Bᵀ. weight (N, C), a (r, C), b (N, r); without an adapter a and b are None."""

    weight: Tensor
    a: Tensor | None
    b: Tensor | None
    scale: float


def _grouped(flat: Sequence[Any]) -> list[_Read]:
    return [_Read(*flat[i : i + 4]) for i in range(0, len(flat), 4)]


def _adapters(linears: Sequence[_Read]) -> Tensor | None:
    """The A of all adapters, one below the other: (R, C)."""
    found = [linear.a for linear in linears if linear.a is not None]
    return torch.cat(found) if found else None


def _parts(inner: Tensor | None, linears: Sequence[_Read]) -> list[Tensor | None]:
    """Of what all adapters' A give, (n, R), that of each linear: (n, r)."""
    ranks = [0 if linear.a is None else len(linear.a) for linear in linears]
    return [None] * len(ranks) if inner is None else list(inner.split(ranks, dim=1))


def _multiply(x: Tensor, linears: Sequence[_Read]) -> tuple[list[Tensor], Tensor | None]:
    """What linears make of the same x (n, C): (n, N) each, and what their adapters' A do, (n, R)."""
    a = _adapters(linears)
    inner = None if a is None else x @ a.T
    outs = [x @ linear.weight.T for linear in linears]
    for y, part, linear in zip(outs, _parts(inner, linears), linears, strict=True):
        _add_adapter(y, part, linear)
    return outs, inner


def _add_adapter(y: Tensor, inner: Tensor | None, linear: _Read) -> None:
    if linear.b is not None:
        y.addmm_(inner, linear.b.T, alpha=linear.scale)


def _back(
    x: Tensor, linears: Sequence[_Read], inner: Tensor | None, grads: Sequence[Tensor], *,
    stretch: Tensor | None = None, wanted: bool = True,
) -> tuple[Tensor | None, list[Tensor | float | None]]:  # fmt: skip
    """From gradients (n, N) of what linears have made to that of what they read, (n, C), None where it isn't wanted,
    and to those of each one's weight (None), A, B and scale (None). They have read x * stretch (C,)."""
    d_inner = None
    if inner is not None:
        # Of a product with so few columns the library is fast where both matrices are read along their rows.
        d_inner = torch.cat([g @ (linear.b * linear.scale).T.contiguous().T for g, linear in
                             zip(grads, linears, strict=True) if linear.b is not None], dim=1)  # fmt: skip
        d_a = d_inner.T @ x  # (R, C)
        d_a = d_a if stretch is None else d_a.mul_(stretch)
    found: list[Tensor | float | None] = []
    begin = 0
    for g, part, linear in zip(grads, _parts(inner, linears), linears, strict=True):
        if linear.a is None:
            found += [None] * 4
            continue
        end = begin + len(linear.a)
        found += [None, d_a[begin:end], (part.T @ g).mul_(linear.scale).T, None]
        begin = end
    if not wanted:
        return None, found
    d_x = grads[0] @ linears[0].weight
    for g, linear in zip(grads[1:], linears[1:], strict=True):
        d_x.addmm_(g, linear.weight)
    if d_inner is not None:
        d_x.addmm_(d_inner, _adapters(linears))
    return d_x, found


# ---- the three functions ----


def _inverse_length(x: Tensor, eps: float) -> Tensor:
    """One over the root mean square of each row. (n, C) -> (n, 1)."""
    return torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _norm_back(grad: Tensor, unit: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Through RMSNorm: grad (n, C) of unit * weight, unit = x * inverse -> that of x. Both are overwritten."""
    grad *= weight
    along = (grad * unit).mean(dim=-1, keepdim=True)
    return grad.sub_(unit.mul_(along)).mul_(inverse)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """`apply_rope`, or the way back, of (B, T, H, D) in memory of its own. cos, sin: (T, 1, D) or (B, T, 1, D)."""
    half = x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (first, second) = x.split(half, dim=-1), out.split(half, dim=-1)
    (cos_a, cos_b), (sin_a, sin_b) = cos.split(half, dim=-1), sin.split(half, dim=-1)
    sign = 1 if back else -1
    torch.mul(a, cos_a, out=first).addcmul_(b, sin_b if back else sin_a, value=sign)
    torch.mul(b, cos_b, out=second).addcmul_(a, sin_a if back else sin_b, value=-sign)
    return out


class _Queries(torch.autograd.Function):
    """Norm, three linears, rotation. x (B, T, C) -> q (B, H, T, D), k and v (B, K, T, D)."""

    @staticmethod
    def forward(ctx, x, norm, eps, cos, sin, head_dim, *flat):
        linears, rows = _grouped(flat), x.flatten(0, 1)
        inverse = _inverse_length(rows, eps)
        outs, inner = _multiply((rows * inverse).mul_(norm), linears)
        cos, sin = (cos[:, None], sin[:, None]) if cos.dim() == 2 else (cos.transpose(1, 2), sin.transpose(1, 2))
        q, k, v = (y.view(*x.shape[:2], -1, head_dim) for y in outs)
        ctx.save_for_backward(rows, inverse, norm, cos, sin, inner, *(t for one in linears for t in one[:3]))
        ctx.scales = [linear.scale for linear in linears]
        return tuple(y.transpose(1, 2) for y in (_turned(q, cos, sin), _turned(k, cos, sin), v))

    @staticmethod
    @once_differentiable
    def backward(ctx, d_q, d_k, d_v):
        rows, inverse, norm, cos, sin, inner, *flat = ctx.saved_tensors
        linears = _with_scales(flat, ctx.scales)
        d_q, d_k = (_turned(d.transpose(1, 2), cos, sin, back=True) for d in (d_q, d_k))
        grads = [d.flatten(2).flatten(0, 1) for d in (d_q, d_k, d_v.transpose(1, 2))]
        unit = rows * inverse
        d_x, found = _back(unit, linears, inner, grads, stretch=norm, wanted=ctx.needs_input_grad[0])
        if d_x is not None:
            d_x = _norm_back(d_x, unit, inverse, norm).view(*d_q.shape[:2], -1)
        return d_x, None, None, None, None, None, *found


class _Output(torch.autograd.Function):
    """x + o_proj(out). x (B, T, C), out (B, T, H D) -> (B, T, C)."""

    @staticmethod
    def forward(ctx, x, out, *flat):
        (linear,), rows = _grouped(flat), out.flatten(0, 1)
        inner = None if linear.a is None else rows @ linear.a.T
        y = torch.addmm(x.flatten(0, 1), rows, linear.weight.T)
        _add_adapter(y, inner, linear)
        ctx.save_for_backward(rows, inner, *linear[:3])
        ctx.scales = [linear.scale]
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, inner, *flat = ctx.saved_tensors
        d_out, found = _back(rows, _with_scales(flat, ctx.scales), inner, [grad.flatten(0, 1)],
                             wanted=ctx.needs_input_grad[1])  # fmt: skip
        return grad, None if d_out is None else d_out.view(*grad.shape[:2], -1), *found


class _FeedForward(torch.autograd.Function):
    """x + down(silu(gate(norm(x))) * up(norm(x))). (B, T, C) -> (B, T, C)."""

    @staticmethod
    def forward(ctx, x, norm, eps, *flat):
        *readers, down = _grouped(flat)
        rows = x.flatten(0, 1)
        inverse = _inverse_length(rows, eps)
        (gate, up), inner = _multiply((rows * inverse).mul_(norm), readers)
        between = F.silu(gate).mul_(up)
        inner_down = None if down.a is None else between @ down.a.T
        y = torch.addmm(rows, between, down.weight.T)
        _add_adapter(y, inner_down, down)
        ctx.save_for_backward(rows, inverse, norm, gate, up, inner, inner_down,
                              *(t for one in (*readers, down) for t in one[:3]))  # fmt: skip
        ctx.scales = [linear.scale for linear in (*readers, down)]
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, inverse, norm, gate, up, inner, inner_down, *flat = ctx.saved_tensors
        *readers, down = _with_scales(flat, ctx.scales)
        d_y = grad.flatten(0, 1)
        active = F.silu(gate)
        d_between, found_down = _back(active * up, [down], inner_down, [d_y])
        d_up = torch.mul(d_between, active, out=active)
        d_gate = torch.ops.aten.silu_backward.grad_input(d_between.mul_(up), gate, grad_input=d_between)
        unit = rows * inverse
        d_x, found = _back(unit, readers, inner, [d_gate, d_up], stretch=norm, wanted=ctx.needs_input_grad[0])
        if d_x is not None:
            d_x = _norm_back(d_x, unit, inverse, norm).add_(d_y).view(grad.shape)
        return d_x, None, None, *found, *found_down


def _with_scales(flat: Sequence[Tensor | None], scales: Sequence[float]) -> list[_Read]:
    return [_Read(*flat[3 * i : 3 * i + 3], scale) for i, scale in enumerate(scales)]


# ---- whether a block is what is computed here ----


def _linears(block: TransformerBlock, x: Tensor) -> list[_Read] | None:
    """The block's seven linears, q to down; None where it has to run by itself."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return None
    if attention.apply_rope is not _APPLY_ROPE or any(part.forward is not f for part, f in _FORWARDS.items()):
        return None
    for module in block.modules():
        if module is not block and (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                                    or module._backward_pre_hooks or "forward" in module.__dict__):  # fmt: skip
            return None
    attend, mlp = block.self_attn, block.mlp
    norms = block.input_layernorm, block.post_attention_layernorm
    if type(attend) is not GroupedQueryAttention or type(mlp) is not FeedForward:
        return None
    if any(type(norm) is not RMSNorm or not _is_frozen(norm.weight) for norm in norms) or x.dtype != torch.float32:
        return None
    parts = (attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    linears = [_read_of(part) for part in parts]
    return None if None in linears else linears


def _read_of(linear: nn.Module) -> _Read | None:
    a = b = None
    scale = 0.0
    if type(linear) is LoraLinear:
        if linear.enabled and not linear.merged:
            settings = linear.settings[linear.active]
            if settings.dora or (settings.dropout and linear.training):
                return None
            a, b, scale = linear.lora_a[linear.active], linear.lora_b[linear.active], settings.scale
            if not all(type(t) is nn.Parameter and t.dtype == torch.float32 for t in (a, b)):
                return None
        linear = linear.base
    if type(linear) not in (Linear, nn.Linear) or linear.bias is not None or not _is_frozen(linear.weight):
        return None
    return _Read(linear.weight, a, b, scale)


def _is_frozen(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and not weight.requires_grad
