"""Multiple choice beside the harness's own hf backend: the same questions, in turn, and whether they agree.

Three forms that tasks have: four answers of several words, the same behind five worked examples, and four letters. What
is gained is reading: hf reads the question once for each answer, and the examples with each; both read it once for
letters. Each figure is a median over rounds, with both sides in turn. Used in notebook 17.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from llamamm.errors import InputError, counted
from llamamm.evals.harness import harness_class
from llamamm.evals.report import OURS, THEIRS, Report, Row
from llamamm.evals.score_card import Say
from llamamm.evals.speed import import_transformers, require_theirs
from llamamm.pretrained.locate import locate

THINGS = ("river", "mill", "boat", "city", "hill", "valley", "stream", "sea", "spring", "field")
ANSWERS = ("turns the wheel of the old {}", "carries the boats down to the {}", "is never seen again near the {}",
           "gathers at the foot of the {} and waits")  # fmt: skip
FORMS = {"choice": "four answers of several words", "shots": "the same after five examples", "letters": "four letters"}
FEWER = {"shots": 4}  # one question in four: each is read with five examples

Pair = tuple[str, str]  # context, continuation


def run_harness_bench(
    model: str, *, device: torch.device, questions: int = 20, repeats: int = 3, batch_size: int = 8,
    say: Say = lambda _title, _n, _all: None,
) -> Report:  # fmt: skip
    """Questions a second of both sides, in fp32. Rows: choice, shots, letters. batch_size: hf's; ours goes by tokens.

    Raises InputError for what cannot be measured, MissingDependencyError without lm_eval or transformers.
    """
    if min(questions, repeats, batch_size) < 1:
        raise InputError("bench needs 1 question or more, 1 round or more, and a batch of 1 or more")
    path = locate(model)
    require_theirs(path)
    made, rows, notes = _both(path, device, batch_size), [], []
    score: dict[str, list[tuple[float, bool]]] = {}
    for form, what in FORMS.items():
        n = max(1, questions // FEWER.get(form, 1))
        asked, values = pairs(form, n), {OURS: [], THEIRS: []}
        for lm in made.values():
            _ask(lm, asked[:4])  # warm up
        for done in range(repeats):
            say(what, done, repeats)
            for side, lm in made.items():
                start = time.perf_counter()
                score[side] = _ask(lm, asked)
                values[side].append(n / (time.perf_counter() - start))
        say(what, repeats, repeats)
        rows.append(Row(form, f"{what}, questions/s", values))
        notes.append(f"{form}: {_agreement(score[OURS], score[THEIRS])}")
    title = f"{model}, float32 on {device}, {torch.get_num_threads()} threads; {counted(repeats, 'round')}, medians"
    return Report(title, rows, notes, {OURS: OURS, THEIRS: "lm_eval's hf"})


def pairs(form: str, n: int) -> list[Pair]:
    """(context, continuation) of n questions with four answers each, in one of FORMS."""
    shots = "".join(f"{_question(k)} {_answers(k)[k % 4]}\n\n" for k in range(n, n + 5)) if form == "shots" else ""
    found = []
    for k in range(n):
        if form == "letters":
            listed = "".join(f"\n{letter}. {answer}" for letter, answer in zip("ABCD", _answers(k), strict=True))
            found += [(f"{_question(k)}{listed}\nThe letter is", f" {letter}") for letter in "ABCD"]
        else:
            found += [(f"{shots}{_question(k)}", f" {answer}") for answer in _answers(k)]
    return found


def _question(k: int) -> str:
    first, second, third = (THINGS[(k * step + step) % len(THINGS)] for step in (1, 3, 7))
    return (f"{k}. Nobody who steps over the {first} would guess what becomes of it: past the {second} it grows, slows "
            f"down in the plain, and in a dry summer it hardly reaches the {third}. In spring the water")  # fmt: skip


def _answers(k: int) -> list[str]:
    return [answer.format(THINGS[(k + n) % len(THINGS)]) for n, answer in enumerate(ANSWERS)]


def _both(path: Path, device: torch.device, batch_size: int) -> dict[str, Any]:
    ours = harness_class()  # the first to say what is not installed
    import_transformers()
    from lm_eval.models.huggingface import HFLM

    return {OURS: ours(pretrained=str(path), dtype="float32", device=str(device)),
            THEIRS: HFLM(str(path), dtype="float32", device=str(device), batch_size=batch_size)}  # fmt: skip


def _ask(lm: Any, asked: list[Pair]) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def _agreement(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> str:
    """How far log-likelihoods differ, and how often the best of four is the same."""
    furthest = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    same = [_best(ours[k : k + 4]) == _best(theirs[k : k + 4]) for k in range(0, len(ours), 4)]
    return f"log-likelihoods differ by {furthest:.1e} at most; {sum(same)} of {len(same)} choices are the same"


def _best(answers: list[tuple[float, bool]]) -> int:
    return max(range(4), key=lambda n: answers[n][0])
