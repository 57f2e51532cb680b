"""Checks of lesson 11: CLIP's loss and SigLIP's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.senses.contrastive import clip_loss, siglip_loss


def _three_pairs(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([[0.6, 0.3], [-0.2, 0.9], [0.5, -0.7]]), torch.tensor([[0.4, 0.5], [0.1, 0.8], [0.9, -0.2]]),
             3.0, -2.0)]  # fmt: skip


def _not_cut_off(reference: Callable, small: Callable, large: Callable, safe: str) -> Property:
    """Of a loss that is right for small logits alone. safe: the function that needs no help."""
    def run(answer: Callable, case: tuple) -> tuple[Any, Any]:
        return answer(*small(torch.Generator().manual_seed(0))[0]), answer(*case)

    def accept(result: Any, case: tuple) -> str | None:
        right_small, right_large = run(reference, case)
        if difference(right_small, result[0], 1e-4) or difference(right_large, result[1], math.inf):
            return None
        if not result[1].isfinite():
            return None
        off = difference(right_large, result[1], 1e-2)
        return f"{off}. A large loss is cut off: {safe} needs no clamp and no small number added" if off else None

    return Property("large losses", large, run=run, accept=accept)


# ---- 11.5: CLIP's loss ----


def _clip(images: Tensor, texts: Tensor, scale: float, faults: Collection[str]) -> Tensor:
    if "wrong axis" in faults:
        images, texts = F.normalize(images, dim=0), F.normalize(texts, dim=0)
    elif "long" not in faults:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = images @ texts.T
    if "right pairs" in faults:
        return (1 - logits.diagonal()).mean()
    logits = logits / scale if "divided" in faults else logits if "no scale" in faults else logits * scale
    n = len(logits)
    both = [_choice(way, faults) for way in (logits, logits.T)]
    loss = both[0] if "rows" in faults else both[1] if "columns" in faults else both[0] + both[1]
    loss = loss if {"rows", "columns", "not halved"} & set(faults) else loss / 2
    loss = loss * n if "sum" in faults else loss
    return -loss if "below zero" in faults else loss


def _choice(logits: Tensor, faults: Collection[str]) -> Tensor:
    """Each row's loss of choosing its own column, on average."""
    if "no logarithm" in faults:
        return 1 - logits.softmax(dim=1).diagonal().mean()
    if "softmax twice" in faults:
        logits = logits.softmax(dim=1)
    if "others alone" in faults:
        others = logits.masked_fill(torch.eye(len(logits)).bool(), -math.inf)
        return (others.logsumexp(dim=1) - logits.diagonal()).mean()
    return (logits.logsumexp(dim=1) - logits.diagonal()).mean()


def _three_named(_: torch.Generator) -> list[tuple]:
    return [case[:3] for case in _three_pairs(_)]


def _large_scale(_: torch.Generator) -> list[tuple]:
    """A wrong pair at 120, the right one at 0: e to the power of 120 is infinite in fp32, its inverse is 0."""
    return [(torch.eye(2), torch.eye(2).flip(0), 120.0)]


def _named(g: torch.Generator) -> list[tuple]:
    by_hand = (torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]]), 5.0)
    long = (torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0)
    return [by_hand, long, *((torch.randn(n, e, generator=g), torch.randn(n, e, generator=g), 10.0)
                             for n, e in ((6, 8), (3, 5)))]  # fmt: skip


def _clip_stays_finite(result: Any, _case: tuple) -> str | None:
    if not isinstance(result, Tensor) or result.isfinite().all():
        return None
    return ("the loss is not finite: in fp32, e to the power of 120 is infinite, and to the power of −120 it is 0, of "
            "which there is no logarithm. F.cross_entropy, log_softmax and logsumexp avoid both")  # fmt: skip


_CLIP = fault_exercise(
    _clip,
    {
        "long": "You left the vectors as long as they are: a similarity is a cosine, of vectors of length 1",
        "wrong axis": "You made the columns of length 1: a vector is a row, so normalise along dim=1",
        "no scale": "The scale is missing: cosines alone are too close together for a softmax",
        "divided": "You divided by the scale: multiply by it",
        "rows": "You let the pictures choose among the texts, but not the texts among the pictures",
        "columns": "You let the texts choose among the pictures, but not the pictures among the texts",
        "not halved": "You added both directions: take half of their sum",
        "sum": "You added up the pairs: take their mean, so that a batch of any size has a loss of the same size",
        "no logarithm": "There is no logarithm: the loss of a choice is −log of the probability of the right one",
        "softmax twice": "You took the softmax of a softmax: F.cross_entropy wants the logits themselves",
        "others alone": "You divide by the wrong pairs alone: the right one is among those to choose from, too",
        "right pairs": "You look at the right pairs alone: nothing keeps the wrong ones apart",
        "below zero": "Your loss is below zero: a logarithm of a probability is, so take minus it",
    },
    {
        "the similarities": (_three_named, ("long", "wrong axis", "no scale", "divided")),
        "both directions": (_three_named, ("rows", "columns", "not halved")),
        "the loss of a choice": (_three_named, ("sum", "no logarithm", "softmax twice", "others alone", "right pairs",
                                                "below zero")),
    },
    _named,
    id="11.5", name="choice_loss", minutes=10, level="core", importance=3,
    reference=lambda images, texts, scale: clip_loss(images, texts, scale),
)  # fmt: skip

CLIP = replace(_CLIP, properties=(
    *_CLIP.properties,
    Property("large logits", _large_scale, accept=_clip_stays_finite),
    _not_cut_off(clip_loss, _named, _large_scale, "F.cross_entropy"),
))  # fmt: skip


# ---- 11.6: SigLIP's loss ----


def _siglip(images: Tensor, texts: Tensor, scale: float, bias: float, faults: Collection[str]) -> Tensor:
    if "long" not in faults:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = images @ texts.T
    logits = logits + bias if "bias inside" in faults else logits
    logits = logits / scale if "divided" in faults else logits if "no scale" in faults else logits * scale
    if not {"bias inside", "no bias"} & set(faults):
        logits = logits - bias if "minus bias" in faults else logits + bias
    n = len(logits)
    eye = torch.eye(n)
    if "CLIP" in faults or "half CLIP" in faults:
        right = torch.arange(n)
        loss = F.cross_entropy(logits, right)
        return loss if "half CLIP" in faults else (loss + F.cross_entropy(logits.T, right)) / 2
    sign = eye if "1 and 0" in faults else torch.ones(n, n) if "all yes" in faults else 2 * eye - 1
    losses = -F.logsigmoid(-sign * logits if "flipped" in faults else sign * logits)
    losses = losses * eye if "right pairs" in faults else losses * (1 - eye) if "wrong pairs" in faults else losses
    loss = losses.mean() if "mean" in faults else losses.sum() if "sum" in faults else losses.sum() / n
    return -loss if "below zero" in faults else loss


def _large(_: torch.Generator) -> list[tuple]:
    """Wrong pairs at 116: sigmoid(-116) is 0 in fp32."""
    return [(torch.eye(2), torch.eye(2).flip(0), 120.0, -4.0)]


def _pairs(g: torch.Generator) -> list[tuple]:
    cases = [(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0, -1.0),
             (torch.randn(1, 3, generator=g), torch.randn(1, 3, generator=g), 5.0, -2.0)]  # fmt: skip
    return [*cases, (torch.randn(6, 8, generator=g), torch.randn(6, 8, generator=g), 10.0, -3.0)]


def _stays_finite(result: Any, _case: tuple) -> str | None:
    if not isinstance(result, Tensor) or result.isfinite().all():
        return None
    return ("the loss is not finite: log(sigmoid(x)) is minus infinity for large logits, since sigmoid rounds to 0. "
            "F.logsigmoid computes both at once")  # fmt: skip


_SIGLIP = fault_exercise(
    _siglip,
    {
        "long": "You left the vectors as long as they are: a similarity is a cosine, of vectors of length 1",
        "no bias": "The bias is missing: it is added to every logit",
        "minus bias": "You subtract the bias: it is below zero already, add it",
        "bias inside": "You scale the bias, too: scale the cosine, then add the bias",
        "no scale": "The scale is missing: a cosine alone goes from −1 to 1, too flat for a yes",
        "divided": "You divide by the scale: multiply by it",
        "mean": "You took the mean of all N · N losses: divide their sum by N, so that a pair counts the same in a "
                "batch of any size",
        "sum": "You didn't divide: the sum of all losses, by N",
        "right pairs": "You ask about the right pairs alone: a model that says yes to everything has no loss",
        "wrong pairs": "You ask about the wrong pairs alone: the diagonal is missing",
        "all yes": "You ask every pair to be one: off the diagonal the right answer is no, so the logit's sign turns",
        "1 and 0": "You multiply by 1 and 0: by 0 the wrong pairs teach nothing; it is 1 and −1",
        "flipped": "Your signs are the wrong way round: 1 on the diagonal, −1 elsewhere",
        "below zero": "Your loss is below zero: log sigmoid is, so take minus it",
        "CLIP": "That is CLIP's loss, a choice among the batch: here each of the N · N pairs is a question of its own",
        "half CLIP": "That is half of CLIP's loss: here each of the N · N pairs is a question of its own, without a "
                     "softmax",
    },
    {
        "the logits": (_three_pairs, ("long", "no bias", "minus bias", "bias inside", "no scale", "divided")),
        "the right answers": (_three_pairs, ("all yes", "1 and 0", "flipped", "CLIP", "half CLIP")),
        "what is added up": (_three_pairs, ("mean", "sum", "right pairs", "wrong pairs", "below zero")),
    },
    _pairs,
    id="11.6", name="yes_or_no_loss", minutes=15, level="hard", importance=1, reference=siglip_loss,
)  # fmt: skip

SIGLIP = replace(_SIGLIP, properties=(
    *_SIGLIP.properties,
    Property("large logits", _large, accept=_stays_finite),
    _not_cut_off(siglip_loss, _pairs, _large, "F.logsigmoid"),
))  # fmt: skip
