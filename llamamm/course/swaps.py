"""After an exercise, the real model runs on what was just written, and one line says how it went.

    in_real_model("04.3", apply_rope)

prints what SmolLM2 says with your `apply_rope`, the largest difference of its logits from those with the package's,
and what that means. An exercise that is still to be written is passed on as it is; whatever else your part raises
inside the model is the verdict.
"""

from __future__ import annotations

from typing import Any

from llamamm.course import (
    swaps_evaluation,
    swaps_eye,
    swaps_faster,
    swaps_llama32_vision,
    swaps_safety,
    swaps_seeing,
    swaps_senses,
    swaps_speech,
    swaps_stages,
    swaps_text,
    swaps_weights,
)
from llamamm.course.blanks import is_blank
from llamamm.course.checks import find_exercise
from llamamm.course.checks.compare import describe, explained
from llamamm.course.checks.limits import OutOfTimeError, run_limited
from llamamm.course.checks.watch import Watch
from llamamm.course.swaps_verdict import Verdict
from llamamm.errors import InputError

PARTS = (swaps_text, swaps_weights, swaps_senses, swaps_eye, swaps_speech, swaps_seeing, swaps_llama32_vision,
         swaps_stages, swaps_evaluation, swaps_safety, swaps_faster)  # fmt: skip
SWAPS = dict(sorted(item for part in PARTS for item in part.SWAPS.items()))
SECONDS = 120.0  # a right answer takes a few; this ends a loop that never does


def in_real_model(exercise_id: str, answer: Any) -> None:
    """Run the real model on an answer and print the verdict. Raises InputError for an exercise without a swap."""
    print(verdict(exercise_id, answer))


def verdict(exercise_id: str, answer: Any, *, seconds: float = SECONDS) -> Verdict:
    """The verdict itself. A blank's NotImplementedError comes through, and so does what no answer can have caused."""
    if exercise_id not in SWAPS:
        raise InputError(f"no real model for exercise {exercise_id!r}; there is one for {', '.join(SWAPS)}")
    name = getattr(answer, "__name__", "answer")
    if not callable(answer):
        wanted = find_exercise(exercise_id).name
        return Verdict(False, f"give the function or class itself, {wanted}, not {describe(answer)}")
    watch = Watch()
    outcome = run_limited(lambda: SWAPS[exercise_id](watch.over(answer)), seconds)
    error = outcome.error
    if isinstance(error, KeyboardInterrupt) or is_blank(error):
        raise error
    if watch.returns_nothing and not (error is None and outcome.value.same):
        return Verdict(False, f"the real model with your {name}: it returns nothing; is the `return` missing?")
    if error is None:
        return outcome.value
    if isinstance(error, OutOfTimeError):
        return Verdict(False, f"the real model with your {name}: still running after {seconds:g} seconds")
    return Verdict(False, f"the real model with your {name}: {explained(error)}")
