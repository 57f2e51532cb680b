"""fast.workers: every worker makes its call, and none waits for one that never comes."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from llamamm.fast.workers import run_all

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
