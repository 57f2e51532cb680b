"""What must hold of a LoRA layer and of its strips' gradients, for the exercises 09.2 and 09.3 of lesson 09."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.course.checks.compare import describe, difference, shown
from llamamm.course.checks.core import Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.lora.lora import LoraLinear
from llamamm.lora.settings import LoraSettings

# ---- 09.2: the gradients of both strips ----

ARGUMENTS = ("x", "grad", "a", "b", "scale")
GRADIENT_CASES = ((2, 3, 1, 7.0), (3, 4, 2, 0.3))  # N, C, r, scale


def _gradients(x: Tensor, grad: Tensor, a: Tensor, b: Tensor, scale: float, faults: Collection[str]) -> tuple:
    rows, back = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])  # (places, C), (places, N)
    n = len(rows) if "mean" in faults else 1
    sign = -1 if "downhill" in faults else 1
    through_b = back if "without B" in faults else back @ b
    through_a = rows if "without A" in faults else rows @ a.T
    da = sign * (1.0 if "scale of da" in faults else scale) * through_b.T @ rows / n
    db = sign * (1.0 if "scale of db" in faults else scale) * back.T @ through_a / n
    return (db, da) if "order" in faults else (da, db)


def _both(answer: Callable, case: tuple) -> Any:
    got = answer(*case)
    return tuple(got) if isinstance(got, list) else got


def _with_zero_b(g: torch.Generator) -> list[tuple]:
    """The lesson's example, and random numbers: da is 0, db is not."""
    x, grad = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    by_hand = (x, grad, torch.tensor([[1.0, -1.0]]), torch.zeros(2, 1), 2.0)
    return [by_hand, *((x, grad, a, torch.zeros_like(b), scale) for x, grad, a, b, scale in _one_place(g))]


def _one_place(g: torch.Generator) -> list[tuple]:
    strips = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0], [3.0]])
    small = (torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]), *strips, 7.0)
    return [small, *(_gradient_case(g, *sizes, (1,)) for sizes in GRADIENT_CASES)]


def _places(g: torch.Generator) -> list[tuple]:
    return [_gradient_case(g, *sizes, lead) for sizes in GRADIENT_CASES for lead in ((2,), (5,), (2, 3))]


def _gradient_case(g: torch.Generator, n: int, c: int, r: int, scale: float, lead: tuple[int, ...]) -> tuple:
    x, grad = torch.randn(*lead, c, generator=g), torch.randn(*lead, n, generator=g)
    return x, grad, torch.randn(r, c, generator=g), torch.randn(n, r, generator=g), scale


def _call(case: tuple) -> str:
    return ", ".join(f"{name} = {shown(part)}" for name, part in zip(ARGUMENTS, case, strict=True))


GRADIENTS = fault_exercise(
    _gradients,
    {
        "scale of da": "The scale is missing in da: it multiplies B (A x), so the gradient of a holds it too",
        "scale of db": "The scale is missing in db: it multiplies B (A x), so the gradient of b holds it too",
        "without B": "Your da leaves out B. The gradient reaches a through B: at A x it is Bᵀ grad",
        "without A": "Your db leaves out A. What B is multiplied by is A x, not x",
        "order": "You return (db, da): da comes first",
        "mean": "You took the mean over the tokens: a and b serve all of them, so their gradients are sums",
        "downhill": "The sign is the wrong way round: a gradient points uphill, and the optimizer turns it",
    },
    {
        "the scale": (_one_place, ("scale of da", "scale of db")),
        "the two factors": (_one_place, ("without B", "without A")),
        "the order": (_one_place, ("order",)),
        "the sign": (_one_place, ("downhill",)),
        "several tokens": (_places, ("mean",)),
    },
    lambda g: [*_with_zero_b(g), *_places(g), _gradient_case(g, 3, 5, 2, 2.0, ())],
    tolerance=1e-4, run=_both, show=_call, extra=(inputs_stay(ARGUMENTS, _one_place),),
    id="09.2", name="lora_gradients", minutes=10, level="hard", importance=3, forbids=("backward", "grad", "vjp"),
)  # fmt: skip


# ---- 09.3: the layer; what it does, how it starts, what trains ----


class _Reference:
    """The package's wrapper, with the names of the exercise."""

    def __new__(cls, base: nn.Linear, r: int, alpha: float) -> nn.Module:
        layer = LoraLinear(base)
        layer.add("x", LoraSettings(r, alpha), generator=torch.Generator().manual_seed(0))
        layer.active = "x"
        layer.a, layer.b = layer.lora_a["x"], layer.lora_b["x"]
        return layer


def _output(weight: Tensor, bias: Tensor | None, r: int, alpha: float, a: Tensor, b: Tensor, x: Tensor,
            faults: Collection[str]) -> Tensor:  # fmt: skip
    """What a layer should give for x, once its strips are a and b."""
    scale = alpha / r
    if "no scale" in faults:
        scale = 1.0
    if "alpha alone" in faults:
        scale = alpha
    if "whole" in faults:
        scale = alpha // r
    if "upside down" in faults:
        scale = r / alpha
    if "root" in faults:
        scale = alpha / math.sqrt(r)
    update = scale * F.linear(F.linear(x, a), b)
    if "no update" in faults:
        update = torch.zeros_like(update)
    if "no base" in faults:
        return update
    return F.linear(x, weight, None if "no bias" in faults else bias) + update


def _small_layer(_: torch.Generator) -> list[tuple]:
    weight, strips = torch.tensor([[2.0, 1.0]]), (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
    return [(weight, torch.tensor([50.0]), 2, 7.0, *strips, torch.tensor([1.0, 4.0]))]


def _wide_layer(g: torch.Generator) -> list[tuple]:
    weight, a, b, x = (torch.randn(shape, generator=g) for shape in ((4, 576), (8, 576), (4, 8), (576,)))
    return [(weight, None, 8, 16.0, a, b, x)]


def _layers(g: torch.Generator) -> list[tuple]:
    cases = _small_layer(g)
    for n, c, r, alpha, bias, shape in ((5, 7, 2, 6.0, False, (3, 7)), (4, 4, 1, 2.0, True, (2, 3, 4)),
                                        (6, 3, 3, 3.0, True, (3,))):  # fmt: skip
        weight, offset = torch.randn(n, c, generator=g), torch.randn(n, generator=g) if bias else None
        a, b = torch.randn(r, c, generator=g), torch.randn(n, r, generator=g)
        cases.append((weight, offset, r, alpha, a, b, torch.randn(shape, generator=g)))
    return cases


def _layer_in_words(case: tuple) -> str:
    names = ("weight", "bias", "r", "alpha", "a", "b", "x")
    return ", ".join(f"{name} {shown(value)}" for name, value in zip(names, case, strict=True))


def _base(case: tuple) -> nn.Linear:
    weight, bias, *_ = case
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        base.weight.copy_(weight)
        if bias is not None:
            base.bias.copy_(bias)
    return base


def _built(answer: Callable, case: tuple) -> Any:
    """The learner's layer around a linear with the case's weight and bias."""
    return answer(_base(case), case[2], case[3])


def _parts(layer: Any, case: tuple) -> str | None:
    """What is wrong with the layer's form, or None."""
    if not isinstance(layer, nn.Module):
        return f"LoraLayer(base, r, alpha) should be an nn.Module, got {describe(layer)}"
    missing = [name for name in "ab" if not isinstance(getattr(layer, name, None), nn.Parameter)]
    if missing:
        return f"the layer has no nn.Parameter called {' and '.join(missing)}"
    for name, right in (("a", case[4]), ("b", case[5])):
        own = getattr(layer, name)
        if own.shape != right.shape:
            return f"{name} should have the shape {tuple(right.shape)}, it has {tuple(own.shape)}"
        if own.dtype != torch.float32:
            return f"{name} should be fp32, it is {own.dtype}"
    return None


def _start(layer: Any, case: tuple) -> str | None:
    if _parts(layer, case):
        return None
    a, b = (bool(getattr(layer, name).detach().any()) for name in "ab")
    if not a and not b:
        return "A and B both begin as zeros: then neither ever gets a gradient. A must begin random"
    if not a:
        return "A begins as zeros and B random; the exercise, and everybody's files, have it the other way round"
    if b:
        return "B begins random, so the layer differs from its base before it has learned anything: begin with zeros"
    return None


def _a_start(layer: Any, case: tuple) -> str | None:
    """What is wrong with a's random numbers, or None; zeros are told by "how it begins"."""
    if _parts(layer, case) or not layer.a.detach().any():
        return None
    a = layer.a.detach()
    if not a.isfinite().all():
        return "A begins with NaN or infinity: torch.empty holds whatever was in the memory, torch.randn random numbers"
    if torch.linalg.matrix_rank(a) < len(a):
        return ("the rows of A repeat each other, so the columns of B get the same gradients, and rank r is never "
                "reached: A must begin random")
    times = float(a.square().mean().sqrt()) * a.shape[1] ** 0.5
    if times > 10:
        return f"A begins large: A x is about {times:.0f} times as large as the entries of x. Divide by √C"
    return None


def _handed_on(answer: Callable, case: tuple) -> Any:
    """The gradient at x of the sum of the outputs."""
    x = case[6].clone().requires_grad_()
    _, y = _with_strips(answer, (*case[:6], x.clone()), _base(case))
    if not isinstance(y, Tensor) or not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, allow_unused=True, materialize_grads=True)[0]


def _reaches_x(got: Any, case: tuple) -> str | None:
    weight, _, r, alpha, a, b, _ = case
    base, strips = weight.sum(0), alpha / r * b.sum(0) @ a
    if difference(base + strips, got, 1e-3) is None:
        return None
    lost = {"the base": strips, "the strips": base}
    through = next((f" through {name}" for name, left in lost.items() if difference(left, got, 1e-3) is None), "")
    return f"the gradient does not reach x{through}: the layers before need it, so leave out no_grad and detach"


def _x_afterwards(answer: Callable, case: tuple) -> Tensor:
    _with_strips(answer, case, _base(case))
    return case[6]


def _same_x(x: Tensor, case: tuple) -> str | None:
    return None if torch.equal(x, case[6]) else "forward changes x, which other layers still need: make a new tensor"


def _with_strips(answer: Callable, case: tuple, base: nn.Linear) -> tuple[Any, Any]:
    """The layer, with the case's strips in it, and its output; None and the right output where it has another form,
    which "its parameters" tells."""
    layer = answer(base, case[2], case[3])
    if _parts(layer, case):
        return None, _output(*case, ())
    with torch.no_grad():
        layer.a.copy_(case[4])
        layer.b.copy_(case[5])
    return layer, layer(case[6])


def _trained(answer: Callable, case: tuple) -> dict[str, Any] | None:
    """After a step backward: whether a and b have a gradient, whether the base trains, and which others do."""
    base = _base(case)
    layer, y = _with_strips(answer, case, base)
    if layer is None or not isinstance(y, Tensor):
        return None
    known = {id(p) for p in (layer.a, layer.b, *base.parameters())}
    others = [name for name, p in layer.named_parameters() if p.requires_grad and id(p) not in known]
    if y.requires_grad:
        y.float().pow(2).sum().backward()
    trains = [name for name, p in base.named_parameters() if p.requires_grad]
    return {"a": layer.a.grad is not None, "b": layer.b.grad is not None, "base": trains, "others": others}


def _what_trains(got: Any, _case: tuple) -> str | None:
    if got is None:
        return None
    told = []
    if without := [name for name in "ab" if not got[name]]:
        told.append(f"no gradient for {' and '.join(without)}: forward must compute with the parameter itself")
    if got["base"]:
        told.append(f"the base still trains, its {' and its '.join(got['base'])}: freeze it with "
                    f"requires_grad_(False), which is the point of LoRA")  # fmt: skip
    if got["others"]:
        told.append(f"{' and '.join(got['others'])} would train as well: a and b alone should")
    return "; ".join(told) or None


_OUTPUTS = fault_exercise(
    _output,
    {
        "no scale": "You left out the scale, alpha / r",
        "alpha alone": "You multiplied by alpha: divide it by r",
        "whole": "You cut off the fraction of alpha / r: divide with /, not //",
        "upside down": "The scale is upside down: it is alpha / r",
        "root": "You divided alpha by the root of r, which is rsLoRA's scale; here it is alpha / r",
        "no base": "You return the update alone: add what the base gives, W x",
        "no update": "Your forward never uses A and B",
        "no bias": "You lost the base's bias: call self.base(x)",
    },
    {
        "the scale": (_small_layer, ("no scale", "alpha alone", "whole", "upside down", "root")),
        "base and update": (_small_layer, ("no base", "no update", "no bias")),
    },
    _layers,
    run=lambda answer, case: _with_strips(answer, case, _base(case))[1], show=_layer_in_words,
    id="09.3", name="LoraLayer", minutes=10, level="core", importance=3, reference=_Reference,
)  # fmt: skip

LAYER = replace(_OUTPUTS, properties=(
    Property("its parameters", _layers, run=_built, accept=_parts, show=_layer_in_words),
    Property("how it begins", _small_layer, run=_built, accept=_start),
    Property("how A begins", _wide_layer, run=_built, accept=_a_start),
    *_OUTPUTS.properties,
    Property("what trains", _small_layer, run=_trained, accept=_what_trains),
    Property("x stays as it is", _small_layer, run=_x_afterwards, accept=_same_x),
    Property("on the way back", _small_layer, run=_handed_on, accept=lambda *_: None, otherwise=_reaches_x),
))  # fmt: skip
