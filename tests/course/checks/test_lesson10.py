"""course.checks.lesson10: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check, exercises_of
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 10.6 in three ways: a formula, a table of all steps, NumPy's interpolation and squared cosine ----


def rate_by_formula(step, steps, warmup, peak, floor, has):
    if step < warmup and "no warm-up" not in has:
        return step / warmup * peak if "from 0" in has else (step + 1) / warmup * peak
    begin, end = 0 if "falls from 0" in has else warmup, steps if "late" in has else steps - 1
    d = (step - begin) / (end - begin)
    left = 0.5 + 0.5 * math.cos(math.pi * d)
    left = {"whole turn": math.cos(math.pi * d) ** 2, "quarter": math.sin(math.pi / 2 * (1 - d)),
            "plain": 2 * left - 1, "double": 2 * left, "line": 1 - d}.get(wave_of(has), left)  # fmt: skip
    low = {"to 0": left, "cut off": max(left, floor), "on top": left + floor,
           "absolute": floor / peak + left - left * floor / peak}  # fmt: skip
    return peak * low.get(end_of(has), floor + left - floor * left)


def wave_of(has):
    return next((f for f in ("whole turn", "quarter", "plain", "double", "line") if f in has), "")


def end_of(has):
    return next((f for f in ("to 0", "cut off", "absolute", "on top") if f in has), "")


def rate_by_table(step, steps, warmup, peak, floor, has):
    up = [peak * (t if "from 0" in has else t + 1) / warmup for t in range(warmup)]
    n_fall = steps - warmup
    d = torch.arange(-warmup, n_fall, dtype=torch.float64)
    d = d / (n_fall - ("late" not in has))
    if "falls from 0" in has:
        d = torch.arange(steps, dtype=torch.float64) / (steps if "late" in has else steps - 1)
    wave = wave_of(has)
    if wave == "line":
        left = 1 - d
    elif wave in ("quarter", "plain"):
        left = torch.cos(d * math.pi / (2 if wave == "quarter" else 1))
    else:
        left = (1 + torch.cos(d * math.pi * (2 if wave == "whole turn" else 1))) * (1 if wave == "double" else 0.5)
    end = end_of(has)
    fall = torch.clamp(left, min=floor) * peak if end == "cut off" else left * peak + floor * peak
    if end in ("", "absolute"):
        low = floor * peak if end == "" else floor
        fall = torch.lerp(torch.tensor(low, dtype=torch.float64), torch.tensor(peak, dtype=torch.float64), left)
    fall = left * peak if end == "to 0" else fall
    table = fall.tolist() if "no warm-up" in has else up + fall.tolist()[warmup:]
    return table[step]


def rate_with_numpy(step, steps, warmup, peak, floor, has):
    if warmup and step < warmup and "no warm-up" not in has:
        places = np.arange(warmup) if "from 0" in has else np.arange(1, warmup + 1)
        return float(np.interp(step, np.arange(warmup), places * peak / warmup))
    start = warmup * ("falls from 0" not in has)
    turned = np.pi * (step - start) / (steps - start - (0 if "late" in has else 1))
    half = np.cos(turned / 2)
    left = half**2
    if "whole turn" in has:
        left = np.cos(turned) ** 2
    if "quarter" in has:
        left = half
    if "plain" in has:
        left = half**2 - np.sin(turned / 2) ** 2
    if "double" in has:
        left = 2 * half**2
    if "line" in has:
        left = 1 - turned / np.pi
    lowest = 0 if {"to 0", "cut off"} & {*has} else floor if "absolute" in has else floor * peak
    if "cut off" in has:
        return np.maximum(peak * left, floor * peak)
    return lowest + (peak if "on top" in has else peak - lowest) * left


# ---- 10.1 in three ways: slices, a loop, torch.where on rolled tensors ----


def mark_of(has):
    return 0 if {"0", "0 at the end"} & {*has} else -1 if {"-1", "-1 at the end"} & {*has} else -100


def end_mark_of(has):
    return 0 if "0 at the end" in has else -1 if "-1 at the end" in has else -100


def targets_by_slices(ids, learn, has):
    learn = ~learn if "inverted" in has else learn | ("everything" in has)
    out = torch.full_like(ids, mark_of(has))
    out[learn] = ids[learn]
    if "unshifted" in has:
        return out
    end = out.new_tensor([end_mark_of(has)])
    if "own mark" in has:
        shifted = torch.cat((ids[-1:], ids[:-1])) if "backwards" in has else torch.cat((ids[1:], ids[:1]))
        out = torch.where(learn, shifted, out.new_tensor(mark_of(has)))
        if "backwards" in has:
            out[0] = end
        elif "wraps" not in has:
            out[-1] = end
        return out
    if "backwards" in has:
        return torch.cat((end, out[:-1]))
    return torch.cat((out[1:], out[:1] if "wraps" in has else end))


def targets_by_loop(ids, learn, has):
    out, T = [], len(ids)
    step = 0 if "unshifted" in has else -1 if "backwards" in has else 1
    for t in range(T):
        s = t + step
        if not 0 <= s < T and not (s == T and "wraps" in has):
            out.append(end_mark_of(has))
            continue
        s %= T
        counts = bool(learn[t if "own mark" in has else s])
        counts = not counts if "inverted" in has else counts or "everything" in has
        out.append(int(ids[s]) if counts else mark_of(has))
    return torch.tensor(out)


def targets_by_multiplication(ids, learn, has):
    T = len(ids)
    keep = torch.ones(T).long() if "everything" in has else (1 - learn.long() if "inverted" in has else learn.long())
    offset = 0 if "unshifted" in has else -1 if "backwards" in has else 1
    places = torch.arange(T) + offset
    source = places % T
    keep = keep if "own mark" in has else keep[source]
    targets = keep * ids[source] + (1 - keep) * mark_of(has)
    outside = (places < 0) | (places >= T)
    if "wraps" in has:
        outside = places < 0
    return targets.masked_fill(outside, end_mark_of(has))


# ---- 10.2 in three ways: comparisons, loops, products ----


def mask_by_comparison(segments, has):
    s = segments[:1].repeat(len(segments), 1) if "row 0" in has else segments
    same = s.unsqueeze(2) == s.unsqueeze(1)
    same = s.unsqueeze(2) >= s.unsqueeze(1) if "earlier texts" in has else same
    same = torch.ones_like(same) if "all texts" in has else same
    same = same & (s > 0).unsqueeze(1) if "no filling" in has else same
    off = -1 if "not itself" in has else 0
    if "swapped" in has:
        same = same.triu(-off)
    elif "future" in has:
        same = same & ~torch.eye(s.shape[1], dtype=torch.bool) if off else same
    else:
        same = same.tril(off)
    return same.logical_not() if "inverted" in has else same


def mask_by_loops(segments, has):
    B, T = segments.shape
    out = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        row = segments[0 if "row 0" in has else b].tolist()
        for i in range(T):
            for j in range(T):
                ok = j <= i
                ok = True if "future" in has else j >= i if "swapped" in has else ok
                if "not itself" in has and i == j:
                    ok = False
                if "all texts" not in has:
                    ok = ok and (row[j] <= row[i] if "earlier texts" in has else row[i] == row[j])
                if "no filling" in has and row[j] == 0:
                    ok = False
                out[b, i, j] = ok != ("inverted" in has)
    return out


def mask_by_products(segments, has):
    s = segments[[0] * len(segments)] if "row 0" in has else segments
    T = s.shape[1]
    if "all texts" in has:
        together = torch.ones(len(s), T, T)
    elif "earlier texts" in has:
        one = F.one_hot(s, 9).float()
        together = one @ one.cumsum(-1).mT  # 1 where the column's number is not above the row's
    else:
        one = F.one_hot(s, 9).float()
        together = torch.einsum("bis,bjs->bij", one, one)
    if "no filling" in has:
        together = together * s[:, None, :].clamp(max=1)
    allowed = torch.ones(T, T) if "future" in has else torch.ones(T, T).tril()
    allowed = allowed.T if "swapped" in has else allowed
    allowed = allowed * (1 - torch.eye(T)) if "not itself" in has else allowed
    mask = together * allowed
    return mask < 0.5 if "inverted" in has else mask > 0.5


# ---- 10.3 in three ways: piece by piece, with means of F.cross_entropy, with the gradient's formula ----


def count(targets):
    return int((targets != -100).sum())


def shares_of(pieces, has):
    """By what each piece's sum is multiplied."""
    counts, n = [count(t) for _, t in pieces], len(pieces)
    zero = math.nan if "0 / 0" in has else 0.0
    if {"means", "means of some", "added means"} & {*has}:
        over = 1 if "added means" in has else n if "means" in has else sum(map(bool, counts))
        return [1 / (c * over) if c else zero for c in counts]
    over = 1 if "no division" in has else n if "pieces" in has else sum(counts)
    return [1 / (sum(len(t) for _, t in pieces) if "places" in has else over)] * n


def accumulate_by_piece(weight, pieces, has):
    total, summed, part = 0.0, 0.0, 0.0
    for i, ((hidden, targets), share) in enumerate(zip(pieces, shares_of(pieces, has), strict=True)):
        if "last alone" in has:
            weight.grad = None
        loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        if "first alone" not in has or i == 0:
            (loss if "undivided gradient" in has else loss * share).backward()
        part = loss.item() * share
        total, summed = total + part, summed + loss.item()
    return summed if "returns the sum" in has else part if "returns the last" in has else total


def accumulate_by_means(weight, pieces, has):
    losses = []
    for (hidden, targets), share in zip(pieces, shares_of(pieces, has), strict=True):
        n = count(targets)
        scores = F.linear(hidden, weight).log_softmax(-1)
        mean = F.nll_loss(scores, targets) if n else scores.sum() * 0
        losses.append((mean * max(n, 1) * share, mean * max(n, 1)))
    chosen = losses[-1:] if "last alone" in has else losses[:1] if "first alone" in has else losses
    for scaled, raw in chosen:
        (raw if "undivided gradient" in has else scaled).backward()
    if "returns the last" in has:
        return losses[-1][0]
    return torch.stack([raw if "returns the sum" in has else scaled for scaled, raw in losses]).sum()


def accumulate_by_formula(weight, pieces, has):
    gradient, loss, last = torch.zeros_like(weight), 0.0, 0.0
    with torch.no_grad():
        parts = []
        for (hidden, targets), share in zip(pieces, shares_of(pieces, has), strict=True):
            keep = targets >= 0
            h, t = hidden[keep], targets[keep]
            p = torch.softmax(h @ weight.T, -1)
            one = p.gather(1, t[:, None]).log().sum().neg()
            p[torch.arange(len(t)), t] -= 1
            parts.append(p.T @ h * (1.0 if "undivided gradient" in has else share))
            last = float(one) * share
            loss += float(one) if "returns the sum" in has else last
    gradient = parts[-1] if "last alone" in has else parts[0] if "first alone" in has else sum(parts)
    for part in [gradient / len(pieces)] * len(pieces):
        (weight * part).sum().backward()
    return np.float64(last if "returns the last" in has else loss)


# ---- 10.5 in three ways: tensors, numbers one by one, lerp and addcdiv ----

MEMORY = {"betas swapped": (0.95, 0.9), "0.999": (0.9, 0.999)}


def memory_of(has):
    return next((betas for fault, betas in MEMORY.items() if fault in has), (0.9, 0.95))


def adamw_by_formula(weight, grad, m, v, t, rate, decay, has):
    b1, b2 = memory_of(has)
    grad = grad + weight * decay if "decay in gradient" in has else grad
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * (grad.abs() if "sizes" in has else grad * grad)
    n = t + ("late" in has)
    right_m = m if {"no correction", "m uncorrected"} & {*has} else m / (1 - b1**n)
    right_v = v if {"no correction", "v uncorrected"} & {*has} else v / (1 - b2**n)
    below = torch.sqrt(right_v + 1e-8) if "eps inside" in has else (
        right_v if "no root" in has else torch.sqrt(right_v)) + 1e-8
    move = rate * right_m / below
    if "decay last" in has:
        new = (weight + move if "uphill" in has else weight - move) * (1 - rate * decay)
    else:
        weight = {"no decay": weight, "decay in gradient": weight, "decay without rate": weight - decay * weight,
                  "decay grows": weight + rate * decay * weight}.get(decay_of(has), weight - rate * decay * weight)
        new = weight + move if "uphill" in has else weight - move
    return (new, right_m, right_v) if "corrected state" in has else (new, m, v)


def decay_of(has):
    return next((f for f in ("no decay", "decay in gradient", "decay without rate", "decay grows") if f in has), "")


def adamw_one_by_one(weight, grad, m, v, t, rate, decay, has):
    b1, b2 = memory_of(has)
    rows = []
    for w, g, a, b in zip(*(x.double().flatten().tolist() for x in (weight, grad, m, v)), strict=True):
        g += decay * w if "decay in gradient" in has else 0
        a = a + (1 - b1) * (g - a)
        b = b + (1 - b2) * ((abs(g) if "sizes" in has else g**2) - b)
        steps = t + 1 if "late" in has else t
        a_hat, b_hat = a / (1 - math.pow(b1, steps)), b / (1 - math.pow(b2, steps))
        if "no correction" in has or "m uncorrected" in has:
            a_hat = a
        if "no correction" in has or "v uncorrected" in has:
            b_hat = b
        size = (b_hat + 1e-8) ** 0.5 if "eps inside" in has else b_hat ** (1 if "no root" in has else 0.5) + 1e-8
        shrunk = w * (1 - rate * decay)
        shrunk = w if {"no decay", "decay in gradient", "decay last"} & {*has} else shrunk
        shrunk = w * (1 - decay) if "decay without rate" in has else shrunk
        shrunk = w * (1 + rate * decay) if "decay grows" in has else shrunk
        new = shrunk - (-1 if "uphill" in has else 1) * rate * a_hat / size
        new -= rate * decay * new if "decay last" in has else 0
        rows.append((new, a_hat, b_hat) if "corrected state" in has else (new, a, b))
    return [torch.tensor(column).reshape(weight.shape) for column in zip(*rows, strict=True)]


def adamw_in_place(weight, grad, m, v, t, rate, decay, has):
    weight, grad, m, v = (x.clone() for x in (weight, grad, m, v))
    (b1, b2), old = memory_of(has), weight.clone()
    if "decay in gradient" in has:
        grad.add_(weight, alpha=decay)
    elif "decay without rate" in has:
        weight.mul_(1 - decay)
    elif "decay last" not in has and "no decay" not in has:
        weight.add_(old, alpha=rate * decay * (1 if "decay grows" in has else -1))
    m.lerp_(grad, 1 - b1)
    v.mul_(b2).add_(grad.abs() if "sizes" in has else grad.square(), alpha=1 - b2)
    late = 1 if "late" in has else 0
    c1 = 1.0 if {"no correction", "m uncorrected"} & {*has} else 1 - b1 ** (t + late)
    c2 = 1.0 if {"no correction", "v uncorrected"} & {*has} else 1 - b2 ** (t + late)
    if "eps inside" in has:
        below = v.div(c2).add(1e-8).sqrt()
    else:
        below = v.div(c2).pow(1.0 if "no root" in has else 0.5).add(1e-8)
    weight.addcdiv_(m, below, value=(rate if "uphill" in has else -rate) / c1)
    if "decay last" in has:
        weight.mul_(1 - rate * decay)
    if "corrected state" in has:
        m, v = m.div(c1), v.div(c2)
    return weight, m, v


WAYS = {
    "10.6": (rate_by_formula, rate_by_table, rate_with_numpy),
    "10.1": (targets_by_slices, targets_by_loop, targets_by_multiplication),
    "10.2": (mask_by_comparison, mask_by_loops, mask_by_products),
    "10.3": (accumulate_by_piece, accumulate_by_means, accumulate_by_formula),
    "10.5": (adamw_by_formula, adamw_one_by_one, adamw_in_place),
}
ZERO, MINUS_ONE, MEANS = "places with 0", "places with −1", "averaged the pieces' means"
# what a message must hold, for each fault
TOLD = {
    "10.6": {"from 0": "first step has the rate 0", "no warm-up": "no warm-up", "falls from 0": "begins at step 0",
             "late": "never reached", "whole turn": "comes up again", "quarter": "quarter turn",
             "plain": "goes from 1 to −1", "double": "halve it", "line": "That is a line", "to 0": "It falls to 0",
             "cut off": "cut the curve off", "absolute": "floor for a rate", "on top": "floor on top"},
    "10.1": {"unshifted": "didn't shift", "backwards": "wrong way: place", "own mark": "mark of the place",
             "everything": "learn everything", "inverted": "wrong way round", "wraps": "predicts the first token",
             "0": ZERO, "0 at the end": ZERO, "-1": MINUS_ONE, "-1 at the end": MINUS_ONE},
    "10.2": {"future": "see the future", "swapped": "columns are swapped", "not itself": "No token sees itself",
             "all texts": "Texts see each other", "earlier texts": "the texts before it", "row 0": "row 0's mask",
             "no filling": "filling sees nothing", "inverted": "may NOT look"},
    "10.3": {"means": MEANS, "means of some": MEANS, "added means": "added up the pieces' means",
             "no division": "didn't divide", "places": "all places", "pieces": "number of pieces:",
             "last alone": "last piece's gradient", "first alone": "first piece's gradient",
             "returns the sum": "return the sum", "undivided gradient": "that of the sum",
             "returns the last": "last piece's share"},
    "10.5": {"no correction": "Nothing is corrected", "m uncorrected": "m is not corrected",
             "v uncorrected": "v is not corrected", "corrected state": "return the corrected means",
             "late": "exponent is t + 1", "betas swapped": "memories are swapped", "0.999": "PyTorch's default",
             "sizes": "takes its size", "no root": "root of v is missing", "eps inside": "outside the root",
             "uphill": "up the slope", "no decay": "Nothing decays", "decay in gradient": "decay to the gradient",
             "decay without rate": "multiplied by 1 − decay", "decay grows": "should shrink",
             "decay last": "let the new weight decay"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "10.6": [
        {"from 0", "no warm-up"},  # without a warm-up it has no first step
        {"whole turn", "quarter", "plain", "double", "line"},  # each says which curve falls
        {"to 0", "cut off", "absolute", "on top"},  # each says what becomes of the floor
    ],
    "10.1": [
        {"unshifted", "backwards", "wraps"},  # each says how the row is shifted
        {"own mark", "unshifted"}, {"own mark", "everything"},  # marks that are not shifted, or not used, have no place
        {"everything", "inverted"},  # where all is learned no mark is left to turn
        {"0", "0 at the end", "-1", "-1 at the end"},  # each says which number stands for nothing
        {"everything", "0"}, {"everything", "-1"},  # no other mark is left
        *({shift, end} for shift in ("wraps", "unshifted") for end in ("0 at the end", "-1 at the end")),  # nor an end
    ],
    "10.2": [
        {"future", "swapped"},  # where all is seen rows and columns are alike
        {"all texts", "earlier texts"}, {"all texts", "row 0"},  # where all texts are seen, so are these
    ],
    "10.3": [
        {"means", "means of some", "added means", "no division", "places", "pieces"},  # each says what is divided by
        {"last alone", "first alone"},  # together no piece is left
        {"returns the sum", "returns the last"},  # one number is returned
        {"no division", "undivided gradient"},  # the gradient of what isn't divided
        {"no division", "returns the sum"},  # the sum is what no division returns
        {"undivided gradient", "returns the sum"},  # the same as no division at all
    ],
    "10.5": [
        {"no correction", "m uncorrected", "v uncorrected", "late"},  # each says what the means are divided by
        {"no correction", "corrected state"},  # where nothing is corrected, nothing wrong is returned
        {"m uncorrected", "corrected state"}, {"v uncorrected", "corrected state"},  # half of it is
        {"betas swapped", "0.999"},  # each says what v keeps
        {"no root", "eps inside"},  # an epsilon inside of no root
        {"sizes", "eps inside"},  # where v holds sizes, no epsilon is seen
        {"no decay", "decay in gradient", "decay without rate", "decay grows", "decay last"},  # each says what decays
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def targets(ids, learn):
    return targets_by_slices(ids, learn, ())


def mask(segments):
    return mask_by_comparison(segments, ())


def mean_loss(weight, pieces):
    return accumulate_by_piece(weight, pieces, ())


def all_at_once(weight, pieces):
    loss = sum(F.cross_entropy(h @ weight.T, t, reduction="sum") for h, t in pieces) / sum(count(t) for _, t in pieces)
    loss.backward()
    return loss


def skips_what_has_no_target(weight, pieces):
    return mean_loss(weight, [piece for piece in pieces if count(piece[1])])


def built_in_means(weight, pieces):
    """The usual loop: F.cross_entropy's mean, divided by the number of pieces."""
    total = 0.0
    for hidden, wanted in pieces:
        loss = F.cross_entropy(hidden @ weight.T, wanted) / len(pieces)
        loss.backward()
        total += loss.item()
    return total


def added_built_in_means(weight, pieces):
    return sum(built_in_means(weight, [piece]) for piece in pieces)


def means_by_nanmean(weight, pieces):
    losses = torch.stack([F.cross_entropy(h @ weight.T, t, reduction="none").sum() / (t >= 0).sum() for h, t in pieces])
    for i, loss in enumerate(losses):
        (loss / len(pieces)).backward(retain_graph=i + 1 < len(pieces))
    return losses.mean()


@pytest.mark.parametrize("answer", [built_in_means, added_built_in_means, means_by_nanmean])
def test_the_mean_of_a_piece_without_targets_is_told_beside_the_wrong_mean(answer):
    message = check("10.3", answer).message
    assert "0 / 0 = NaN" in message
    assert TOLD["10.3"]["added means" if answer is added_built_in_means else "means"] in message


OTHERWISE = [
    ("10.6", lambda _, **__: "0.5", "form: .*at .'step 0'.*should be a number"),
    ("10.6", lambda _, **__: 0.5, "all results: for steps 9, warmup 4, peak 1, floor 0.1: .*be 0.25, got 0.5"),
    ("10.6", lambda step, steps: step / steps, "it raised TypeError"),
    ("10.1", lambda i, m: targets(i, m)[:-1], "should be .4,., got .3,.. One too short: the last place has a target"),
    ("10.1", lambda i, m: torch.where(m, i, -100)[1:], "One too short"),
    ("10.1", lambda i, m: i[1:].masked_fill(~m[1:], -100), "One too short"),
    ("10.1", lambda i, m: targets(i, m).tolist(), "should be a tensor"),
    ("10.1", lambda i, m: targets(i, m).float(), "dtype should be torch.int64"),
    ("10.1", lambda i, m: targets(i, m) + 1, "all numbers: "),
    ("10.2", lambda s: mask(s)[:, None], "got .1, 1, 6, 6.. Leave out the dimension of heads"),
    ("10.2", lambda s: mask(s).unsqueeze(1).clone(), "Leave out the dimension of heads"),
    ("10.2", lambda s: torch.stack([mask(s)], 1), "Leave out the dimension of heads"),
    ("10.2", lambda s: mask(s)[0], "shape should be .1, 6, 6."),
    ("10.2", lambda s: mask(s).float(), "dtype should be torch.bool"),
    ("10.2", lambda s: mask(s) & (torch.rand(s.shape[1], s.shape[1]) < 0.5), "all numbers: "),
    ("10.3", lambda *_: 0.0, "weight.grad is None afterwards"),
    ("10.3", lambda *case: [mean_loss(*case)], "return the mean loss, a number; got list"),
    ("10.3", lambda *case: 2 * mean_loss(*case), "all results: .*.'loss'. should be"),
    ("10.5", lambda *case: adamw_by_formula(*case, ())[0], "return three tensors, weight, m and v; got a tensor"),
    ("10.5", lambda w, g, m, v, *rest: adamw_by_formula(w, g, m, v.add_(0), *rest, ())[:2] + (v.add_(1),),
     "changes argument 4"),
    ("10.5", lambda *case: [x + 0.1 for x in adamw_by_formula(*case, ())], "all results: .*.'weight'"),
    ("10.3", all_at_once, "7 of 8 properties hold.*one piece after another: .*backward ran 1 time for 3 pieces"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message, re.S), result.message
    assert not any(told in result.message for told in TOLD[exercise].values()), result.message


@pytest.mark.parametrize("answer", [skips_what_has_no_target, lambda *case: torch.tensor(mean_loss(*case))])
def test_other_right_roads_of_accumulating_pass(answer):
    assert check("10.3", answer), check("10.3", answer).message


def test_a_message_names_the_property_the_input_and_both_numbers():
    message = check("10.6", with_faults(WAYS["10.6"][1], ("from 0", "to 0"))).message
    assert "for steps 9, warmup 4, peak 0.5, floor 0.1: at ['step 0']: the result should be 0.125, got 0." in message
    message = check("10.1", with_faults(WAYS["10.1"][1], ("backwards",))).message
    assert "what a place predicts: for ([5, 6, 7, 8, 9], [True, False, True, True, False]) [" in message
    message = check("10.3", with_faults(WAYS["10.3"][0], ("places",))).message
    assert "for pieces with targets in 1 of 4, 3 of 6 and 3 of 3 places: ['loss'] should be" in message


@pytest.mark.parametrize("value", [
    None, "x", [], (None, None), math.nan, 10**400, print, torch.ones(0), torch.tensor([1, 2]),
    torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64),
    torch.ones(2, requires_grad=True), {1: 2},
])  # fmt: skip
def test_a_result_of_any_kind_gets_a_few_lines(value):
    for exercise in exercises_of("10"):
        result = check(exercise.id, lambda *_, **__: value)
        assert not result
        assert len(result.message.splitlines()) <= 5 and all(len(line) < 500 for line in result.message.splitlines())


# ---- 10.4: pieces whose averaged means point the wrong way ----


def pieces_of(*pieces, weight=((0.0,), (0.0,)), dtype=torch.float32):
    """pieces: (hidden, target) for each place, (N, C) numbers and N targets."""
    made = [(torch.tensor(hidden, dtype=dtype), torch.tensor(targets)) for hidden, targets in pieces]
    return torch.tensor(weight, dtype=dtype), made


STRONG, WEAK = ([[2.0]], [0]), ([[1.0]] * 3, [1] * 3)
RIGHT = [
    lambda: pieces_of(STRONG, WEAK),
    lambda: pieces_of(WEAK, STRONG, dtype=torch.float64),  # in the other order, with more digits
    lambda: (torch.zeros(2, 1).requires_grad_(), tuple(list(piece) for piece in pieces_of(STRONG, WEAK)[1])),
    lambda: pieces_of(([[2.0], [5.0]], [0, -100]), WEAK),  # a place where nothing is learned
    lambda: pieces_of(STRONG, STRONG, ([[1.0]] * 9, [1] * 9)),  # three pieces
    lambda: pieces_of(STRONG, WEAK, weight=((0.1,), (-0.1,))),
]


@pytest.mark.parametrize("answer", RIGHT)
def test_any_pieces_that_go_wrong_pass(answer):
    assert check("10.4", answer), check("10.4", answer).message


MISLED = [
    (lambda: pieces_of(([[2.0]], [0]), ([[1.0]], [1])), "1 target each, so the mean of their means is the mean of all"),
    (lambda: pieces_of(([[1.0]] * 3, [0] * 3), WEAK), "the gradient that is meant is 0"),
    (lambda: pieces_of(([[3.0]], [0]), WEAK), "the gradient that is meant is 0"),
    (lambda: pieces_of(([[1.0]], [0]), WEAK), "of the averaged means is 0"),
    (lambda: pieces_of(([[1.0]], [1]), WEAK), "0 degrees apart, and more than 90.*With 1 and 3 targets"),
    (lambda: pieces_of(([[9.0]], [0]), WEAK), "0 degrees apart.*less than all of them together"),
    (lambda: pieces_of(([[2.0]], [-100]), WEAK), "piece 0 has no target at all"),
    (lambda: pieces_of(([[2.0]], [2]), WEAK), "targets run from 0 to 1 with this weight, got .2."),
    (lambda: pieces_of(STRONG), "at least two pairs"),
    (lambda: pieces_of(STRONG, WEAK)[1], "weight should be a tensor of numbers"),
    (lambda: (torch.zeros(2, 3), pieces_of(STRONG, WEAK)[1]), "hidden should be .N, 3."),
    (lambda: pieces_of(([[2.0]], [0.0]), WEAK), "targets should be int64 of shape .1,."),
    (lambda: pieces_of(([[math.inf]], [0]), WEAK), "should be finite"),
    (lambda: (torch.zeros(2, 1), [torch.ones(2, 1), torch.ones(2, 1)]), "piece 0 should be two tensors"),
    (lambda: 3, "return two things"),
]


@pytest.mark.parametrize(("answer", "message"), MISLED)
def test_pieces_that_do_not_mislead_are_told_why(answer, message):
    result = check("10.4", answer)
    assert not result
    assert re.search(message, result.message, re.S), result.message
