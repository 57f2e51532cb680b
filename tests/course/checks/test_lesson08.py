"""course.checks.lesson08: right answers pass, and each usual mistake is called by its name."""

import math
import re

import pytest
import torch

from llamamm.course.checks import check

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


def greedy(logits):
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()


def no_case_for_zero(logits, t):
    return torch.softmax(logits / t, dim=-1)


def zero_is_one(logits, t):
    return torch.softmax(logits / (t or 1.0), dim=-1)


def times(logits, t):
    return torch.softmax(logits * t, dim=-1) if t > 0 else greedy(logits)


def times_without_zero(logits, t):
    return torch.softmax(logits * t, dim=-1)


def after_softmax(logits, t):
    return torch.softmax(logits, dim=-1) / t if t > 0 else greedy(logits)


def twice(logits, t):
    return ((logits.softmax(-1) / t).softmax(-1)) if t else greedy(logits)


def down_the_batch(logits, t):
    return torch.softmax(logits / t, dim=0) if t > 0 else greedy(logits)


def zero_to_the_worst(logits, t):
    return torch.softmax(logits / t, dim=-1) if t else greedy(-logits)


def crossing_dropped(logits, p):
    probs, ids = logits.softmax(-1).sort(descending=True)
    cut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, probs.cumsum(-1) >= p)
    return torch.where(cut, CUT, logits)


def crossing_dropped_best_kept(logits, p):
    probs, ids = logits.softmax(-1).sort(descending=True)
    beyond = probs.cumsum(-1) >= p
    beyond[:, 0] = False
    return torch.where(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, beyond), CUT, logits)


def left_sorted(logits, p):
    values, _ = logits.sort(descending=True)
    probs = values.softmax(-1)
    return torch.where(probs.cumsum(-1) - probs >= p, CUT, values)


def sorted_again(logits, p):
    values, ids = logits.sort(descending=True)
    probs = values.softmax(-1)
    return torch.where(probs.cumsum(-1) - probs >= p, CUT, values).gather(-1, ids)


def worst_first(logits, p):
    values, ids = logits.sort()
    probs = values.softmax(-1)
    values[probs.cumsum(-1) - probs >= p] = CUT
    return torch.zeros_like(logits).scatter(-1, ids, values)


def never_sorted(logits, p):
    probs = logits.softmax(-1)
    return torch.where(probs.cumsum(-1) - probs >= p, CUT, logits)


def own_probability(logits, p):
    return torch.where(logits.softmax(-1) < p, CUT, logits)


def like_min_p(logits, p):
    probs = logits.softmax(-1)
    return torch.where(probs < p * probs.max(-1, keepdim=True).values, CUT, logits)


def one_cut_for_all(logits, p):
    return torch.where(top_p(logits, p)[0].isinf(), CUT, logits)


def set_to_zero(logits, p):
    kept = top_p(logits, p)
    return torch.where(kept.isinf(), 0.0, kept)


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
    ("08.1", no_case_for_zero, "at temperature 0 you divided by 0"),
    ("08.1", zero_is_one, "temperature 0 is not 1"),
    ("08.1", zero_to_the_worst, "the worst token"),
    ("08.1", times, "you multiplied by the temperature"),
    ("08.1", times_without_zero, "Temperature 0 is a case of its own, too"),
    ("08.1", after_softmax, "no longer add up to 1"),
    ("08.1", twice, "softmax twice"),
    ("08.1", down_the_batch, "down the batch"),
    ("08.1", lambda x, _: x.softmax(-1), "left the temperature out"),
    ("08.1", lambda x, t: probabilities(x, t)[0], "shape should be"),
    ("08.2", crossing_dropped, "nothing is left"),
    ("08.2", crossing_dropped_best_kept, "the fewest best that reach p together include it"),
    ("08.2", left_sorted, "left the logits sorted"),
    ("08.2", sorted_again, "sorting a second time"),
    ("08.2", worst_first, "the worst first"),
    ("08.2", never_sorted, "in the order of the ids"),
    ("08.2", own_probability, "own probability"),
    ("08.2", like_min_p, "that is min-p"),
    ("08.2", one_cut_for_all, "where the first row is cut"),
    ("08.2", lambda x, p: top_p(x, p).softmax(-1), "you gave probabilities"),
    ("08.2", set_to_zero, "to 0"),
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
