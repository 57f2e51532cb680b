"""Weights in 8 and 4 bits by error feedback, GPTQ's rule: what rounding one column takes from a product, the columns
behind it give back.

    rows of text -> inputs X (n, C) of a linear, behind blocks that are quantized already -> H = XᵀX (C, C)
    W (N, C), H  -> codes, scales, as `quantized.rounded` gives them

Rounding to nearest keeps each weight as it was; what matters is the product. Its error, |X (W - Q)ᵀ|², couples the
columns of W through H. So columns are rounded in their order, and the error e of column j goes into those that are
still to come, in proportion to row j of U, where UᵀU = H⁻¹:

    e = (w_j - q_j) / U_jj        w_k <- w_k - e U_jk,  k > j

A group's scale is found when its first column is reached, from weights that errors have moved already. Where H is
diagonal, inputs have nothing in common, and this is rounding to nearest.

Source: Frantar et al. 2022, "GPTQ", arXiv:2210.17323 (algorithm 1). Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.fast.quantized import QuantizedLinear, nearest, quantizable, scales_of
from llamamm.text.masks import build_mask
from llamamm.text.model import Llama3Model, TransformerBlock
from llamamm.wiring import put_module

DAMPING = 0.01  # of the mean of H's diagonal, added to it: directions that the text does not show are left alone
# Which linear's inputs a linear reads.
INPUTS_OF = {
    "self_attn.q_proj": "self_attn.q_proj", "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj", "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.gate_proj", "mlp.down_proj": "mlp.down_proj",
}  # fmt: skip


@torch.no_grad()
def quantize_by_feedback(
    model: Llama3Model, bits: int, ids: Tensor, *, group: int = 32, head: bool = True, damping: float = DAMPING,
    batch_size: int = 4, say: Callable[[int, int], None] = lambda _done, _all: None,
) -> Llama3Model:  # fmt: skip
    """As `quantize`, with error feedback on calibration text, ids (B, T) int64: in place; returns the model.

    The text should be of the kind that the model is for. Of models that see or hear, the text model alone is
    quantized, and by words alone. say: told how many blocks, and the head, of all are done.
    Raises InputError for less text than the widest linear has inputs, and where activations are not finite; the model
    is then as it was.
    """
    paths = quantizable(model, bits, group=group, head=head)
    _require_enough(model, paths, ids)
    before = {path: model.get_submodule(path) for path in paths}
    feed = partial(_put_fed_back, model, bits=bits, group=group, damping=damping)
    try:
        xs = [model.embed_tokens(rows) for rows in ids.split(batch_size)]  # (b, T, C) each
        T, dtype = ids.shape[1], xs[0].dtype
        place = {"cos": model.cos[:T].to(dtype), "sin": model.sin[:T].to(dtype),
                 "mask": build_mask(T, start=0, padding=None, device=ids.device)}  # fmt: skip
        for n, block in enumerate(model.layers):
            if isinstance(block, TransformerBlock):  # Llama 3.2 Vision has others, which text alone passes by
                inputs = _inputs_in(block, partial(block, **place), xs)
                for path in paths:
                    front, _, name = path.removesuffix(".base").partition(f"layers.{n}.")
                    if name and not front:
                        feed(path, inputs[INPUTS_OF[name]])
                xs = [block(x, **place) for x in xs]
            say(n + 1, len(model.layers) + head)
        if "lm_head" in paths:
            seen = Moments()
            for x in xs:
                seen.add(model.norm(x))
            feed("lm_head", seen)
            say(len(model.layers) + 1, len(model.layers) + 1)
    except BaseException:
        for path, linear in before.items():
            put_module(model, path, linear)
        raise
    return model


class Moments:
    """H = XᵀX of all inputs that are added."""

    def __init__(self) -> None:
        self.total: Tensor | int = 0

    def add(self, x: Tensor) -> None:
        """x: (..., C)."""
        rows = x.flatten(0, -2).float()
        self.total = self.total + (rows.T @ rows).double()


def fed_back(weight: Tensor, moments: Tensor, bits: int, group: int, *, damping: float = DAMPING
             ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rounded with feedback. (N, C), H (C, C) -> whole numbers (N, C) int8, scales (N, C/group) fp16.

    Raises InputError where H or a weight is not finite.
    """
    columns = weight.float().T.contiguous()  # (C, N): a column lies in one piece
    upper = _factor(moments, damping).float()
    codes = torch.empty_like(columns, dtype=torch.int8)
    scales = []
    for begin in range(0, len(columns), group):
        end = begin + group
        scales.append(scales_of(columns[begin:end].T, bits))  # (N,)
        errors = torch.empty_like(columns[begin:end])
        for j in range(begin, end):
            codes[j] = nearest(columns[j], scales[-1], bits)
            errors[j - begin] = (columns[j] - codes[j] * scales[-1].float()) / upper[j, j]
            columns[j + 1 : end] -= upper[j, j + 1 : end, None] * errors[j - begin]
        columns[end:] -= upper[begin:end, end:].T @ errors  # the other groups at once
    return codes.T.contiguous(), torch.stack(scales, dim=1)


def _factor(moments: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with UᵀU = H⁻¹ of the damped H; fp64. An input that was always 0 is coupled to none."""
    if not moments.isfinite().all():
        raise InputError("activations on the calibration text are not finite: load the model in another dtype")
    damped = moments.double().clone()
    damped.diagonal().add_(damping * damped.diagonal().mean() or 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _inputs_in(block: nn.Module, run: Callable[[Tensor], Tensor], xs: Iterable[Tensor]) -> dict[str, Moments]:
    """What the linears of a block read, while it runs."""
    found = {name: Moments() for name in set(INPUTS_OF.values())}
    with ExitStack() as hooks:
        for name, moments in found.items():
            hook = block.get_submodule(name).register_forward_pre_hook(lambda _, args, m=moments: m.add(args[0]))
            hooks.callback(hook.remove)
        for x in xs:
            run(x)
    return found


def _put_fed_back(model: nn.Module, path: str, seen: Moments, *, bits: int, group: int, damping: float) -> None:
    weight = model.get_submodule(path).weight
    try:
        codes, scales = fed_back(weight, seen.total, bits, group, damping=damping)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    linear = QuantizedLinear(weight.shape[1], weight.shape[0], bits=bits, group=group).to(weight.device)
    linear.fill(codes, scales)
    put_module(model, path, linear)


def _require_enough(model: nn.Module, paths: Sequence[str], ids: Tensor) -> None:
    widest = max((model.get_submodule(path).in_features for path in paths), default=0)
    if ids.numel() < widest:
        raise InputError(f"the calibration text has {ids.numel():,} tokens, and the widest linear {widest:,} inputs, "
                         f"which so few tell nothing about: give more text")
