"""Checks for lesson 09: counting an adapter, the layer, merging, a rank from its energy, an adapter that vanishes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.lora.lora import LoraLinear
from llamamm.lora.settings import ALL_TARGETS, ATTENTION_TARGETS, LoraSettings
from llamamm.text.config import TextConfig

# ---- 09.1: numbers of an adapter ----


def _count(
    cfg: TextConfig,
    r: int,
    targets: Sequence[str],
    *,
    kv_heads: bool = True,
    square: bool = False,
    rank: str = "r",
    blocks: bool = True,
    sides: str = "both",
    product: bool = False,
    inner: bool = True,
) -> int:
    """The right sum; each argument plants one mistake."""
    width, q = cfg.hidden_size, cfg.hidden_size if square else cfg.n_heads * cfg.head_dim
    kv = cfg.n_kv_heads * cfg.head_dim if kv_heads else q
    wide = cfg.intermediate_size if inner else width
    sizes = {"q_proj": (width, q), "k_proj": (width, kv), "v_proj": (width, kv), "o_proj": (q, width),
             "gate_proj": (width, wide), "up_proj": (width, wide), "down_proj": (wide, width)}  # fmt: skip
    total = 0
    for c, n in (sizes[name] for name in targets):
        total += c * n if product else {"both": c + n, "A": c, "B": n}[sides]
    return total * (cfg.n_layers if blocks else 1) * {"r": r, "none": 1, "twice": 2 * r}[rank]


COUNT = Exercise(
    id="09.1", name="lora_parameters", minutes=5, level="warm-up",
    reference=_count,
    cases=lambda _: [
        (TextConfig.llama32_1b(), 8, list(ALL_TARGETS)), (TextConfig.llama32_3b(), 16, ["q_proj", "v_proj"]),
        (TextConfig.smollm2_135m(), 1, ["down_proj"]), (TextConfig.tiny(head_dim=32), 4, list(ATTENTION_TARGETS)),
        (TextConfig.tiny(), 2, []),
    ],
    mistakes=(
        Mistake(partial(_count, kv_heads=False),
                "you gave k_proj and v_proj as many outputs as q_proj: they make n_kv_heads x head_dim numbers"),
        Mistake(partial(_count, square=True),
                "you took hidden_size for the queries: q_proj makes, and o_proj reads, n_heads x head_dim numbers"),
        Mistake(partial(_count, blocks=False),
                "you counted one block: each of the n_layers blocks has its own adapters"),
        Mistake(partial(_count, sides="A"), "you counted A alone: B has N x r numbers more"),
        Mistake(partial(_count, sides="B"), "you counted B alone: A has r x C numbers more"),
        Mistake(partial(_count, rank="none"), "you left out the rank: A has r rows and B has r columns"),
        Mistake(partial(_count, rank="twice"), "you counted r twice: A and B together are r x (C + N) numbers"),
        Mistake(partial(_count, product=True),
                "you counted r x N x C, which is more than the weight itself: A and B are r x (C + N)"),
        Mistake(partial(_count, product=True, rank="none"),
                "you counted N x C, the weights themselves: the adapter has r x (C + N) numbers"),
        Mistake(partial(_count, inner=False),
                "you took hidden_size on both sides of the feed-forward: one side is intermediate_size wide"),
    ),
)  # fmt: skip


# ---- 09.2: the layer; what it does, how it starts, what trains ----


class _Layer(nn.Module):
    """A right layer, and with one of the arguments a wrong one."""

    def __init__(self, base: nn.Linear, r: int, alpha: float, *, start: str = "B zero", scale: str = "alpha / r",
                 frozen: bool = True, without: str = "", noise: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.base = base.requires_grad_(not frozen)
        n, c = base.weight.shape
        self.scale = {"alpha / r": alpha / r, "alpha": alpha, "1": 1.0, "r / alpha": r / alpha,
                      "alpha / sqrt r": alpha / math.sqrt(r)}[scale]  # fmt: skip
        self.without, self.noise = without, noise
        self.a = nn.Parameter(torch.zeros(r, c) if start in ("A zero", "both zero") else torch.randn(r, c) / c**0.5)
        self.b = nn.Parameter(torch.zeros(n, r) if start in ("B zero", "both zero") else torch.randn(n, r) / r**0.5)

    def forward(self, x: Tensor) -> Tensor:
        update = self.scale * F.linear(F.linear(x, self.a), self.b)
        if self.without == "base":
            return update
        if self.without == "update":
            return self.base(x)
        if self.without == "bias":
            return F.linear(x, self.base.weight) + update
        return self.base(x) + update


class _Reference:
    """The package's wrapper, with the names of the exercise."""

    def __new__(cls, base: nn.Linear, r: int, alpha: float) -> nn.Module:
        layer = LoraLinear(base)
        layer.add("x", LoraSettings(r, alpha), generator=torch.Generator().manual_seed(0))
        layer.active = "x"
        layer.a, layer.b = layer.lora_a["x"], layer.lora_b["x"]
        return layer


def _layer_cases(g: torch.Generator) -> list[tuple]:
    cases = []
    for n, c, r, alpha, bias, shape in ((5, 7, 2, 6.0, False, (3, 7)), (4, 4, 1, 2.0, True, (2, 3, 4)),
                                        (6, 3, 3, 3.0, True, (3,))):  # fmt: skip
        weight, offset = torch.randn(n, c, generator=g), torch.randn(n, generator=g) if bias else None
        a, b = torch.randn(r, c, generator=g), torch.randn(n, r, generator=g)
        cases.append((weight, offset, r, alpha, a, b, torch.randn(shape, generator=g)))
    return cases


def _run_layer(answer: Callable, case: tuple) -> dict[str, Any]:
    """Build one around a linear; look at its start; give it strips, and look at its output and what has a gradient."""
    weight, offset, r, alpha, a, b, x = case
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=offset is not None)
    with torch.no_grad():
        base.weight.copy_(weight)
        if offset is not None:
            base.bias.copy_(offset)
    layer = answer(base, r, alpha)
    named = dict(layer.named_parameters())
    missing = [name for name in "ab" if not isinstance(getattr(layer, name, None), nn.Parameter)]
    if missing:
        raise TypeError(f"the layer has no nn.Parameter called {' and '.join(missing)}")
    for name, own, right in (("a", layer.a, a), ("b", layer.b, b)):
        if own.shape != right.shape:
            raise ValueError(f"{name} should have the shape {tuple(right.shape)} here, it has {tuple(own.shape)}")
    out: dict[str, Any] = {f"{name} begins as zeros": not bool(getattr(layer, name).detach().any()) for name in "ab"}
    with torch.no_grad():
        layer.a.copy_(a)
        layer.b.copy_(b)
    y = layer(x)
    out["output"] = y.detach()
    if not y.requires_grad:
        return {**out, "trains": "nothing"}
    y.pow(2).sum().backward()
    own = {id(layer.a), id(layer.b)}
    out["a gets a gradient"] = layer.a.grad is not None
    out["b gets a gradient"] = layer.b.grad is not None
    out["others that train"] = sum(p.requires_grad for p in named.values() if id(p) not in own)
    return out


LAYER = Exercise(
    id="09.2", name="LoraLayer", minutes=15, level="core",
    reference=_Reference,
    cases=_layer_cases,
    run=_run_layer,
    mistakes=(
        Mistake(partial(_Layer, start="both random"),
                "B begins random, so the layer differs from its base before it has learned anything: begin with zeros"),
        Mistake(partial(_Layer, start="both zero"),
                "A and B both begin as zeros: then neither ever gets a gradient. A must begin random"),
        Mistake(partial(_Layer, start="A zero"),
                "A begins as zeros and B random; the exercise, and everybody's files, have it the other way round"),
        Mistake(partial(_Layer, scale="1"), "you left out the scale alpha / r"),
        Mistake(partial(_Layer, scale="alpha"), "you multiplied by alpha: divide it by r"),
        Mistake(partial(_Layer, scale="r / alpha"), "the scale is upside down: it is alpha / r"),
        Mistake(partial(_Layer, scale="alpha / sqrt r"), "alpha / sqrt(r) is rsLoRA's scale; here it is alpha / r"),
        Mistake(partial(_Layer, frozen=False),
                "the base still trains: freeze it with requires_grad_(False), which is the point of LoRA"),
        Mistake(partial(_Layer, without="base"), "you return the update alone: add what the base gives, W x"),
        Mistake(partial(_Layer, without="update"), "your forward never uses A and B"),
        Mistake(partial(_Layer, without="bias"), "you lost the base's bias: call self.base(x)"),
    ),
)  # fmt: skip


# ---- 09.3: merging ----


def _merged(
    weight: Tensor, a: Tensor, b: Tensor, alpha: float, *, scaled: str = "alpha / r", add: bool = True, sign: int = 1,
    cast: str = "after", in_place: bool = False,
) -> Tensor:  # fmt: skip
    scale = {"alpha / r": alpha / a.shape[0], "alpha": alpha, "1": 1.0}[scaled]
    delta = sign * scale * (b @ a)
    if cast == "before":
        out = weight + delta.to(weight.dtype)
    elif cast == "strips":
        out = weight + scale * (b.to(weight.dtype) @ a.to(weight.dtype))
    else:
        out = weight.float() * add + delta
        out = out if cast == "never" else out.to(weight.dtype)
    if in_place:
        weight.copy_(out)
    return out


def _merge_cases(g: torch.Generator) -> list[tuple]:
    cases = []
    for n, c, r, alpha, dtype in ((5, 7, 2, 3.0, torch.float32), (4, 4, 1, 2.0, torch.float32),
                                  (16, 24, 4, 2.0, torch.bfloat16), (3, 2, 3, 6.0, torch.float16)):  # fmt: skip
        strips = 0.3 * torch.randn(r, c, generator=g), 0.3 * torch.randn(n, r, generator=g)
        cases.append((torch.randn(n, c, generator=g).to(dtype), *strips, alpha))
    return cases


def _run_merge(answer: Callable, case: tuple) -> dict[str, Any]:
    weight, a, b, alpha = case
    before = weight.clone()
    return {"merged": answer(weight, a, b, alpha), "weight left as it was": torch.equal(weight, before)}


MERGE = Exercise(
    id="09.3", name="merged_weight", minutes=10, level="core",
    reference=_merged,
    cases=_merge_cases,
    run=_run_merge,
    mistakes=(
        Mistake(partial(_merged, scaled="1"), "you left out the scale alpha / r"),
        Mistake(partial(_merged, scaled="alpha"),
                "you multiplied by alpha: divide it by r, the number of rows of a"),
        Mistake(partial(_merged, add=False), "you return the update alone: add it to the weight"),
        Mistake(partial(_merged, sign=-1), "you subtracted the update: that is how one would unmerge"),
        Mistake(partial(_merged, cast="before"),
                "you rounded the update to the weight's dtype before adding: add in fp32, round once at the end"),
        Mistake(partial(_merged, cast="strips"),
                "you converted a and b to the weight's dtype: keep them in fp32, convert the weight, round at the end"),
        Mistake(partial(_merged, cast="never"), "the result is fp32: give it back in the weight's own dtype"),
        Mistake(partial(_merged, in_place=True), "you changed the weight that was given: make a new tensor"),
    ),
    tolerance=1e-6,
)  # fmt: skip


# ---- 09.4: which rank is enough ----


def _rank(
    update: Tensor, share: float, *, power: int = 2, off: int = 0, of: str = "total", largest_first: bool = True,
    strict: bool = False, zero: int = 0,
) -> int:  # fmt: skip
    energy = torch.linalg.svdvals(update.double()).pow(power)
    if float(energy.sum()) == 0:
        return zero
    if of == "largest":  # how many are at least this share of the strongest
        return int((energy >= share * energy[0]).sum())
    if not largest_first:
        energy = energy.flip(0)
    goal = (share + (1e-6 if strict else -1e-6)) * energy.sum()
    return min(int((energy.cumsum(0) < goal).sum()) + 1, len(energy)) + off


def _rank_cases(g: torch.Generator) -> list[tuple]:
    def made(strengths: list[float], n: int, c: int) -> Tensor:
        u = torch.linalg.qr(torch.randn(n, len(strengths), generator=g)).Q
        v = torch.linalg.qr(torch.randn(c, len(strengths), generator=g)).Q
        return u @ torch.diag(torch.tensor(strengths)) @ v.T

    return [
        (torch.diag(torch.tensor([3.0, 1.0])), 0.9), (torch.diag(torch.tensor([3.0, 1.0])), 0.91),
        (made([5.0, 4.0, 3.0, 2.0, 1.0], 12, 9), 0.5), (made([5.0, 4.0, 3.0, 2.0, 1.0], 9, 12), 0.9),
        (made([4.0, 2.0, 1.0], 8, 8), 1.0), (torch.ones(4, 6), 0.99), (torch.zeros(3, 5), 0.9),
    ]  # fmt: skip


RANK = Exercise(
    id="09.4", name="smallest_rank", minutes=20, level="hard",
    reference=_rank,
    cases=_rank_cases,
    mistakes=(
        Mistake(partial(_rank, power=1),
                "you added up singular values: the energy is the sum of their squares"),
        Mistake(partial(_rank, power=4),
                "you squared twice: the energy is the sum of the squared singular values"),
        *(Mistake(partial(_rank, off=-1, zero=zero),
                  "one too few: place i of the running sum holds what rank i + 1 holds") for zero in (0, -1)),
        *(Mistake(partial(_rank, off=1, zero=zero),
                  "one too many: the first rank that reaches the share is enough") for zero in (0, 1)),
        Mistake(partial(_rank, strict=True),
                "you ask for more than the share: a rank that holds exactly the share is enough"),
        Mistake(partial(_rank, largest_first=False),
                "you began with the weakest: the best approximation keeps the strongest"),
        Mistake(partial(_rank, of="largest"),
                "you compared each with the largest one: it is the sum of the first r that must reach the share"),
        Mistake(partial(_rank, zero=1), "an update of zeros needs no rank at all: 0"),
    ),
)  # fmt: skip


# ---- 09.5: break it ----


def _vanish_cases(g: torch.Generator) -> list[tuple]:
    cases = []
    for n, c in ((4, 8), (16, 64), (1, 1)):
        size = 0.5 + 0.5 * torch.rand(n, c, generator=g)
        sign = 2 * torch.randint(0, 2, (n, c), generator=g) - 1
        weight = (size * sign).bfloat16()
        weight[0, 0] = 0.5 if (n + c) % 3 == 0 else -0.5
        weight[-1, -1] = -1.0 if n > 1 else weight[-1, -1]
        cases.append((weight,))
    return cases


def _accept_vanishing(result: Any, case: tuple) -> str | None:
    (weight,) = case
    N, C = weight.shape
    if not (isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(t, Tensor) for t in result)):
        return "return two tensors, a and b"
    a, b = result
    if tuple(a.shape) != (1, C) or tuple(b.shape) != (N, 1):
        return f"a should be (1, {C}) and b ({N}, 1), got {tuple(a.shape)} and {tuple(b.shape)}"
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return f"a and b should be fp32, got {a.dtype} and {b.dtype}"
    delta = b @ a
    if not delta.isfinite().all():
        return "the update holds NaN or infinity"
    if not delta.any():
        return "the update is zero: it vanishes, but it says nothing apart either"
    changed = int(((weight.float() + delta).bfloat16() != weight).sum())
    moved, largest = float((b * a.sum()).abs().min()), float(delta.abs().max())
    of_all = f"{changed} of {N * C} weights change when merged"
    if changed and largest <= 1 / 512:
        return (f"{of_all}. The update stays below 1/512, half of what separates neighbours from 0.5 up, but below 0.5 "
                f"they are only 1/512 apart: a weight of exactly 0.5 moves towards zero beyond 1/1024")
    if changed:
        return f"{of_all}: entries of the update reach {largest:.2g}, which is more than rounding takes away"
    if moved < C / 2000 - 1e-7:
        return f"merged it vanishes, but apart it whispers: an output moves by {moved:.2g} only, not by C / 2000"
    return None


VANISH = Exercise(
    id="09.5", name="vanishing_adapter", minutes=15, level="break it",
    reference=lambda weight: (torch.full((1, weight.shape[1]), 1 / 1100), torch.ones(weight.shape[0], 1)),
    cases=_vanish_cases,
    accept=_accept_vanishing,
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (COUNT, LAYER, MERGE, RANK, VANISH)
