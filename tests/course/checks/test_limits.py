"""course.checks.limits: what computes is stopped, what sleeps is left, and a busy machine costs nobody the answer."""

import threading
import time

import pytest

from llamamm.course.checks import limits
from llamamm.course.checks.limits import OutOfTimeError, run_limited


def busy_until(event):
    while not event.is_set():
        sum(range(1000))
    return "done"


@pytest.fixture
def shared(monkeypatch):
    """A processor of which this process gets a fifth."""
    monkeypatch.setattr(limits.time, "process_time", lambda: time.monotonic() / 5)


@pytest.mark.usefixtures("shared")
def test_who_shares_the_processor_gets_more_time():
    event = threading.Event()
    threading.Timer(0.8, event.set).start()
    assert run_limited(lambda: busy_until(event), 0.4).value == "done"


@pytest.mark.usefixtures("shared")
def test_but_not_for_ever():
    begun = time.monotonic()
    assert isinstance(run_limited(lambda: busy_until(threading.Event()), 0.1).error, OutOfTimeError)
    assert time.monotonic() - begun >= 0.4


@pytest.mark.parametrize("endless", [lambda: busy_until(threading.Event()), lambda: time.sleep(60)])
def test_what_computes_or_sleeps_is_out_of_time(endless):
    begun = time.monotonic()
    assert isinstance(run_limited(endless, 1.0).error, OutOfTimeError)
    assert time.monotonic() - begun >= 1.0


def test_an_end_in_time_is_the_result_or_the_error():
    assert run_limited(lambda: 3, 10).value == 3
    assert isinstance(run_limited(lambda: 1 / 0, 10).error, ZeroDivisionError)
    assert isinstance(run_limited(lambda: exit(1), 10).error, SystemExit)
