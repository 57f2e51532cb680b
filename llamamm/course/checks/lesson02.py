"""Checks of lesson 02: RMSNorm, SwiGLU, and inputs that break the norm; the backward pass has a module of its own.

Each property looks at one thing alone, whatever else is wrong: the place of epsilon shows in numbers that hardly
depend on the root, the weight in the ratio of two results. So an answer with two faults hears of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.lesson02_backward import BACKWARD, INF, Answer, numbers, rows_apart
from llamamm.text.layers import RMSNorm

# ---- 02.1: rms_norm(x, weight, eps) ----


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """By the package's module."""
    norm = RMSNorm(weight.numel(), eps, dtype=weight.dtype)
    norm.weight.data = weight
    return norm(x).detach()


def _no_root(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _sum(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).sum(dim=-1, keepdim=True) + eps).sqrt()


def _sum_no_root(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).sum(dim=-1, keepdim=True) + eps)


NO_ROOT = "you divided by the mean square itself: take its square root first"
SUM = "you divided by the vector's length: take the mean of the squares, not their sum"


def _together_and_alone(answer: Answer, case: tuple) -> tuple[Tensor, Tensor]:
    x, weight, eps = case
    together, alone = answer(x, weight, eps), [answer(row, weight, eps) for row in x]
    return together, torch.stack(alone) if isinstance(together, Tensor) else alone


def _same_direction(got: Any, case: tuple) -> str | None:
    """Only where the result points, not how long it is."""
    x = case[0].double()
    if not isinstance(got, Tensor):
        return None  # told elsewhere
    if got.shape != x.shape:
        return f"the shape should be {tuple(x.shape)}, got {describe(got)}"
    y, centred = got.double(), x - x.mean(dim=-1, keepdim=True)
    if float(F.cosine_similarity(y, x, dim=-1).min()) > 0.9999:
        return None
    why = "you subtracted the mean, as LayerNorm does; RMSNorm does not"
    is_layer_norm = float(F.cosine_similarity(y, centred, dim=-1).min()) > 0.9999
    return f"the result should point where x points, got {numbers(got)}{f': {why}' if is_layer_norm else ''}"


def _weight_alone(answer: Answer, case: tuple) -> Tensor:
    """What the weight changes: the result with it, divided by the result with ones."""
    x, weight, eps = case
    weighted, plain = answer(x, weight, eps), answer(x, torch.ones_like(weight), eps)
    return weighted / plain if isinstance(plain, Tensor) else weight  # what is no tensor is told elsewhere


def _epsilon(got: Any, case: tuple) -> str | None:
    x, _, eps = case
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return None  # told elsewhere
    size, expected = float(got.abs().max()), float(x.abs().max()) / (float(x.pow(2).mean()) + eps) ** 0.5
    if not x.any():
        missing = ": epsilon is missing" * (not got.isfinite().all())
        return f"a zero vector should stay zero, got {numbers(got)}{missing}" if got.any() else None
    if abs(size - expected) <= 5e-3 * expected or eps == 1.0 and size < 0.9:
        return None
    problem = f"the result should be {numbers(x.sign() * expected)}, got {numbers(got)}"
    for why, divisors in _wrong_epsilons(x, eps).items():
        if any(abs(size * d / float(x.abs().max()) - 1) <= 2e-3 for d in divisors):
            return f"{problem}: {why}; add it to the mean square, then take the root"
    return problem


def _wrong_epsilons(x: Tensor, eps: float) -> dict[str, list[float]]:
    """By what x is divided where epsilon has a wrong place, also with a sum for the mean and without the root."""
    divisors: dict[str, list[float]] = {}
    for square in (float(x.pow(2).mean()), float(x.pow(2).sum())):
        for root in (square**0.5, square):
            divisors.setdefault("epsilon is outside the square root", []).append(square**0.5 + eps)
            divisors.setdefault("epsilon is missing, tiny, or only a limit (clamp)", []).extend((root, max(root, eps)))
        for written in (1e-5, 1e-6, 1e-8, eps**2):
            wrong = square + written
            divisors.setdefault("you did not add `eps` itself", []).extend((wrong**0.5, wrong))
    return divisors


def _result_dtype(got: Any, case: tuple) -> str | None:
    dtype = case[0].dtype
    if not isinstance(got, Tensor) or got.dtype == dtype:
        return None
    return f"the dtype should be {dtype}, that of x, got {got.dtype}: cast back to x.dtype, then multiply by the weight"


def _large(got: Any, _case: tuple) -> str | None:
    if not isinstance(got, Tensor) or got.any() and got.isfinite().all():
        return None
    if got.isinf().any():
        return f"got {numbers(got)}, which is not finite"
    return (f"got {numbers(got)}: you squared in x's own dtype, fp16, where 300² overflows; turn x into fp32 first "
            f"(x.float())")  # fmt: skip


def _with_and_without_weight(answer: Answer, case: tuple) -> tuple[Tensor, Tensor]:
    x, weight, eps = case
    return answer(x, weight, eps), answer(x, torch.ones_like(weight), eps)


def _weight_after_cast(got: Any, case: tuple) -> str | None:
    """The weight's product must be one of 16-bit numbers; wrong only if it is nearly that, as other faults are told."""
    weighted, plain = got
    if not isinstance(plain, Tensor) or plain.shape != case[0].shape:
        return None
    if weighted.dtype != case[0].dtype or plain.dtype != case[0].dtype:
        return None
    right = case[1] * plain
    n_off = int((weighted != right).sum())
    if not n_off or not torch.allclose(weighted.float(), right.float(), rtol=0.02, atol=1e-3):
        return None
    return (f"{n_off} of {right.numel()} numbers are off in their last digit: cast the normed vector to x.dtype, and "
            f"multiply by the weight after that, not before")  # fmt: skip


def _all_cases(g: torch.Generator) -> list[tuple]:
    """Vectors whose mean is not 0, in all three dtypes."""
    rows = [(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 1e-5),
            (1 + torch.randn(3, 5, generator=g), 1 + torch.rand(5, generator=g), 1e-5),
            (1 + torch.randn(2, 3, generator=g), 1 + torch.rand(3, generator=g), 0.25)]  # fmt: skip
    short = [(1 + torch.randn(40, 64, generator=g).to(t), 1 + torch.rand(64, generator=g).to(t), 1e-5)
             for t in (torch.bfloat16, torch.float16)]  # fmt: skip
    return rows + short


def _as_reference(got: Any, case: tuple) -> str | None:
    """What no other property has seen. In 16 bits another order of sound steps changes some last digits, no more."""
    x, weight, eps = case
    right = _rms_norm(*case)
    if x.dtype == torch.float32:
        problem = difference(right, got, None)
        spread = weight * x / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        by_spread = problem and difference(spread, got, 1e-3) is None
        why = "You divided by the standard deviation, which leaves the mean out: take the mean of x², not the variance"
        return f"{problem}. {why}" if by_spread else problem
    off = int((got != right).sum()) if isinstance(got, Tensor) and got.shape == right.shape else right.numel()
    if off <= 0.1 * right.numel():
        return None
    return (f"{off} of {right.numel()} numbers in {right.dtype} differ from the right ones: the division belongs into "
            f"fp32, too; cast its result back, then multiply by the weight")  # fmt: skip


def _input_after(answer: Answer, case: tuple) -> Tensor:
    answer(*case)
    return case[0]


def _unchanged(got: Any, case: tuple) -> str | None:
    if torch.equal(got, case[0]):
        return None
    return ("your function changes x, which the caller still needs: of an fp32 tensor, x.float() is x itself and no "
            "copy, so steps in place (*=, mul_) change x too")  # fmt: skip


def _ones(*entries: float, dtype: torch.dtype = torch.float32, eps: float = 1e-5) -> tuple:
    """x with a weight of ones."""
    return torch.tensor(entries, dtype=dtype), torch.ones(len(entries), dtype=dtype), eps


def _bf16_case(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(3, 64, generator=g).bfloat16(), 1 + torch.rand(64, generator=g).bfloat16(), 1e-5)]


RMS_NORM = Exercise(
    id="02.1", name="rms_norm", minutes=10, level="core", importance=3, reference=_rms_norm,
    forbids=("rms_norm", "layer_norm", "group_norm", "batch_norm"),
    properties=(
        # entries that sum to 0, so that LayerNorm's subtraction does not show
        Property("a vector's size", lambda _: [_ones(*v, eps=1e-6) for v in ((3, -3), (1, 2, -3), (2, 4, -6))],
                 strict=True, mistakes=(
            Mistake(_no_root, NO_ROOT), Mistake(_sum, SUM), Mistake(_sum_no_root, f"{SUM}. Also, {NO_ROOT}"),
            Mistake(lambda x, w, _eps: w * x,
                    "you only multiplied by the weight: first divide x by its root mean square"),
            Mistake(lambda x, w, eps: w * x * (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(),
                    "you multiplied by the root mean square: divide by it"),
            Mistake(lambda x, w, eps: w * x / (x.var(-1, keepdim=True) + eps).sqrt(),
                    "you divided by the standard deviation, with n − 1 and without the mean: take the mean of x²"),
            Mistake(lambda x, w, eps: w * x / (x.mean(-1, keepdim=True).pow(2) + eps).sqrt(),
                    "you squared the mean: square first, then take the mean"),
            Mistake(lambda x, w, eps: w * x / (x.abs().mean(-1, keepdim=True) + eps),
                    "you took the mean of |x|: square, take the mean, then the root"),
            Mistake(lambda x, w, eps: w * x / (x.abs().amax(-1, keepdim=True) + eps),
                    "you divided by the largest entry: divide by the root mean square"),
            Mistake(lambda x, _w, eps: (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(),
                    "you returned the root mean square itself: divide x by it"),
            Mistake(lambda x, w, eps: w + x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(),
                    "you added the weight: multiply by it"),
        )),
        Property("the mean stays", lambda _: [_ones(1, 2, 6), _ones(11, 12, 16)], accept=_same_direction),
        Property("the weight", lambda _: [(torch.tensor([1.0, 2, 6]), torch.tensor([2.0, 0.5, -3]), 1e-5)],
                 run=_weight_alone, tolerance=1e-3, mistakes=(
            Mistake(lambda _x, w, _eps: torch.ones_like(w),
                    "you forgot the weight: multiply each channel by its own learned number"),
            Mistake(lambda _x, w, _eps: 1 + w, "you multiplied by 1 + weight: take the weight itself"),
            Mistake(lambda _x, w, _eps: 1 / w, "you divided by the weight: multiply by it"),
            Mistake(lambda x, w, eps: _rms_norm(w * x, torch.ones_like(w), eps),
                    "you multiplied by the weight before you divided: divide first, so that the weight stays"),
        )),
        # an epsilon so large that the mean square hardly counts, and so neither does how it was taken
        Property("epsilon", lambda _: [_ones(0, 0), _ones(0.01, -0.01, eps=0.9999), _ones(2, -2, eps=1.0)],
                 accept=_epsilon),
        Property("several vectors", lambda g: [
            (s * torch.randn(*shape, generator=g), torch.ones(shape[-1]), 1e-5)
            for s, shape in ((torch.tensor([[1.0], [10.0]]), (2, 2)), (torch.tensor([[[1.0]], [[5.0]]]), (2, 3, 4)))
        ], run=_together_and_alone, accept=rows_apart),
        Property("the dtype of the result", lambda _: [
            _ones(3, -3, dtype=torch.bfloat16), _ones(3, -3, dtype=torch.float16), _ones(3, -3)], accept=_result_dtype),
        Property("large values in fp16", lambda _: [_ones(300, -300, dtype=torch.float16),
                                                    _ones(300, -400, 500, 100, dtype=torch.float16)], accept=_large),
        Property("the weight after the cast, in bf16", _bf16_case, run=_with_and_without_weight,
                 accept=_weight_after_cast),
        Property("the input stays as it is", lambda _: [(torch.tensor([[3.0, 4.0]]), torch.full((2,), 2.0), 1e-5)],
                 run=_input_after, accept=_unchanged),
        Property("all numbers", _all_cases, accept=lambda *_: None, otherwise=_as_reference),
    ),
)  # fmt: skip


# ---- 02.3: swiglu(x, gate, up, down) ----


def _swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "silu": (F.silu, ""),
    "sigmoid": (torch.sigmoid, "you used sigmoid(g) alone: silu(g) is g · sigmoid(g)"),
    "relu": (torch.relu, "you used ReLU: silu(g) is g · sigmoid(g)"),
    "gelu": (F.gelu, "you used GELU: silu(g) is g · sigmoid(g)"),
    "fast gelu": (lambda g: F.gelu(g, approximate="tanh"), "you used GELU: silu(g) is g · sigmoid(g)"),
    "softplus": (F.softplus, "you used softplus: silu(g) is g · sigmoid(g)"),
    "opposite": (lambda g: g * torch.sigmoid(-g), "you took the sigmoid of −g: silu(g) is g · sigmoid(g)"),
    "tanh": (torch.tanh, "you used tanh: silu(g) is g · sigmoid(g)"),
}
PLACES = {
    "gate": "",
    "up": "you applied silu to up: it belongs on the gate",
    "both": "you applied silu to gate and up: up stays as it is",
    "product": "you applied silu to the product of gate and up: apply it to the gate alone, then multiply",
    "result": "you applied silu to the result: apply it to the gate",
    "none": "silu is missing: without it nothing opens or closes the gate",
}
MATRICES = {  # which matrix gives g, u and the result, ("gate", "up", "down") where all is right
    ("gate", "up", ""): "`down` is missing: it leads from the hidden units back, so the hidden vector @ down.T",
    ("gate", "", "down"): "`up` is missing: silu(x @ gate.T) is multiplied by x @ up.T",
    ("up", "", "down"): "`gate` is missing: x @ up.T is multiplied by silu(x @ gate.T)",
    ("gate", "gate", "down"): "you took `gate` twice: what the gate lets through is x @ up.T",
    ("up", "up", "down"): "you took `up` twice: the gate is silu(x @ gate.T)",
}
ADDED = "you added gate and up: multiply them, so that the gate can close"


def _hidden(
    place: str, act: Callable[[Tensor], Tensor], add: bool, names: tuple[str, str, str] = ("gate", "up", "down")
) -> Answer:
    """SwiGLU with the activation in a place, gate and up multiplied or added, and these matrices."""

    def answer(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        given = {"gate": gate, "up": up, "down": down}
        g, u = (x @ given[name].T if name else None for name in names[:2])
        g = act(g) if place in ("gate", "both") else g
        if u is None:
            hidden = g
        else:
            u = act(u) if place in ("up", "both") else u
            hidden = g + u if add else g * u
        hidden = act(hidden) if place == "product" else hidden
        result = hidden @ down.T if names[2] else hidden
        return act(result) if place == "result" else result

    return answer


def _hidden_mistakes() -> tuple[Mistake, ...]:
    """Every combination of a wrong place, a wrong function and a sum, with a sentence for each fault."""
    found = []
    for (place, where), (name, (act, what)), add in itertools.product(PLACES.items(), ACTIVATIONS.items(), (0, 1)):
        told = [t for t in (where, what, ADDED if add else "") if t]
        if told and (place != "none" or name == "silu"):
            found.append(Mistake(_hidden(place, act, bool(add)), ". Also, ".join(told)))
    for names, missing in MATRICES.items():
        places = ["gate", "none"] if "" in names[:2] else [place for place in PLACES if place != "result"]
        adds = (0,) if "" in names[:2] else (0, 1)
        for place, (name, (act, what)), add in itertools.product(places, ACTIVATIONS.items(), adds):
            if place != "none" or name == "silu":
                told = [t for t in (missing, PLACES[place], what, ADDED if add else "") if t]
                found.append(Mistake(_hidden(place, act, bool(add), names), ". Also, ".join(told)))
    found.append(Mistake(lambda x, *m: x + _swiglu(x, *m), "you added x: the block does that, after the feed-forward"))
    for act in (lambda g: g * F.silu(g), lambda g: torch.sigmoid(g) * F.silu(g)):
        found.append(Mistake(_hidden("gate", act, False), "you multiplied by g or by its sigmoid once more: silu(g) "
                             "already is g · sigmoid(g)"))  # fmt: skip
    return tuple(sorted(found, key=lambda mistake: mistake.message.count(". Also, ")))  # of equals the simplest counts


def _turned(*which: str) -> Answer:
    """SwiGLU with the named matrices the wrong way round."""

    def answer(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, up, down = (m if n in which else m.T for n, m in (("gate", gate), ("up", up), ("down", down)))
        return (F.silu(x @ gate) * (x @ up)) @ down

    return answer


def _the_right_way_round(got: Any, case: tuple) -> str | None:
    """Only whether a square matrix was used for its transpose, which no error tells."""
    for n in (1, 2, 3):
        for some in itertools.combinations(("gate", "up", "down"), n):
            made = _turned(*some)(*case)
            if difference(made, got, INF) is None and torch.allclose(got, made, rtol=1e-3):
                wanted = f"the result should be {numbers(_swiglu(*case))}, got {numbers(got)}"
                why = "a matrix has one row for each number that it produces, so write x @ matrix.T"
                turned = ", ".join((*some[:-2], " and ".join(some[-2:])))
                return f"{wanted}: you used {turned} the wrong way round; {why}"
    return None


def _tokens_together_and_alone(answer: Answer, case: tuple) -> tuple[Tensor, Tensor]:
    x, *matrices = case
    together, alone = answer(x, *matrices), [answer(part, *matrices) for part in x]
    return together, torch.stack(alone) if isinstance(together, Tensor) else alone


def _tokens_apart(got: Any, case: tuple) -> str | None:
    return rows_apart(got, case) and (
        "a token's result changes when other tokens stand beside it: each goes through the matrices alone")


def _finite(got: Any, _case: tuple) -> str | None:
    if not isinstance(got, Tensor) or got.isfinite().all():
        return None
    return "the result is not finite: exp overflows for large numbers; write silu as g * torch.sigmoid(g)"


def _sizes(error: BaseException, _case: tuple) -> str | None:
    """What an error means in which sizes do not fit."""
    fits = not any(words in str(error) for words in ("multiplied", "must match", "mismatch", "at least 1D"))
    return None if fits else ("A matrix has one row for each number that it produces: take x @ gate.T and x @ up.T, "
                              "multiply the two number by number, and then @ down.T")  # fmt: skip


def _square_case(_g: torch.Generator) -> list[tuple]:
    """All g and u are large, where silu(g) is g."""
    matrices = [[[30.0, 20], [50, 40]], [[20.0, 70], [30, 60]], [[1.0, -2], [3, 1]]]
    return [(torch.tensor([1.0, 2.0]), *(torch.tensor(m) for m in matrices))]


def _one_unit(x: float, y: float) -> tuple:
    """The hidden unit of the lesson."""
    return (*(torch.tensor(v) for v in ([float(x), float(y)], [[1.0, 0.0]], [[0.0, 1.0]], [[1.0], [-1.0]])),)


SWIGLU = Exercise(
    id="02.3", name="swiglu", minutes=5, level="core", importance=3, reference=_swiglu,
    properties=(
        Property("what a unit passes on", lambda g: [
            _one_unit(2, 3), _one_unit(-1.28, -0.5), _one_unit(-4, 3),
            tuple(torch.randn(*s, generator=g) for s in ((4,), (6, 4), (6, 4), (4, 6))),
        ], hint=_sizes, mistakes=_hidden_mistakes()),
        Property("square matrices", _square_case, hint=_sizes, accept=_the_right_way_round),
        Property("large gates", lambda _: [_one_unit(200, 1), _one_unit(-200, 1)], hint=_sizes, accept=_finite),
        Property("many tokens", lambda g: [
            tuple(torch.randn(*s, generator=g) for s in ((*lead, 4), (6, 4), (6, 4), (4, 6)))
            for lead in ((2,), (2, 3))
        ], run=_tokens_together_and_alone, hint=_sizes, accept=_tokens_apart),
    ),
)  # fmt: skip


# ---- 02.4: breaking_inputs() ----


def _fp16_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without the cast: squares, mean and root in the dtype of x."""
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _survives(got: Any, case: tuple) -> str | None:
    """What is wrong with one of the two inputs, or None if it breaks the norm."""
    name, eps, hint = case
    if not isinstance(got, tuple | list) or len(got) != 2:
        return "breaking_inputs should return two tensors, large and small"
    x = got[0] if name == "large" else got[1]
    if not isinstance(x, Tensor) or x.shape != (4,):
        return f"{name} should be a tensor of shape (4,), got {describe(x)}"
    if x.dtype != torch.float16:
        return f"{name} is not in fp16: give it dtype=torch.float16"
    if not x.isfinite().all():
        return f"{name} holds inf or NaN itself: fp16 ends at 65,504, stay below"
    if not x.any():
        return f"{name} is the zero vector, as fp16 stores it: it needs an entry that is not 0"
    other = got[1] if name == "large" else got[0]
    if _is_broken(other, name, eps) and not _is_broken(x, name, eps):
        return "you return (small, large): large comes first, then small"
    if _is_broken(x, name, eps):
        return None
    return f"{name} survives: {hint}"


def _is_broken(x: Any, name: str, eps: float) -> bool:
    """Whether the norm makes zeros of `large`, or nothing finite of `small`."""
    if not isinstance(x, Tensor) or x.dtype != torch.float16 or x.shape != (4,) or not x.any():
        return False
    out = _fp16_norm(x, eps)
    return bool(x.isfinite().all()) and not (out.any() if name == "large" else out.isfinite().all())


def _breaks(name: str, eps: float, hint: str) -> Property:
    return Property(name, lambda _: [(name, eps, hint)], run=lambda answer, _case: answer(), accept=_survives)


BREAKING = Exercise(
    id="02.4", name="breaking_inputs", minutes=5, level="break it", importance=1,
    reference=lambda: (torch.full((4,), 300.0).half(), torch.full((4,), 1e-5).half()),
    properties=(
        _breaks("large", 1e-5,
                "one of its squares must be above 65,504, the largest fp16 number: take an entry above 256"),
        _breaks("small", 0.0, "its squares must be rounded to 0 in fp16, so they must be below 3e-8: take entries "
                "below 0.00017"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (RMS_NORM, BACKWARD, SWIGLU, BREAKING)
