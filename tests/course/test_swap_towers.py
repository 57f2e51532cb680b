"""course.swap_towers: right parts find what the package finds, wrong ones visibly do not, and all is undone."""

import pytest
import torch
import torch.nn.functional as F

import llamamm.senses.mel
import llamamm.senses.vision
from llamamm import VisionTower
from llamamm.course import swap_towers
from llamamm.course.swap_towers import swap_mel, swap_patches
from llamamm.errors import InputError
from llamamm.senses.config import VisionConfig

FILTERBANK, EMBED = llamamm.senses.mel.mel_filterbank, llamamm.senses.vision.embed_patches


@pytest.fixture(scope="module", autouse=True)
def fewer():
    """Fewer pictures and voices than in a lesson: the towers are the real ones, and a wrong part shows in these too."""
    prepared = (swap_towers.real_pictures, swap_towers.real_words)
    with pytest.MonkeyPatch.context() as patch:
        for name, n in (("N_PICTURES", 8), ("GALLERY_VOICES", 3), ("QUERY_VOICES", 1)):
            patch.setattr(swap_towers, name, n)
        [kept.cache_clear() for kept in prepared]
        yield
        [kept.cache_clear() for kept in prepared]


def by_reshape(pixels, weight, bias):
    B, _, H, W = pixels.shape
    P = weight.shape[-1]
    patches = pixels.reshape(B, 3, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return patches @ weight.flatten(1).T + bias


def columns_first(pixels, weight, bias):
    return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).transpose(2, 3).flatten(2).transpose(1, 2)


def htk(n_mels):
    """Triangles between centres that are spaced by HTK's formula, and not normalised."""
    edges = 700 * (10 ** (torch.linspace(0, 1, n_mels + 2) * torch.log10(torch.tensor(1 + 8000 / 700))) - 1)
    hz = torch.linspace(0, 8000, 201)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((hz - low) / (mid - low), (high - hz) / (high - mid)).clamp(min=0)


def test_the_right_patches_find_the_same_pictures(capsys):
    with swap_patches(by_reshape) as report:
        assert llamamm.senses.vision.embed_patches is by_reshape
    assert llamamm.senses.vision.embed_patches is EMBED
    assert report.found == report.found_before >= 7 and report.n == 8 and report.difference < 1e-4
    assert f"with yours: {report.found} of 8" in capsys.readouterr().out


def test_patches_in_columns_lose_most_pictures(capsys):
    with swap_patches(columns_first, quiet=True) as report:
        pass
    assert report.found < 6 < report.found_before and report.difference > 0.3
    assert len(report.mistakes) == 8 - report.found and "taken for" in str(report)
    assert capsys.readouterr().out == ""


def test_the_right_filterbank_hears_the_same_words():
    with swap_mel(lambda n_mels: FILTERBANK(n_mels).clone(), quiet=True) as report:
        pass
    assert llamamm.senses.mel.mel_filterbank is FILTERBANK
    assert report.found == report.found_before >= 15 and report.n == 20 and report.difference == 0


def test_a_wrong_filterbank_hears_worse():
    with swap_mel(lambda n_mels: FILTERBANK(n_mels).flip(0), quiet=True) as report:  # high and low exchanged
        pass
    assert report.found < 8
    with swap_mel(htk, quiet=True) as other:
        pass
    assert other.difference > 0.01


@pytest.fixture
def small_eye(monkeypatch):
    """A random eye and two pictures: as good for what goes wrong, and faster than the real one."""
    tower, pixels = VisionTower(VisionConfig.tiny()).eval(), torch.rand(2, 3, 32, 32)
    look = torch.no_grad()(lambda: tower.pooled(pixels))
    monkeypatch.setattr(swap_towers, "real_pictures", lambda: (look(), ["a", "b"], ["a", "b"], look(), look))


@pytest.mark.usefixtures("small_eye")
@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (lambda p, w, b: by_reshape(p, w, b)[:, :-1], RuntimeError, "size"),
        (lambda p, w, b: by_reshape(p, w, b) * torch.nan, InputError, "not finite"),
        ("mine", InputError, "takes a function, got 'mine'"),
    ],
)
def test_what_cannot_be_used_is_an_error_and_undone(part, error, message):
    with pytest.raises(error, match=message), swap_patches(part, quiet=True):
        pass
    assert llamamm.senses.vision.embed_patches is EMBED
