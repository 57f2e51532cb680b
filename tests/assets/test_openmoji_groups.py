"""assets.openmoji_groups: each drawing is there once, in one group."""

import pytest
import torch

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.openmoji_groups import GROUPS, in_groups
from llamamm.errors import InputError


@pytest.fixture(scope="module")
def pictures():
    return load_pictures(fetch("openmoji", progress=False))


def test_every_name_stands_in_one_group():
    names = [name for group in GROUPS.values() for name in group.split(", ")]
    assert len(names) == len(set(names)) == 217


def test_drawings_come_with_their_groups(pictures):
    pixels, groups, names = in_groups(*pictures)
    assert pixels.shape == (217, 3, 64, 64) and pixels.dtype == torch.uint8
    assert groups.bincount().tolist() == [len(names.split(", ")) for names in GROUPS.values()]
    train, test = pictures
    for name, part in (("poodle", train), ("tiger", test)):
        i = names.index(name)
        assert list(GROUPS)[groups[i]] == "mammals" and torch.equal(pixels[i], part.pixels[part.names.index(name)])


def test_a_drawing_that_is_not_there_is_an_error(pictures):
    with pytest.raises(InputError, match=r"of the 217 grouped drawings are not among these pictures, such as '"):
        in_groups(pictures[1])
