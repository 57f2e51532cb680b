"""fast.kernels: each piece against PyTorch or NumPy, in every form of weights."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
from llamamm.fast import forms, kernels  # noqa: E402
from llamamm.fast.quantized import QuantizedLinear  # noqa: E402

FORMS = {torch.float32: forms.F32, torch.float16: forms.F16, torch.bfloat16: forms.BF16}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(weight, **fields):
    row = np.zeros(kernels.N_FIELDS, np.int64)
    row[[kernels.N_OUT, kernels.N_IN]] = weight.shape
    if weight.dtype in FORMS:
        row[[kernels.WEIGHT, kernels.KIND]] = weight.data_ptr(), FORMS[weight.dtype]
    for name, value in fields.items():
        row[getattr(kernels, name)] = value
    return row


def project(row, x, n_out):
    out = np.full((len(x), n_out), np.nan, np.float32)
    units = (1, len(x), x.shape[1] // kernels.UNIT)
    whole = (np.empty((*units, 2, kernels.UNIT), np.int8), np.empty(units, np.float32), np.empty(units, np.int32),
             np.empty((1, 64), np.float32))  # fmt: skip
    kernels.project(0, 1, row, x.numpy(), out, whole, np.zeros(kernels.n_counts(0, 1), np.int64))
    return torch.from_numpy(out)


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("shape", [(64, 32), (130, 33), (3, 7), (1, 1)])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_product_in_floating_point(dtype, shape, rows):
    weight, x = numbers(*shape).to(dtype), numbers(rows, shape[1], seed=1)
    torch.testing.assert_close(project(table(weight), x, shape[0]), x @ weight.float().T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_product_in_whole_numbers(bits, group, rows):
    linear, x = QuantizedLinear.of(numbers(192, 256), bits=bits, group=group), numbers(rows, 256, seed=1)
    kind = forms.INT8 if bits == 8 else forms.INT4
    row = table(linear.weight, WEIGHT=linear.codes.data_ptr(), KIND=kind, SCALES=linear.scales.data_ptr(), GROUP=group)
    torch.testing.assert_close(project(row, x, 192), x @ linear.weight.T, atol=2e-3, rtol=1e-4)  # x has 16 bits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(value):
    weight, x = numbers(64, 32), numbers(1, 32, seed=1)
    weight[5, 3] = value
    out = project(table(weight), x, 64)
    assert not out[0, 5].isfinite() and out[0, :5].isfinite().all()


def test_the_exponential():
    x = np.concatenate([np.linspace(-87, 88, 20_001), [0, -1e-8, 1e-8]]).astype(np.float32)
    ours = np.array([forms.exp(v) for v in x])
    error = np.abs(ours / np.exp(x.astype(np.float64)) - 1)
    assert error.max() < 6e-6 and error[np.abs(x) < 4].max() < 4e-7  # as far as x itself is told
    assert forms.exp(np.float32(0)) == 1 and forms.exp(np.float32(-1e30)) < 1e-37
    assert np.isnan(forms.exp(np.float32("nan")))


@pytest.mark.parametrize("dtype", FORMS)
def test_what_is_stored_is_what_pytorch_would_round_to(dtype):
    x = torch.cat([numbers(500) * 10.0 ** torch.randint(-6, 5, (500,), generator=torch.Generator().manual_seed(3)),
                   torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, float("inf"), float("nan")])])  # fmt: skip
    out = torch.empty(len(x), dtype=dtype)
    forms.store(FORMS[dtype], out.data_ptr(), x.numpy(), len(x))
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)
