"""What must hold of a mask, one property for each way in which masks go wrong. For the exercises of lesson 03.

Each property looks at some entries alone, so that two mistakes in one mask are both seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import describe
from llamamm.course.checks.core import Diagnosis, Mistake, Property
from llamamm.course.checks.inputs import inputs_stay
from llamamm.text.masks import causal_mask

INF = float("inf")


def _form(got: Any, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a mask's type, shape or dtype; what it says is judged elsewhere."""
    if not isinstance(got, Tensor):
        return f"the mask should be a tensor, got {describe(got)}"
    if tuple(got.shape) != shape:
        return f"the shape should be {shape}, got {tuple(got.shape)}"
    if _adds(got):
        return "this is a mask to add to the scores (0 and -inf): here it should be bool, True where a query may look"
    return None if got.dtype == torch.bool else f"the dtype should be bool, got {got.dtype}: add .bool()"


def _seen(got: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The mask as bool, where its shape is right, whatever its dtype."""
    if not isinstance(got, Tensor) or tuple(got.shape) != shape:
        return None
    return got == 0 if _adds(got) else got.bool()


def _adds(mask: Tensor) -> bool:
    """Whether a mask is one to add to scores, 0 where a query may look and -inf or a large negative number elsewhere; a
    small one may hold zeros alone."""
    return mask.is_floating_point() and bool((mask <= 0).all())


def _first(table: Tensor) -> list[int] | None:
    """The place of the first True, or None."""
    places = table.nonzero()
    return places[0].tolist() if len(places) else None


def _said(what: str, why: str) -> str:
    """What is seen, and what explains it where no mistake explains more."""
    return Diagnosis.of(what, why) if why else what


def _keys(row: Tensor) -> str:
    seen = row.nonzero().flatten().tolist()
    return f"key{'s' * (len(seen) > 1)} {', '.join(map(str, seen))} alone" if seen else "none"


# ---- 03.2: (n_queries, start) -> (T, S) ----


def _of_causal(judge: Callable[[Tensor, int], str | None]) -> Callable[[Any, tuple], str | None]:
    def accept(got: Any, case: tuple) -> str | None:
        n, start = case
        mask = _seen(got, (n, start + n))
        return None if mask is None else judge(mask, start)

    return accept


STRICT = "A token may look at itself (<=, not <)"
OFFSET = "you forgot the offset: query i stands at position start + i"


def _itself(mask: Tensor, start: int) -> str | None:
    if start and torch.equal(mask, torch.ones_like(mask).tril()):
        return None  # the offset is missing, which the earlier keys tell
    blind = _first(~mask.diagonal(start))
    strict = any(torch.equal(mask, torch.ones_like(mask).tril(n)) for n in (start - 1, -1))
    return blind and _said(f"row {blind[0]} is the token at position {blind[0] + start} and does not see key "
                           f"{blind[0] + start}, itself", STRICT * strict)  # fmt: skip


def _past(mask: Tensor, start: int) -> str | None:
    due = torch.ones_like(mask).tril(start - 1)
    wrong = _first(due & ~mask)
    if wrong is None:
        return None
    row = wrong[0]
    past = mask & due
    text = f"row {row} is the token at position {row + start}; of the earlier keys it sees {_keys(past[row])}"
    if start and not mask[:, :start].any() and mask.diagonal(start).all():
        return _said(text, f"the {start} cached keys come before all new tokens, so every query sees them")
    triangles = [torch.ones_like(mask).tril(n) & due for n in (1, 0, -1)]
    if start and any(torch.equal(past, triangle) for triangle in triangles):
        return _said(text, OFFSET)
    return _said(text, "It should see them all")


def _future(mask: Tensor, start: int) -> str | None:
    wrong = _first(mask.triu(start + 1))
    return wrong and (f"row {wrong[0]} is the token at position {wrong[0] + start} and sees key {wrong[1]}, "
                      f"which comes later")  # fmt: skip


def _mask_form(got: Any, case: tuple) -> str | None:
    n, start = case
    problem = _form(got, (n, start + n))
    if problem and isinstance(got, Tensor) and start:
        if tuple(got.shape) == (n, n):
            problem += ": the cached keys come first, S = start + n_queries"
        elif tuple(got.shape) == (start + n, start + n):
            problem += ": only the new tokens ask, and get a row each; cached ones are keys alone"
        elif tuple(got.shape) == (start + n, n):
            problem += ": rows and columns are exchanged; a row is a query, a column a key"
    return problem


def _causal_cases(_: torch.Generator) -> list[tuple]:
    return [(1, 0), (2, 0), (1, 2), (2, 3), (4, 1), (3, 3)]


def _two_first(g: torch.Generator) -> list[tuple]:
    """First a case in which a mask to add and one that is too strict differ from one that is all zeros."""
    return [(2, 0), *(case for case in _causal_cases(g) if case != (2, 0))]


def _positions_hint(error: BaseException, case: tuple) -> str | None:
    n, start = case
    if not isinstance(error, RuntimeError):
        return None
    return (f"the new queries stand at positions {start} to {start + n - 1} here, arange(start, start + n_queries), "
            f"and there are {start + n} keys, arange(start + n_queries)")  # fmt: skip


_ROUND = "True and False are swapped: True means that a query may look"
_UPPER = "you show the future and hide the past: turn the comparison round"
_KEYS = ("the offset is on the wrong side: it is the queries that begin at position start, the keys begin at 0 (with "
         "tril, diagonal=start, not -start)")  # fmt: skip


def _triangle(kind: str, at: Callable[[int], int]) -> Callable[[int, int], Tensor]:
    """(n_queries, start) -> a table with True above ("triu") or below ("tril") the diagonal `at(start)`."""
    return lambda n, start: getattr(torch.ones(n, start + n), kind)(at(start)).bool()


_TURNED = (
    Mistake(lambda n, start: ~causal_mask(n, start=start), _ROUND),
    Mistake(_triangle("triu", lambda _: 1), f"{_ROUND}. And {OFFSET}"),
    Mistake(_triangle("triu", lambda start: start), _UPPER), Mistake(_triangle("triu", lambda _: 0), _UPPER),
    Mistake(_triangle("tril", lambda start: -start), _KEYS),
)  # fmt: skip
MASK_PROPERTIES = (
    Property("its form", _two_first, accept=_mask_form, hint=_positions_hint),
    Property("a token sees itself", _two_first, accept=_of_causal(_itself), mistakes=_TURNED),
    Property("a token sees the past", _causal_cases, accept=_of_causal(_past), mistakes=_TURNED),
    Property("nobody sees the future", _causal_cases, accept=_of_causal(_future), mistakes=_TURNED),
)  # fmt: skip


# ---- 03.4: padding (B, S), start -> (B, 1, T, S), padding on the left ----


def _of_padded(judge: Callable[[Tensor, Tensor, int], str | None]) -> Callable[[Any, tuple], str | None]:
    """judge gets the mask (B, T, S), padding and start; a mask without the axis for the heads is judged as well."""
    def accept(got: Any, case: tuple) -> str | None:
        padding, start = case
        B, S = padding.shape
        if isinstance(got, Tensor) and got.dim() == 3:
            got = got[:, None]
        mask = _seen(got, (B, 1, S - start, S))
        return None if mask is None else judge(mask[:, 0], padding, start)

    return accept


def _padded_form(got: Any, case: tuple) -> str | None:
    padding, start = case
    B, S = padding.shape
    problem = _form(got, (B, 1, S - start, S))
    why = {
        (B, S - start, S): "the axis for the heads is missing, a 1 in second place",
        (1, B, S - start, S): "the axis for the heads comes second, after that of the texts: [:, None]",
        (B, 1, S, S): "only the new tokens ask, and get a row each; cached ones are keys alone",
        (B, 1, S - start, S - start): "cached tokens are keys, too: a column for each of the S",
    }  # fmt: skip
    if problem and isinstance(got, Tensor) and tuple(got.shape) in why and problem.startswith("the shape"):
        problem += f": {why[tuple(got.shape)]}"
    return problem


def _tables_hint(error: BaseException, case: tuple) -> str | None:
    padding, start = case
    B, S = padding.shape
    if not isinstance(error, RuntimeError | IndexError):
        return None
    return (f"here B = {B}, T = {S - start} and S = {S}: padding[:, None, :] is {(B, 1, S)}, and a table of queries "
            f"and keys is (T, S) = {(S - start, S)}")  # fmt: skip


def _parts(mask: Tensor, padding: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries have a real token as query (B, T, 1) and as key (B, 1, S); and keys minus query, (T, S)."""
    keys = torch.arange(padding.shape[1])
    return padding[:, start:, None], padding[:, None, :], (keys - keys[start:, None]).expand_as(mask)


def _where(place: list[int], start: int) -> str:
    return f"in text {place[0]} the token at position {place[1] + start}"


def _no_future(mask: Tensor, padding: Tensor, start: int) -> str | None:
    query, key, ahead = _parts(mask, padding, start)
    wrong = _first(mask & query & key & (ahead > 0))
    if wrong is None:
        return None
    missing = not start and bool((mask | ~query | ~key | (ahead <= 0)).all())
    text = f"{_where(wrong, start)} sees key {wrong[2]}, which comes later"
    return _said(text, "the causal part is missing" * missing)


def _real_past(mask: Tensor, padding: Tensor, start: int) -> str | None:
    query, key, ahead = _parts(mask, padding, start)
    due = query & key & (ahead <= 0)
    wrong = _first(due & ~mask)
    if wrong is None:
        return None
    itself = wrong[1] + start == wrong[2]
    what = "itself" if itself else f"key {wrong[2]}, a real token that is not after it"
    text = f"{_where(wrong, start)} does not see {what}"
    no_offset = torch.ones_like(mask[0]).tril()
    if start and any(torch.equal(mask & due & (ahead < 0), no_offset.tril(n) & due & (ahead < 0)) for n in (0, -1)):
        return _said(text, "you forgot the offset: new token i stands at position start + i")
    return text


def _diagonal_without_start(mask: Tensor, start: int) -> bool:
    """Whether row i sees key i for certain, as if that were its own."""
    return bool(start) and bool(mask.diagonal(dim1=-2, dim2=-1).all())


DIAGONAL = "row i is the token at position start + i, so its own key is start + i, not i: you forgot the offset"


def _no_padding(mask: Tensor, padding: Tensor, start: int) -> str | None:
    query, key, ahead = _parts(mask, padding, start)
    wrong = _first(mask & query & ~key & (ahead < 0))
    if wrong is None:
        return None
    text = f"{_where(wrong, start)} sees key {wrong[2]}, a padding position"
    off_diagonal = ~torch.eye(*mask.shape[1:]).bool()
    if _diagonal_without_start(mask, start) and not bool((mask & query & ~key & off_diagonal & (ahead < 0)).any()):
        return _said(text, DIAGONAL)
    rows_hidden = not bool((mask & ~query).any())
    cure = "you hid the rows of padding; hide its columns" if rows_hidden else "hide the columns of padding"
    return _said(text, f"{cure} (padding[:, None, :])")


def _no_empty_row(mask: Tensor, padding: Tensor, start: int) -> str | None:
    query, _, ahead = _parts(mask, padding, start)
    wrong = _first((~mask.any(-1, keepdim=True) & ~query).expand_as(mask))
    if wrong:
        return _said(f"{_where(wrong, start)} is padding and sees nothing",
                     "PyTorch's softmax turns such a row into NaN, so let it see itself")  # fmt: skip
    wrong = _first(mask & ~query & (ahead != 0)) or _first(~mask & ~query & (ahead == 0))
    if wrong is None:
        return None
    which = f"sees key {wrong[2]}" if bool(mask[tuple(wrong)]) else "does not see itself"
    keys = torch.arange(mask.shape[2])
    diagonal = (keys == keys[: mask.shape[1], None]) | (ahead == 0)  # where the row's own key is, and where it seems
    if _diagonal_without_start(mask, start) and not bool((mask & ~query & ~diagonal).any()):
        return _said(f"{_where(wrong, start)} is padding and {which}", DIAGONAL)
    return _said(f"{_where(wrong, start)} is padding and {which}", "let it see itself and nothing else")


def _padding_cases(_: torch.Generator) -> list[tuple]:
    plain = torch.tensor([[False, True, True], [True, True, True]])
    three = torch.tensor([[False] * 3 + [True] * 2, [False, True, True, True, True], [True] * 5])
    return [(torch.tensor([[True]]), 0), (torch.tensor([[False, True]]), 0), (plain, 0), (plain, 1), (three, 0),
            (three, 2), (three, 4), (torch.ones(2, 4).bool(), 1)]  # fmt: skip


def _padded(padding: Tensor, start: int, faults: Collection[str] = ()) -> Tensor:
    """The mask of 03.4, with faults in it."""
    keys = torch.arange(padding.shape[1])
    queries, allowed = keys[start:, None], ~padding if "inverted" in faults else padding
    causal = keys <= (queries - start if "no offset" in faults else queries)
    if "turned" in faults:
        causal = keys >= queries
    if "no causal" in faults:
        causal = torch.ones_like(causal)
    hidden = allowed[:, start:, None] if "rows" in faults else allowed[:, None]
    visible = causal | hidden if "or" in faults else causal & hidden
    mask = visible if "no diagonal" in faults else visible | (keys == queries)
    mask = ~mask if "all inverted" in faults else mask
    return mask if "no heads" in faults else mask[:, None]


def _with(sentence: str, fault: str, *others: str) -> tuple[Mistake, ...]:
    """A fault, alone and together with any of the others."""
    groups = [group for n in range(len(others) + 1) for group in combinations(others, n)]
    return tuple(Mistake(lambda p, start, f=(fault, *group): _padded(p, start, f), sentence) for group in groups)


_REAL = _with("you took True to mean padding: in `padding`, True marks a real token, False marks padding", "inverted",
              "no diagonal", "no offset", "no causal", "rows", "no heads")  # fmt: skip
_ALL = _with(_ROUND, "all inverted", "no diagonal", "no heads")
_OR = _with("you joined the causal mask and the padding by `or`: a key must be allowed by both, which is `and` (&)",
            "or", "no diagonal", "no heads")  # fmt: skip
_FUTURE = _with(_UPPER, "turned", "no diagonal", "no heads")
_ANYWHERE = (*_REAL, *_ALL, *_OR, *_FUTURE)


def _part(name: str, judge: Callable[[Tensor, Tensor, int], str | None]) -> Property:
    return Property(name, _padding_cases, _ANYWHERE, accept=_of_padded(judge), hint=_tables_hint)


PADDING_PROPERTIES = (
    Property("its form", _padding_cases, accept=_padded_form, hint=_tables_hint),
    _part("nobody sees the future", _no_future),
    _part("a real token sees the real past", _real_past),
    _part("nobody sees padding", _no_padding),
    _part("padding sees itself alone", _no_empty_row),
    inputs_stay(("padding", "start"), lambda g: _padding_cases(g)[2:3]),
)  # fmt: skip
