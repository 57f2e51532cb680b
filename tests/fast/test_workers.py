"""fast.workers: every worker makes its call, and none waits for one that never comes."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from llamamm.fast.workers import FEWEST, MOST, Crew, run_all

GIVEN_UP = 2**62


def wait_until_given_up(counters):
    while counters[0] < GIVEN_UP:
        time.sleep(0.001)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_worker_makes_its_call_in_a_thread_of_its_own(n):
    calls, all_here = {}, threading.Barrier(n)

    def call(w):
        calls[w] = threading.get_ident()
        all_here.wait(timeout=20)

    for _ in range(3):
        calls.clear()
        run_all(call, n, np.zeros(1, np.int64), GIVEN_UP)
        assert sorted(calls) == list(range(n)) and len(set(calls.values())) == n
        assert calls[0] == threading.get_ident()


def test_an_error_of_a_helper_is_raised_here():
    counters = np.zeros(1, np.int64)

    def call(w):
        if w == 1:
            raise ZeroDivisionError
        wait_until_given_up(counters)

    for _ in range(2):  # the helper lives on
        with pytest.raises(ZeroDivisionError):
            run_all(call, 2, counters, GIVEN_UP)
        counters[0] = 0


def test_helpers_are_let_through_where_this_thread_is_interrupted():
    counters, ended = np.zeros(1, np.int64), threading.Event()

    def call(w):
        if w == 0:
            raise KeyboardInterrupt
        wait_until_given_up(counters)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_all(call, 2, counters, GIVEN_UP)
    assert ended.wait(timeout=20)


def test_a_helper_keeps_nothing_of_a_call_that_is_over():
    class Large:
        pass

    large, all_here = Large(), threading.Barrier(2)
    gone = weakref.ref(large)

    def call(_w, _large=large):
        all_here.wait(timeout=20)

    run_all(call, 2, np.zeros(1, np.int64), GIVEN_UP)
    del call, large
    deadline = time.monotonic() + 20
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


def taken(crew, n, seconds):
    """n steps that take so long by so many workers. -> how many took each"""
    sizes = []
    for _ in range(n):
        sizes.append(crew.size)
        crew.note(seconds[crew.size])
    return sizes


QUIET, BUSY = {2: 1.0, 1: 1.7}, {2: 8.0, 1: 1.7}


def test_on_a_quiet_machine_all_work():
    crew = Crew(2)
    times = np.random.default_rng(0).uniform(1, 1.7, 500)
    for seconds in times:
        assert crew.size == 2
        crew.note(seconds)


def test_one_less_works_while_a_core_is_taken_and_all_again_after_it():
    crew = Crew(2)
    assert set(taken(crew, 20, QUIET)) == {2}
    busy = taken(crew, 1000, BUSY)
    assert busy[:2] == [2, 2] and 1 in busy[:6], "saw it late"
    assert busy.count(1) > 900, "tried too often what does not pay"
    quiet = taken(crew, 2 * MOST, QUIET)
    assert set(quiet[MOST + 8 :]) == {2}, "never tried again"


def test_where_one_less_is_no_better_all_go_on():
    crew = Crew(2)
    taken(crew, 20, QUIET)
    assert taken(crew, 400, {2: 8.0, 1: 9.0}).count(1) <= 6 * FEWEST


def test_a_longer_text_is_no_sign():
    crew = Crew(4)
    for n in range(3000):
        assert crew.size == 4
        crew.note(1 + n / 300)


def test_alone_is_alone():
    assert set(taken(Crew(1), 100, {1: 1.0, 0: 0.0})) == {1}
    crew = Crew(1)
    for seconds in (1, 1, 1, 1, 9, 9, 9, 9, 9, 9):
        crew.note(seconds)
        assert crew.size == 1
