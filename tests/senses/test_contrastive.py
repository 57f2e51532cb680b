"""contrastive, retrieval: losses by hand and against transformers, recall and its ties, towers that learn shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets.openmoji import Pictures
from llamamm.errors import InputError
from llamamm.experiments.retrieval import (
    cosines_of,
    lead_of,
    measure_retrieval,
    moved,
    recall_of,
    share_of,
    train_two_towers,
)
from llamamm.senses.config import EncoderConfig, VisionConfig
from llamamm.senses.contrastive import TextTower, TwoTowers, clip_loss, recall_at, siglip_loss, split_words

IMAGES = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # the second is not of length 1
TEXTS = torch.tensor([[3.0, 0.0], [0.6, 0.8]])  # cosines: rows (1, 0.6) and (0, 0.8)


def log_odds(x):
    """-log(sigmoid(x))"""
    return math.log1p(math.exp(-x))


# ---- losses ----


def test_clip_loss_by_hand():
    # logits at scale 2: rows (2, 1.2) and (0, 1.6); of two choices the loss is -log(sigmoid(right - wrong))
    rows, columns = (log_odds(0.8) + log_odds(1.6)) / 2, (log_odds(2.0) + log_odds(0.4)) / 2
    assert clip_loss(IMAGES, TEXTS, 2.0).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_siglip_loss_by_hand():
    # logits at scale 2, bias -1: (1, 0.2) and (-1, 0.6); yes to the diagonal, no to the rest, over 2 pairs
    expected = (log_odds(1.0) + log_odds(-0.2) + log_odds(1.0) + log_odds(0.6)) / 2
    assert siglip_loss(IMAGES, TEXTS, 2.0, -1.0).item() == pytest.approx(expected, abs=1e-6)


def test_clip_loss_is_the_same_with_images_and_texts_exchanged_but_not_with_pairs_broken(generator):
    images, texts = torch.randn(2, 6, 8, generator=generator)
    assert torch.allclose(clip_loss(images, texts, 5.0), clip_loss(texts, images, 5.0))
    assert not torch.allclose(clip_loss(images, texts, 5.0), clip_loss(images, texts.roll(1, 0), 5.0))


def test_equal_texts_are_no_wrong_answers():
    texts = TEXTS[[0, 1, 1]]
    images = torch.cat([IMAGES, torch.tensor([[1.0, 1.0]])])
    groups = torch.tensor([7, 4, 4])
    c = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    # each of the twins chooses among itself and pair 0, never the other twin
    pairs = [c[1, 1] - c[1, 0], c[2, 2] - c[2, 0], c[1, 1] - c[0, 1], c[2, 2] - c[0, 2]]
    three = [F.cross_entropy(c[0], torch.tensor(0)).item(), F.cross_entropy(c[:, 0], torch.tensor(0)).item()]
    expected = (sum(three) + sum(log_odds(p.item()) for p in pairs)) / 6
    assert clip_loss(images, texts, 1.0, groups=groups).item() == pytest.approx(expected, abs=1e-6)
    with_twins = siglip_loss(images, texts, 1.0, 0.0)
    twins = log_odds(-c[1, 2].item()) + log_odds(-c[2, 1].item())
    without = siglip_loss(images, texts, 1.0, 0.0, groups=groups)
    assert (with_twins - without).item() == pytest.approx(twins / 3, abs=1e-6)


def test_a_batch_with_equal_texts_knows_them():
    model = TwoTowers(["a", "b"], vision=TINY_VISION, text=TINY_TEXT)
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert model.loss(pixels, ["a", "a"]).item() == 0  # nothing is left to confuse it with
    assert model.loss(pixels, ["a", "b"]).item() > 0.1


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_losses_equal_transformers(family):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = {**small, "vocab_size": 50}, {**small, "image_size": 32, "patch_size": 16}
    if family == "clip":
        text |= {"eos_token_id": 49, "bos_token_id": 0, "pad_token_id": 1}
        cfg = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(cfg)
    else:
        text |= {"eos_token_id": 49, "bos_token_id": 0, "pad_token_id": 1, "projection_size": 32}
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(1.3)
        if family == "siglip":
            model.logit_bias.fill_(-2.0)
        theirs = model.eval()(input_ids=torch.randint(2, 49, (5, 7)), pixel_values=torch.randn(5, 3, 32, 32),
                              return_loss=True)  # fmt: skip
    images, texts, scale = 3 * theirs.image_embeds, 0.2 * theirs.text_embeds, model.logit_scale.exp()
    ours = clip_loss(images, texts, scale) if family == "clip" else siglip_loss(images, texts, scale, model.logit_bias)
    assert abs(ours - theirs.loss).item() < 1e-5


@pytest.mark.parametrize("images, texts", [((2, 3), (2, 4)), ((2, 3, 1), (2, 3)), ((3, 2), (2, 2))])
def test_pairs_that_do_not_fit_are_refused_with_both_shapes(images, texts):
    with pytest.raises(InputError, match=r"3"):
        clip_loss(torch.ones(images), torch.ones(texts), 1.0)


# ---- recall ----

SIMILARITY = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.2, 0.1]])  # own is 1st, 2nd, 3rd of its row


def test_recall_by_hand_both_ways():
    assert [recall_at(SIMILARITY, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    # columns: own is 1st of (0.9, 0.8, 0.3), 1st of (0.1, 0.5, 0.2), shared 2nd with one other of (0.2, 0.1, 0.1)
    assert [recall_at(SIMILARITY.T, k) for k in (1, 2, 3)] == pytest.approx([2 / 3, (2 + 1 / 2) / 3, 1])


@given(st.integers(1, 9), st.data())
def test_a_model_that_says_the_same_of_everything_gets_chance(n, data):
    k = data.draw(st.integers(1, n))
    assert recall_at(torch.full((n, n), 0.25), k) == pytest.approx(k / n)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_recall_is_the_mean_over_all_orders_of_equals(n, seed):
    similarity = torch.randint(0, 3, (n, n), generator=torch.Generator().manual_seed(seed)).float()
    for k in range(1, n + 1):
        shares = []
        for i, row in enumerate(similarity.tolist()):
            places = [place for place, value in enumerate(sorted(row, reverse=True)) if value == row[i]]
            shares.append(sum(place < k for place in places) / len(places))
        assert recall_at(similarity, k) == pytest.approx(sum(shares) / n, abs=1e-6)


@pytest.mark.parametrize(
    "similarity, k, words",
    [(torch.ones(2, 3), 1, r"\(2, 3\)"), (torch.ones(3, 3), 4, "1 to 3.*4"), (torch.ones(3, 3), 0, "1 to 3.*0"),
     (torch.full((2, 2), math.nan), 1, "4 of 4"), (torch.ones(0, 0), 1, r"\(0, 0\)")],
)  # fmt: skip
def test_recall_refuses_what_it_cannot_count(similarity, k, words):
    with pytest.raises(InputError, match=words):
        recall_at(similarity, k)


# ---- towers ----

TINY_VISION = VisionConfig("vit", EncoderConfig(32, 64, 2, 2), image_size=32, patch_size=8)
TINY_TEXT = EncoderConfig(32, 64, 1, 2)


def test_words_and_bytes():
    assert split_words("Woman's hat, T-Rex!") == ["woman's", "hat", ",", "t", "-", "rex", "!"]
    tower = TextTower(TINY_TEXT, ["red", "apple"], max_tokens=5)
    ids, real = tower.tokenize(["Red apple", "red ox", "apple cucumber"])
    assert ids.tolist() == [[256, 257, 0, 0, 0], [256, 32, 111, 120, 0], [257, 32, 99, 117, 99]]
    assert real.sum(dim=1).tolist() == [2, 4, 5] and real[:, 0].all()
    for texts in ([], ["red", ""], [" "]):
        with pytest.raises(InputError, match="one word"):
            tower.tokenize(texts)


def test_one_by_one_equals_a_batch_and_lengths_are_one():
    torch.manual_seed(0)
    model = TwoTowers(["red", "apple"], vision=TINY_VISION, text=TINY_TEXT, width=16).eval()
    texts = ["red apple", "red", "a strange long word, red"]
    with torch.no_grad():
        together = model.encode_texts(texts)
        alone = torch.cat([model.encode_texts([text]) for text in texts])
        images = model.encode_images(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert torch.allclose(together, alone, atol=1e-6)
    assert images.shape == (4, 16) and together.shape == (3, 16)
    assert torch.allclose(images.norm(dim=1), torch.ones(4)) and torch.allclose(together.norm(dim=1), torch.ones(3))
    assert not torch.allclose(model.encode_texts(["red apple"]), model.encode_texts(["apple red"]), atol=1e-3)
    with pytest.raises(InputError, match="uint8.*float32"):
        model.encode_images(torch.zeros(1, 3, 32, 32))


def test_moved_pictures_are_the_same_further_on():
    torch.manual_seed(0)
    pixels = torch.randint(0, 255, (40, 3, 8, 8), dtype=torch.uint8)
    corners = set()
    for before, after in zip(pixels, moved(pixels, 2), strict=True):
        (y, x), = [(y, x) for y in range(-2, 3) for x in range(-2, 3)
                   if torch.equal(after, F.pad(before, [2 - x, 2 + x, 2 - y, 2 + y], value=255)[:, 2:-2, 2:-2])]
        corners.add((y, x))
    assert len({y for y, _ in corners}) == len({x for _, x in corners}) == 5
    assert torch.equal(moved(pixels, 0), pixels)


# ---- training ----

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 220), "yellow": (240, 200, 40),
           "black": (20, 20, 20), "pink": (240, 130, 190)}  # fmt: skip


def shapes():
    """30 pictures (3, 32, 32): six colours of five shapes, with their names."""
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    masks = {
        "disc": x**2 + y**2 < 100, "ring": (x**2 + y**2 < 121) & (x**2 + y**2 > 49),
        "square": (x.abs() < 9) & (y.abs() < 9), "bar": (x.abs() < 12) & (y.abs() < 4),
        "cross": (x.abs() < 3) | (y.abs() < 3),
    }  # fmt: skip
    colours = [torch.tensor(rgb)[:, None, None] for rgb in COLOURS.values()]
    pixels = [torch.where(mask, colour, 255) for colour in colours for mask in masks.values()]
    return torch.stack(pixels).to(torch.uint8), [f"{colour} {shape}" for colour in COLOURS for shape in masks]


def tiny(names, seed=0):
    torch.manual_seed(seed)
    words = sorted({word for name in names for word in name.split()})
    return TwoTowers(words, vision=TINY_VISION, text=TINY_TEXT, width=32)


def directions(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_recall_of_looks_both_ways():
    class Known:
        def encode_images(self, _pixels):
            return directions(-40.0, 20.0)

        def encode_texts(self, _texts):
            return directions(0.0, 30.0)

    found = recall_of(Known(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"])
    assert found.to_text == (1, 1)  # 40 degrees to its own name and 70 to the other; 10 and 20
    assert found.to_picture == (0.5, 1)  # the first name: 40 degrees to its own picture, 20 to the other
    assert found.chance == (0.5, 1)


@pytest.mark.parametrize("loss, steps", [("clip", 120), ("siglip", 220)])
def test_two_towers_learn_the_names_of_shapes(loss, steps):
    pixels, names = shapes()
    before = recall_of(tiny(names).eval(), pixels, names)
    model, curve = train_two_towers(pixels, names, steps=steps, loss=loss, shift=1, learning_rate=3e-3,
                                    model=tiny(names))  # fmt: skip
    after = recall_of(model, pixels, names)
    assert before.to_text[0] < 0.3 and before.chance == pytest.approx((1 / 30, 5 / 30))
    assert after.to_text == after.to_picture == (1, 1)
    assert len(curve) == steps and curve[-1] < 0.3 * curve[0]
    assert not model.training


def test_a_loss_of_ones_own_trains_as_the_packages():
    pixels, names = shapes()
    seen = []

    def own(images, texts, scale):
        seen.append((images.norm(dim=1), texts.norm(dim=1), scale))
        return clip_loss(images, texts, scale)

    curves = [train_two_towers(pixels, names, steps=3, loss=loss, model=_seeded(names))[1] for loss in ("clip", own)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert len(seen) == 3 and all(torch.allclose(length, torch.ones(()), atol=1e-5) for length in seen[0][:2])
    assert seen[0][2].item() == pytest.approx(10)


def _seeded(names):
    torch.manual_seed(0)
    return tiny(names)


def test_cosines_of_any_number_of_pictures_and_texts():
    class Known:
        def encode_images(self, pixels):
            return directions(*([0.0] * len(pixels)))

        def encode_texts(self, texts):
            return directions(*(60.0 for _ in texts))

    found = cosines_of(Known(), torch.zeros(300, 3, 8, 8, dtype=torch.uint8), ["a", "b"])
    assert found.shape == (300, 2) and torch.allclose(found, torch.tensor(0.5), atol=1e-6)


def test_a_share_and_its_interval_by_hand():
    share, low, high = share_of(torch.tensor([True] * 5 + [False] * 5))
    assert (share, low, high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)  # 0.5 ± 0.2634, Wilson 1927
    assert share_of(torch.zeros(10, dtype=torch.bool)) == pytest.approx((0, 0, 0.2775), abs=1e-4)


def test_a_lead_counts_what_differs_on_the_same_items():
    ours = torch.tensor([True] * 60 + [False] * 40)
    theirs = torch.tensor([True] * 40 + [False] * 60)
    lead, low, high = lead_of(ours, theirs)
    assert lead == pytest.approx(0.2) and low == pytest.approx(0.12, abs=0.02) and high == pytest.approx(0.28, abs=0.02)
    assert lead_of(ours, ours) == (0, 0, 0)


def test_the_seed_decides_all_and_leaves_the_callers_numbers_alone():
    pixels, names = shapes()
    runs = {}
    for key, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = tiny(names)
        torch.manual_seed(99)
        runs[key] = train_two_towers(pixels, names, steps=3, seed=seed, batch_size=8, model=model)[1]
        assert torch.initial_seed() == 99 and torch.rand(1).item() == pytest.approx(first_number(99))
    assert runs["a"] == runs["b"] != runs["c"]


def first_number(seed):
    return torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()


def test_an_epoch_shows_each_picture_once(monkeypatch):
    pixels, names = shapes()
    seen = []
    true_loss = TwoTowers.loss
    monkeypatch.setattr(TwoTowers, "loss", lambda *args: (seen.extend(args[2]), true_loss(*args))[1])
    train_two_towers(pixels, names, steps=6, batch_size=10, shift=0, model=tiny(names))
    assert sorted(seen[:30]) == sorted(seen[30:]) == sorted(names) and seen[:30] != seen[30:]


def test_training_refuses_what_does_not_pair():
    pixels, names = shapes()
    with pytest.raises(InputError, match="30 pictures and 29 texts"):
        train_two_towers(pixels, names[1:], steps=1)
    for wrong in ({"loss": "cosine"}, {"steps": 0}, {"batch_size": 1}):
        with pytest.raises(InputError, match=f"clip or siglip, .*got .*{[*wrong.values()][0]}"):
            train_two_towers(pixels, names, **{"steps": 1, **wrong})


def test_retrieval_reports_each_kind_against_its_chance():
    pixels, names = shapes()
    train = Pictures(pixels[:24], names[:24], ["x"] * 24, [""] * 24)
    test = Pictures(pixels[24:], names[24:], ["x"] * 6, ["thing"] * 5 + ["tone"])
    found = measure_retrieval(train, test, steps=2)
    assert {kind: r.n for kind, r in found.recall.items()} == {
        "held out": 6, "  new thing": 5, "  new tone": 1, "seen in training": 6
    }  # fmt: skip
    assert found.recall["held out"].chance == pytest.approx((1 / 6, 5 / 6))
    assert found.recall["  new tone"].to_text == (1, 1)  # of one, any model finds it
    assert len(found.curve) == 2 and found.seconds > 0
    assert found.table().row_count == 4
