"""fast.whole: products of bytes, on this processor and on those that multiply pairs of 16-bit numbers."""

import numpy as np
import pytest

pytest.importorskip("numba")
from llvmlite import ir  # noqa: E402
from numba import njit  # noqa: E402

from llamamm.fast import vectors, whole  # noqa: E402

LARGEST = 127 * 256


@pytest.mark.parametrize("seed", range(3))
def test_rounded_numbers_are_two_bytes_of_sixteen_bits(seed):
    x = (np.random.default_rng(seed).standard_normal(96) * 10.0 ** np.repeat([-3, 0, 4], 32)).astype(np.float32)
    x[32:64] = 0 if seed == 2 else x[32:64]
    two, scales, sums = np.empty((3, 2, 32), np.int8), np.empty(3, np.float32), np.empty(3, np.int32)
    whole.rounded(x, two, scales, sums)
    numbers = 256 * two[:, 0].astype(int) + two[:, 1]
    assert np.abs(numbers).max() == LARGEST and (sums == numbers.sum(axis=1)).all()
    wanted = x.reshape(3, 32)
    assert (np.abs(numbers * scales[:, None] - wanted) <= 0.51 * scales[:, None]).all()


def test_what_is_no_number_makes_its_scale_so():
    x = np.ones(64, np.float32)
    x[40] = np.nan
    two, scales, sums = np.empty((2, 2, 32), np.int8), np.empty(2, np.float32), np.empty(2, np.int32)
    whole.rounded(x, two, scales, sums)
    assert np.isnan(scales[1]) and np.isfinite(scales[0])


KINDS_OF_PROCESSOR = [(16, False, True), (16, False, False), (8, False, True), (8, False, False)]


@pytest.mark.parametrize("lanes, vnni, pmaddwd", [(whole.LANES, whole._HAS_VNNI, whole._HAS_PMADDWD),
                                                  *KINDS_OF_PROCESSOR])  # fmt: skip
@pytest.mark.parametrize("bits", [8, 4])
def test_every_processor_gives_the_same_sums(monkeypatch, lanes, vnni, pmaddwd, bits):
    if lanes == 16 and pmaddwd and whole.LANES != 16 or pmaddwd and not whole._HAS_PMADDWD:
        pytest.skip("this processor has no such instruction")
    for name, value in (("LANES", lanes), ("_HAS_VNNI", vnni), ("_HAS_PMADDWD", pmaddwd),
                        ("_ROWS", ir.VectorType(vectors.I32, lanes)), ("_FLOATS", ir.VectorType(vectors.FLOAT, lanes)),
                        ("_PAIRS", ir.VectorType(vectors.I16, 2 * lanes))):  # fmt: skip
        monkeypatch.setattr(whole, name, value)
    unit = (whole._adds_unit(128, lambda _builder, loaded: [loaded], fours=1) if bits == 8
            else whole._adds_unit(8, whole._nibbles, fours=2))  # fmt: skip

    @njit
    def run(codes, numbers, scales, x_scale, x_sum, out):
        unit(codes.ctypes.data, numbers.ctypes.data, scales.ctypes.data, x_scale, x_sum, out.ctypes.data)

    drawn = np.random.default_rng(bits)
    weights = drawn.integers(-127, 128, (64, 32)) if bits == 8 else drawn.integers(-8, 8, (64, 32))
    x = drawn.integers(-LARGEST, LARGEST + 1, 32)
    weights[0] = weights[0].clip(0, None)  # a row without a sign
    weights[1], weights[2] = (127, -127) if bits == 8 else (7, -8)  # the ends of the range
    x[:16] = np.where(np.arange(16) % 2, LARGEST, -LARGEST)
    upper = (x + 128) >> 8
    two = np.stack((upper, x - 256 * upper)).astype(np.int8)
    codes = (weights + (128 if bits == 8 else 8)).astype(np.uint8).reshape(64, 8, 4).transpose(1, 0, 2)  # (8, 64, 4)
    if bits == 4:
        codes = codes[::2] | codes[1::2] << 4
    scales, out = drawn.random(64).astype(np.float16), np.ones(64, np.float32)
    run(np.ascontiguousarray(codes), two, scales.view(np.uint16), np.float32(0.5), np.int32(x.sum()), out)
    wanted = 1 + scales.astype(np.float64) * 0.5 * (weights @ x)
    np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-3)
