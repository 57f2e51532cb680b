"""experiments.drawn_shapes: pairs differ where they should, and nowhere else."""

from dataclasses import replace

import pytest
import torch

from llamamm.assets.easy_vqa import COLOURS, SHAPES
from llamamm.experiments.drawn_shapes import GROUND, LARGEST, RGB, SMALLEST, Scene, random_scenes, touched


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_with_its_colour_and_leaves_the_ground(shape):
    pixels = Scene(shape, "teal", left=10, top=20, size=16).draw()
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.uint8
    assert tuple(pixels[:, 28, 18].tolist()) == RGB["teal"]
    outside = pixels.clone()
    outside[:, 20:36, 10:26] = torch.tensor(GROUND, dtype=torch.uint8)[:, None, None]
    assert (outside == outside[:, :1, :1]).all() and tuple(pixels[:, 0, 0].tolist()) == GROUND


def test_the_shapes_differ_and_a_rectangle_is_half_as_high():
    drawn = {shape: Scene(shape, "black", 0, 0, 20).draw() for shape in SHAPES}
    filled = {shape: int((pixels == 0).all(dim=0).sum()) for shape, pixels in drawn.items()}
    assert filled["rectangle"] == 200
    assert filled["circle"] == pytest.approx(314, abs=40) and filled["triangle"] == pytest.approx(200, abs=40)


def test_another_colour_changes_the_shapes_pixels_alone():
    for scene in random_scenes(20):
        other = scene.with_other("colour")
        assert other == replace(scene, colour=other.colour) != scene
        changed = (scene.draw() != other.draw()).any(dim=0)
        ground = (scene.draw() == torch.tensor(GROUND, dtype=torch.uint8)[:, None, None]).all(dim=0)
        assert changed.any() and not (changed & ground).any()


def test_each_colour_and_shape_becomes_another_one():
    scene = Scene("circle", "red", 0, 0, 20)
    assert {scene.with_other("shape").shape, "circle", scene.with_other("shape").with_other("shape").shape} == {*SHAPES}
    others = {colour: Scene("circle", colour, 0, 0, 20).with_other("colour").colour for colour in COLOURS}
    assert {*others.values()} == {*COLOURS} and all(a != b for a, b in others.items())


def test_random_scenes_are_whole_varied_and_the_same_each_time():
    scenes = random_scenes(200, seed=3)
    assert scenes == random_scenes(200, seed=3) != random_scenes(200, seed=4)
    assert {s.shape for s in scenes} == {*SHAPES} and {s.colour for s in scenes} == {*COLOURS}
    for s in scenes:
        assert SMALLEST <= s.size <= LARGEST
        assert 0 <= s.left <= 64 - s.size and 0 <= s.top <= 64 - s.size


@pytest.mark.parametrize(
    ("box", "squares"),
    [((2, 2, 14), [0]), ((24, 24, 14), [4]), ((48, 0, 14), [2]), ((14, 46, 16), [6, 7]),
     ((14, 14, 28), [0, 1, 3, 4])],
)  # fmt: skip
def test_the_squares_that_a_circle_lies_on(box, squares):
    found = touched(Scene("circle", "red", *box).draw(), 3)
    assert found.nonzero().flatten().tolist() == squares


def test_an_empty_picture_touches_nothing():
    ground = torch.tensor(GROUND, dtype=torch.uint8)[:, None, None].expand(3, 64, 64)
    assert not touched(ground, 3).any()
