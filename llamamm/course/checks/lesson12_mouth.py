"""Checks of lesson 12's second half: attention with a source of its own, Whisper's decoder block, greedy search."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Property
from llamamm.course.checks.faults import Cases, fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.senses.config import EncoderConfig
from llamamm.senses.whisper_decoder import Attention, DecoderBlock

CFG = EncoderConfig(hidden_size=24, intermediate_size=32, n_layers=1, n_heads=3, norm_eps=1e-5, key_bias=False)


@cache
def _block() -> DecoderBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        block = DecoderBlock(CFG).eval().requires_grad_(False)
        for parameter in block.parameters():  # norms and biases too, so that each shows
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.4)
    return block


def _run(answer: Callable[..., Any], case: tuple) -> Any:
    with torch.no_grad():
        return answer(*case)


# ---- 12.3: attend ----


def _attend(
    x: Tensor, source: Tensor, att: Attention, mask: Tensor | None = None, faults: Collection[str] = ()
) -> Tensor:
    asks, source = x, x if "asks itself" in faults else source
    if "source asks" in faults:
        asks, source = source, x
    H, C = att.n_heads, x.shape[-1]

    def heads(t: Tensor) -> Tensor:
        B, N, _ = t.shape
        return t.reshape(B, H, N, C // H) if "cut wrong" in faults else t.view(B, N, H, C // H).transpose(1, 2)

    q, k, v = heads(att.q_proj(asks)), heads(att.k_proj(source)), heads(att.v_proj(source))
    k = v if "values as keys" in faults else k
    width = 1 if "not scaled" in faults else C if "by the width" in faults else C // H
    scores = q @ k.transpose(2, 3) / (C // H if "by D" in faults else math.sqrt(width))
    if mask is not None and "no mask" not in faults:
        hidden = mask if "inverted" in faults else ~mask
        scores = scores.masked_fill(hidden, 0 if "zeros" in faults else -math.inf)
    out = scores.softmax(dim=-2 if "over tokens" in faults else -1).nan_to_num() @ v  # (B, H, T, D)
    out = out.reshape(len(x), -1, C) if "joined wrong" in faults else out.transpose(1, 2).flatten(2)
    return out if "no output" in faults else att.out_proj(out)


def _asked(*sizes: tuple[int, int, int], mask: bool = False) -> Cases:
    """Cases of B, T, S."""

    def cases(g: torch.Generator) -> list[tuple]:
        seen = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1]]).bool()
        return [(torch.randn(B, T, 24, generator=g), torch.randn(B, S, 24, generator=g), _block().encoder_attn,
                 seen if mask else None) for B, T, S in sizes]  # fmt: skip

    return cases


def _sizes_of(case: tuple) -> str:
    x, source, *_, mask = case
    return (f"x {tuple(x.shape)}, source {tuple(source.shape)}, "
            f"{'no mask' if mask is None else f'a mask {tuple(mask.shape)}'}")  # fmt: skip


ATTEND = fault_exercise(
    _attend,
    {
        "asks itself": "Your keys and values come from x, so the tokens look at each other: both come from `source`",
        "source asks": "Your queries come from the source: x asks, so `q_proj` gets x",
        "values as keys": "Your keys are the values: `k_proj` makes the keys",
        "not scaled": "The scores are not scaled: divide by the square root of a head's width, D",
        "by the width": "You divided by the square root of the whole width C: a head has D = C / n_heads numbers",
        "by D": "You divided by D: it is the square root of D",
        "over tokens": "Your softmax runs over the tokens: a token's weights over the source sum to 1, dim=-1",
        "no mask": "You left the mask out: where it is given, False means a weight of 0",
        "inverted": "Your mask is inverted: True means that a token may look there",
        "zeros": "Your forbidden scores are 0, and e to the power of 0 is 1: only −∞ gives a weight of 0",
        "cut wrong": "Your heads are cut wrong: `view` to (B, N, H, D) first, then exchange N and H",
        "joined wrong": "Your heads are joined wrong: exchange H and T back before the two last are made one",
        "no output": "The last projection is missing: `out_proj` mixes the heads",
    },
    {
        "who asks whom": (_asked((1, 4, 4)), ("asks itself", "source asks", "values as keys")),
        "the scores": (_asked((1, 4, 4)), ("not scaled", "by the width", "by D", "over tokens")),
        "the mask": (_asked((1, 4, 4), mask=True), ("no mask", "inverted", "zeros")),
        "the heads": (_asked((1, 4, 4)), ("cut wrong", "joined wrong", "no output")),
    },
    _asked((1, 1, 5), (2, 3, 7), (3, 4, 4)),
    run=_run, show=_sizes_of, extra=(inputs_stay(("x", "source", "att", "mask"), _asked((1, 4, 4), mask=True)),),
    id="12.3", name="attend", minutes=8, level="core", importance=3,
    forbids=("scaled_dot_product_attention", "multi_head_attention_forward"),
)  # fmt: skip


# ---- 12.4: decoder_block ----


def _decoder_block(
    x: Tensor, sound: Tensor, block: DecoderBlock, attend: Callable[..., Tensor], faults: Collection[str] = ()
) -> Tensor:
    T = x.shape[1]
    mask = torch.ones(T, T).tril().bool()
    mask = None if "no mask" in faults else mask.T if "future" in faults else mask
    names = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    if "norms exchanged" in faults:
        names[:2] = names[1::-1]
    norms = [nn.Identity() if "no norms" in faults else getattr(block, name) for name in names]
    hear = block.self_attn if "one attention" in faults else block.encoder_attn

    def words(x: Tensor) -> Tensor:
        n = norms[0](x)
        return attend(n, x if "raw words" in faults else n, block.self_attn, mask)

    def ears(x: Tensor) -> Tensor:
        return attend(norms[1](x), norms[1](sound) if "sound normed" in faults else sound, hear)

    first, second = (ears, words) if "sound first" in faults else (words, ears)
    keep = [0 if f"no residual {n}" in faults else 1 for n in range(3)]
    after = keep[0] * x + first(x)
    after = keep[1] * after + second(x if "side by side" in faults else after)
    return after if "no mlp" in faults else keep[2] * after + block.mlp(norms[2](after))


def _spoken(*sizes: tuple[int, int, int]) -> Cases:
    return lambda g: [(torch.randn(B, T, 24, generator=g), torch.randn(B, S, 24, generator=g), _block(), _attend)
                      for B, T, S in sizes]  # fmt: skip


def _sizes_alone(case: tuple) -> str:
    return f"x {tuple(case[0].shape)}, sound {tuple(case[1].shape)}"


BLOCK = fault_exercise(
    _decoder_block,
    {
        "no mask": "Your tokens see later tokens: the first attention needs a causal mask, lesson 03's",
        "future": "Your mask lets a token see itself and what comes later: turn it round",
        "sound first": "You listen before you read: first the tokens look at each other, then at the sound",
        "side by side": "Both attentions read the old x: the second reads what the first has added to",
        "one attention": "`self_attn` is used twice: the sound has its own, `encoder_attn`",
        "raw words": "In the first attention only the queries are normalised: keys and values come from the same "
                     "normalised x",
        "sound normed": "You normalised the sound: the encoder has done that already",
        "norms exchanged": "The first two norms are exchanged: each is named after the attention that follows it",
        "no norms": "The norms are missing: each branch reads a normalised copy",
        "no residual 0": "After the first attention x is lost: add its result to x",
        "no residual 1": "After the second attention x is lost: add its result to x",
        "no residual 2": "After the MLP x is lost: add its result to x",
        "no mlp": "The MLP is missing: it comes last, on `final_layer_norm`'s copy",
    },
    {
        "what reads what": (_spoken((1, 3, 5)), ("no mask", "future", "sound first", "side by side", "one attention")),
        "the norms": (_spoken((1, 3, 5)), ("raw words", "sound normed", "norms exchanged", "no norms")),
        "what is added": (_spoken((1, 3, 5)), ("no residual 0", "no residual 1", "no residual 2", "no mlp")),
    },
    _spoken((1, 1, 5), (2, 4, 3)),
    run=_run, show=_sizes_alone, extra=(inputs_stay(("x", "sound", "block", "attend"), _spoken((1, 3, 5))),),
    id="12.4", name="decoder_block", minutes=12, level="hard", importance=3,
)  # fmt: skip


# ---- 12.5: write_down ----

V, END = 24, 5
NEVER, NEVER_FIRST = [1, 2, 3], [4, END]


class _Scores:
    """`next_scores` of a decoder that wants to say something of `NEVER` or of `NEVER_FIRST` at each step.

    It reads every id. From `until` ids on it wants to end, and nothing more than that. All scores are negative.
    """

    def __init__(self, seed: int, until: int) -> None:
        self.table = torch.randn(193, V, generator=torch.Generator().manual_seed(seed)) - 40
        self.until = until

    def __call__(self, ids: list[int]) -> Tensor:
        if not isinstance(ids, list | tuple):  # as in the notebook
            raise TypeError(f"next_scores reads a list of ids, got {describe(ids)}")
        key = 7
        for i in ids:
            key = (31 * key + int(i) + 1) % 193
        scores = self.table[key].clone()
        scores[NEVER] += 12 * (len(ids) % 2 == 0)
        scores[4] += 7 * (len(ids) % 2 == 1 or len(ids) == 2)
        scores[END] += 20 if len(ids) >= self.until else -9
        return scores


def _write_down(
    next_scores: Callable[[list[int]], Tensor], prompt: list[int], end: int, never: Collection[int],
    never_first: Collection[int], limit: int, faults: Collection[str] = (),
) -> list[int]:  # fmt: skip
    said: list[int] = []
    while len(said) < limit + ("one more" in faults):
        read = said if said and "prompt forgotten" in faults else [*prompt, *said]
        scores = next_scores(read[-1:] if said and "last alone" in faults else read)
        banned = [] if "never" in faults or ("never once" in faults and said) else [*never]
        if "first" not in faults and (not said or "first always" in faults):
            banned += never_first
        scores[banned] = -math.inf
        best = int(scores.argmax())
        if best == end:
            said += [end] * ("end too" in faults)
            break
        said.append(best)
    return [*prompt, *said] if "prompt too" in faults else said


def _written(*seeds: tuple[int, int, int]) -> Cases:
    """Cases of a seed, of how many ids are read when it wants to end, of a limit."""
    return lambda _: [(_Scores(seed, until), [7, 8], END, [*NEVER], [*NEVER_FIRST], limit)
                      for seed, until, limit in seeds]  # fmt: skip


def _in_order(case: tuple) -> str:
    _, prompt, end, never, first, limit = case
    return f"prompt {prompt}, end {end}, never {never}, never_first {first}, limit {limit}"


def _lists_differ(expected: list[int], got: list[int]) -> str | None:
    return None if expected == got else f"the ids should be {expected}, got {got}"


def _no_list(expected: Any, got: Any) -> str | None:
    whole = isinstance(got, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in got)
    return None if whole else difference(expected, got, math.inf)


def _lists_afterwards(answer: Callable[..., Any], case: tuple) -> dict[str, list[int]]:
    answer(*case)
    return _lists(case)


def _lists(case: tuple) -> dict[str, list[int]]:
    return {"prompt": case[1], "never": case[3], "never_first": case[4]}


def _same_lists(lists: dict[str, list[int]], case: tuple) -> str | None:
    changed = [name for name, ids in lists.items() if ids != _lists(case)[name]]
    return f"you changed the caller's list `{changed[0]}`: begin with a copy, [*{changed[0]}]" if changed else None


ENDS, FULL = _written((0, 7, 9)), _written((1, 99, 4))
WRITE = fault_exercise(
    _write_down,
    {
        "never": "You say ids that are in `never`: give them a score of −∞ before you take the best",
        "never once": "You ban `never` at the first step alone: it holds at every step",
        "first": "Your first id may be one of `never_first`: at the first step they are banned, too",
        "first always": "You ban `never_first` at every step: later they are allowed, or it could never end",
        "prompt forgotten": "You give the decoder what was said without the prompt: it reads both, each time",
        "last alone": "You give the decoder the last id alone: `next_scores` remembers nothing, give it all ids",
        "one more": "You say one id more than `limit`",
        "end too": "You return the end's id, too: it says that the text is over, and is no part of it",
        "prompt too": "You return the prompt, too: wanted are the new ids",
    },
    {
        "what may be said": (ENDS, ("never", "never once", "first", "first always")),
        "what is read": (ENDS, ("prompt forgotten", "last alone")),
        "where it ends": (FULL, ("one more",)),
        "what is returned": (ENDS, ("end too", "prompt too")),
    },
    _written((2, 5, 9), (3, 99, 1), (4, 6, 3), (5, 9, 20), (6, 2, 5)),  # the last wants to end at once
    show=_in_order, differs=_lists_differ, misshapen=_no_list,
    extra=(Property("the lists stay as they are", ENDS, run=_lists_afterwards, accept=_same_lists),),
    id="12.5", name="write_down", minutes=10, level="core", importance=3,
)  # fmt: skip

MOUTH = ATTEND, BLOCK, WRITE
