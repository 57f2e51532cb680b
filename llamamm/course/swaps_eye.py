"""Exercises of lesson 11 in the real eye (ViT-S): what enters its first block, and a game of names for its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.swaps_senses import WIDTH, _found, _pictures
from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance
from llamamm.senses.contrastive import clip_loss
from llamamm.senses.vision import VisionTower, resize_positions


@torch.no_grad()
def enter(answer: Any) -> Verdict:
    """11.4: what goes into the first block. The answer gets copies, so that it cannot change the real weights."""
    def embed(tower: VisionTower, pixels: Tensor) -> Tensor:
        special, patches = tower.position_embedding.detach().split([1, tower.cfg.grid**2])
        resized = resize_positions(patches, old=tower.cfg.grid, new=tower.grid(pixels))
        places = torch.cat([special, resized])
        return answer(tower.patch_embedding(pixels), tower.class_embedding.detach().clone(), places)

    return _found("ViT-S with your enter", "pictures", "llamamm.senses.vision.VisionTower.embed", embed, _pictures)


STEPS = 60  # of the game below, in which the package's loss finds nearly all names


def _game(loss: Callable) -> tuple[Tensor, int, Tensor]:
    """A matrix for what the eye gives and a vector for each of 24 names, trained with a loss: its first gradient, how
    many of the moved pictures find their own name, the first loss."""
    gallery, names, _, moved, _ = _pictures()
    mean = gallery.mean(dim=0)
    g = torch.Generator().manual_seed(0)
    matrix = (torch.randn(WIDTH, 64, generator=g) / WIDTH**0.5).requires_grad_()
    table = torch.randn(len(names), 64, generator=g).requires_grad_()
    optimizer = torch.optim.Adam([matrix, table], lr=0.02)
    first: list[Tensor] = []
    for _ in range(STEPS):
        value = loss((gallery - mean) @ matrix, table, 10.0)
        optimizer.zero_grad()
        value.backward()
        if not first:
            first = [torch.cat([p.grad.flatten() for p in (matrix, table)]), value.detach()]
        optimizer.step()
    with torch.no_grad():
        cosines = F.normalize((moved - mean) @ matrix, dim=1) @ F.normalize(table, dim=1).T
    return first[0], int((cosines.argmax(dim=1) == torch.arange(len(names))).sum()), first[1]


def _untrainable(loss: Callable) -> str | None:
    """Why nothing can be trained with a loss, if it changes what it is given or gives no gradient; else None."""
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(6, 8, generator=g).requires_grad_() * 1 for _ in range(2)]  # as what a tower gives: no leaves
    before = [x.detach().clone() for x in given]
    value = loss(*given, 10.0)
    if not all(torch.equal(x.detach(), old) for x, old in zip(given, before, strict=True)):
        return "it changes the vectors that it is given: make new ones (x = x / n, not x /= n)"
    if not isinstance(value, Tensor) or not value.requires_grad:
        return "its loss has no gradient: .item(), .detach(), .data, float and torch.tensor(...) cut it off"
    for name, gradient in zip(("images", "texts"), torch.autograd.grad(value.sum(), given, allow_unused=True),
                              strict=True):  # fmt: skip
        if gradient is None:
            return f"no gradient reaches the {name}: they are not used, or .detach() or .data cuts it off"
    return None


def clip(answer: Any) -> Verdict:
    """11.5: a small game of names for the eye's pictures. Pictures and texts have any length."""
    if why := _untrainable(answer):
        return Verdict(False, f"ViT-S and 24 names cannot be trained with your choice_loss: {why}")
    (gradient, found, value), (right, most, whole) = _game(answer), _game(clip_loss)
    difference = max(apart(value, whole), apart(gradient, right) / float(right.abs().max()))
    begin = (f"ViT-S and 24 names, trained with your choice_loss: {found} pictures find their own, {most} with the "
             f"package's · {distance(difference, 'loss and gradient')}: ")  # fmt: skip
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    return Verdict(False, f"{begin}a different loss")


SWAPS = {"11.4": enter, "11.5": clip}
