"""Checks for lesson 08: temperature, top-p, a stream that ends at a stop string, and a trap for min-p."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.faults import Cases, fault_exercise
from llamamm.generation.generate import _possible_stop
from llamamm.generation.sampling import keep_min_p, keep_top_p

# ---- 08.1 ----


def _given(*cases: tuple) -> Cases:
    """Cases that need no random numbers."""
    return lambda _: list(cases)


def _heated(logits: Tensor, temperature: float, faults: Collection[str] = ()) -> Tensor:
    if temperature == 0 and not {"no zero", "zero is one"} & {*faults}:
        best = logits.argmin(-1, keepdim=True) if "worst" in faults else logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    t = 1.0 if temperature == 0 and "zero is one" in faults else temperature
    dim = 0 if "batch" in faults else -1

    def scaled(x: Tensor) -> Tensor:
        return x if "left out" in faults else x * t if "times" in faults else x / t

    if {"after", "twice"} & {*faults}:
        probs = scaled(logits.softmax(dim))
        return _nan_all_over(probs if "after" in faults else probs.softmax(dim))
    return _nan_all_over(scaled(logits).softmax(dim))


def _nan_all_over(result: Any) -> Any:
    """NaN in every place where there is NaN in one: which places, depends on how a softmax is written."""
    has_nan = isinstance(result, Tensor) and bool(result.isnan().any())
    return torch.full_like(result, float("nan")) if has_nan else result


def _heated_cases(g: torch.Generator) -> list[tuple]:
    two = torch.tensor([[2.0, 0.0]])
    batch = 3 * torch.randn(3, 12, generator=g)
    return [(two, 1.0), (two, 0.5), (two, 2.0), (batch, 0.7), (batch, 1.5), (batch, 0)]


ROWS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.5, -1.0]])
HEATED = fault_exercise(
    _heated,
    {
        "no zero": "At temperature 0 you divided by 0, or went on without it: 0 means greedy, 1 for the best token and "
                   "0 for all others. It is a case of its own",
        "zero is one": "Temperature 0 is not 1: it means greedy, 1 for the best token and 0 for all others",
        "worst": "At temperature 0 you gave 1 to the worst token: the best has the highest logit",
        "times": "You multiplied by the temperature: divide, so that a high one brings the logits together",
        "after": "You divided the probabilities, and they no longer add up to 1: divide the logits before the softmax",
        "twice": "You took the softmax twice: divide the logits, then take one softmax",
        "left out": "You left the temperature out: divide the logits by it",
        "batch": "Your softmax goes down the batch: it belongs along the vocabulary, dim=-1",
    },
    {
        "a temperature": (_given((ROWS, 0.5)), ("times", "after", "twice", "left out")),
        "temperature 0": (_given((ROWS, 0)), ("no zero", "zero is one", "worst")),
        "along the vocabulary": (_given((ROWS, 0.5)), ("batch",)),
    },
    _heated_cases,
    tolerance=1e-5, run=lambda answer, case: _nan_all_over(answer(*case)),
    id="08.1", name="probabilities", minutes=5, level="warm-up",
)  # fmt: skip

# ---- 08.2 ----


def _top_p_cases(g: torch.Generator) -> list[tuple]:
    four = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
    batch = 2 * torch.randn(3, 20, generator=g)
    return [(four, 0.7), (four, 0.3), (four, 0.9), (batch, 0.8), (batch, 0.5), (batch, 1e-6), (batch, 0.95)]


def _top_p(logits: Tensor, p: float, faults: Collection[str] = ()) -> Tensor:
    nothing = 0.0 if "zero" in faults else float("-inf")

    def cut(probs: Tensor) -> Tensor:
        """What goes, of probabilities in the order in which they are summed."""
        total = probs.cumsum(dim=-1)
        gone = (total if {"crossing", "crossing, best kept"} & {*faults} else total - probs) >= p
        gone[..., 0] &= "crossing, best kept" not in faults
        return gone

    out, (ordered, order) = logits, logits.sort(dim=-1, descending="worst first" not in faults)
    probs = logits.softmax(dim=-1)
    if "own" in faults:
        gone = probs < p
    elif "min-p" in faults:
        gone = probs < p * probs.amax(dim=-1, keepdim=True)
    elif "unsorted" in faults:
        gone = cut(probs)
    elif "left sorted" in faults:
        out, gone = ordered, cut(ordered.softmax(dim=-1))
    elif "sorted again" in faults:
        out, gone = (x.gather(-1, order) for x in (ordered, cut(ordered.softmax(dim=-1))))
    else:
        gone = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, cut(ordered.softmax(dim=-1)))
    kept = out.masked_fill(gone[:1] if "first row" in faults else gone, nothing)
    return kept.softmax(dim=-1) if "probabilities" in faults else kept


# the best three, one, and two tokens of a row pass 0.55
TOKENS = torch.tensor([[0.30, 0.05, 0.24, 0.02, 0.18, 0.21], [0.10, 0.03, 0.65, 0.09, 0.07, 0.06],
                       [0.40, 0.30, 0.03, 0.15, 0.05, 0.07]]).log()  # fmt: skip
TOP_P = fault_exercise(
    _top_p,
    {
        "crossing": "You dropped the token that crosses p (for a tiny p that is the best one, and nothing is left): a "
                    "token goes only if what is better than it, without the token itself, has reached p already",
        "crossing, best kept": "You dropped the token that crosses p: the fewest best that reach p together include "
                               "it. Compare the sum without the token itself",
        "left sorted": "You left the logits sorted: each must go back to its token's place, or the ids mean other "
                       "words",
        "sorted again": "You applied the sorting a second time instead of undoing it: scatter puts each back to its "
                        "place",
        "worst first": "You sorted with the worst first, so the worst tokens fill p: the best come first "
                       "(descending=True)",
        "unsorted": "You summed in the order of the ids: sort by probability first, best tokens in front",
        "own": "You compared each token's own probability with p: it is their sum, from the best down, that counts",
        "min-p": "This is min-p, which compares with the best token: top-p adds up probabilities from the best down",
        "first row": "You cut every row where the first row is cut: each row of the batch has its own cut",
        "probabilities": "You gave probabilities: give logits, minus infinity for what is cut, so that another rule "
                         "can follow",
        "zero": "You set what is cut to 0: a logit of 0 is an ordinary score. Minus infinity gives probability 0",
    },
    {
        "the token that crosses p": (_given((TOKENS, 0.55)), ("crossing", "crossing, best kept")),
        "the best first": (_given((TOKENS, 0.55)), ("worst first", "unsorted", "own", "min-p")),
        "each in its place": (_given((TOKENS, 0.55)), ("left sorted", "sorted again")),
        "each row for itself": (_given((TOKENS, 0.55)), ("first row",)),
        "logits, minus infinity": (_given((TOKENS, 0.55)), ("probabilities", "zero")),
    },
    _top_p_cases,
    id="08.2", name="top_p", minutes=15, level="core", reference=keep_top_p,
)  # fmt: skip

# ---- 08.3 ----


def _until_stop(
    pieces: Iterable[str],
    stop: Sequence[str],
    *,
    hold: Callable[[str, Sequence[str]], int] = _possible_stop,
    which: Callable = min,
    show_stop: bool = False,
    show_before: bool = True,
    show_rest: bool = True,
) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(s), s) for s in stop if s in held]
        if found:
            at, s = which(found)
            end = at + len(s) if show_stop else at
            if end and show_before:
                yield held[:end]
            return
        ready = len(held) - hold(held, stop)
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    if held and show_rest:
        yield held


def _texts(*cases: tuple) -> Callable[[torch.Generator], list[tuple]]:
    return lambda _: list(cases)


def _whole(answer: Callable, case: tuple) -> str:
    """All that is given out, wherever it is cut."""
    pieces, stop = case
    return "".join(answer(iter(pieces), stop))


def _before_stop(answer: Callable, case: tuple) -> str:
    """The same, without a stop string at its end."""
    text = _whole(answer, case)
    return next((text.removesuffix(s) for s in case[1] if text.endswith(s)), text)


def _as_they_come(answer: Callable, case: tuple) -> list[int]:
    """How many letters are out when each next piece is asked for, of those that could be."""
    return [min(pair) for pair in zip(_progress(answer, case), _progress(_until_stop, case), strict=False)]


def _progress(answer: Callable, case: tuple) -> list[int]:
    pieces, stop = case
    out: list[str] = []
    log: list[int] = []

    def asked() -> Iterator[str]:
        for piece in pieces:
            log.append(sum(map(len, out)))
            yield piece

    given = answer(asked(), stop)
    if isinstance(given, list | tuple):  # all at once: its pieces show what a generator would have given
        sure = _progress(_until_stop, case)
        ends = [0, *accumulate(map(len, given))]
        return [max(end for end in ends if end <= most) for most in sure]
    for text in given:
        out.append(text)
    return [*log, sum(map(len, out))]


def _read(answer: Callable, case: tuple) -> int:
    """How many pieces the answer asks for."""
    pieces, stop = case
    asked: list[str] = []
    list(answer((asked.append(piece) or piece for piece in pieces), stop))
    return len(asked)


def _whole_text(pieces, stop):
    text = "".join(_until_stop(pieces, stop))
    if text:
        yield text


def _one_late(pieces, stop):
    last = None
    for text in _until_stop(pieces, stop):
        if last is not None:
            yield last
        last = text
    if last is not None:
        yield last


def _reads_on(pieces, stop):
    return _until_stop(list(pieces), stop)


def _reads_one_more(pieces, stop):
    pieces = iter(pieces)
    held = [next(pieces, ""), next(pieces, "")]
    while not any(s in "".join(held[:-1]) for s in stop) and (piece := next(pieces, "")):
        held.append(piece)
    return _until_stop(held, stop)


def _nothing_held(pieces, stop):
    shown = ""
    for piece in pieces:
        text = shown + piece
        found = [at for at in map(text.find, stop) if at >= 0]
        if found:
            if min(found) > len(shown):
                yield text[len(shown) : min(found)]
            return
        yield piece
        shown = text


def _shortest_end(text: str, stop: Sequence[str]) -> int:
    return next((n for n in range(1, len(text) + 1) if any(s.startswith(text[-n:]) for s in stop)), 0)


STREAM = Exercise(
    id="08.3",
    name="until_stop",
    minutes=25,
    level="hard",
    reference=_until_stop,
    properties=(
        Property(
            "a stop string inside a piece",
            _texts((["a END b"], ["END"]), (["one\nQ: two", " three"], ["\nQ:"]),
                   (["a END b ### c"], ["###", "END"]), (["a", " b", " c #"], ["#"])),
            (
                Mistake(partial(_until_stop, show_stop=True), "you gave out the stop string itself: end before it"),
                Mistake(
                    partial(_until_stop, show_before=False),
                    "you lost the text in front of the stop string: give out what stands before it, then end",
                ),
                Mistake(
                    partial(_until_stop, which=lambda found: found[0]),
                    "with two stop strings in the text, the one that comes first in the text counts, not in the "
                    "list",
                ),
            ),
            run=_whole,
        ),
        Property(
            "a stop string over several pieces",
            _texts((["Rome", "EN", "D", "x"], ["END"]), ([" Rome", ".", "\n", "Q", ":", " What"], ["\nQ:"]),
                   (["Paris", "\n", "Quick", " fox", "\nQ", ":"], ["\nQ:"]), (["x", "# y"], ["#"]),
                   (["x", "aa", "baa", "c", "y"], ["aabaac"])),
            (
                Mistake(
                    partial(_until_stop, hold=lambda *_: 0),
                    "you looked for the stop string in each piece alone: it may be spread over several pieces",
                ),
                Mistake(
                    _nothing_held,
                    "you end at the right place, but had shown the beginning of the stop string: hold back an end "
                    "that may become one",
                ),
                Mistake(
                    partial(_until_stop, hold=_shortest_end),
                    "you hold back the shortest end that begins a stop string, and a longer one may begin it too: "
                    "try the longest first",
                ),
            ),
            run=_before_stop,
        ),
        Property(
            "a text without a stop string",
            _texts((["Yes", "\n"], ["\nQ:"]), ([], ["\nQ:"]), (["no", " E", "N"], ["END", "###"])),
            (
                Mistake(
                    partial(_until_stop, show_rest=False),
                    "what you still held when the pieces ended is lost: it became no stop string, so give it out "
                    "then",
                ),
            ),
            run=_whole,
        ),
        Property(
            "what is sure comes at once",
            _texts((["no", " stop", " at", " all"], ["\nQ:"]), (["Paris", "\n", "Quick", " fox"], ["\nQ:"])),
            (
                Mistake(
                    _whole_text,
                    "the text is right, but it came in one piece at the end: give out what is safe at once",
                ),
                Mistake(
                    partial(_until_stop, hold=lambda _, stop: max(map(len, stop)) - 1),
                    "the text is right but late: you always hold back as much as a stop string may need. Hold back "
                    "only an end that is the beginning of one",
                ),
                Mistake(
                    _one_late,
                    "the text is right but late: each piece waits for the next one. Give out what is safe before "
                    "you ask for more",
                ),
            ),
            run=_as_they_come, strict=False,  # what waits depends on what is held
        ),
        Property(
            "nothing is read after a stop string",
            _texts((["a END", " b", " c"], ["END"]), (["a", " b END", " c", " d", " e"], ["###", "END"]),
                   (["aab", "aabaac", "a", "b"], ["aabaac"])),
            (
                Mistake(
                    _reads_on,
                    "the text is right, but you go on reading after the stop string, and the model goes on "
                    "working: return as soon as it is found",
                ),
                Mistake(
                    _reads_one_more,
                    "you ask for one more piece before you stop, and the model makes it for nothing: look for the "
                    "stop string as soon as a piece is there",
                ),
            ),
            run=_read,
        ),
    ),
)


# ---- 08.4 ----


def _min_p_trap() -> Tensor:
    logits = torch.zeros(1000)
    logits[0] = torch.tensor(111.0).log()  # probability 111 / (111 + 999) = 0.1
    return logits


def _logits_of(result: Any) -> Tensor | None:
    """The answer as logits, None where it is none."""
    fits = isinstance(result, Tensor) and result.shape == (1000,) and result.is_floating_point()
    return result.detach().float() if fits and bool(result.isfinite().all()) else None


def _are_logits(result: Any, _case: tuple) -> str | None:
    if not isinstance(result, Tensor) or result.shape != (1000,):
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        return f"the result should be a tensor of logits of shape (1000,), got {got}"
    if _logits_of(result) is None:
        return "the logits should be finite floating-point numbers: no rule may have cut anything yet"
    return None


def _keeps_one(result: Any, _case: tuple) -> str | None:
    logits = _logits_of(result)
    if logits is None or (kept := int(keep_min_p(logits, 0.05).isfinite().sum())) == 1:
        return None
    if (logits >= 0).all() and abs(float(logits.sum()) - 1) < 1e-3 and float(logits.max()) < 1:
        return (
            "these look like probabilities: as logits, numbers between 0 and 1 are nearly equal after softmax. Give "
            "the logarithms of your probabilities"
        )
    best = float(logits.softmax(-1).max())
    return (
        f"min-p keeps {kept} tokens: each other token must be less than 0.05 times as probable as the best, which has "
        f"{best:.3g} here. Make the best stand out more"
    )


def _is_unsure(result: Any, _case: tuple) -> str | None:
    logits = _logits_of(result)
    if logits is None or (best := float(logits.softmax(-1).max())) <= 0.15:
        return None
    return (
        f"the best has probability {best:.3g}, so the model is fairly sure of it: at most 0.15 is allowed. Give more "
        f"to the tail"
    )


def _keeps_many(result: Any, _case: tuple) -> str | None:
    logits = _logits_of(result)
    if logits is None or (kept := int(keep_top_p(logits, 0.9).isfinite().sum())) >= 500:
        return None
    return f"top-p keeps {kept} tokens and should keep at least 500: spread the tail more evenly"


TRAP = Exercise(
    id="08.4", name="min_p_trap", minutes=10, level="break it", reference=_min_p_trap,
    properties=tuple(
        Property(name, _given(()), run=lambda answer, case: answer(*case), accept=accept)
        for name, accept in (("1000 logits", _are_logits), ("min-p keeps one token", _keeps_one),
                             ("the model is unsure", _is_unsure), ("top-p keeps many", _keeps_many))
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (HEATED, TOP_P, STREAM, TRAP)
