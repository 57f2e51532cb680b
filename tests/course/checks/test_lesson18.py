"""course.checks.lesson18: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import codecs
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from llamamm.course.checks.lesson18 import LETTERS
from llamamm.generation.guarded import GuardedStream, Judgement
from llamamm.safety import measures
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 18.1 in three ways: words in a list, a pattern, a set ----


def blocked_by_a_loop(text, words, has):
    out = False
    text = text if "case" in has else text.lower()
    tokens = text.split() if "punctuation" in has else re.findall(r"\w+", text)
    seen = []
    for word in words[: 1 if "first" in has else None]:
        word = word if "capitals in the list" in has else word.lower()
        seen.append(word in text if "substring" in has else word in tokens)
    out = all(seen) if "all" in has else True in seen
    if "never" in has or "always" in has:
        return "always" in has
    return out is False if "inverted" in has else out


def blocked_by_a_pattern(text, words, has):
    text = text if "case" in has else text.casefold()
    left, right = ("", "") if "substring" in has else (r"\b", r"\b")
    if "punctuation" in has and "substring" not in has:
        left, right = r"(?<!\S)", r"(?!\S)"
    words = words if "capitals in the list" in has else [word.casefold() for word in words]
    found = [bool(re.search(left + re.escape(word) + right, text)) for word in words]
    found = found[:1] if "first" in has else found
    if {"never", "always"} & has:
        return np.bool_("always" in has)
    return bool((min if "all" in has else max)(found)) ^ ("inverted" in has)


def blocked_by_sets(text, words, has):
    text = text if "case" in has else text.lower()
    listed = words if "capitals in the list" in has else [*map(str.lower, words)]
    listed = {listed[0]} if "first" in has else {*listed}
    tokens = {*text.split()} if "punctuation" in has else {*re.split(r"\W+", text)}
    if "never" in has:
        return text in listed and " " in text
    if "always" in has:
        return len(words) > 0
    found = {word for word in listed if word in text} if "substring" in has else listed & tokens
    return (found == listed if "all" in has else len(found) > 0) != ("inverted" in has)


# ---- 18.3 in three ways: lists, arrays, a loop over messages ----


def recall_by_lists(scores, unsafe, rate, has):
    bad, good = ([s for s, u in zip(scores, unsafe, strict=True) if u is kind] for kind in (True, False))
    base = list(scores) if "all messages" in has else bad if "unsafe ones" in has else good
    base = base if "unsorted" in has else sorted(base)[:: 1 if "lowest" in has else -1]
    k = math.ceil(rate * len(base) - 1e-9) if "rounded up" in has else int(rate * len(base) + 1e-9)
    k += 1 if "one further" in has else -1 if "the k-th" in has else 0
    line = base[min(k, len(base) - 1)]
    over = [s for s in bad if s > line or ("at the line" in has and s == line)]
    alarms = [s for s in scores if s > line or ("at the line" in has and s == line)]
    if "precision" in has:
        return len(over) / max(1, len(alarms))
    return len(over) / len(scores if "of all" in has else good if "of the safe" in has else bad)


def recall_by_arrays(scores, unsafe, rate, has):
    scores, unsafe = np.array(scores), np.array(unsafe)
    base = scores if "all messages" in has else scores[unsafe] if "unsafe ones" in has else scores[~unsafe]
    base = base if "unsorted" in has else np.sort(base) if "lowest" in has else -np.sort(-base)
    n = rate * len(base)
    k = int(np.ceil(n - 1e-9)) if "rounded up" in has else int(np.floor(n + 1e-9))
    k = k + ("one further" in has) - ("the k-th" in has)
    flagged = (np.greater_equal if "at the line" in has else np.greater)(scores, base[min(k, len(base) - 1)])
    if "precision" in has:
        return unsafe[flagged].mean() if flagged.any() else 0
    n = len(scores) if "of all" in has else (~unsafe).sum() if "of the safe" in has else unsafe.sum()
    return (flagged & unsafe).sum() / n


def recall_by_tensors(scores, unsafe, rate, has):
    scores, unsafe = torch.tensor(scores, dtype=torch.float64), torch.tensor(unsafe)
    kept = torch.ones_like(unsafe) if "all messages" in has else unsafe if "unsafe ones" in has else ~unsafe
    base = scores[kept] if "unsorted" in has else scores[kept].sort(descending="lowest" not in has).values
    k = int(rate * len(base) + (1 - 1e-9 if "rounded up" in has else 1e-9))
    k = k + 1 if "one further" in has else k - 1 if "the k-th" in has else k
    line = base[min(k, len(base) - 1)]
    over = scores.ge(line) if "at the line" in has else scores.gt(line)
    hit = (over & unsafe).sum()
    if "precision" in has:
        return float(hit / over.sum().clamp(min=1))
    return float(hit / (unsafe.numel() if "of all" in has else ((~unsafe) if "of the safe" in has else unsafe).sum()))


# ---- 18.4 in three ways: pieces, one list that grows, a string cut into pieces ----


def ids_by_pieces(tokenizer, text, has):
    start, end = tokenizer.special_tokens["<|im_start|>"], tokenizer.special_tokens["<|im_end|>"]
    start, end = (1, 2) if "fixed" in has else (start, end)
    if "removed" in has:
        text = re.sub(r"<\|im_(start|end)\|>", "", text)
    words = tokenizer.encode(text, allowed_special="all" if "parsed" in has else ())
    ids = [start] + ([] if "no role" in has else tokenizer.encode("user\n")) + words
    ids += ([] if "no end" in has else [end]) + ([] if "no line" in has else tokenizer.encode("\n"))
    ids += [] if "no header" in has else [start] + tokenizer.encode("assistant\n")
    return tokenizer.encode(tokenizer.decode(ids)) if "all plain" in has else ids


def ids_by_growing(tokenizer, text, has):
    def control(name):
        ids = LETTERS.special_tokens if "fixed" in has else tokenizer.special_tokens
        return tokenizer.encode(name) if "all plain" in has else [ids[name]]

    for name in tokenizer.special_tokens if "removed" in has else ():
        text = text.replace(name, "")
    out = [*control("<|im_start|>")]
    if "no role" not in has:
        out.extend(tokenizer.encode_ordinary("user\n"))
    if "parsed" in has and "all plain" not in has:
        out.extend(tokenizer.encode(text, allowed_special=[*tokenizer.special_tokens]))
    else:
        out.extend(tokenizer.encode_ordinary(text))
    if "no end" not in has:
        out.extend(control("<|im_end|>"))
    if "no line" not in has:
        out.extend(tokenizer.encode_ordinary("\n"))
    if "no header" not in has:
        out.extend([*control("<|im_start|>"), *tokenizer.encode_ordinary("assistant\n")])
    return tuple(out)


def ids_by_a_frame(tokenizer, text, has):
    frame = "<|im_start|>" + "user\n" * ("no role" not in has) + "\0" + "<|im_end|>" * ("no end" not in has)
    frame += "\n" * ("no line" not in has) + "<|im_start|>assistant\n" * ("no header" not in has)
    allowed = () if "all plain" in has else "all"
    before, after = (tokenizer.encode(part, allowed_special=allowed) for part in frame.split("\0"))
    text = text.replace("<|im_end|>", "").replace("<|im_start|>", "") if "removed" in has else text
    middle = tokenizer.encode(text, allowed_special=allowed if "parsed" in has else ())
    fixed = dict(zip(tokenizer.special_tokens.values(), (1, 2), strict=True)) if "fixed" in has else {}
    return torch.tensor([fixed.get(n, n) for n in (*before, *middle, *after)])


# ---- 18.5 in three ways: exponentials, softmax, a sigmoid ----


def score_by_exponentials(logits, safe, unsafe, has):
    ids = (unsafe, safe) if "swapped" in has else (safe, unsafe)
    safe, unsafe = (unsafe, safe) if "swapped" in has else (safe, unsafe)
    z = logits.double()
    if "whole vocabulary" not in has:
        z = z[[safe, unsafe]]
        safe, unsafe = 0, 1
    if "overflow" in has and "whole vocabulary" not in has:
        z = z.float()
    top = 0 if "overflow" in has else z.max()
    e = (z - top).exp()
    a, b = float(z[safe]), float(z[unsafe])
    if "verdict" in has:
        return float(b > a)
    if "difference" in has:
        return b - a
    if "alone" in has or "one" in has:
        return float(z[unsafe].sigmoid()) if "alone" in has else float(z[unsafe : unsafe + 1].softmax(0))
    if "vanishes" in has:
        e = logits.softmax(0)[[*ids]]
        return float(e[unsafe] / e.sum())
    return b / (a + b) if "no exponential" in has else float(e[unsafe] / e.sum())


def score_by_softmax(logits, safe, unsafe, has):
    pair = torch.stack([logits[safe], logits[unsafe]])
    which = 0 if "swapped" in has else 1
    if "one" in has:
        return pair[which].softmax(0)
    if "vanishes" in has:
        p = logits.softmax(0)
        return p[(safe, unsafe)[which]] / (p[safe] + p[unsafe])
    if "verdict" in has:
        return int(pair[which] > pair[1 - which])
    if "difference" in has:
        return pair[which] - pair[1 - which]
    if "no exponential" in has:
        return pair[which] / pair.sum()
    if "alone" in has:
        return torch.sigmoid(pair[which])
    if "whole vocabulary" in has:
        return logits.softmax(-1)[safe if which == 0 else unsafe].item()
    return (pair.exp() / pair.exp().sum() if "overflow" in has else pair.softmax(0))[which]


def score_by_a_sigmoid(logits, safe, unsafe, has):
    z = {"safe": logits[safe].item(), "unsafe": logits[unsafe].item()}
    mine, other = ("safe", "unsafe") if "swapped" in has else ("unsafe", "safe")
    gap = z[mine] - z[other]
    if "verdict" in has:
        return torch.tensor(gap > 0)
    if "one" in has:
        return 1
    if "vanishes" in has:
        p = {kind: math.exp(value - float(logits.max())) for kind, value in z.items()}
        return p[mine] / sum(p.values()) if sum(p.values()) else math.nan
    if "difference" in has:
        return gap
    if "no exponential" in has:
        return z[mine] / sum(z.values())
    if "alone" in has:
        gap = z[mine]
    if "whole vocabulary" in has:
        return math.exp(z[mine] - float(logits.double().logsumexp(0)))
    if "overflow" in has and max(z.values()) > 88 and "alone" not in has:
        return math.nan
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


# ---- 18.6 in three ways: two texts, a list of held pieces, a place up to which it was shown ----


def stream_by_two_texts(pieces, judge, window, has):
    text, held, n, out = "", "", 0, []
    pieces, window = (list(pieces) if "read at once" in has else pieces), (999 if "judged once" in has else window)
    judge = (lambda text, judge=judge: not judge(text)) if "inverted" in has else judge
    judge = (lambda _: False) if "never judged" in has else judge

    def give(what):
        out.append(what)
        return [] if "collected" in has else [what]

    stopped = False
    for piece in pieces:
        text, held, n = text + piece, held + piece, n + 1
        if "shown first" in has:
            yield from give(piece)
        if n == window:
            n = 0
            if judge(held if "window alone" in has else text):
                held = ""
                stopped = "goes on" not in has
                if stopped:
                    break
                continue
            if "shown first" not in has:
                yield from give(text if "again" in has else held)
            held = ""
    if held and not stopped and "rest lost" not in has:
        if "rest unjudged" in has or not judge(held if "window alone" in has else text):
            if "shown first" not in has:
                yield from give(text if "again" in has else held)
    if "collected" in has:
        yield "".join(out)


def stream_by_held_pieces(pieces, judge, window, has):
    """A list, made at once or piece by piece."""
    pieces = iter([*pieces]) if "read at once" in has else pieces
    window = math.inf if "judged once" in has else window

    def is_bad(parts):
        return "never judged" not in has and judge("".join(parts)) != ("inverted" in has)

    def steps():
        before, held = [], []
        for piece in pieces:
            held.append(piece)
            if "shown first" in has:
                yield piece
            if len(held) < window:
                continue
            if is_bad(held if "window alone" in has else before + held):
                if "goes on" not in has:
                    return
            elif "shown first" not in has:
                yield from (before if "again" in has else []) + held
            before, held = before + held, []
        if not held or "rest lost" in has:
            return
        judged = "rest unjudged" in has or not is_bad(held if "window alone" in has else before + held)
        if judged and "shown first" not in has:
            yield from (before if "again" in has else []) + held

    return list(steps()) if "collected" in has else steps()


def stream_by_places(pieces, judge, window, has):
    pieces, text, shown, n, late = iter(tuple(pieces) if "read at once" in has else pieces), "", 0, 0, []
    window = 10**6 if "judged once" in has else window
    if "never judged" in has:
        yield "".join(pieces)
        return
    while True:
        piece = next(pieces, None)
        text, n = text + (piece or ""), n + (piece is not None)
        if piece is not None and "shown first" in has:
            yield piece
        if piece is not None and n % window:
            continue
        if len(text) > shown and (piece is not None or "rest lost" not in has):
            unjudged = piece is None and "rest unjudged" in has
            if not unjudged and judge(text[shown:] if "window alone" in has else text) is not ("inverted" in has):
                if "goes on" not in has:
                    break
            elif "shown first" not in has:
                late.append(text if "again" in has else text[shown:])
                yield from () if "collected" in has else (late.pop(),)
        shown = len(text)
        if piece is None:
            break
    yield from late


WAYS = {
    "18.1": (blocked_by_a_loop, blocked_by_a_pattern, blocked_by_sets),
    "18.3": (recall_by_lists, recall_by_arrays, recall_by_tensors),
    "18.4": (ids_by_pieces, ids_by_growing, ids_by_a_frame),
    "18.5": (score_by_exponentials, score_by_softmax, score_by_a_sigmoid),
    "18.6": (stream_by_two_texts, stream_by_held_pieces, stream_by_places),
}
# what a message must hold, for each fault
TOLD = {
    "18.1": {"substring": "inside of words", "case": "text may be written in capitals",
             "capitals in the list": "the list may have capitals", "punctuation": "sticks to your words",
             "all": "ask for all of the words", "first": "after the first word", "inverted": "true for what may pass",
             "never": "no text at all", "always": "block every text"},
    "18.3": {"all messages": "line from all messages", "unsafe ones": "line from the unsafe",
             "unsorted": "scores that are not sorted", "lowest": "begin with the lowest",
             "rounded up": "rounds down", "the k-th": "line is the k-th", "one further": "line is one too low",
             "at the line": "lies on the line, too", "precision": "share of alarms that are attacks",
             "of all": "divide by all messages", "of the safe": "divide by the number of safe"},
    "18.4": {"parsed": "user only typed", "removed": "names out of the text", "all plain": "are letters, too",
             "no role": "role is missing", "no end": "turn has no end", "no line": "line break stands between",
             "no header": "header is missing", "fixed": "example's tokenizer alone"},
    "18.5": {"whole vocabulary": "among all tokens", "swapped": "probability of safe",
             "no exponential": "divide logits",
             "alone": "logit of unsafe alone", "difference": "difference of two logits", "verdict": "verdict, 0 or 1",
             "one": "always 1", "overflow": "exponentials overflow", "vanishes": "round to 0"},
    "18.6": {"shown first": "before it is judged", "collected": "everything at the end",
             "window alone": "across the border", "rest unjudged": "without being judged", "rest lost": "never shown",
             "goes on": "read on after a refusal", "again": "a second time", "read at once": "read the whole stream",
             "judged once": "judge once", "never judged": "never ask the judge", "inverted": "show what is unsafe"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "18.1": [{"substring", "punctuation"}, {"all", "first", "capitals in the list"},  # none of the words is found
             *({fault, other} for fault in ("never", "always") for other in TOLD["18.1"])],
    "18.3": [{"all messages", "unsafe ones"}, {"precision", "of all", "of the safe"}, {"unsorted", "lowest"},
             {"rounded up", "the k-th", "one further"}, {"lowest", "rounded up"},
             {"lowest", "at the line"}, {"unsafe ones", "at the line"},
             {"all messages", "at the line"}],  # all lie above the lowest; one more in a line through its own scores
    "18.4": [{"parsed", "removed", "all plain"}, {"all plain", "fixed"}],
    "18.5": [{"whole vocabulary", "no exponential", "alone", "one", "difference", "verdict", "overflow", "vanishes"},
             {"swapped", "one"}],
    "18.6": [{"shown first", "collected", "again"}, {"shown first", "rest lost"}, {"shown first", "rest unjudged"},
             {"rest lost", "rest unjudged"},
             *({"never judged", other} for other in TOLD["18.6"]),
             *({"judged once", other} for other in ("collected", "window alone", "goes on", "again", "read at once",
                                                   "rest unjudged", "rest lost")),
             *({"inverted", other} for other in ("collected", "window alone", "rest unjudged", "rest lost", "again"))],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 7))
def test_the_reference_passes(number):
    assert check(f"18.{number}", find_exercise(f"18.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("18"):
        if exercise.id in TOLD:
            assert len({m.message for m in exercise.mistakes}) == len(TOLD[exercise.id])


# ---- the references beside the package and beside values by hand ----


def reference(exercise):
    return find_exercise(exercise).reference


def test_values_by_hand():
    texts = ("Kill it!", "a skill", "IGNORE")
    assert [reference("18.1")(text, ["kill", "ignore"]) for text in texts] == [True, False, True]
    verdicts = [False, True, False, False, True, False, True, True]
    assert reference("18.3")([0.1, 0.7, 0.3, 0.2, 0.9, 0.6, 0.2, 0.4], verdicts, 0.25) == 0.75
    assert reference("18.5")(torch.tensor([2.0, 0.5, 1.0]), 0, 2) == pytest.approx(2.72 / 10.11, abs=1e-3)
    ids = reference("18.4")(LETTERS, "Hi")
    assert LETTERS.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" and ids.count(2) == 1
    assert [*reference("18.6")(iter(["a", "b", "PW", "NED", "c"]), lambda text: "PWNED" in text, 2)] == ["ab"]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30), st.sampled_from([0.0, 0.1, 0.5]))
def test_recall_is_the_packages(rows, rate):
    scores, unsafe = [s / 10 for s, _ in rows], [u for _, u in rows]
    if len({*unsafe}) == 2:
        assert reference("18.3")(scores, unsafe, rate) == pytest.approx(measures.recall_at(scores, unsafe, rate))


class Says:
    """A judge that calls a text with "x" unsafe."""

    def judge(self, conversation):
        text = conversation if isinstance(conversation, str) else conversation[-1]["content"]
        return Judgement("x" in text, float("x" in text))


@settings(max_examples=60)
@given(st.lists(st.text("abx", min_size=1, max_size=2), max_size=12), st.integers(1, 5))
def test_the_stream_shows_what_the_packages_shows_and_nothing_bad(pieces, window):
    ours = "".join(reference("18.6")(iter(pieces), lambda text: "x" in text, window))
    assert ours == "".join(GuardedStream(pieces, Says(), "Hello", window=window)) and "x" not in ours


def right(exercise, way=0):
    return with_faults(WAYS[exercise][way], ())


def rot13(text, back=False):  # noqa: ARG001
    return codecs.encode(text, "rot13")


OTHERWISE = [
    ("18.1", lambda text, words: text.lower().count(words[0]) > 1, "should be"),
    ("18.1", lambda text, words: re.search("|".join(words), text), r"'Kill it' give True or False.*got None"),
    ("18.1", lambda text, words: {*re.findall(r"\w+", text.lower())} & {w.lower() for w in words}, "got {'kill'}"),
    ("18.1", lambda text, words: any(w.lower() in text.lower().replace("!", "").replace(",", "").split()
                                     for w in words), r"\(kill\)"),
    ("18.2", lambda text: text[::-1], "Take a second argument, back=False"),
    ("18.2", lambda text, back=False: text.upper(), "still finds 'ignore'"),  # noqa: ARG005
    ("18.2", lambda text, back=False: "" if back else "?" * len(text), "should come off"),  # noqa: ARG005
    ("18.2", lambda text, back=False: text if back else [*text], "give a text"),
    ("18.2", lambda text, back=False: text.swapcase()[::-1].replace(" ", "_") if not back else text[::-1].swapcase(),
     "should come off"),
    ("18.3", lambda scores, unsafe, rate: right("18.3")(scores, unsafe, rate) + 1, "should be"),
    ("18.3", lambda scores, *more: [scores.sort(), right("18.3")(scores, *more)][1], "changes argument 1"),
    ("18.3", lambda *more: 100 * right("18.3")(*more), "safe 0.6 0.3 0.2 0.1, unsafe 0.9 0.7 0.4 0.2, rate 0.25.*"
                                                       "0.75, got 75"),
    ("18.4", lambda tokenizer, text: tokenizer.decode(right("18.4")(tokenizer, text)), "give a list of ids; got"),
    ("18.4", lambda tokenizer, text: right("18.4")(tokenizer, text)[1:], "begin with 1, got u"),
    ("18.4", lambda tokenizer, text: right("18.4")(tokenizer, text)[:-1], "a n t should come ⏎, got the end"),
    ("18.4", lambda tokenizer, text: right("18.4")(tokenizer, text.strip()), r"after 1 u s e r ⏎ should come ␣, got H"),
    ("18.4", lambda tokenizer, text: [right("18.4")(tokenizer, text)], r"each a number; at \[0\]"),
    ("18.5", lambda z, safe, unsafe: math.exp(z[unsafe]) / (math.exp(z[safe]) + math.exp(z[unsafe])), "overflows"),
    ("18.5", lambda logits, safe, unsafe: right("18.5")(logits, safe, unsafe) / 2, "should be"),
    ("18.6", lambda pieces, judge, window: right("18.6")(pieces, judge, window - 1 or 1),
     "should be: after 2 pieces judged 'ab', shown ''; got: after 1 piece judged 'a', shown ''"),
    ("18.6", lambda pieces, judge, window: ([piece] for piece in pieces), "each yield gives one"),  # noqa: ARG005
    ("18.6", lambda pieces, judge, window: pieces[:window], "read once and in order"),  # noqa: ARG005
    ("18.6", lambda pieces, judge, window: ([] if judge("".join(pieces)) else ["x"]), "should be"),  # noqa: ARG005
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message, re.DOTALL), result.message


def spaced(text, back=False):
    return text.replace("\u200b", "") if back else "\u200b".join(text)


@pytest.mark.parametrize("answer", [rot13, lambda text, back=False: text[::-1], spaced])  # noqa: ARG005
def test_any_coat_that_comes_off_will_do(answer):
    assert check("18.2", answer)


def test_ids_may_come_in_an_array():
    assert check("18.4", lambda tokenizer, text: np.array(right("18.4")(tokenizer, text)))


def test_an_empty_text_may_be_judged_and_shown():
    def at_the_end(pieces, judge, window):
        text = held = ""
        for n, piece in enumerate(pieces, start=1):
            text, held = text + piece, held + piece
            if n % window == 0:
                if judge(text):
                    return
                yield held
                held = ""
        if not judge(text):
            yield held

    assert check("18.6", at_the_end)


def test_an_empty_end_may_be_judged_a_second_time():
    def twice(pieces, judge, window):
        text = held = ""
        for n, piece in enumerate(pieces, start=1):
            text, held = text + piece, held + piece
            if n % window == 0:
                if judge(text):
                    return
                yield held
                held = ""
        if text and not judge(text):
            yield held

    assert check("18.6", twice)
