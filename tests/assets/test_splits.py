"""splits: what a hash holds out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets.splits import hash_of, held_out


def test_the_hash_decides():
    # SHA-256's first 8 bytes modulo 10, computed with sha256sum and bc: 0 for "thing: giraffe"
    assert held_out("thing: giraffe", 10) and not held_out("red apple", 10)
    assert all(held_out(key, 1) for key in ("", "a", "Zoë"))


def test_a_hash_is_the_same_on_every_machine():
    assert hash_of("abc") == 0xBA7816BF8F01CFEA  # SHA-256 of "abc" begins so, NIST FIPS 180-2, B.1


@given(st.text(), st.integers(1, 9), st.integers(1, 9))
def test_of_a_multiple_fewer_of_the_same_are_held_out(key, n, times):
    assert held_out(key, n) or not held_out(key, n * times)


@pytest.mark.parametrize("one_in", [2, 5, 20])
def test_about_one_in_so_many(one_in):
    assert sum(held_out(str(n), one_in) for n in range(4000)) == pytest.approx(4000 / one_in, rel=0.2)
