"""course.swaps: one line for each exercise: "the same" with the package's own part, something else with a wrong one."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamamm.course import swaps_text
from llamamm.course.checks import exercises_of, find_exercise
from llamamm.course.checks.lesson00 import _greedy
from llamamm.course.checks.lesson01 import EXERCISES as LESSON_01
from llamamm.course.checks.lesson05 import _Growing, _reader
from llamamm.course.checks.lesson06 import _block_forward, _logits
from llamamm.course.checks.sheet import read_sheet
from llamamm.course.swap import real_model
from llamamm.course.swaps import SWAPS, in_real_model, verdict
from llamamm.course.swaps_speech import own_attend, own_block
from llamamm.course.swaps_verdict import of_answers
from llamamm.errors import InputError
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.lora.lora import LoraLinear
from llamamm.multimodal.bridge import stack_frames
from llamamm.multimodal.places import image_spans
from llamamm.senses.contrastive import similarities
from llamamm.senses.vision import resize_positions
from llamamm.text.attention import readable_attention
from llamamm.text.config import RopeScaling
from llamamm.text.layers import FeedForward, RMSNorm
from llamamm.text.masks import causal_mask, packed_mask
from llamamm.text.model import TransformerBlock
from llamamm.text.rope import rope_frequencies

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LESSONS = [f"{n:02}" for n in range(20)]


def reference(exercise_id):
    (found,) = [e for e in exercises_of(exercise_id[:2]) if e.id == exercise_id]
    return found.reference


def message_01(words):
    (found,) = [m.answer for m in LESSON_01[1].mistakes if words in m.message]
    return found


# ---- right answers, of which faults make wrong ones ----


def norm(x, weight, eps):
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def swiglu(x, gate, up, down):
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def stretched(head_dim, theta, factor, original, high=4.0):
    return rope_frequencies(head_dim, theta=theta, scaling=RopeScaling(factor, 1.0, high, original))


def canvas(height, width, side, max_tiles):
    grids = [(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)]
    scale = {grid: min(grid[0] * side / height, grid[1] * side / width) for grid in grids}
    best = min((s for s in scale.values() if s >= 1), default=max(scale.values()))
    return min((grid for grid in grids if scale[grid] == best), key=lambda grid: grid[0] * grid[1])


def cut(pixels, patch):
    return F.unfold(pixels, patch, stride=patch).transpose(1, 2)


def positions_for(table, rows, columns, mode="bicubic"):
    if mode == "first":
        return table[: 1 + rows * columns]
    return torch.cat([table[:1], resize_positions(table[1:], old=37, new=(rows, columns))])


def energies(frames, window=True):
    n = frames.shape[-1]
    hann = torch.hann_window(n) if window else torch.ones(n)
    return torch.fft.rfft(frames * hann).abs() ** 2


def symmetric(edges, hz):
    """Each triangle with its centre in the middle."""
    return torch.cat([triangles(torch.stack([low, (low + top) / 2, top]), hz) for low, _, top in edges.unfold(0, 3, 1)])


def triangles(edges, hz, area=True):
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    shape = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    return shape * 2 / (high - low) if area else shape


def learned(ids, learn, vocab_size, shift=1):
    targets = ids.where(learn & (ids < vocab_size), torch.tensor(-100))
    return ids[:-1], targets[1:] if shift else targets[:-1]


class Adapted(nn.Module):
    """A layer of lesson 09, with one of the arguments a wrong one."""

    def __init__(self, base, r, alpha, *, random_a=True, random_b=False, frozen=True):
        super().__init__()
        self.base, self.scale = base.requires_grad_(not frozen), alpha / r
        n, c = base.weight.shape
        self.a = nn.Parameter(torch.randn(r, c) / c**0.5 if random_a else torch.zeros(r, c))
        self.b = nn.Parameter(torch.randn(n, r) / r**0.5 if random_b else torch.zeros(n, r))

    def forward(self, x):
        return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)


def merged(weight, a, b, alpha, sign=1, rounded=False, in_place=False):
    update = sign * alpha / len(a) * (b @ a)
    result = (weight.float() + (update.to(weight.dtype) if rounded else update)).to(weight.dtype)
    return weight.copy_(result) if in_place else result


def targets_of(ids, learn, shift=-1):
    targets = ids.where(learn, torch.tensor(-100)).roll(shift)
    targets[-1] = -100
    return targets


def averaged_means(weight, pieces):
    loss = sum(F.cross_entropy(hidden @ weight.T, targets) for hidden, targets in pieces) / len(pieces)
    loss.backward()
    return float(loss.detach())


def tiled(x, table, gate, ids, opened=torch.tanh):
    return x + opened(gate) * table[ids].view(*x.shape[:2], 1, x.shape[-1])


def visible(ids, image_token, late=0):
    spans = image_spans(ids, image_token)
    return [[i for i, (begin, end) in enumerate(spans) if begin + late <= t < end] for t in range(len(ids))]


def splice(x, where, features):
    if int(where.sum()) != len(features):
        raise ValueError
    return x.masked_scatter(where[..., None], features)


def diagonal_without_start(padding, start):
    T, S = padding.shape[1] - start, padding.shape[1]
    visible = causal_mask(T, start=start) & padding[:, None]
    return (visible | torch.eye(T, S).bool())[:, None]


# What is wrong, and what the line says of it.
WRONG = {
    "00.3": [(lambda f, ids, _, n: _greedy(f, ids, (), n), "not the same"),
             (lambda f, ids, stop, n: _greedy(f, ids, stop, n + 1), "asked for 2 it gives 3")],
    "01.2": [(message_01("newline after <|im_end|>"), r"different prompt from id 9 on: yours goes on with '<\|im_st")],
    "02.1": [(lambda x, weight, eps: norm(x, 1, eps), "',,,,.*a different model; with the package's own it says 'The"),  # noqa: ARG005
             (lambda x, weight, eps: norm(x, weight, eps) * math.nan, "logits are NaN"),
             (lambda *_: None, "it returns nothing; is the `return` missing")],
    "02.3": [(lambda x, gate, up, down: swiglu(x, up, gate, down), "a different model")],
    "03.1": [(lambda scores: F.softmax(scores, dim=-2), "a different model"),
             (lambda scores: F.softmax(scores, dim=-1), "the same up to rounding, but a padding position")],
    "03.2": [(lambda n, start: torch.ones(n, start + n).tril().bool(), "a different model"),
             (lambda n, start: causal_mask(n), "RuntimeError: .*size of tensor")],  # noqa: ARG005
    "03.3": [(lambda q, k, v, mask: readable_attention(q, k.flip(1), v, mask), "a different model")],
    "03.4": [(lambda padding, start: causal_mask(padding.shape[1] - start, start=start)[None, None],
              "one at a time they give"),
             (lambda padding, start: (causal_mask(padding.shape[1] - start, start=start) & padding[:, None])[:, None],
              "logits are NaN; does a padding position see nothing"),
             (lambda padding, start: diagonal_without_start(padding, start), "different model as soon as tokens are")],
    "04.2": [(lambda head_dim, theta: rope_frequencies(head_dim), "a different model")],  # noqa: ARG005
    "04.3": [(lambda x, cos, sin: x, "a different model")],  # noqa: ARG005
    "04.5": [(lambda *given: stretched(*given, high=8.0), "a different model")],
    "05.2": [(type("Leaky", (_Growing,), {"advance": lambda *_: None}), "a different model")],
    "05.3": [(_Growing, "the same, but a ninth token in 8 places is not refused")],
    "05.4": [(_reader(("all again",)), "41 tokens instead of 41.*the same, but 11 tokens would have been enough"),
             (_reader(("no rewind",)), "different text")],
    "06.2": [(_block_forward(second="input_layernorm"), "a different model"), (_block_forward(first=""), "NaN")],
    "06.3": [(lambda weights, cfg, ids: _logits(weights, cfg, ids, ("repeat",)), "a different model")],
    "07.2": [(lambda raw: {name: -t for name, t in reference("07.2")(raw).items()}, "a different model"),
             (lambda raw: {name: t.flatten() for name, t in reference("07.2")(raw).items()}, r"has the shape \(110592"),
             (lambda raw: {}, "not the 91 names")],  # noqa: ARG005
    "08.2": [(lambda logits, p: logits, "at word .* a different draw")],  # noqa: ARG005
    "08.3": [(lambda pieces, stop: pieces, "not the same, the package stops after"),  # noqa: ARG005
             (lambda pieces, stop: ["".join(pieces).split(stop[0])[0]], "text is the same, but the model works on")],
    "09.3": [(lambda *given: Adapted(*given, random_b=True), "but fresh, before it has learned"),
             (lambda *given: Adapted(*given, random_a=False), "all its gradients are 0"),
             (lambda *given: Adapted(*given, frozen=False), "13,731,840 of its numbers get a gradient, 460,800 sh")],
    "09.4": [(lambda *given: merged(*given, sign=-1), "a different model"),
             (lambda *given: merged(*given, rounded=True), "numbers are rounded twice"),
             (lambda *given: merged(*given, in_place=True), "it changes the matrix")],
    "10.1": [(lambda ids, learn: targets_of(ids, learn, shift=0), "over 5: it would learn something different")],
    "10.3": [(averaged_means, "a different step"),
             (lambda *case: 2 * reference("10.3")(*case), "same step, but .* not the mean"),
             (lambda weight, pieces: 0.0, "has no gradient")],  # noqa: ARG005
    "10.2": [(lambda segments: packed_mask(torch.ones_like(segments))[:, 0], "a different model")],
    "11.1": [(lambda pixels, patch: cut(pixels.transpose(2, 3), patch), "different features, such as")],
    "11.3": [(lambda *given: positions_for(*given, mode="first"), "different features, such as"),
             (lambda *given: torch.cat([given[0][:1] * 0, positions_for(*given)[1:]]), "CLS token's own position")],
    "11.4": [(lambda patches, cls, places: torch.cat([cls.expand(len(patches), 1, -1), patches], 1) + 0 * places,
              "different features, such as"),
             (lambda patches, cls, places: torch.cat([patches, cls.expand(len(patches), 1, -1)], 1) + places,
              "different features, such as"),
             (lambda patches, cls, places: patches + places[1:] + 0 * cls, "different features")],
    "11.5": [(lambda images, texts, _: 1 - F.cosine_similarity(images, texts).mean(), "24 names, .* a different loss"),
             (lambda images, texts, scale: F.cross_entropy(similarities(images, texts) * scale,
                                                           torch.arange(len(images))), "a different loss"),
             (lambda *given: reference("11.5")(*given).item(), "has no gradient"),
             (lambda images, *given: reference("11.5")(images.detach(), *given), "no gradient reaches the images"),
             (lambda images, _, scale: reference("11.5")(images, images, scale), "no gradient reaches the texts"),
             (lambda images, *given: reference("11.5")(images.div_(images.norm(dim=1, keepdim=True)), *given),
              "changes the vectors that it is given")],
    "12.1": [(lambda frames: energies(frames, window=False), "different features")],
    "12.2": [(lambda edges, hz: triangles(edges, hz, area=False), "different features, such as"),
             (symmetric, "different features")],
    "12.3": [(lambda x, _, *given: own_attend(x, x, *given), "with the package's own it says 'Go forward 10 meters.'"),
             (lambda x, source, att, *_: own_attend(x, source, att), "although it says the same here")],
    "12.4": [(lambda x, sound, block, attend: own_block(x, 0 * sound, block, attend), "a different model"),
             (lambda x, sound, block, attend: x, "a different model")],  # noqa: ARG005
    "12.5": [(lambda scores, prompt, *_: [int(scores(prompt).argmax())], "a different text; with the package's own"),
             (lambda *given: [*reference("12.5")(*given), 50256], "a different text"),
             (lambda scores, prompt, *_: [int(scores(torch.tensor(prompt)).argmax())], "real model with your")],
    "13.2": [(lambda features, *_: features.reshape(len(features), -1, features.shape[2] * 4), "features, such as")],
    "13.3": [(lambda features, mask, merge: stack_frames(features, None, merge=merge), "are not finite"),  # noqa: ARG005
             (lambda features, mask, merge: (
                 F.pad(features * mask[..., None], (0, 0, 0, -features.shape[1] % merge)).reshape(
                     len(features), -1, merge * features.shape[2]), mask[:, ::merge]), "are not finite")],
    "14.2": [(lambda x, where, features: splice(x, where, features.flip(0)), "a different prompt"),
             (lambda x, where, features: x.masked_scatter(where[..., None], features), "place is not refused"),
             (lambda x, where, features: x.copy_(splice(x, where, features)), "own embeddings were changed")],
    "14.3": [(lambda *given: learned(*given, shift=0), "it would learn something different")],
    "14.4": [(lambda x, donor, where, chosen: x, "it says 'red'.*different tokens"),  # noqa: ARG005
             (lambda x, donor, where, chosen: donor, "different tokens")],  # noqa: ARG005
    "15.2": [(lambda *given: canvas(*given)[::-1],
              "of 200 pictures.*looks at different tiles, first for 28 x 200 pixels")],
    "15.3": [(lambda *given: tiled(*given, opened=torch.sigmoid), "its tiles are marked differently"),
             (lambda x, table, gate, ids: tiled(x, (gate * table).tanh(), gate, ids, torch.ones_like),
              "its tiles are marked differently"),
             (lambda *given: tiled(*given, opened=lambda gate: gate * torch.nan), "its logits are NaN")],
    "15.5": [(lambda *given: visible(*given, late=1), "from token 2 on it looks at different images")],
    "16.1": [(lambda tokens, words, nothing: tokens @ torch.cat([nothing[None], words]).T, "different distances"),
             (lambda *given: reference("16.1")(*given) * 2, "different distances")],
    "16.2": [(lambda shares, said: -shares[:, said].logsumexp(0).sum(), "the bridge would learn something different")],
    "16.3": [(lambda name: "lora" if ".base." in name else reference("16.3")(name), "base.weight is text, not lora"),
             (lambda name: "text" if "layers" in name else "bridges", "names differ")],
    "16.4": [(lambda path: [word for word in path if word != "_"], "the package reads red circle blue blue")],
    "16.5": [(lambda c, r, c0, r0, beta: -F.logsigmoid(beta * (c - r)), "the package's are")],  # noqa: ARG005
    "17.1": [(lambda log_probs, text: -sum(log_probs) / math.log(2) / len(text), "the package has"),
             (lambda log_probs, text: -sum(log_probs) / len(text.encode()), "the package has")],
    "17.2": [(lambda log_likelihoods, choices, by: log_likelihoods, "by byte, with your scores: a different choice"),  # noqa: ARG005
             (lambda *given: [-x for x in reference("17.2")(*given)], "by sum, with your scores: a different choice")],
    "17.3": [(lambda right, groups, draws: np.quantile([np.mean(right)], (0.025, 0.975)), "the package's go from"),  # noqa: ARG005
             (lambda right, groups, draws: reference("17.3")(right, [*range(8)], draws), "the package's go from")],  # noqa: ARG005
    "17.4": [(lambda said, heard: [[len(said) - len(heard)]], "the package counts")],
    "17.5": [(lambda judge, people: np.mean(np.equal(judge, people)), "by the formula it is 0.292")],
    "18.3": [(lambda scores, unsafe, rate: reference("18.3")(scores, unsafe, rate) / 2, "the package has")],
    "18.4": [(lambda tokenizer, text: tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
                                                       allowed_special="all"), "a different question"),
             (lambda tokenizer, text: text, "it reads a list of ids")],  # noqa: ARG005
    "18.5": [(lambda logits, safe, unsafe: logits.softmax(-1)[unsafe], "the package's go from")],  # noqa: ARG005
    "18.6": [(lambda pieces, judge, window: pieces, "your guarded shows 'The capital of France is Paris"),  # noqa: ARG005
             (lambda pieces, judge, window: reference("18.6")([*pieces], judge, window), "the model writes")],
    "19.2": [(lambda weight, group: ((weight * 100).to(torch.int8), torch.ones(len(weight), weight.shape[1] // group)),
              "different weights")],
    "19.3": [(lambda codes, scales, x: float(codes.astype(float) @ x), "a different product")],  # noqa: ARG005
    "19.4": [(lambda guess, choices: choices, "a different text"),  # noqa: ARG005
             (lambda guess, choices: choices[:1], "no call saved"), (lambda guess, choices: [], "without a token")],  # noqa: ARG005
    "19.5": [(lambda gradients, counts: sum(gradients) / len(gradients), "not that of both texts")],  # noqa: ARG005
}  # fmt: skip
PAIRS = [(name, *fault) for name, faults in WRONG.items() for fault in faults]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """The right answer is whole with 8 ids; the rest of a wrong one takes time."""
    monkeypatch.setattr(swaps_text, "N_NEW", 8)


@pytest.fixture(autouse=True)
def everything_is_back():
    """No verdict leaves anything in the real model, or in a class."""
    model = real_model()[0]

    def state():
        return (RMSNorm.forward, FeedForward.forward, TransformerBlock.forward, TileProcessor.canvas, model.cos,
                [type(m) for m in model.modules()], [(p.data_ptr(), p.requires_grad) for p in model.parameters()])

    before = state()
    yield
    after = state()
    assert all(a is b or (isinstance(a, list) and a == b) for a, b in zip(after, before, strict=True))
    assert not any(isinstance(m, LoraLinear) for m in model.modules())


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_core_exercise_has_a_swap(lesson):
    core = {e.id for e in exercises_of(lesson) if e.level == "core"}
    assert core - {*SWAPS} == set()


def test_every_swap_is_tried_right_and_wrong():
    assert {*SWAPS} == {*WRONG}  # right: below, by the lessons' solutions


def solution(exercise_id):
    """What the lesson's own solution defines, with the cells before it that it needs."""
    (path,) = NOTEBOOKS.glob(f"{exercise_id[:2]}_*.ipynb")
    sheet, exercise = read_sheet(path), find_exercise(exercise_id)
    namespace = {"__name__": "__main__", "display": print}
    for place in sheet.program(exercise)[0]:
        exec(compile(sheet.code[place], f"<cell {place + 1}>", "exec"), namespace)
    return namespace[exercise.name]


@pytest.mark.parametrize("exercise_id", SWAPS)
def test_the_lessons_solution_does_as_the_package(exercise_id, capsys):
    answer = solution(exercise_id)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_real_model(exercise_id, answer) is None
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and ": the same" in out and ", but " not in out


@pytest.mark.parametrize(("exercise_id", "answer", "words"), PAIRS, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(PAIRS)])
def test_a_wrong_answer_shows(exercise_id, answer, words):
    found = verdict(exercise_id, answer)
    assert not found.same
    assert "\n" not in str(found) and re.search(words, str(found)), str(found)


def test_a_right_stretch_says_how_far_the_rule_moves_the_model():
    line = str(verdict("04.5", stretched))
    assert re.search(r": the same( up to rounding)?\. The rule itself moves SmolLM2's logits by up to 0\.\d+; slowing e"
                     r"very pair down would move them by up to \d\d$", line), line  # fmt: skip


def test_an_answer_that_works_in_place_leaves_the_real_embeddings():
    table = real_model()[0].embed_tokens.weight
    before = table.detach().clone()
    verdict("16.1", lambda tokens, words, nothing: -torch.cdist(tokens, torch.cat([nothing[None], words.sub_(1)])))
    assert torch.equal(table, before)


def test_ids_may_come_in_an_array():
    assert verdict("18.4", lambda tokenizer, text: np.array(reference("18.4")(tokenizer, text))).same


def test_what_an_answer_raises_is_one_line():
    def rms_norm(*_):
        raise ZeroDivisionError("by\nnothing")

    assert str(verdict("02.1", rms_norm)) == "the real model with your rms_norm: ZeroDivisionError: by nothing"


def test_what_is_no_function_is_named():
    assert "give the function or class itself, greedy, not [1, 2] (list)" in str(verdict("00.3", [1, 2]))


def test_a_blank_is_passed_on():
    def rms_norm(*_):
        raise NotImplementedError("exercise 02.1")

    with pytest.raises(NotImplementedError, match="exercise 02.1"):
        in_real_model("02.1", rms_norm)


def test_the_blank_of_an_earlier_exercise_is_passed_on_and_pytorchs_own_error_is_not():
    def softmax(_):
        raise NotImplementedError("'exp' not implemented for 'Bool'")

    def attention(q, k, v, mask):
        raise NotImplementedError("exercise 03.1")

    assert "NotImplementedError: 'exp' not implemented for 'Bool'" in str(verdict("03.1", softmax))
    with pytest.raises(NotImplementedError, match="exercise 03.1"):
        in_real_model("03.3", attention)


def test_a_model_that_ends_at_once_writes_nothing_at_all():
    line = str(of_answers("your rms_norm", 3.0, "", "Yes"))
    assert line == ("your rms_norm: it writes nothing at all · logits up to 3 apart: a different model; with the "
                    "package's own it says 'Yes'")  # fmt: skip


def test_a_loop_that_never_ends_is_ended():
    def greedy(*_):
        while True:
            pass

    assert "your greedy: still running after 0.5 seconds" in str(verdict("00.3", greedy, seconds=0.5))


def test_an_exercise_without_a_swap_is_an_error():
    with pytest.raises(InputError, match="no real model for exercise '00.9'; there is one for 00.3, 01.2"):
        in_real_model("00.9", print)
