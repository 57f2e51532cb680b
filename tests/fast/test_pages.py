"""fast.pages: large pages change where the system keeps numbers, and nothing else."""

import sys

import pytest
import torch

from llamamm.fast import pages
from llamamm.fast.pages import LARGE, _mostly_filled, room_in_large_pages, use_large_pages, use_large_pages_beside


def in_large_pages(address):
    """Bytes of the mapping around an address that lie in large pages, as the system says."""
    here = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first:
                begin, end = (int(number, 16) for number in first.split("-"))
                here = begin <= address < end
            elif here and first == "AnonHugePages:":
                return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has them")
def test_numbers_and_addresses_stay():
    numbers = torch.arange(4 * LARGE, dtype=torch.float32)
    address, copy = numbers.data_ptr(), numbers.clone()
    moved = use_large_pages([numbers.untyped_storage()])
    assert torch.equal(numbers, copy) and numbers.data_ptr() == address
    if not moved:
        pytest.skip("this system has none to give")
    assert moved <= numbers.nbytes and in_large_pages(address + 2 * LARGE) >= moved


def test_pages_count_that_are_half_filled_or_more():
    half, page = LARGE // 2, LARGE
    places = [(0, half - 1), (half, 1), (half, 1),  # one byte for twice
              (page, half - 1), (2 * page, half), (3 * page - 8, page), (6 * page + half, 2 * page), (9 * page, 0)]
    assert _mostly_filled(places) == [(0, page), (2 * page, 4 * page), (6 * page, 9 * page)]


def test_room_is_asked_for_in_large_pages_before_it_is_filled(monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "_advise", lambda *what: asked.append(what))
    room = room_in_large_pages(5 * LARGE + 7)
    assert room.shape == (5 * LARGE + 7,) and room.dtype == torch.uint8 and room.data_ptr() % LARGE == 0
    assert asked == [(room.data_ptr(), 5 * LARGE, pages.WANTED)]
    room.fill_(1)


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda _name: pytest.fail("asked the system"))
    assert use_large_pages([torch.zeros(LARGE).untyped_storage()]) == 0


def test_a_thread_of_its_own_ends():
    thread = use_large_pages_beside([torch.zeros(3 * LARGE).untyped_storage(), torch.zeros(3).untyped_storage()])
    thread.join(60)
    assert not thread.is_alive() and thread.daemon
