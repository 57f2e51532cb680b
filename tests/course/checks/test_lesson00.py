"""course.checks.lesson00: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch

from llamamm.course.checks import check

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


def divided_by_sum(scores):
    return scores / scores.sum()


def without_sum(scores):
    return torch.exp(scores)


def by_the_largest(scores):
    powers = torch.exp(scores)
    return powers / powers.max()


def by_the_sum_of_scores(scores):
    return torch.exp(scores) / torch.sum(scores)


def powers_of_two(scores):
    powers = torch.pow(2.0, scores)
    return powers / powers.sum()


def first_position(logits):
    return logits[0][0].argmax().item()


def flattened(logits):
    return torch.argmax(logits).item()


def best_score(logits):
    return logits[0, -1].max().item()


def every_position(logits):
    return [int(row.argmax()) for row in logits[0]]


def worst(logits):
    return (-logits[0, -1]).argmax().item()


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


def from_zero(scores, token):
    return (scores > scores[:, token : token + 1]).sum(1)


def with_itself(scores, token):
    return (scores >= scores[:, token : token + 1]).sum(1) + 1


def ties_are_better(scores, token):
    return (scores >= scores[:, token].unsqueeze(1)).sum(1)


def from_below(scores, token):
    return (scores[:, token].unsqueeze(1) > scores).sum(1) + 1


def who_stands_there(scores, token):
    return scores.sort(dim=1, descending=True).indices[:, token] + 1


def only_the_first_row(scores, token):
    return (scores[0] > scores[0][token]).sum() + 1


def first_rows_score(scores, token):
    return (scores > scores[0][token]).sum(1) + 1


WRONG = [
    ("00.1", divided_by_sum, "you divided the scores by their sum"),
    ("00.1", without_sum, "and stopped"),
    ("00.1", by_the_largest, "largest instead of the sum"),
    ("00.1", by_the_sum_of_scores, "the sum of the scores"),
    ("00.1", powers_of_two, "you raised 2"),
    ("00.1", lambda s: torch.log_softmax(s, 0), "logarithm"),
    ("00.1", lambda s: abs(s) / abs(s).sum(), "without their sign"),
    ("00.1", lambda s: s.softmax(0)[:, None], "shape should be"),
    ("00.2", first_position, "the first position"),
    ("00.2", flattened, "argmax without a position"),
    ("00.2", best_score, "the best score itself"),
    ("00.2", every_position, "at every position"),
    ("00.2", worst, "lowest score"),
    ("00.2", lambda x: x[0, :, -1].argmax().item(), "chose a position"),
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
    ("00.4", from_zero, "begin at 0"),
    ("00.4", with_itself, "the token itself"),
    ("00.4", ties_are_better, "equal scores as better"),
    ("00.4", from_below, "lower score"),
    ("00.4", who_stands_there, "argsort says which token"),
    ("00.4", only_the_first_row, "first row alone"),
    ("00.4", first_rows_score, "compared every row"),
    ("00.4", lambda s, t: places(s, t).float(), "dtype"),
    ("00.5", lambda *_: 100.0, "so far apart"),
    ("00.5", lambda *_: 0.1, "other direction"),
    ("00.5", lambda *_: -50.0, "turns the order"),
    ("00.5", lambda *_: 0, "above 0"),
    ("00.5", lambda *_: math.inf, "finite"),
    ("00.5", lambda scores, _: scores, "one number"),
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
