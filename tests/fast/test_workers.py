"""fast.workers: every worker makes its call, and none waits for one that never comes."""

import threading
import time

import numpy as np
import pytest

from llamamm.fast.workers import run_all

GIVEN_UP = 2**62


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_worker_makes_its_call_in_a_thread_of_its_own(n):
    calls, all_here = {}, threading.Barrier(n)

    def call(w):
        all_here.wait(timeout=20)
        calls[w] = threading.get_ident()

    run_all(call, n, np.zeros(1, np.int64), GIVEN_UP)
    assert sorted(calls) == list(range(n)) and len(set(calls.values())) == n
    assert calls[0] == threading.get_ident()


def test_an_error_of_a_helper_is_raised_here():
    def call(w):
        if w == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_all(call, 2, np.zeros(1, np.int64), GIVEN_UP)


def test_helpers_are_let_through_where_this_thread_is_interrupted():
    counters, ended = np.zeros(1, np.int64), threading.Event()

    def call(w):
        if w == 0:
            raise KeyboardInterrupt
        while counters[0] < GIVEN_UP:
            time.sleep(0.001)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_all(call, 2, counters, GIVEN_UP)
    assert ended.wait(timeout=20)
