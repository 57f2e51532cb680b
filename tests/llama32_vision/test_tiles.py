"""llama32_vision.tiles: canvases by hand, pixels equal to transformers', spans of images, wrong counts refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MllamaImageProcessor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from llamamm.errors import ConfigError, InputError
from llamamm.llama32_vision.config import ASPECT_RATIOS
from llamamm.llama32_vision.model import seen_tiles
from llamamm.llama32_vision.tiles import TileProcessor, aspect_ratios
from llamamm.multimodal.places import image_spans
from llamamm.senses.image_processor import CLIP_MEAN, CLIP_STD

OURS = TileProcessor(56)
THEIRS = MllamaImageProcessor(size={"height": 56, "width": 56}, image_mean=CLIP_MEAN, image_std=CLIP_STD)
SIZES = [(56, 56), (57, 56), (200, 300), (300, 90), (90, 500), (112, 112), (113, 112), (20, 30), (5, 400), (640, 427)]


@pytest.mark.parametrize(
    ("size", "canvas", "fitted"),
    [
        ((100, 100), (1, 1), (100, 100)),  # a tile exactly
        ((50, 80), (1, 1), (62, 100)),  # enlarged to one tile, by 1.25
        ((110, 100), (2, 1), (110, 100)),  # two tiles hold it without a change
        ((400, 400), (2, 2), (200, 200)),  # none holds it: the largest that fits
        ((1000, 100), (4, 1), (400, 40)),
    ],
)
def test_canvases_by_hand(size, canvas, fitted):
    processor = TileProcessor(100)
    assert processor.canvas(*size) == canvas
    assert processor.fitted(*size, *canvas) == fitted


def test_aspect_ratios_are_numbered_as_the_weights_are():
    assert tuple(aspect_ratios(4)) == ASPECT_RATIOS


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_transformers(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = THEIRS(images=[[torch.from_numpy(image).permute(2, 0, 1)]], return_tensors="pt")
    ours = OURS([[image]])
    assert (ours.pixels - theirs["pixel_values"]).abs().max() < 1e-5
    assert ours.aspect_ratio_ids.tolist() == theirs["aspect_ratio_ids"].tolist()
    assert ours.n_tiles.tolist() == theirs["num_tiles"]


def test_several_images_and_none():
    red = np.full((60, 60, 3), (255, 0, 0), dtype=np.uint8)
    images = OURS([[red, red[:30]], [], [red]])
    assert images.pixels.shape == (3, 2, 4, 3, 56, 56)
    # 60 x 60 is held by four tiles alone; 30 x 60 by two beside each other
    assert images.n_tiles.tolist() == [[4, 2], [0, 0], [4, 0]]
    assert images.aspect_ratio_ids.tolist() == [[6, 2], [0, 0], [6, 0]]
    with pytest.raises(InputError, match="no image in any"):
        OURS([[], []])


def test_settings_there_and_back():
    assert TileProcessor.from_hf(THEIRS.to_dict()) == OURS == TileProcessor.from_hf(OURS.to_hf())
    assert MllamaImageProcessor(**OURS.to_hf()).to_dict()["size"] == {"height": 56, "width": 56}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ({**OURS.to_hf(), "do_normalize": False}, "do_normalize=False"),
        ({**OURS.to_hf(), "size": {"height": 56, "width": 28}}, "square"),
        ({**OURS.to_hf(), "max_image_tiles": 0}, "max_tiles.*0"),
    ],
)
def test_other_settings_are_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        TileProcessor.from_hf(data)


@given(st.lists(st.sampled_from([7, 1, 2]), min_size=1, max_size=12))
def test_spans_equal_transformers(ids):
    expected = [(begin, len(ids) if end == -1 else end) for begin, end in get_cross_attention_token_mask(ids, 7)]
    assert image_spans(ids, 7) == expected


def test_who_sees_which_image():
    # word, image, word, two images in a row, two words
    ids = [1, 7, 1, 7, 7, 1, 1]
    assert image_spans(ids, 7) == [(1, 3), (3, 7), (4, 7)]
    images = OURS([[np.zeros((56, 56), np.uint8), np.zeros((56, 112), np.uint8), np.zeros((112, 56), np.uint8)]])
    marks = seen_tiles(torch.tensor([ids]), images, 7)
    expected = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids, 7)], images.n_tiles.tolist(), 4, len(ids)
    )
    assert torch.equal(marks.long(), torch.from_numpy(expected))
    assert marks[0, 0].sum() == 0 and marks[0, 2].sum(dim=1).tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="2 image tokens and 3 images"):
        seen_tiles(torch.tensor([ids[:4]]), images, 7)
