"""course.checks.lesson00: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch

from llamamm.course.checks import check
from tests.course.checks.ways import assert_right, assert_told

# ---- right answers ----


def softmax(scores):
    largest = scores.max()  # nothing changes if all scores move together
    powers = [math.exp(s - largest) for s in scores]
    return torch.tensor([p / sum(powers) for p in powers])


def next_id(logits):
    last = logits[0][-1].tolist()
    return last.index(max(last))


def greedy(next_logits, ids, stop_ids, max_new):
    text = list(ids)
    while len(text) < len(ids) + max_new:
        best = torch.argmax(next_logits(text)).item()
        if best in stop_ids:
            return text[len(ids) :]
        text.append(best)
    return text[len(ids) :]


def places(scores, token):
    return torch.tensor([1 + sum(x > row[token] for x in row) for row in scores.tolist()])


def flat_temperature(scores, limit):
    n = len(scores)
    # the others have at least e^(-spread / T) of the best, so its share is at most 1 / (1 + (n - 1) e^(-spread / T))
    ratio = (1 / (0.999 * limit) - 1) / (n - 1)
    spread = float(scores.max() - scores.min())
    return 1.0 if ratio <= 0 else spread / -math.log(min(ratio, 0.9999))


RIGHT = [("00.1", softmax), ("00.2", next_id), ("00.3", greedy), ("00.4", places), ("00.5", flat_temperature)]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_the_right_answer_passes(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


# ---- wrong answers ----


def softmax_by_torch(scores, has=()):
    powers = torch.exp(scores)
    powers = scores if "no power" in has else abs(scores) if "sign lost" in has else powers
    powers = torch.pow(2.0, scores) if "base 2" in has else powers
    by = torch.max(powers) if "by the largest" in has else sum(scores) if "by the scores" in has else torch.sum(powers)
    probs = powers if "not divided" in has else powers / by
    return torch.log(probs) if "logarithm" in has else probs


def softmax_by_list(scores, has=()):
    numbers = scores.tolist()
    powers = []
    for s in numbers:
        powers.append(s if "no power" in has else (s * s) ** 0.5 if "sign lost" in has else
                      2.0**s if "base 2" in has else math.exp(s))  # fmt: skip
    total = sum(numbers) if "by the scores" in has else max(powers) if "by the largest" in has else sum(powers)
    probs = [p / (1 if "not divided" in has else total) for p in powers]
    return torch.tensor([(math.log(p) if p > 0 else math.nan) if "logarithm" in has else p for p in probs])


def softmax_by_logarithms(scores, has=()):
    if "no power" in has or "sign lost" in has:
        scores = scores if "no power" in has else scores.sign() * scores
        logs, signs = scores.abs().log(), scores.sign()
    else:
        logs, signs = scores * (math.log(2) if "base 2" in has else 1), torch.ones_like(scores)
    by = (signs * logs.exp()).sum()
    by = logs.exp().mul(signs).amax() if "by the largest" in has else by
    by = scores.sum() if "by the scores" in has else torch.ones(()) if "not divided" in has else by
    probs = logs.exp().mul(signs).true_divide(by)
    return probs.log() if "logarithm" in has else probs


def next_by_index(logits, has=()):
    x = logits[0]
    x = x.reshape(-1) if "all" in has else x[:, -1] if "column" in has else x if "every" in has else x[-1]
    x = logits[0][0] if "first" in has else x
    if "score" in has:
        x = x.amin(-1) if "lowest" in has else x.amax(-1)
    else:
        x = x.argmin(-1) if "lowest" in has else x.argmax(-1)
    return x.tolist() if "every" in has else x.item()


def next_by_list(logits, has=()):
    rows = logits[0].tolist()
    best = min if "lowest" in has else max

    def found(row):
        return best(row) if "score" in has else row.index(best(row))

    if "every" in has:
        return [found(row) for row in rows]
    if "all" in has:
        return found([score for row in rows for score in row])
    return found([row[-1] for row in rows] if "column" in has else rows[0 if "first" in has else -1])


def next_by_sorting(logits, has=()):
    scores = logits.squeeze(0)
    if "column" in has:
        scores = scores.T
    if "all" in has:
        scores = scores.reshape(1, -1)
    values, ids = scores.sort(dim=-1, descending="lowest" not in has, stable=True)
    found = (values if "score" in has else ids)[:, 0]
    return found if "every" in has else found[0 if "first" in has else -1].item()


def places_by_comparing(scores, token, has=()):
    own = scores[:, token : token + 1]
    own = own[0] if "first row's score" in has else own
    better = torch.ge(scores, own) if {"itself", "ties"} & {*has} else torch.gt(scores, own)
    if "lower" in has:
        better = torch.le(scores, own) if {"itself", "ties"} & {*has} else torch.lt(scores, own)
    place = better.sum(1) + (0 if "ties" in has else 1)
    if "argsort" in has:
        place = scores.sort(dim=1, descending=True).indices[:, token] + 1
    place = place - 1 if "from 0" in has else place
    return place[0] if "first row" in has else place


def places_by_loop(scores, token, has=()):
    out = []
    for row in scores.tolist():
        own = scores[0, token].item() if "first row's score" in has else row[token]
        place = 0 if "ties" in has else 1
        for other in row:
            above = other < own if "lower" in has else other > own
            place += above or (other == own and ("itself" in has or "ties" in has))
        if "argsort" in has:
            place = sorted(range(len(row)), key=lambda i, row=row: -row[i])[token] + 1
        out.append(place - ("from 0" in has))
    return torch.tensor(out[:1] * len(out) if "first row" in has else out)


def places_by_sorting(scores, token, has=()):
    way = 1 if "lower" in has else -1
    ordered, ids = (way * scores).sort(dim=1, stable=True)
    own = way * scores[[0] * len(scores) if "first row's score" in has else range(len(scores)), token]
    place = torch.searchsorted(ordered, own[:, None].contiguous(), right=bool({"itself", "ties"} & {*has}))[:, 0]
    place = ids[:, token] if "argsort" in has else place - ("ties" in has) * 1
    place = place + ("from 0" not in has)
    return place[:1] if "first row" in has else place


# ---- 00.3 in three ways: one list that grows, a function that calls itself, tensors ----


def most_new(ids, max_new, has):
    return max(max_new - len(ids), 0) if "whole length" in has else max_new + ("one more" in has)


def greedy_by_list(next_logits, ids, stop_ids, max_new, has=()):
    prompt, most = list(ids), most_new(ids, max_new, has)
    text = ids if "caller's list" in has else list(ids)
    while len(text) < len(prompt) + most:
        best = int(next_logits(prompt if "same prompt" in has else text[-1:] if "newest" in has else text).argmax())
        if best in stop_ids and not {"went on", "left out"} & {*has}:
            if "stop kept" in has:
                text.append(best)
            break
        text.append(best)
    new = [i for i in text[len(prompt) :] if "left out" not in has or i not in stop_ids]
    return prompt + new if "prompt back" in has else new


def greedy_by_recursion(next_logits, ids, stop_ids, max_new, has=()):
    def after(new):
        if len(new) >= most_new(ids, max_new, has):
            return new
        read = [*ids, *new][-1:] if "newest" in has else [*ids] if "same prompt" in has else [*ids, *new]
        best = max(enumerate(next_logits(read).tolist()), key=lambda pair: pair[1])[0]
        if best in stop_ids and "went on" not in has and "left out" not in has:
            return [*new, best] if "stop kept" in has else new
        return after([*new, best])

    new = after([])
    if "left out" in has:
        new = list(filter(lambda i: i not in stop_ids, new))
    whole = [*ids, *new]
    if "caller's list" in has:
        ids.extend(new)
    return whole if "prompt back" in has else new


def greedy_by_growing_tensors(next_logits, ids, stop_ids, max_new, has=()):
    prompt = torch.tensor(ids)
    text, begin = prompt.clone(), len(ids)
    for _ in range(most_new(ids, max_new, has)):
        read = prompt if "same prompt" in has else text[len(text) - 1 :] if "newest" in has else text
        best = next_logits(read.tolist()).topk(1).indices
        text = torch.cat([text, best])
        if {"went on", "left out"} & {*has} or best.item() not in stop_ids:
            continue
        text = text if "stop kept" in has else text[:-1]
        break
    if "left out" in has:
        is_stop = torch.isin(text, torch.tensor(sorted(stop_ids), dtype=torch.long))
        text = text[~is_stop | (torch.arange(len(text)) < begin)]
    if "caller's list" in has:
        ids[begin:] = text[begin:].tolist()
    return text.tolist() if "prompt back" in has else text[begin:].tolist()


WAYS = {
    "00.1": (softmax_by_torch, softmax_by_list, softmax_by_logarithms),
    "00.2": (next_by_index, next_by_list, next_by_sorting),
    "00.3": (greedy_by_list, greedy_by_recursion, greedy_by_growing_tensors),
    "00.4": (places_by_comparing, places_by_loop, places_by_sorting),
}
TOLD = {
    "00.1": {"no power": "divided the scores by their sum", "sign lost": "without their sign", "base 2": "raised 2",
             "not divided": "and stopped", "by the largest": "largest instead of the sum",
             "by the scores": "by the sum of the scores", "logarithm": "These are the logarithm"},
    "00.2": {"first": "the first position", "all": "argmax without a position", "every": "at every position",
             "column": "chose a position", "score": "gave the score itself", "lowest": "looked for the lowest"},
    "00.3": {"same prompt": "same prompt in every round", "newest": "only the newest id",
             "stop kept": "the stop id is among", "went on": "you went on after a stop id",
             "left out": "left the stop id out", "whole length": "without those of the prompt",
             "one more": "one id more", "prompt back": "the prompt back", "caller's list": "changed the caller's list"},
    "00.4": {"from 0": "begin at 0", "itself": "the token itself", "ties": "equal scores as better",
             "lower": "lower score", "argsort": "argsort says which token", "first row": "first row alone",
             "first row's score": "compared every row"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "00.1": [
        {"no power", "sign lost", "base 2"},  # each says what becomes of a score
        {"not divided", "by the largest", "by the scores"},  # each says what it is divided by
        {"no power", "by the scores"},  # scores by their sum: that is "no power" alone
        {"no power", "not divided"},  # the scores come back as they are
        {"not divided", "logarithm"},  # the logarithm of a power is the score again
    ],
    "00.2": [{"first", "all", "every", "column"}],  # each says over which scores the best is looked for
    "00.3": [
        {"same prompt", "newest"},  # each says what the model reads
        {"stop kept", "went on", "left out"},  # each says what becomes of a stop id
        {"whole length", "one more"},  # both move the same limit
    ],
    "00.4": [
        {"from 0", "itself"},  # from 0, and itself counted: the places are right but for equal scores
        {"itself", "ties"},  # the token itself is one of the equal scores
        *({"argsort", other} for other in ("itself", "ties", "lower", "first row's score")),
        # argsort gives a token and compares no scores
        {"first row", "first row's score"},  # of the first row alone the score is its own
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def stop_kept(next_logits, ids, stop_ids, max_new):
    new = []
    for _ in range(max_new):
        new.append(next_logits([*ids, *new]).argmax().item())
        if new[-1] in stop_ids:
            break
    return new


def prompt_kept(next_logits, ids, stop_ids, max_new):
    return list(ids) + greedy(next_logits, ids, stop_ids, max_new)


def never_fed_back(next_logits, ids, stop_ids, max_new):
    new = []
    for _ in range(max_new):
        best = next_logits(ids).argmax().item()
        if best in stop_ids:
            return new
        new.append(best)
    return new


def newest_only(next_logits, ids, stop_ids, max_new):
    new = []
    for _ in range(max_new):
        best = next_logits([(ids + new)[-1]]).argmax().item()
        if best in stop_ids:
            return new
        new.append(best)
    return new


def appends_to_the_callers(next_logits, ids, stop_ids, max_new):
    start = len(ids)
    while len(ids) - start < max_new:
        best = next_logits(ids).argmax().item()
        if best in stop_ids:
            break
        ids.append(best)
    return ids[start:]


def whole_length(next_logits, ids, stop_ids, max_new):
    text = list(ids)
    while len(text) < max_new:
        best = next_logits(text).argmax().item()
        if best in stop_ids:
            break
        text.append(best)
    return text[len(ids) :]


def deaf_to_stop(next_logits, ids, _, max_new):
    new = []
    for _ in range(max_new):
        new.append(next_logits(ids + new).argmax().item())
    return new


def only_left_out(next_logits, ids, stop_ids, max_new):
    return [i for i in deaf_to_stop(next_logits, ids, stop_ids, max_new) if i not in stop_ids]


def one_too_many(next_logits, ids, stop_ids, max_new):
    new = []
    while len(new) <= max_new:
        best = next_logits(ids + new).argmax().item()
        if best in stop_ids:
            break
        new.append(best)
    return new


WRONG = [
    ("00.1", lambda s: s.softmax(0)[:, None], "shape should be"),
    ("00.2", lambda x: str(next_id(x)), "should be a number"),
    ("00.3", stop_kept, "the stop id is among"),
    ("00.3", prompt_kept, "the prompt back"),
    ("00.3", never_fed_back, "same prompt in every round"),
    ("00.3", newest_only, "only the newest id"),
    ("00.3", appends_to_the_callers, "changed the caller's list"),
    ("00.3", whole_length, "without those of the prompt"),
    ("00.3", deaf_to_stop, "went on after a stop id"),
    ("00.3", one_too_many, "one id more"),
    ("00.3", only_left_out, "left the stop id out"),
    ("00.3", lambda *_: None, "returns nothing"),
    ("00.4", lambda s, t: places(s, t).float(), "dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer", "message"), WRONG)
def test_a_mistake_is_named(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message, result.message


def test_a_loop_without_end_is_stopped():
    def endless(*arguments):
        while arguments:
            pass

    assert "still running" in check("00.3", endless, seconds=0.3).message


# ---- 00.3, in different spellings, and several mistakes at once ----


def all_in_one_list(next_logits, ids, stop_ids, max_new):
    """Three beginner's errors: the stop id stays, the prompt comes back, the caller's list grows."""
    for _ in range(max_new):
        ids.append(int(next_logits(ids).argmax()))
        if ids[-1] in stop_ids:
            break
    return ids


def greedy_by_tensors(next_logits, ids, stop_ids, max_new):
    new = torch.tensor([], dtype=torch.int64)
    while len(new) < max_new:
        best = next_logits(ids + new.tolist()).topk(1).indices
        if best.item() in stop_ids:
            return new.tolist()
        new = torch.cat((new, best))
    return new.tolist()


def greedy_of(*, fed="ids + new", stop="before", limit="len(new) < max_new", back="new", own=True):
    """The solution with one place or several changed, as a learner would have typed it."""

    def greedy(next_logits, ids, stop_ids, max_new):
        new = []
        names = {"len": len, "list": list}
        while eval(limit, names, {"ids": ids, "new": new, "max_new": max_new}):
            best = int(next_logits(eval(fed, names, {"ids": ids, "new": new})).argmax())
            if stop == "before" and best in stop_ids:
                break
            new.append(best)
            if stop == "after" and best in stop_ids:
                break
        if not own:
            ids += new
        return eval(back, names, {"ids": ids, "new": new})

    return greedy


SPELLINGS = {
    "the stop id is among": (stop_kept, greedy_of(stop="after")),
    "you went on after a stop id": (deaf_to_stop, greedy_of(stop="never")),
    "same prompt in every round": (never_fed_back, greedy_of(fed="ids")),
    "only the newest id": (newest_only, greedy_of(fed="(ids + new)[-1:]"),
                           greedy_of(fed="[new[-1] if new else ids[-1]]")),
    "without those of the prompt": (whole_length, greedy_of(limit="len(ids + new) < max_new"),
                                    greedy_of(limit="len(new) + len(ids) <= max_new - 1")),
    "one id more": (one_too_many, greedy_of(limit="len(new) <= max_new"), greedy_of(limit="len(new) - 1 < max_new")),
    "the prompt back": (prompt_kept, greedy_of(back="ids + new"), greedy_of(back="[*ids, *new]")),
    "changed the caller's list": (appends_to_the_callers, greedy_of(own=False)),
}  # fmt: skip


@pytest.mark.parametrize(("message", "answer"), [(m, a) for m, answers in SPELLINGS.items() for a in answers])
def test_a_mistake_of_the_loop_is_named_in_each_spelling_and_alone(message, answer):
    result = check("00.3", answer)
    assert not result and message in result.message and "4 of 5 properties hold" in result.message, result.message


@pytest.mark.parametrize("answer", [greedy, greedy_by_tensors, greedy_of(), greedy_of(fed="[*ids, *new]")])
def test_a_right_loop_passes_in_each_spelling(answer):
    assert check("00.3", answer), check("00.3", answer).message


PAIRS = [
    ({"stop": "after", "back": "ids + new"}, ("the stop id is among", "the prompt back")),
    ({"stop": "never", "limit": "len(new) <= max_new"}, ("you went on after a stop id", "one id more")),
    ({"stop": "never", "fed": "ids"}, ("you went on after a stop id", "same prompt in every round")),
    ({"fed": "(ids + new)[-1:]", "back": "ids + new"}, ("only the newest id", "the prompt back")),
    ({"stop": "after", "limit": "len(ids + new) < max_new"}, ("the stop id is among", "without those of the prompt")),
    ({"fed": "ids", "own": False}, ("same prompt in every round", "changed the caller's list")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "messages"), PAIRS)
def test_two_mistakes_of_the_loop_are_both_named(changes, messages):
    result = check("00.3", greedy_of(**changes))
    assert not result and "3 of 5 properties hold" in result.message, result.message
    assert all(message in result.message for message in messages), result.message


def test_three_mistakes_at_once_are_three_sentences():
    message = check("00.3", all_in_one_list).message
    for words in ("the stop id is among", "the prompt back", "changed the caller's list"):
        assert words in message, message
    assert "(tuple)" not in message and "2 of 5 properties hold" in message


# ---- 00.5: an answer is one number, so it has one fault, in three spellings ----


def flat_by_halving(scores, limit):
    low, high = 1e-3, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if (scores / middle).softmax(0).amax() < limit else (middle, high)
    return torch.tensor(2 * high)


def flat_by_width(scores, limit):
    """Even if all scores but the best were as far below it as the last, its share would be below the limit."""
    width = (scores.max() - scores.min()).item()
    return 1.01 * width / math.log(limit * (len(scores) - 1) / (1 - limit))


@pytest.mark.parametrize("answer", [flat_by_halving, flat_by_width, lambda *_: 10**6])
def test_a_flat_temperature_passes_however_it_is_found(answer):
    assert check("00.5", answer), check("00.5", answer).message


TEMPERATURES = {
    "so far apart": (lambda *_: 100.0, lambda scores, _: scores.max(), lambda scores, limit: len(scores) / limit),
    "other direction": (lambda *_: 0.1, lambda _, limit: limit, lambda scores, _: 1 / scores.abs().sum()),
    "turns the order": (lambda *_: -50.0, lambda scores, _: -(scores**2).sum(), lambda _, limit: limit - 1),
    "so it is above 0": (lambda *_: 0, lambda scores, _: scores[0] * 0, lambda _, limit: int(limit)),
    "finite": (lambda *_: math.inf, lambda scores, _: scores.max() / 0, lambda *_: float("nan")),
    "one number": (lambda scores, _: scores, lambda *_: "100", lambda _, limit: [limit]),
}


@pytest.mark.parametrize(("message", "answer"), [(m, a) for m, answers in TEMPERATURES.items() for a in answers])
def test_a_temperature_that_is_not_flat_is_named_in_each_spelling(message, answer):
    result = check("00.5", answer)
    assert not result
    others = [other for other in TEMPERATURES if other in result.message and other != message]
    assert message in result.message and not others, result.message
