"""course.checks.lesson16: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 16.1 in three ways: differences, cdist, products ----


def ordered(words, nothing, has):
    parts = [nothing[None], words]
    return torch.cat(parts[::-1] if "nothing last" in has else parts)


def nearness_by_differences(tokens, words, nothing, has):
    places = ordered(words, nothing, has)
    rows = []
    for h in tokens:
        if "dot" in has:
            row = (places * h).sum(-1)
        elif "cosine" in has:
            row = torch.stack([h @ e / (h.norm() * e.norm()) for e in places])
        else:
            row = (places - h).abs().sum(-1) if "absolute" in has else ((places - h) ** 2).sum(-1)
            row = -(row**0.5 if "root" in has else row) * (1.0 if "no half" in has else 0.5)
        rows.append(-row if "sign" in has else row)
    return torch.stack(rows)


def nearness_by_cdist(tokens, words, nothing, has):
    places = ordered(words, nothing, has)
    if "dot" in has:
        near = F.linear(tokens, places)
    elif "cosine" in has:
        near = F.normalize(tokens) @ F.normalize(places).T
    else:
        near = torch.cdist(tokens, places, p=1 if "absolute" in has else 2)
        near = near if {"root", "absolute"} & has else near**2
        near = near.sqrt() if {"root", "absolute"} <= has else near
        near = near.neg().div(1 if "no half" in has else 2)
    return near.neg() if "sign" in has else near


def nearness_by_products(tokens, words, nothing, has):
    places = ordered(words, nothing, has)
    inner = torch.einsum("mc,vc->mv", tokens, places)
    long, short = (x.pow(2).sum(1) for x in (tokens, places))
    if "dot" in has:
        near = inner
    elif "cosine" in has:
        near = inner / (long.sqrt()[:, None] * short.sqrt())
    else:
        far = long[:, None] - 2 * inner + short
        if "absolute" in has:
            far = torch.einsum("mvc->mv", (tokens.unsqueeze(1) - places).abs())
        far = far.clamp(min=0).sqrt() if "root" in has else far
        near = 0 - (far if "no half" in has else far / 2)
    return 0 - near if "sign" in has else near


# ---- 16.2 in three ways: tensors, one word after the other in fp64, a product of what is silent ----


def columns_of(said, has):
    return [*said] if "twice" in has else [*dict.fromkeys(said)]


def words_loss_by_tensors(shares, said, has):
    words = columns_of(said, has)
    p = shares[:, words].exp()
    if "every token" in has:
        told = shares[:, words].sum(0)
    elif "added" in has:
        told = shares[:, words].logsumexp(0)
    elif "best" in has:
        told = shares[:, words].max(0).values
    else:
        told = (-torch.expm1(torch.log1p(-p.clamp(max=1 - 1e-6)).sum(0))).log()
    first = -(told.mean() if "mean of words" in has else told.sum()) * ("no words" not in has)
    allowed = words if "no silence" in has else [0, *words]
    second = shares[:, allowed].logsumexp(1)
    second = second.sum() if "sum of tokens" in has else second.mean()
    return first - second * ("no second" not in has)


def words_loss_word_by_word(shares, said, has):
    p, total, words = shares.double().exp(), 0.0, columns_of(said, has)
    for word in () if "no words" in has else words:
        none, each = 0.0, 0.0
        for row in p:
            none = none + torch.log1p(-row[word].clamp(max=1 - 1e-9))
            each = each + row[word].log()
        told = torch.log(-torch.expm1(none))
        told = each if "every token" in has else p[:, word].sum().log() if "added" in has else told
        told = p[:, word].max().log() if "best" in has else told
        total = total - told / (len(words) if "mean of words" in has else 1)
    if "no second" not in has:
        for row in p:
            some = row[words].sum() + (0 if "no silence" in has else row[0])
            total = total - some.log() / (1 if "sum of tokens" in has else len(p))
    return torch.as_tensor(total).to(shares.dtype)


def words_loss_by_silence(shares, said, has):
    words = torch.tensor(columns_of(said, has))
    picked = shares.double().index_select(1, words)
    silent = (1 - picked.exp().clamp(max=1 - 1e-9)).prod(dim=0)
    rare = torch.where(silent > 1 - 1e-9, picked.logsumexp(0), (1 - silent).clamp(min=1e-300).log())
    told = picked.sum(0) if "every token" in has else picked.exp().sum(0).log() if "added" in has else rare
    told = picked.amax(0) if "best" in has else told
    parts = [] if "no words" in has else [-(told.sum() / (len(words) if "mean of words" in has else 1))]
    counts = torch.bincount(words, minlength=shares.shape[1])
    counts[0] = "no silence" not in has
    kept = (shares.double() + counts.double().log()).logsumexp(1)
    if "no second" not in has:
        parts.append(-(kept.sum() if "sum of tokens" in has else kept.mean()))
    return sum(parts, torch.zeros((), dtype=torch.float64)).to(shares.dtype)


# ---- 16.3 in three ways: the first part, a table of beginnings, a regular expression ----


def part_by_the_first(name, has):
    parts = name.split(".")
    if "whole" not in has and any(part.startswith("lora_") for part in parts):
        return "lora"
    if "wrapped" in has and "base" in parts:
        return "lora"
    if "inside" in has and "layers" in parts:
        return "text"
    if parts[0].endswith(("_tower", "_encoder")):
        return "bridges" if "towers" in has else "towers"
    if parts[0].endswith("_bridge") or parts[0] == "gated" and "gated" not in has:
        return "bridges"
    if parts[0] == "layers" or parts[0] == "gated":
        return "text"
    return "bridges" if "ends" in has else "text"


def part_by_a_table(name, has):
    table = {"image_bridge": "bridges", "audio_bridge": "bridges", "gated": "text" if "gated" in has else "bridges",
             "vision_tower": "bridges" if "towers" in has else "towers",
             "audio_encoder": "bridges" if "towers" in has else "towers", "layers": "text"}  # fmt: skip
    part = table.get(name[: name.index(".")], "bridges" if "ends" in has else "text")
    if "inside" in has and "layers." in name:
        part = "text"
    return "lora" if "lora_" in name and "whole" not in has or ".base." in name and "wrapped" in has else part


def part_by_expressions(name, has):
    rules = [(r"\.lora_[ab]\.", "lora")] * ("whole" not in has) + [(r"\.base\.", "lora")] * ("wrapped" in has)
    rules += [(r"(^|\.)layers\.", "text")] * ("inside" in has)
    rules += [(r"^(vision_tower|audio_encoder)\.", "bridges" if "towers" in has else "towers"),
              (r"^gated\.", "text" if "gated" in has else "bridges"), (r"^\w+_bridge\.", "bridges"),
              (r"^(?!layers\.)", "bridges" if "ends" in has else "text")]  # fmt: skip
    return next((part for rule, part in rules if re.search(rule, name)), "text")


# ---- 16.4 in three ways: neighbours, a loop that remembers, a string ----


def heard_by_neighbours(path, has):
    path = [word for word in path if word != "_"] if "blanks first" in has else path
    kept = [word for word, before in zip(path, [None, *path], strict=False) if word != before or "repeats" in has]
    kept = kept if "blanks" in has else [word for word in kept if word != "_"]
    kept = [word for n, word in enumerate(kept) if word not in kept[:n]] if "once each" in has else kept
    return [*reversed(kept)] if "backwards" in has else kept


def heard_by_a_loop(path, has):
    out, last = [], ""
    for word in path:
        silent = word == "_"
        new = "repeats" in has or word != last
        if new and (not silent or "blanks" in has and "blanks first" not in has):
            if not ("once each" in has and word in out):
                out.insert(0 if "backwards" in has else len(out), word)
        if not (silent and "blanks first" in has):
            last = word
    if "once each" in has and "backwards" in has:
        return out
    return out


def heard_by_a_string(path, has):
    text = "".join(f"<{word}>" for word in path)
    text = text.replace("<_>", "") if "blanks first" in has else text
    text = text if "repeats" in has else re.sub(r"(<[^>]*>)\1+", r"\1", text)
    text = text if "blanks" in has else text.replace("<_>", "")
    words = re.findall(r"<([^>]*)>", text)
    words = sorted({*words}, key=words.index) if "once each" in has else words
    return words[::-1] if "backwards" in has else words


# ---- 16.5 in three ways: logsigmoid, softplus, one pair after the other ----


def preferred_by_logsigmoid(chosen, rejected, chosen_before, rejected_before, beta, has):
    if "crossed" in has:
        chosen_before, rejected_before = rejected_before, chosen_before
    old = 0 if "no reference" in has else 1
    up, down = chosen - old * chosen_before, rejected - old * rejected_before * (1 - 2 * ("parentheses" in has))
    down = down * ("chosen alone" not in has)
    x = down - up if "turned" in has else up - down
    x = x / beta if "divided" in has else x if "no beta" in has else x * beta
    loss = -torch.sigmoid(x) if "no log" in has else -F.logsigmoid(x)
    return -loss if "sign" in has else loss


def preferred_by_softplus(chosen, rejected, chosen_before, rejected_before, beta, has):
    moved = torch.stack([chosen, rejected])
    if "no reference" not in has:
        before = torch.stack([chosen_before, rejected_before])
        before[1] *= -1 if "parentheses" in has else 1
        moved = moved - (before.flip(0) if "crossed" in has else before)
    weights = torch.tensor([1.0, 0.0 if "chosen alone" in has else -1.0]) * (-1 if "turned" in has else 1)
    scale = 1.0 if "no beta" in has else 1 / beta if "divided" in has else beta
    x = scale * torch.einsum("k,kp->p", weights, moved)
    loss = 1 / (1 + (-x).exp()) * -1 if "no log" in has else F.softplus(-x)
    return loss * (-1 if "sign" in has else 1)


def preferred_pair_by_pair(chosen, rejected, chosen_before, rejected_before, beta, has):
    out = []
    for c, r, c0, r0 in zip(chosen, rejected, chosen_before, rejected_before, strict=True):
        c0, r0 = (r0, c0) if "crossed" in has else (c0, r0)
        c0, r0 = (0, 0) if "no reference" in has else (c0, r0)
        r0 = -r0 if "parentheses" in has else r0
        x = float(c - c0 - (0 if "chosen alone" in has else r - r0))
        x = (-x if "turned" in has else x) * (1 if "no beta" in has else 1 / beta if "divided" in has else beta)
        loss = math.log1p(math.exp(-x)) if x > -30 else -x
        loss = -1 / (1 + math.exp(min(-x, 700))) if "no log" in has else loss
        out.append(-loss if "sign" in has else loss)
    return torch.tensor(out)


WAYS = {
    "16.1": (nearness_by_differences, nearness_by_cdist, nearness_by_products),
    "16.2": (words_loss_by_tensors, words_loss_word_by_word, words_loss_by_silence),
    "16.3": (part_by_the_first, part_by_a_table, part_by_expressions),
    "16.4": (heard_by_neighbours, heard_by_a_loop, heard_by_a_string),
    "16.5": (preferred_by_logsigmoid, preferred_by_softplus, preferred_pair_by_pair),
}
# what a message must hold, for each fault
TOLD = {
    "16.1": {"sign": "sign is turned", "no half": "half is missing", "root": "without the root",
             "absolute": "absolute differences", "dot": "h · e alone", "cosine": "leaves lengths out",
             "nothing last": "stands last"},
    "16.2": {"every token": "every token to say every word", "added": "add up the probabilities",
             "best": "surest token alone", "mean of words": "mean over words", "no words": "first part is missing",
             "no second": "second part is missing", "no silence": "is forbidden", "sum of tokens": "a sum over tokens",
             "twice": "counts twice"},
    "16.3": {"whole": "with .lora_ in it", "wrapped": "inside the wrapper", "inside": "A tower has layers",
             "towers": "the eye and the ear themselves", "gated": "Gated blocks join", "ends": "the last norm"},
    "16.4": {"blanks first": "before you look for repeats", "repeats": "repeats the token before it counts once",
             "blanks": "it is no word", "once each": "said again later", "backwards": "opposite order"},
    "16.5": {"no reference": "from before is missing", "crossed": "changed places",
             "parentheses": "Parentheses are missing", "chosen alone": "rejected answer out",
             "turned": "wrong way round", "no beta": "beta is missing", "divided": "divide by beta",
             "no log": "logarithm is missing", "sign": "sign is wrong"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "16.1": [{"dot", "cosine", "no half"}, {"dot", "cosine", "root"}, {"dot", "cosine", "absolute"}],
    "16.2": [
        {"every token", "added", "best", "no words"},  # each says what becomes of a word
        {"no words", "mean of words"}, {"no words", "twice"},
        {"no second", "no silence", "sum of tokens"},
        {"no words", "no second"},  # nothing is left
    ],
    "16.3": [{"towers", "inside"}],  # names of a tower's blocks show one of the two
    "16.4": [{"blanks first", "blanks"}, {"blanks first", "once each"}, {"repeats", "once each"},
             {"repeats", "blanks first"}],  # where all repeats stay, the order of the two steps says nothing
    "16.5": [{"no reference", "crossed", "parentheses"}, {"chosen alone", "parentheses"}, {"no beta", "divided"}],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 7))
def test_the_reference_passes(number):
    assert check(f"16.{number}", find_exercise(f"16.{number}").reference)


def test_probabilities_of_exactly_0_are_loud_and_wrong_too():
    assert check("16.6", one_hot)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("16")[:5]:
        assert len({m.message for m in exercise.mistakes}) == len(TOLD[exercise.id])


def right(exercise, way=0):
    return with_faults(WAYS[exercise][way], ())


def plain_product(shares, said):
    p = shares.exp()
    told = 1 - (1 - p[:, sorted({*said})]).prod(0)
    return -told.log().sum() - p[:, [0, *sorted({*said})]].sum(1).log().mean()


def unclamped(shares, said):
    words = sorted({*said})
    silent = torch.log1p(-shares[:, words].exp()).sum(0)
    return -torch.log(-torch.expm1(silent)).sum() - shares[:, [0, *words]].logsumexp(1).mean()


def plain_with_epsilon(shares, said):
    words, p = sorted({*said}), shares.exp()
    told = 1 - (1 - p[:, words]).prod(0) + 1e-12
    return -told.log().sum() - shares[:, [0, *words]].logsumexp(1).mean()


def without_exp(shares, said):
    words = sorted({*said})
    return -(1 - (1 - shares[:, words]).prod(0)).log().sum() - shares[:, [0, *words]].sum(1).log().mean()


def detached(shares, said):
    whole, second = right("16.2")(shares, said), -shares[:, [0, *sorted({*said})]].logsumexp(1).mean()
    return (whole - second).detach() + second


def longer(said, shares):
    words = sorted({*said})
    said.append(0)
    return right("16.2")(shares, words)


def one_hot(said, n_tokens, n_words):
    wrong = min({*range(1, 1 + n_words)} - {*said})
    columns = [*said, *[wrong] * (n_tokens - len(said))]
    return F.one_hot(torch.tensor(columns), 1 + n_words).float().log()


def never_said(said, n_tokens, n_words):
    shares = torch.full((n_tokens, 1 + n_words), -math.inf)
    shares[range(len(said)), said] = 0.0
    return shares.log_softmax(1)


def silent_tokens(said, n_tokens, n_words):
    shares = torch.full((n_tokens, 1 + n_words), -12.0)
    for n in range(n_tokens):
        shares[n, said[n] if n < len(said) else 0] = 0
    return shares.log_softmax(1)


def only_right(said, n_tokens, n_words):
    return F.one_hot(torch.tensor([said[n % len(said)] for n in range(n_tokens)]), 1 + n_words).mul(12.0).log_softmax(1)


def only_wrong(said, n_tokens, n_words):
    wrong = min({*range(1, 1 + n_words)} - {*said})
    return F.one_hot(torch.full((n_tokens,), wrong), 1 + n_words).mul(12.0).log_softmax(1)


OTHERWISE = [
    ("16.1", lambda *case: right("16.1")(*case)[:, 1:], "shape should be"),
    ("16.1", lambda *case: right("16.1")(*case) + 3, "all numbers: "),
    ("16.1", lambda tokens, words, nothing: tokens - words, "it raised|shape should be|meet as"),  # noqa: ARG005
    ("16.1", lambda tokens, words, nothing: torch.cdist(tokens, torch.cat([nothing, words])),
     r"^((?!must have same number of dim).)*must have same number of dim((?!must have same).)*nothing\[None\]"),
    ("16.1", lambda tokens, *rest: right("16.1")(tokens.mul_(2), *rest), "changes argument 1"),
    ("16.2", plain_product, "rare words: .*log1p"),
    ("16.2", unclamped, "gradient of NaN"),
    ("16.2", plain_with_epsilon, "rare words: .*small number added"),
    ("16.2", without_exp, "rare words: .*[Ss]hares are log-prob"),
    ("16.2", detached, "its gradient is not"),
    ("16.2", lambda shares, said: longer(said, shares), "changes argument 2.*new list"),
    ("16.2", lambda *case: right("16.2")(*case).double().mul(3), "dtype should be|all numbers"),
    ("16.2", lambda *case: right("16.2")(*case)[None], "shape should be"),
    ("16.3", lambda _: "eye", "should be"),
    ("16.3", lambda name: name.split(".")[0], "should be"),
    ("16.4", lambda path: " ".join(path), "should be"),
    ("16.4", lambda path: right("16.4")(path) + ["well"], "all results|form"),
    ("16.4", lambda path: [path.remove("_") for _ in range(path.count("_"))] and right("16.4")(path), "changed the path"
     "|before you look"),
    ("16.5", lambda *case: right("16.5")(*case).mean(), "shape should be"),
    ("16.5", lambda *case: right("16.5")(*case) + 1, "all numbers: "),
    ("16.5", lambda c, r, c0, r0, beta: -torch.sigmoid(beta * (c - c0 - r + r0)).log(), "long answers: .*logsigmoid"),
    ("16.4", lambda path: [w for n, w in enumerate(path) if w not in ("_", path[n - 1])], "^7 of 8.*'a'"),
    ("16.4", lambda path: [a for a, b in zip(path, path[1:], strict=False) if a not in ("_", b)],
     "^(?!.*again later).*part"),
    ("16.5", lambda c, r, c0, r0, beta: -(torch.sigmoid(beta * (c - c0 - r + r0)) + 1e-8).log(),
     "long answers: .*logsigmoid"),
    ("16.6", never_said, "here to nan"),
    ("16.6", silent_tokens, "nothing here.*allowed"),
    ("16.6", only_right, "say a word of the picture"),
    ("16.6", only_wrong, "some token must say each word"),
    ("16.6", lambda said, n, V: torch.zeros(n, V), "log-probabilities"),  # noqa: ARG005
    ("16.6", lambda said, n, V: torch.zeros(n, V + 1), "add up to 1"),  # noqa: ARG005
    ("16.6", lambda *_: [0.5], "got list"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message, re.DOTALL), result.message
