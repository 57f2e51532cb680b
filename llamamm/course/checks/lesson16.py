"""Checks for lesson 16: words near tokens, a picture's loss, what learns, a path read as CTC reads it, DPO's loss, and
tokens that are loud and wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Diagnosis, Exercise, Property
from llamamm.course.checks.faults import fault_exercise, input_stays
from llamamm.train.alignment import picture_loss
from llamamm.train.preference import preference_loss

# ---- 16.1: how near a token is to each word ----


def _nearness(tokens: Tensor, words: Tensor, nothing: Tensor, faults: Collection[str]) -> Tensor:
    places = torch.cat([words, nothing[None]] if "nothing last" in faults else [nothing[None], words])
    if "dot" in faults:
        near = tokens @ places.T
    elif "cosine" in faults:
        near = torch.nn.functional.cosine_similarity(tokens[:, None], places[None], dim=-1)
    else:
        apart = tokens[:, None] - places
        far = apart.abs().sum(dim=-1) if "absolute" in faults else apart.square().sum(dim=-1)
        near = -(far.sqrt() if "root" in faults else far) / (1 if "no half" in faults else 2)
    return -near if "sign" in faults else near


def _placed(g: torch.Generator, M: int, V: int, C: int) -> tuple:
    return torch.randn(M, C, generator=g), 2 * torch.randn(V, C, generator=g), torch.randn(C, generator=g) / 2


def _by_hand(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0]))]


def _do_not_meet(error: BaseException, _case: tuple) -> str | None:
    if not isinstance(error, RuntimeError):
        return None
    return ("nothing (C,) joins the words as nothing[None], a row; tokens (M, C) and places (1 + V, C) meet as "
            "(M, 1, C) and (1, 1 + V, C), or in torch.cdist")


NEARNESS = fault_exercise(
    _nearness,
    {
        "sign": "The sign is turned: the nearest word must get the highest number, so it is minus the distance",
        "no half": "The half is missing: -|h - e|² / 2",
        "root": "You took the distance itself: its square, without the root",
        "absolute": "You add up absolute differences: add up their squares",
        "dot": "That is h · e alone: long embeddings win everywhere; take their distance to h",
        "cosine": "That is the cosine, which leaves lengths out: take the distance",
        "nothing last": "\"Nothing here\" stands last: it is column 0, before the words",
    },
    {
        "what is near": (_by_hand, ("sign", "no half", "root", "absolute", "dot", "cosine")),
        "which column is whose": (_by_hand, ("nothing last",)),
    },
    lambda g: [_placed(g, 1, 3, 2), _placed(g, 9, 20, 16), _placed(g, 2, 1, 5)],
    hint=_do_not_meet,
    extra=(input_stays(lambda g: [_placed(g, 2, 3, 4)]),),
    id="16.1", name="nearness", minutes=8, level="core", importance=3,
)  # fmt: skip


# ---- 16.2: what a picture's tokens have yet to learn ----


def _picture(shares: Tensor, said: list[int], faults: Collection[str]) -> Tensor:
    words = list(said) if "twice" in faults else sorted(set(said))
    p = shares.double()[:, words].exp()
    if "every token" in faults:
        told = p.log().sum(dim=0)
    elif "added" in faults:
        told = p.sum(dim=0).log()
    elif "best" in faults:
        told = p.amax(dim=0).log()
    else:
        told = torch.log(-torch.expm1(torch.log1p(-p.clamp(max=1 - 1e-6)).sum(dim=0)))
    loss = -told.mean() if "mean of words" in faults else -told.sum()
    if "no words" in faults:
        loss = torch.zeros(())
    allowed = words if "no silence" in faults else [0, *words]
    each = shares.double()[:, allowed].logsumexp(dim=1)
    if "no second" in faults:
        return loss.to(shares.dtype)
    return (loss - (each.sum() if "sum of tokens" in faults else each.mean())).to(shares.dtype)


def _of(rows: list[list[float]], said: list[int]) -> tuple:
    return torch.tensor(rows).log(), said


def _two_tokens(_: torch.Generator) -> list[tuple]:
    return [_of([[0.1, 0.7, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1]], [1, 2])]


def _three_tokens(_: torch.Generator) -> list[tuple]:
    return [_of([[0.1, 0.6, 0.2, 0.1], [0.4, 0.1, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]], [2, 3])]


def _shares(g: torch.Generator, M: int, V: int, said: list[int]) -> tuple:
    return torch.randn(M, 1 + V, generator=g).mul(2).log_softmax(dim=1), said


def _rare(g: torch.Generator) -> list[tuple]:
    """Tokens that are sure to say nothing."""
    far = torch.full((9, 5), -30.0) + torch.randn(9, 5, generator=g)
    far[:, 0] = 0.0
    return [(far.log_softmax(dim=1), [1, 3])]


def _not_infinite(expected: Tensor, got: Any, sentence: str) -> str | None:
    """Of a result where the obvious formula leaves what fp32 can hold."""
    if not isinstance(got, Tensor) or got.shape != expected.shape or got.isfinite().all():
        return None  # told by others
    return Diagnosis.of(f"should be {float(expected):.4g}, got {float(got):.4g}", sentence)


def _off(expected: Tensor, got: Any, sentence: str) -> str | None:
    """The same for one that is finite and wrong, where nothing else has failed."""
    if not isinstance(got, Tensor) or got.shape != expected.shape or torch.allclose(got, expected, rtol=0.02):
        return None
    return Diagnosis.of(f"should be {float(expected):.4g}, got {float(got):.4g}", sentence)


FLOOR = "a small number added, or a floor, hides how rare they are: log1p and expm1 need neither"


def _told_rare(result: Any, case: tuple) -> str | None:
    sentence = "1 - (1 - p)(1 - q)... is 0 in fp32 where all are tiny: log1p and expm1 keep the digits"
    if isinstance(result, Tensor) and result.isnan().any():
        sentence = "shares are log-probabilities: take their exp() before you use them as p"
    return _not_infinite(_picture(*case, ()), result, sentence)


def _learns(answer: Callable, case: tuple) -> Tensor:
    """The gradient of the shares."""
    shares = case[0].clone().requires_grad_()
    answer(shares, case[1]).backward()
    return shares.grad


def _same_gradient(got: Tensor, case: tuple) -> str | None:
    if torch.allclose(got, _learns(picture_loss, case), rtol=1e-3, atol=1e-5):
        return None
    return "the loss is right and its gradient is not: leave out detach(), no_grad() and item()"


def _finite(result: Any, _case: tuple) -> str | None:
    if isinstance(result, Tensor) and result.isfinite().all():
        return None
    return "a token that is sure of its word gives a gradient of NaN: keep p a little below 1, clamp(max=1 - 1e-6)"


PICTURE = fault_exercise(
    _picture,
    {
        "every token": "You ask every token to say every word: one token is enough, so 1 minus the probability that "
                       "none says it",
        "added": "You add up the probabilities of tokens: two tokens of 0.7 don't make 1.4; 1 minus the probability "
                 "that none says it",
        "best": "You take the surest token alone: 1 minus the probability that none says it",
        "mean of words": "You take the mean over words: their parts are added up",
        "no words": "The first part is missing: for each word, that some token says it",
        "no second": "The second part is missing: that each token says one of the words, or nothing",
        "no silence": "\"Nothing here\", column 0, is forbidden: a token may say one of the words, or nothing",
        "sum of tokens": "The second part is a sum over tokens: take their mean",
        "twice": "A word that stands twice in `said` counts twice: take each once",
    },
    {
        "that some token says each word": (_two_tokens, ("every token", "added", "best", "mean of words", "no words")),
        "that each token says one, or nothing": (_three_tokens, ("no second", "no silence", "sum of tokens")),
        "a word that stands twice": (lambda _: [_of([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], [1, 1, 2])], ("twice",)),
    },
    lambda g: [_shares(g, 1, 3, [2]), _shares(g, 9, 12, [3, 7]), _shares(g, 4, 5, [1, 2, 5])],
    extra=(
        Property("rare words", _rare, run=lambda answer, case: answer(*case), accept=_told_rare,
                 otherwise=lambda got, case: _off(_picture(*case, ()), got, FLOOR)),
        Property("what tokens learn", _two_tokens, run=_learns, accept=lambda _got, _case: None,
                 otherwise=_same_gradient),
        input_stays(_two_tokens),
        Property("a token that is sure", lambda _: [(torch.tensor([[-40.0, 0.0, -40.0], [-0.7, -2.0, -1.0]]), [1, 2])],
                 run=_learns, accept=_finite),
    ),
    id="16.2", name="words_loss", minutes=15, level="core", importance=3,
    reference=lambda shares, said: picture_loss(shares, said),
)  # fmt: skip


# ---- 16.3: of which part a parameter is ----


def _part(name: str, faults: Collection[str]) -> str:
    first = name.split(".")[0]
    if ".lora_" in name and "whole" not in faults:
        return "lora"
    if ".base." in name and "wrapped" in faults:
        return "lora"
    if "inside" in faults and ".layers." in f".{name}":
        return "text"
    if first in ("vision_tower", "audio_encoder"):
        return "bridges" if "towers" in faults else "towers"
    if first in ("image_bridge", "audio_bridge"):
        return "bridges"
    if first == "gated":
        return "text" if "gated" in faults else "bridges"
    return "bridges" if "ends" in faults and first != "layers" else "text"


def _names(*names: str) -> Callable[[torch.Generator], list[tuple]]:
    return lambda _: [(name,) for name in names]


PART = fault_exercise(
    _part,
    {
        "whole": "A name with .lora_ in it is LoRA's, wherever the linear stands that it was put on",
        "wrapped": ".base. is the linear inside the wrapper: LoRA leaves it as it is, so it is of the text",
        "inside": "A tower has layers, too: look at the first part of the name",
        "towers": "The towers are the eye and the ear themselves: the bridges come after them",
        "gated": "Gated blocks join the towers to the text, so they are bridges",
        "ends": "The table of embeddings, the last norm and the head are of the text, too",
    },
    {
        "LoRA": (_names("layers.3.mlp.up_proj.lora_a.default"), ("whole",)),
        "a wrapped linear": (_names("layers.3.mlp.up_proj.base.weight"), ("wrapped",)),
        "the towers": (_names("vision_tower.encoder.layers.0.norm1.weight", "audio_encoder.conv1.bias"),
                       ("inside", "towers")),
        "gated blocks": (_names("gated.3.cross_attn.q_proj.weight"), ("gated",)),
        "the text's ends": (_names("embed_tokens.weight", "norm.weight"), ("ends",)),
    },
    _names("layers.0.input_layernorm.weight", "image_bridge.projector.linear_1.weight", "audio_bridge.start",
           "layers.29.self_attn.q_proj.lora_b.default", "lm_head.weight", "vision_tower.position_embedding",
           "layers.1.mlp.gate_proj.base.weight", "image_bridge.end", "audio_encoder.encoder.layers.1.mlp.fc1.bias"),
    id="16.3", name="part_of", minutes=6, level="core", importance=3,
)  # fmt: skip


# ---- 16.4: a path, read as CTC reads it ----


def _heard(path: list[str], faults: Collection[str]) -> list[str]:
    if "blanks first" in faults:
        path = [word for word in path if word != "_"]
    once = list(path) if "repeats" in faults else [word for word, _ in groupby(path)]
    words = once if "blanks" in faults else [word for word in once if word != "_"]
    if "once each" in faults:
        words = list(dict.fromkeys(words))
    return words[::-1] if "backwards" in faults else words


def _path(text: str) -> Callable[[torch.Generator], list[tuple]]:
    return lambda _: [(text.split(),)]


HEARD = fault_exercise(
    _heard,
    {
        "blanks first": "You drop the \"_\" before you look for repeats: then a word that was said twice counts once; "
                        "repeats first, \"_\" afterwards",
        "repeats": "What repeats the token before it counts once",
        "blanks": "\"_\" says nothing: it is no word of the result",
        "once each": "A word may be said again later: only what repeats the token just before it is dropped",
        "backwards": "The words come in the opposite order",
    },
    {
        "a word said twice": (_path("on no _ no go no so"), ("blanks first",)),
        "a word said again later": (_path("go on go so"), ("once each",)),
        "a word that repeats": (_path("go go"), ("repeats",)),
        "nothing here": (_path("_ go"), ("blanks",)),
        "the order": (_path("it was"), ("backwards",)),
    },
    lambda _: [(text.split(),) for text in ("_ _", "a", "_ well _ it was was _", "no no _ no it _ it it",
                                            "a b a b b _ b a")],
    extra=(Property("the path stays as it is", _path("_ go go _"), run=lambda answer, case: (answer(*case), case[0])[1],
                    accept=lambda got, case: None if got == case[0] else "you changed the path that was given: make a "
                                                                         "new list"),),
    id="16.4", name="heard", minutes=6, level="warm-up",
)  # fmt: skip


# ---- 16.5: DPO's loss ----


def _preference(
    chosen: Tensor, rejected: Tensor, chosen_before: Tensor, rejected_before: Tensor, beta: float,
    faults: Collection[str],
) -> Tensor:  # fmt: skip
    before = (chosen_before, rejected_before)
    if "crossed" in faults:
        before = before[::-1]
    gains = (chosen, rejected) if "no reference" in faults else (chosen - before[0], rejected - before[1])
    if "parentheses" in faults:
        gains = (gains[0], rejected + before[1])
    if "chosen alone" in faults:
        gains = (gains[0], torch.zeros_like(gains[1]))
    margin = gains[1] - gains[0] if "turned" in faults else gains[0] - gains[1]
    margin = margin if "no beta" in faults else margin / beta if "divided" in faults else beta * margin
    loss = -margin.sigmoid() if "no log" in faults else -torch.nn.functional.logsigmoid(margin)
    return -loss if "sign" in faults else loss


def _pairs(g: torch.Generator, n: int, beta: float, shift: float = 2.0) -> tuple:
    before = -8 * torch.rand(2, n, generator=g) - 1
    now = before + shift * torch.randn(2, n, generator=g)
    return now[0], now[1], before[0], before[1], beta


def _one_pair(_: torch.Generator) -> list[tuple]:
    return [tuple(torch.tensor([x]) for x in (-0.53, -1.1, -1.41, -0.87)) + (0.3,)]


def _long_answers(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([-900.0]), torch.tensor([-100.0]), torch.tensor([-50.0]), torch.tensor([-101.0]), 1.0)]


LOG_OF_ZERO = "log(sigmoid(x)) is log(0) for a large negative x: logsigmoid is not"


def _finite_loss(result: Any, case: tuple) -> str | None:
    return _not_infinite(_preference(*case, ()), result, LOG_OF_ZERO)


PREFERENCE = fault_exercise(
    _preference,
    {
        "no reference": "The model from before is missing: what counts is how far each answer has moved from it",
        "crossed": "The two numbers from before have changed places: each answer is compared with itself",
        "parentheses": "Parentheses are missing: chosen - before - (rejected - before)",
        "chosen alone": "You leave the rejected answer out: it is the lead of one over the other that counts",
        "turned": "It is the wrong way round: the chosen answer should gain more than the rejected one",
        "no beta": "beta is missing: it multiplies the margin",
        "divided": "You divide by beta: it multiplies the margin",
        "no log": "The logarithm is missing: -log sigmoid(...)",
        "sign": "The sign is wrong: the loss is minus the logarithm, and falls as the margin grows",
    },
    {
        "the margin": (_one_pair, ("no reference", "crossed", "parentheses", "chosen alone", "turned")),
        "beta": (_one_pair, ("no beta", "divided")),
        "minus the log of the sigmoid": (_one_pair, ("no log", "sign")),
    },
    lambda g: [_pairs(g, 1, 0.1), _pairs(g, 4, 1.0), _pairs(g, 3, 0.5)],
    extra=(Property("long answers", _long_answers, run=lambda answer, case: answer(*case), accept=_finite_loss,
                    otherwise=lambda got, case: _off(_preference(*case, ()), got, LOG_OF_ZERO)),
           input_stays(_one_pair)),
    id="16.5", name="preferred", minutes=8, level="core", importance=3,
    reference=lambda c, r, c0, r0, beta: preference_loss(c, r, c0, r0, beta=beta),
)  # fmt: skip


# ---- 16.6: break it, loud and wrong ----


def _loud(said: list[int], n_tokens: int, n_words: int) -> Tensor:
    wrong = next(word for word in range(1, 1 + n_words) if word not in said)
    shares = torch.full((n_tokens, 1 + n_words), -12.0)
    for n in range(n_tokens):
        shares[n, said[n] if n < len(said) else wrong] = 0.0
    return shares.log_softmax(dim=1)


def _said_something(_: torch.Generator) -> list[tuple]:
    return [([1], 2, 2), ([2, 3], 9, 12), ([4, 1, 2], 6, 5)]


def _are_shares(result: Any, case: tuple) -> str | None:
    said, n_tokens, n_words = case
    if not isinstance(result, Tensor) or result.shape != (n_tokens, 1 + n_words):
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        return f"give log-probabilities ({n_tokens}, {1 + n_words}), got {got}"
    sums = result.detach().exp().sum(dim=1)
    off = (sums - 1).abs().nan_to_num(nan=math.inf)
    if off.max() > 1e-3:
        return (f"each token's probabilities add up to 1, here to {float(sums[off.argmax()]):.3g}: log_softmax(dim=1) "
                f"at the end")
    return None


def _parts(shares: Tensor, said: Collection[int]) -> tuple[float, float]:
    """The two parts of a picture's loss."""
    first = float(_picture(shares, [*said], ("no second",)))
    second = float(-shares[:, [0, *sorted(set(said))]].logsumexp(dim=1).mean())
    return first, abs(second)


def _all_said(result: Any, case: tuple) -> str | None:
    if _are_shares(result, case):
        return None
    first = _parts(result.detach(), case[0])[0]
    if first < 0.05:
        return None
    return f"the first part is {first:.3g}, which notices something: some token must say each word of the picture"


def _mostly_wrong(result: Any, case: tuple) -> str | None:
    if _are_shares(result, case):
        return None
    said, second = case[0], _parts(result.detach(), case[0])[1]
    if second > 1:
        return None
    best = result.argmax(dim=1)
    told = f"the second part is {second:.3g} and should be over 1"
    if bool((best == 0).any()):
        return f"{told}: tokens that say \"nothing here\" are allowed; let them say a wrong word"
    right = sum(int(word) in said for word in best)
    return f"{told}: {right} of {len(best)} tokens say a word of the picture; one token a word is enough, and be surer"


LOUD = Exercise(
    id="16.6", name="loud", minutes=8, level="break it", reference=_loud,
    properties=tuple(Property(name, _said_something, run=lambda answer, case: answer(*case), accept=accept)
                     for name, accept in (("log-probabilities", _are_shares), ("all words are said", _all_said),
                                          ("wrong words, too", _mostly_wrong))),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (NEARNESS, PICTURE, PART, HEARD, PREFERENCE, LOUD)
