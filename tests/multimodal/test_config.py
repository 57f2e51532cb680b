"""multimodal.config: numbers that must agree, counts of tokens and places, config.json there and back."""

import json
from dataclasses import replace

import pytest

from llamamm.errors import ConfigError
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.senses.config import AudioConfig, VisionConfig
from llamamm.text.config import TextConfig

TINY = MultimodalConfig.tiny


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BridgeConfig("mlp3"), "linear, mlp, swiglu, got 'mlp3'"),
        (lambda: BridgeConfig(merge=0), "merge must be a whole number of at least 1, got 0"),
        (lambda: BridgeConfig(merge=1.0), "merge .* got 1.0"),
        (lambda: BridgeConfig(tags=-1), "tags must be a whole number of at least 0, got -1"),
        (lambda: BridgeConfig(latents=True), "latents .* got True"),
        (lambda: BridgeConfig(depth=0), "depth .* at least 1, got 0"),
        (lambda: BridgeConfig(heads=-4), "heads .* got -4"),
        (lambda: BridgeConfig(width=-8), "width .* at least 0, got -8"),
        (lambda: BridgeConfig("swiglu", width=41), "width 41 of swiglu must be even"),
        (lambda: TINY(vision=None, audio=None), "an eye or an ear"),
        (lambda: TINY(cross_layers=(2,)), r"\(2,\) must be different blocks of 2"),
        (lambda: TINY(cross_layers=(-1,)), r"\(-1,\)"),
        (lambda: TINY(cross_layers=(1, 0)), r"\(1, 0\) .* in their order"),
        (lambda: TINY(cross_layers=(1, 1)), r"\(1, 1\) must be different"),
        (lambda: TINY(n_prompts=3), "n_prompts 3 .* cross_layers is empty"),
        (lambda: TINY(cross_layers=(0,), n_prompts=-1), "n_prompts must be a whole number of at least 0, got -1"),
        (lambda: TINY(cross_layers=(0,), n_prompts=1.5), "n_prompts .* got 1.5"),
        (lambda: TINY(image_bridge=BridgeConfig(merge=3)), "4 x 4 patches does not merge by 3 x 3"),
        (lambda: TINY(image_size=(32, 24)), "4 x 3 patches does not merge by 2 x 2"),
        (lambda: TINY(image_size=(7, 32)), "0 x 4 patches"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_blind_model_asks_nothing_of_the_image_bridge():
    assert TINY(vision=None, image_bridge=BridgeConfig(merge=3)).vision is None


def test_markers_are_the_ids_behind_the_vocabulary():
    cfg = TINY(text=TextConfig.llama32_1b())
    assert (cfg.image_token, cfg.audio_token) == (128_256, 128_257)
    assert (TINY().image_token, TINY().audio_token) == (512, 513)


@pytest.mark.parametrize(
    ("cfg", "tokens", "places"),
    [
        (TINY(), 4, 6),  # 4 x 4 patches of 8, merged by 2 x 2, between a start and an end
        (TINY(image_bridge=BridgeConfig()), 16, 18),
        (TINY(image_size=(16, 48)), 3, 5),  # 2 x 6 patches
        (TINY(image_size=(39, 32)), 4, 6),  # what is over 4 x 4 patches is not seen
        (TINY(image_bridge=BridgeConfig(latents=7)), 7, 9),
        (TINY(cross_layers=(1,)), 4, 1),
        (TINY(vision=VisionConfig.clip_large(), image_bridge=BridgeConfig()), 576, 578),  # LLaVA 1.5
        (TINY(vision=VisionConfig.clip_large(), image_bridge=BridgeConfig(merge=3)), 64, 66),
    ],
)  # fmt: skip
def test_how_many_tokens_and_places_a_picture_takes(cfg, tokens, places):
    assert (cfg.n_image_tokens(), cfg.n_image_places()) == (tokens, places)


@pytest.mark.parametrize(
    ("cfg", "n", "tokens", "places"),
    [
        (TINY(), 1, 1, 3), (TINY(), 4, 1, 3), (TINY(), 5, 2, 4), (TINY(), 50, 13, 15),
        (TINY(audio=AudioConfig.whisper_tiny(), audio_bridge=BridgeConfig("swiglu", merge=8)), 1500, 188, 190),
        (TINY(audio_bridge=BridgeConfig(latents=6, merge=4)), 50, 6, 8),
        (TINY(cross_layers=(0, 1)), 50, 13, 1),
    ],
)  # fmt: skip
def test_how_many_tokens_and_places_a_sound_takes(cfg, n, tokens, places):
    assert (cfg.n_audio_tokens(n), cfg.n_audio_places(n)) == (tokens, places)


def test_pixels_and_grid():
    assert (TINY().pixels, TINY().grid) == ((32, 32), (4, 4))
    wide = TINY(image_size=(16, 48))
    assert (wide.pixels, wide.grid) == ((16, 48), (2, 6))


VARIANTS = {
    "tiny": TINY(), "an eye alone": TINY(audio=None), "an ear alone": TINY(vision=None),
    "cross": TINY(cross_layers=(0, 1), n_prompts=4),
    "everything": TINY(
        text=TextConfig.tiny(tie_embeddings=False), vision=VisionConfig.tiny("clip"), image_layer=-2, audio_layer=1,
        image_size=(16, 48), image_bridge=BridgeConfig("linear", 2, 8, 5, 3, 2),
        audio_bridge=BridgeConfig("swiglu", 8, tags=7, width=40), cross_layers=(1,), n_prompts=2,
    ),
    "real": TINY(text=TextConfig.llama32_3b(), vision=VisionConfig.siglip_so400m(), audio=AudioConfig.whisper_base(),
                 image_bridge=BridgeConfig(merge=3)),
}  # fmt: skip


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_config_json_there_and_back(cfg):
    written = json.loads(json.dumps(cfg.to_hf()))
    assert MultimodalConfig.from_hf(written) == cfg
    hash(MultimodalConfig.from_hf(written))  # tuples, not lists


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "'llama'.* 'llamamm'"),
        ({"model_type": None}, "None"),
        ({"image_bridge": {"projector": "mlp", "colour": 1}}, "colour"),
        ({"image_bridge": {"projector": "mlp", "merge": 3}}, "merge by 3 x 3"),
        ({"vision_config": None, "audio_config": None}, "an eye or an ear"),
    ],
)
def test_another_file_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        MultimodalConfig.from_hf({**TINY().to_hf(), **change})


@pytest.mark.parametrize("key", sorted(set(TINY().to_hf()) - {"model_type", "architectures"}))
def test_a_file_that_lacks_something_is_refused(key):
    data = TINY().to_hf()
    del data[key]
    with pytest.raises(ConfigError, match=f"{key}.*save the model again"):
        MultimodalConfig.from_hf(data)


def test_a_changed_copy_is_checked_again():
    with pytest.raises(ConfigError, match="merge by 3"):
        replace(TINY(), image_bridge=BridgeConfig(merge=3))


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_layer": 3}, "image_layer 3 .*-3 to 2 of 2 blocks"),
    ({"audio_layer": -4}, "audio_layer -4 .*-3 to 2 of 2 blocks"),
    ({"image_bridge": BridgeConfig(merge=2, tags=1)}, "tags 1 .*4 / 2 rows"),
])  # fmt: skip
def test_what_the_first_picture_would_show_shows_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        MultimodalConfig.tiny(**changes)
