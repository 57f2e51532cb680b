"""course.checks.lesson08: right answers pass, and each usual mistake is called by its name."""

import math
import re

import pytest
import torch

from llamamm.course.checks import check
from tests.course.checks.ways import assert_right, assert_told

CUT = float("-inf")

# ---- right answers ----


def probabilities(logits, temperature):
    rows = []
    for row in logits:
        if temperature:
            powers = torch.exp((row - row.max()) / temperature)
            rows.append(powers / powers.sum())
        else:
            rows.append((row == row.max()).float())
    return torch.stack(rows)


def top_p(logits, p):
    out = torch.full_like(logits, CUT)
    for kept, row in zip(out, logits, strict=True):
        total = 0.0
        probs = row.softmax(0)
        for i in sorted(range(len(row)), key=lambda i, probs=probs: -probs[i]):
            kept[i] = row[i]
            total += float(probs[i])
            if total >= p:
                break
    return out


def until_stop(pieces, stop):
    text, shown = "", 0
    for piece in pieces:
        text += piece
        ends = [text.find(s) for s in stop if text.find(s) >= 0]
        if ends:
            if min(ends) > shown:
                yield text[shown : min(ends)]
            return
        safe = shown
        while safe < len(text) and not any(s.startswith(text[safe:]) for s in stop):
            safe += 1
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    if text[shown:]:
        yield text[shown:]


def min_p_trap():
    logits = torch.linspace(0.0, 0.1, 1000)
    logits[500] = 4.5
    return logits


RIGHT = [("08.1", probabilities), ("08.2", top_p), ("08.3", until_stop), ("08.4", min_p_trap)]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_the_right_answer_passes(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


# ---- wrong answers ----


def heated_by_softmax(logits, t, has=()):
    def divided(x):
        return x if "left out" in has else torch.mul(x, t) if "times" in has else x / t

    dim = 0 if "batch" in has else -1
    if t == 0 and "zero is one" in has:
        t = 1.0
    if t == 0 and "no zero" not in has:
        best = (-logits if "worst" in has else logits).argmax(-1)
        return torch.nn.functional.one_hot(best, logits.shape[-1]).float()
    if "after" in has:
        return divided(torch.softmax(logits, dim=dim))
    logits = logits.softmax(dim) if "twice" in has else logits
    return torch.softmax(divided(logits), dim=dim)


def heated_by_rows(logits, t, has=()):
    t = t or (1.0 if "zero is one" in has else t)
    if not t and "no zero" not in has:
        return torch.stack([(row == (row.min() if "worst" in has else row.max())).float() for row in logits])
    heat = torch.tensor(float(t))
    heat = torch.ones(()) if "left out" in has else 1 / heat if "times" in has else heat

    def soft(row):
        powers = torch.exp(row - row.max())
        return powers / powers.sum()

    rows = []
    for row in logits.T if "batch" in has else logits:
        if "after" in has:
            rows.append(soft(row) / heat)
        else:
            rows.append(soft((soft(row) if "twice" in has else row) / heat))
    return torch.stack(rows, 1) if "batch" in has else torch.stack(rows)


def heated_by_logarithms(logits, t, has=()):
    axis = 0 if "batch" in has else 1
    if t == 0:
        if "no zero" not in has and "zero is one" not in has:
            kth = logits.shape[1] if "worst" not in has else 1
            return logits.eq(logits.kthvalue(kth, dim=1, keepdim=True).values).to(logits.dtype)
        t = 0.0 if "no zero" in has else 1.0
    power = 1.0 if "left out" in has else t if "times" in has else float("inf") if t == 0 else 1 / t
    if "after" in has:
        return (logits - logits.logsumexp(axis, keepdim=True)).exp() * power
    if "twice" in has:
        logits = logits.log_softmax(axis).exp()
    x = logits * power if "times" in has or t else logits / torch.zeros(())
    return (x - torch.logsumexp(x, axis, keepdim=True)).exp()


def top_p_by_scatter(logits, p, has=()):
    fill = 0.0 if "zero" in has else CUT
    if "own" in has or "min-p" in has:
        probs = logits.softmax(-1)
        cut = probs < (p if "own" in has else p * probs.max(-1, keepdim=True).values)
    else:
        values, ids = logits.sort(descending="worst first" not in has)
        if "unsorted" in has:
            values, ids = logits, torch.arange(logits.shape[1]).expand_as(logits)
        probs = values.softmax(-1)
        sums = probs.cumsum(-1)
        cut = sums >= p if {"crossing", "crossing, best kept"} & {*has} else sums - probs >= p
        if "crossing, best kept" in has:
            cut[:, 0] = False
        if "left sorted" in has or "sorted again" in has:
            cut = cut[0] if "first row" in has and "left sorted" in has else cut
            out = torch.where(cut, fill, values)
            out = out if "left sorted" in has else out.gather(-1, ids)
            return out.softmax(-1) if "probabilities" in has else out
        cut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, cut)
    out = torch.where(cut[0] if "first row" in has else cut, fill, logits)
    return torch.softmax(out, -1) if "probabilities" in has else out


def top_p_by_loop(logits, p, has=()):
    rows, nothing = [], [CUT, 0.0]["zero" in has]
    gone = None
    for row in logits.tolist():
        weights = [math.exp(x) for x in row]
        probs = [w / sum(weights) for w in weights]
        ids = sorted(range(len(row)), key=lambda i, probs=probs: (1 if "worst first" in has else -1) * probs[i])
        ids = range(len(row)) if "unsorted" in has else ids
        total, dropped = 0.0, set()
        for i in ids:
            reached = total + probs[i] if {"crossing", "crossing, best kept"} & {*has} else total
            if reached >= p and not ("crossing, best kept" in has and i == ids[0]):
                dropped.add(i)
            total += probs[i]
        if "own" in has:
            dropped = {i for i, q in enumerate(probs) if q < p}
        if "min-p" in has:
            dropped = {i for i, q in enumerate(probs) if q / max(probs) < p}
        gone = dropped if gone is None or "first row" not in has else gone
        out = [nothing if i in gone else x for i, x in enumerate(row)]
        if "left sorted" in has:
            first = sorted(range(len(row)), key=lambda i: -logits[0, i]) if "first row" in has else ids
            out = [nothing if k in gone else row[i] for i, k in zip(ids, first, strict=True)]
        if "sorted again" in has:
            out = [[out[i] for i in ids][i] for i in ids]
        rows.append(out)
    made = torch.tensor(rows)
    return made.softmax(1) if "probabilities" in has else made


def top_p_by_comparing(logits, p, has=()):
    """The sum of what is better than each token, from all pairs of tokens."""
    probs = torch.softmax(logits, dim=-1)
    here, there = probs[:, :, None], probs[:, None, :]  # of this token, of every other
    better = there < here if "worst first" in has else there > here
    if "unsorted" in has:
        better = torch.ones(probs.shape[1], probs.shape[1]).tril(-1).bool().expand_as(better)
    before = (better * there).sum(-1)
    cut = before + (probs if {"crossing", "crossing, best kept"} & {*has} else 0) >= p
    if "crossing, best kept" in has:
        cut &= before > 0
    cut = probs < p if "own" in has else (here / there).amin(-1) < p if "min-p" in has else cut
    out, order = logits, logits.argsort(-1, descending="worst first" not in has)
    if "left sorted" in has:
        out, cut = logits.take_along_dim(order, -1), cut.take_along_dim(order, -1)
    if "sorted again" in has:
        out, cut = (x.take_along_dim(order, -1).take_along_dim(order, -1) for x in (logits, cut))
    out = out.masked_fill(cut[[0] * len(cut)] if "first row" in has else cut, 0 if "zero" in has else CUT)
    return out.exp() / out.exp().sum(-1, keepdim=True) if "probabilities" in has else out


# ---- 08.3 in three ways: text that is held, a place up to which it is shown, letters in a queue ----


def timed(stream):
    """The same stream, with the faults that its timing can have."""
    def answer(pieces, stop, has=()):
        pieces = iter(pieces)
        given = stream(pieces, stop, has)
        given = after_the_next(given) if "one late" in has else given
        if "at the end" in has:
            given = (text for text in ["".join(given)] if text)
        yield from given
        for _ in range(1 if "one more" in has else 100 * ("reads on" in has)):
            next(pieces, None)

    return answer


def after_the_next(texts):
    waiting = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting


def ending(text, begin, stop, has):
    """The first stop string in the text: where it begins, and where what is shown ends; or None."""
    found = [(text.index(s, begin), s) for s in stop if s in text[begin:]]
    if not found:
        return None
    at, s = found[0] if "list order" in has else min(found)
    return at, at + len(s) if "stop shown" in has else at


@timed
def stream_of_held_text(pieces, stop, has):
    held, gone = "", ""
    for piece in pieces:
        held += piece
        if (end := ending(gone + held, 0, stop, has)) and ("each alone" not in has or end[0] >= len(gone)):
            shown = "" if "text lost" in has else held[: max(end[1] - len(gone), 0)]
            if shown:
                yield shown
            return
        lengths = range(1, len(held) + 1) if "shortest" in has else range(len(held), 0, -1)
        keep = next((n for n in lengths if any(s.startswith(held[-n:]) for s in stop)), 0)
        keep = 0 if {"each alone", "begun shown"} & {*has} else keep
        keep = min(max(map(len, stop)) - 1, len(held)) if "always held" in has else keep
        out, held = held[: len(held) - keep], held[len(held) - keep :]
        if out:
            yield out
        gone = gone + out if "begun shown" in has else ""
    if held and "rest lost" not in has:
        yield held


@timed
def stream_by_places(pieces, stop, has):
    text, shown, most = "", 0, max(len(s) for s in stop) - 1
    for piece in pieces:
        text += piece
        if end := ending(text, 0 if "begun shown" in has else shown, stop, has):
            if end[1] > shown and "text lost" not in has:
                yield text[shown : end[1]]
            return
        ends = [n for n in range(shown, len(text)) if any(s.startswith(text[n:]) for s in stop)]
        safe = len(text) if not ends or {"each alone", "begun shown"} & {*has} else ends[-1 if "shortest" in has else 0]
        safe = max(shown, len(text) - most) if "always held" in has else safe
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    if text[shown:] and "rest lost" not in has:
        yield text[shown:]


@timed
def stream_of_letters(pieces, stop, has):
    """By patterns: a whole stop string, and what may become one."""
    queue, before = "", ""
    begun = sorted({s[:n] for s in stop for n in range(1, len(s) + 1)}, key=len, reverse="shortest" not in has)
    for piece in pieces:
        queue += piece
        places = [(m.start() - len(before), m.group()) for s in stop
                  for m in [re.search(re.escape(s), before + queue)] if m]  # fmt: skip
        if places:
            at, s = places[0] if "list order" in has else sorted(places)[0]
            if "text lost" not in has:
                yield queue[: max(at, 0)] + (queue[max(at, 0) : at + len(s)] if "stop shown" in has else "")
            return
        tail = next((end for end in begun if queue.endswith(end)), "")
        if "always held" in has:
            n_held = max(map(len, stop)) - 1
            tail = queue[-n_held:] if n_held else ""
        if "each alone" in has or "begun shown" in has:
            tail = ""
        out = queue.removesuffix(tail)
        if out:
            yield out
        before, queue = before + out if "begun shown" in has else "", tail
    if "rest lost" not in has:
        yield queue


WAYS = {
    "08.1": (heated_by_softmax, heated_by_rows, heated_by_logarithms),
    "08.2": (top_p_by_scatter, top_p_by_loop, top_p_by_comparing),
    "08.3": (stream_of_held_text, stream_by_places, stream_of_letters),
}
TOLD = {
    "08.1": {"no zero": "At temperature 0 you divided by 0", "zero is one": "Temperature 0 is not 1",
             "worst": "the worst token", "times": "multiplied by the temp", "after": "no longer add up to 1",
             "twice": "softmax twice", "left out": "left the temperature out", "batch": "down the batch"},
    "08.2": {"crossing": "nothing is left", "crossing, best kept": "that reach p together include it",
             "left sorted": "left the logits sorted", "sorted again": "sorting a second time",
             "worst first": "the worst first", "unsorted": "in the order of the ids", "own": "own probability",
             "min-p": "this is min-p", "first row": "where the first row is cut", "probabilities": "gave probabilities",
             "zero": "what is cut to 0"},
    "08.3": {"stop shown": "the stop string itself", "text lost": "in front of the stop string",
             "list order": "not in the list", "each alone": "in each piece alone",
             "begun shown": "had shown the beginning", "shortest": "the longest first", "rest lost": "give it out then",
             "at the end": "one piece at the end", "always held": "you always hold back",
             "one late": "each piece waits", "reads on": "go on reading", "one more": "one more piece before you stop"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "08.1": [
        {"no zero", "zero is one", "worst"},  # each says what becomes of temperature 0
        {"times", "left out"},  # what is left out is not multiplied
        {"after", "twice"},  # each says what stands behind the softmax
        {"after", "left out"},  # what is left out stands nowhere
        {"no zero", "left out"},  # without the temperature 0 is like 1
    ],
    "08.2": [
        {"crossing", "crossing, best kept"},  # each says what becomes of the best
        {"worst first", "unsorted", "own", "min-p"},  # each says with what a token is compared
        *({crossing, other} for crossing in ("crossing", "crossing, best kept") for other in ("own", "min-p")),
        # these two add nothing up, so no sum crosses p
        *({"crossing, best kept", other} for other in ("worst first", "unsorted", "first row")),
        # the token that is kept is then another, and the best may go
        {"left sorted", "sorted again"},  # each says how the way back is missed
        *({back, other} for back in ("left sorted", "sorted again") for other in ("unsorted", "own", "min-p")),
        # these three need no sorting, so no way back
        {"sorted again", "first row"},  # in which order the first row is cut, differs from way to way
    ],
    "08.3": [
        {"stop shown", "text lost", "list order"},  # one sentence on where a stop string ends a text
        {"each alone", "begun shown", "shortest", "always held"},  # each says how much is held back
        {"at the end", "always held", "one late"},  # each says when text comes
        {"reads on", "one more"},  # each says how far the pieces are read
        {"each alone", "rest lost"}, {"begun shown", "rest lost"},  # where nothing is held no rest is lost
        {"always held", "rest lost"},  # the rest is then all that is held, and the text itself too short
        {"stop shown", "begun shown"},  # the beginning is part of the stop string that is shown
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def piece_by_piece(pieces, stop):
    for piece in pieces:
        ends = [piece.find(s) for s in stop if s in piece]
        if ends:
            if min(ends):
                yield piece[: min(ends)]
            return
        yield piece


def shows_too_much(pieces, stop):
    text = ""
    for piece in pieces:
        before, text = len(text), text + piece
        ends = [text.find(s) for s in stop if s in text]
        if ends:
            if text[before : min(ends)]:
                yield text[before : min(ends)]
            return
        yield piece


def all_at_once(pieces, stop):
    text = "".join(pieces)
    for s in stop:
        text = text.split(s)[0]
    return [text] if text else []


def always_late(pieces, stop):
    held, most = "", max(len(s) for s in stop) - 1
    for piece in pieces:
        held += piece
        ends = [held.find(s) for s in stop if s in held]
        if ends:
            if min(ends):
                yield held[: min(ends)]
            return
        if len(held) > most:
            yield held[: len(held) - most]
            held = held[len(held) - most :]
    if held:
        yield held


def streamer(*, ends="range(len(held), 0, -1)", at="min(found)", upto="at", rest=True):
    """The lesson's solution with one piece changed, as a learner would have typed it."""

    def stream(pieces, stop):
        held = ""
        for piece in pieces:
            held += piece
            found = [held.find(s) for s in stop if s in held]
            if found:
                place = eval(at, {"found": found, "min": min})
                upto_ = eval(upto, {"at": place, "stop": stop, "held": held, "len": len, "max": max})
                if upto_ and held[:upto_]:
                    yield held[:upto_]
                return
            lengths = eval(ends, {"held": held, "range": range, "len": len})
            keep = next((n for n in lengths if any(s.startswith(held[-n:]) for s in stop)), 0)
            if held[: len(held) - keep]:
                yield held[: len(held) - keep]
                held = held[len(held) - keep :]
        if held and rest:
            yield held

    return stream


def uniform():
    return torch.zeros(1000)


def as_probabilities():
    return torch.full((1000,), 0.9 / 999).index_fill(0, torch.tensor([0]), 0.1)


def too_sure():
    return torch.zeros(1000).index_fill(0, torch.tensor([0]), 20.0)


def uneven_tail():
    logits = torch.full((1000,), -9.0)
    logits[:301] = 0.0
    logits[0] = 3.9
    return logits


def cut_already():
    return torch.full((1000,), CUT).index_fill(0, torch.tensor([0]), 1.0)


WRONG = [
    ("08.1", lambda x, t: probabilities(x, t)[0], "shape should be"),
    ("08.2", lambda x, p: top_p(x, p)[..., :1], "shape should be"),
    ("08.3", piece_by_piece, "in each piece alone"),
    ("08.3", shows_too_much, "had shown the beginning"),
    ("08.3", all_at_once, "one piece at the end"),
    ("08.3", always_late, "right but late"),
    ("08.3", streamer(ends="range(1, len(held) + 1)"), "the longest first"),
    ("08.3", streamer(rest=False), "give it out then"),
    ("08.3", streamer(upto="0"), "in front of the stop string"),
    ("08.3", streamer(at="found[0]"), "not in the list"),
    ("08.3", streamer(upto="at + [len(s) for s in stop if held.startswith(s, at)][0]"), "the stop string itself"),
    ("08.3", lambda *_: None, "returns nothing"),
    ("08.4", uniform, "min-p keeps 1000 tokens"),
    ("08.4", as_probabilities, "these look like probabilities"),
    ("08.4", too_sure, "fairly sure"),
    ("08.4", uneven_tail, "spread the tail"),
    ("08.4", cut_already, "finite"),
    ("08.4", lambda: [0.0] * 1000, "shape (1000,), got list"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer", "message"), WRONG)
def test_a_mistake_is_named(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message, result.message


def test_a_stream_may_be_a_list():
    assert check("08.3", lambda pieces, stop: list(until_stop(pieces, stop)))
    assert math.isclose(float(min_p_trap().softmax(0).max()), 0.08, abs_tol=0.02)


# ---- 08.3: pieces cut at other places, other spellings, several mistakes at once ----


def letter_by_letter(pieces, stop):
    """Right: each letter that is sure comes alone."""
    for text in until_stop(pieces, stop):
        yield from text


def pattern(pieces, stop):
    """Right: by regular expressions, a stop string or the beginning of one at the end."""
    whole = re.compile("|".join(map(re.escape, stop)))
    begun = re.compile("(?:" + "|".join(re.escape(s[:n]) for s in sorted(stop, key=len, reverse=True)
                                        for n in range(len(s) - 1, 0, -1)) + ")$")  # fmt: skip
    held = ""
    for piece in pieces:
        held += piece
        if found := whole.search(held):
            yield held[: found.start()]  # empty at times
            return
        begin = min((m.start() for i in range(len(held)) if (m := begun.match(held, i))), default=len(held))
        yield held[:begin]
        held = held[begin:]
    yield held


def collected(pieces, stop):
    """Right: a list, filled while reading."""
    out = []
    for text in until_stop(pieces, stop):
        out += [text[:1], text[1:]]
    return out


@pytest.mark.parametrize("answer", [until_stop, letter_by_letter, pattern, collected, streamer()])
def test_a_right_stream_passes_wherever_it_is_cut(answer):
    assert check("08.3", answer), check("08.3", answer).message


def split_at_the_end(pieces, stop):
    """Reads everything, then cuts, and gives it out letter by letter."""
    yield from all_at_once(list(pieces), stop)[0:1]


def to_the_end(pieces, stop):
    """The right text at the right time, but the loop goes on."""
    pieces = iter(pieces)
    yield from until_stop(pieces, stop)
    while next(pieces, None) is not None:
        pass


def marked_and_read_on(pieces, stop):
    text, shown, over = "", 0, False
    for piece in pieces:
        if over:
            continue
        text += piece
        ends = [text.find(s) for s in stop if s in text]
        over = bool(ends)
        safe = min(ends) if ends else next((n for n in range(shown, len(text))
                                            if any(s.startswith(text[n:]) for s in stop)), len(text))  # fmt: skip
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    if not over and text[shown:]:
        yield text[shown:]


def by_list(pieces, stop):
    return until_stop([*pieces], stop)


def one_piece_late(pieces, stop):
    waiting = []
    for text in until_stop(pieces, stop):
        yield from waiting
        waiting = [text]
    yield from waiting


def late_by_length(pieces, stop):
    text, shown, most = "", 0, max(map(len, stop)) - 1
    for piece in pieces:
        text += piece
        if ends := [text.index(s) for s in stop if s in text]:
            if min(ends) > shown:
                yield text[shown : min(ends)]
            return
        if len(text) - most > shown:
            yield text[shown : len(text) - most]
            shown = len(text) - most
    if shown < len(text):
        yield text[shown:]


@pytest.mark.parametrize(
    ("answer", "message", "n"),
    [
        (by_list, "go on reading", 3), (to_the_end, "go on reading", 4), (marked_and_read_on, "go on reading", 4),
        (split_at_the_end, "one piece at the end", 3), (late_by_length, "right but late: you always", 4),
        (always_late, "right but late: you always", 4), (one_piece_late, "each piece waits", 4),
        (piece_by_piece, "in each piece alone", 4), (streamer(ends="[]"), "in each piece alone", 4),
        (streamer(upto="at + max(len(s) for s in stop if held.startswith(s, at))"), "the stop string itself", 4),
    ],
)  # fmt: skip
def test_a_late_or_hasty_stream_is_named_in_each_spelling(answer, message, n):
    result = check("08.3", answer)
    assert not result and message in result.message, result.message
    assert f"{n} of 5 properties hold" in result.message, result.message


@pytest.mark.parametrize(
    ("answer", "messages"),
    [
        (streamer(rest=False, at="found[0]"), ("give it out then", "not in the list")),
        (streamer(ends="range(1, len(held) + 1)", upto="0"), ("in front of the stop string",)),
        (lambda pieces, stop: streamer(rest=False)(list(pieces), stop), ("give it out then", "go on reading")),
        (lambda pieces, stop: always_late(list(pieces), stop), ("go on reading",)),
        (streamer(ends="range(1, len(held) + 1)", rest=False), ("the longest first", "give it out then")),
    ],
)
def test_two_mistakes_of_a_stream_are_both_named(answer, messages):
    result = check("08.3", answer)
    assert not result and all(m in result.message for m in messages), result.message
