"""multimodal.model: text bit for bit, batches equal to one by one, cached to uncached, files, LoRA, refusals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamamm import (
    AudioEncoder,
    Llama3Model,
    TextConfig,
    TextStream,
    VisionTower,
    apply_lora,
    from_pretrained,
    generate,
    load_adapter,
    merge_lora,
    pad_left,
    save_adapter,
    save_pretrained,
    set_lora_enabled,
    unmerge_lora,
)
from llamamm.errors import CheckpointError, ConfigError, ContextOverflowError, InputError
from llamamm.lora.lora import lora_modules
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.cross_attention import CrossAttentionBlock
from llamamm.multimodal.model import Features, Media, MultimodalLlama
from llamamm.multimodal.processor import join_media, make_media
from llamamm.senses.config import VisionConfig
from llamamm.train.losses import IGNORE

IMAGE, SOUND = 512, 513
SPLICED = {
    "spliced": {},
    "untied": {"text": TextConfig.tiny(tie_embeddings=False)},
    "eye": {"audio": None},
    "ear": {"vision": None},
    "tags": {"image_bridge": BridgeConfig("linear", 2, tags=2), "audio_bridge": BridgeConfig("mlp", 2, tags=25)},
    "perceivers": {"image_bridge": BridgeConfig(latents=3), "audio_bridge": BridgeConfig("linear", 2, latents=5,
                                                                                        depth=1, heads=2)},
    "layers": {"vision": VisionConfig.tiny("clip"), "image_layer": -2, "audio_layer": -1, "image_size": (16, 48)},
}  # fmt: skip
CROSS = {
    "cross": {"cross_layers": (0, 1)},
    "cross, prompts": {"cross_layers": (1,), "n_prompts": 3},
    "cross, perceivers": {"cross_layers": (0,), **SPLICED["perceivers"]},
    "cross, eye": {"cross_layers": (0, 1), "audio": None},
}
VARIANTS = {**SPLICED, **CROSS}
MODES = {"spliced": {}, "cross": CROSS["cross"]}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
modes = pytest.mark.parametrize("changes", MODES.values(), ids=MODES)


def build(changes=None, *, seed=0, gates=0.7, **parts):
    """A model as after training: weights large enough that what is seen and heard is felt, gates open."""
    torch.manual_seed(seed)
    model = MultimodalLlama(MultimodalConfig.tiny(**(changes or {})), **parts).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(gates)
            elif "norm" not in name and not name.startswith("audio_encoder.embed_positions") and not parts:
                parameter.normal_(0, 0.12)
    return model


def picture(cfg, seed):
    return torch.randn(3, *cfg.pixels, generator=torch.Generator().manual_seed(seed))


def noise(cfg, seed, n):
    return torch.randn(cfg.audio.n_mels, 2 * n, generator=torch.Generator().manual_seed(seed))


def prompt(cfg, *parts):
    """parts: a number of words, or ("image", seed), or ("sound", seed, places). -> ids, Media or None.

    Media that the model has no organ for are left out.
    """
    ids, pixels, mels = [], [], []
    for n, part in enumerate(parts):
        if isinstance(part, int):
            ids += [(37 * n + 11 * i + 5) % 500 for i in range(part)]
        elif part[0] == "image" and cfg.vision is not None:
            pixels.append(picture(cfg, part[1]))
            ids += [cfg.image_token] * cfg.n_image_places()
        elif part[0] == "sound" and cfg.audio is not None:
            mels.append(noise(cfg, *part[1:]))
            ids += [cfg.audio_token] * cfg.n_audio_places(part[2])
    return ids, make_media(pixels, mels) if pixels or mels else None


PROMPTS = [
    (5,),
    (3, ("image", 1), 4),
    (("sound", 2, 9), 2),
    (1, ("image", 3), 2, ("image", 4), ("sound", 5, 17), 1, ("sound", 6, 50), 3),
    (("image", 7), ("image", 8), ("sound", 9, 1), ("image", 10), 1),
    (12,),
]


def batched(cfg, prompts=PROMPTS):
    read = [prompt(cfg, *parts) for parts in prompts]
    ids, padding = pad_left([ids for ids, _ in read])
    return ids, padding, join_media([media for _, media in read if media is not None])


def one(cfg, *parts):
    ids, media = prompt(cfg, *parts)
    return torch.tensor([ids]), media


# ---- text alone ----


@torch.no_grad()
@variants
def test_text_alone_is_the_text_models_bit_for_bit(changes):
    torch.manual_seed(0)
    text = Llama3Model(changes.get("text", TextConfig.tiny())).eval()
    model = build({**changes, "text": text.cfg}, text=text)
    assert model.embed_tokens is text.embed_tokens and model.layers is text.layers
    ids, padding = pad_left([list(range(20)), [5, 6], [7]])
    assert torch.equal(model(ids, padding=padding), text(ids, padding=padding))
    assert torch.equal(model(ids, media=Media()), text(ids))
    assert torch.equal(model(ids, last_only=True), text(ids, last_only=True))
    assert torch.equal(model.hidden_states(ids), text.hidden_states(ids))
    segments = torch.tensor([[0] * 8 + [1] * 12] * 3)
    assert torch.equal(model.hidden_states(ids, segments=segments), text.hidden_states(ids, segments=segments))
    assert torch.equal(generate(model, ids, 12, padding=padding), generate(text, ids, 12, padding=padding))


@torch.no_grad()
def test_text_alone_is_the_text_models_beside_prompts_with_media():
    for changes in MODES.values():
        model = build(changes)
        text = Llama3Model(model.cfg).eval()
        text.load_state_dict(model.state_dict(), strict=False)
        ids, padding, media = batched(model.multimodal_cfg)
        out, alone = model(ids, media=media, padding=padding), text(ids.clamp(max=511), padding=padding)
        for row in (0, 5):
            assert (out[row][padding[row]] - alone[row][padding[row]]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("n_prompts", [0, 3])
def test_closed_gates_add_nothing_bit_for_bit(n_prompts):
    """With a picture there: the model is the same as if it had no gated blocks."""
    model = build({"cross_layers": (0, 1), "n_prompts": n_prompts}, gates=0.0)
    ids, padding, media = batched(model.multimodal_cfg)
    closed = model(ids, media=media, padding=padding)
    blocks, model.gated = model.gated, torch.nn.ModuleDict()
    assert torch.equal(closed, model(ids, media=media, padding=padding))
    model.gated = blocks
    blocks["1"].cross_attn_attn_gate.fill_(0.1)
    assert (model(ids, media=media, padding=padding)[1:5] - closed[1:5]).abs().amax(dim=(1, 2)).min() > 1e-4
    assert torch.equal(MultimodalLlama(model.multimodal_cfg).gated["0"].cross_attn_attn_gate, torch.zeros(1))


# ---- media ----


@torch.no_grad()
@variants
def test_a_batch_equals_one_by_one(changes):
    model = build(changes)
    cfg = model.multimodal_cfg
    ids, padding, media = batched(cfg)
    out = model(ids, media=media, padding=padding)
    for b, parts in enumerate(PROMPTS):
        alone, own = one(cfg, *parts)
        logits = model(alone, media=own)
        assert logits.shape == (1, alone.shape[1], 512)
        assert (out[b][padding[b]] - logits[0]).abs().max() < 1e-5


@torch.no_grad()
@variants
def test_words_before_a_picture_know_nothing_of_it(changes):
    model = build(changes)
    cfg = model.multimodal_cfg
    kind = "image" if cfg.vision is not None else "sound"
    (ids, a), (_, b) = (one(cfg, 4, (kind, seed, 9), 5) for seed in (1, 2))
    first, second = model(ids, media=a), model(ids, media=b)
    assert torch.equal(first[:, :4], second[:, :4])
    assert (first[:, -5:] - second[:, -5:]).abs().amax(dim=-1).min() > 1e-4


@torch.no_grad()
@modes
def test_each_medium_reaches_its_own_words(changes):
    """Two pictures and two sounds: exchanging any two of a kind changes the words behind the first of them."""
    model = build(changes)
    cfg = model.multimodal_cfg

    def out(a, b, x, y):
        ids, media = one(cfg, 1, ("image", a), 2, ("image", b), 2, ("sound", x, 9), 2, ("sound", y, 9), 2)
        begins = [(ids[0] == token).nonzero()[0, 0] for token in (IMAGE, SOUND)]
        return model(ids, media=media), begins

    plain, begins = out(1, 2, 3, 4)
    for begin, swapped in zip(begins, (out(2, 1, 3, 4)[0], out(1, 2, 4, 3)[0]), strict=True):
        assert torch.equal(swapped[:, :begin], plain[:, :begin])
        assert (swapped - plain)[:, begin + 1 :].abs().amax(dim=-1).min() > 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("size", "grid"), [((32, 32), (4, 4)), ((16, 48), (2, 6)), ((64, 16), (8, 2))])
def test_splicing_by_hand(size, grid):
    model = build({"image_size": size})
    cfg = model.multimodal_cfg
    ids, media = one(cfg, 2, ("image", 1), 1, ("sound", 2, 9), 1)
    n = grid[0] * grid[1] // 4
    words = model.embed_tokens(ids[:, [0, 1, 2 + n + 2, -1]])[0]
    seen = model.image_bridge(model.vision_tower(media.pixels, cls=False), grid=grid)[0][0]
    heard = model.audio_bridge(model.audio_encoder(media.mel))[0][0]
    eye, ear = model.image_bridge, model.audio_bridge
    row = [words[:2], eye.start[None], seen, eye.end[None], words[2:3],
           ear.start[None], heard, ear.end[None], words[3:]]  # fmt: skip
    x = torch.cat(row)[None]
    assert x.shape == (1, 2 + n + 2 + 1 + 5 + 1, 64)
    expected = model.lm_head(model.norm(model.run_blocks(x)))
    assert (model(ids, media=media) - expected).abs().max() < 1e-6


@torch.no_grad()
def test_gated_blocks_by_hand(monkeypatch):
    """What each word may look at, and that the marker's own embedding is the learned start."""
    model = build(CROSS["cross"])
    ids = torch.tensor([[1, IMAGE, 2, SOUND, IMAGE, IMAGE, 3], [4, 5, 6, 7, 8, SOUND, 9]])
    media = make_media([picture(model.multimodal_cfg, s) for s in range(3)],
                       [noise(model.multimodal_cfg, 5, 9), noise(model.multimodal_cfg, 6, 3)])  # fmt: skip
    calls = []
    own = CrossAttentionBlock.forward
    monkeypatch.setattr(CrossAttentionBlock, "forward", lambda *a: calls.append(a) or own(*a))
    model(ids, media=media)
    _, x, (k, _), look = calls[0]
    assert k.shape[2] == 3 * 4 + 3  # three pictures of 4 tokens, ceil(9 / 4) of the sound
    expected = torch.zeros(2, 7, 15, dtype=torch.bool)
    expected[0, 1:4, :4] = True  # a picture, up to the next
    expected[0, 4:, 4:8] = True  # two in a row are seen together
    expected[0, 5:, 8:12] = True
    expected[0, 3:, 12:15] = True  # a sound, to the end
    expected[1, 5:, :1] = True  # one token of sound, and nothing of what fills the row
    assert torch.equal(look[:, 0], expected)
    tokens = model.bridged(model.perceive(media))
    (seen, _), (heard, real) = tokens["image"], tokens["audio"]
    memory = torch.zeros(2, 15, 64)
    memory[0] = torch.cat([*seen, heard[0]])
    memory[1, :1] = heard[1, real[1]]
    assert (model.gated["0"].keys_values(memory)[0] - k).abs().max() < 1e-5
    assert torch.equal(x[0, 1], model.image_bridge.start) and torch.equal(x[1, 5], model.audio_bridge.start)
    assert torch.equal(x[0, 0], model.embed_tokens.weight[1])


@torch.no_grad()
@variants
def test_features_instead_of_media(changes):
    model = build(changes)
    ids, padding, media = batched(model.multimodal_cfg)
    features = model.perceive(media)
    out = model(ids, features=features, padding=padding)
    assert torch.equal(out, model(ids, media=media, padding=padding))
    model.vision_tower = model.audio_encoder = None  # not needed again
    assert torch.equal(out, model(ids, features=features, padding=padding))


@torch.no_grad()
def test_what_the_towers_give_is_of_the_layers_that_the_configuration_names():
    model = build(SPLICED["layers"])
    _, _, media = batched(model.multimodal_cfg)
    features = model.perceive(media)
    assert torch.equal(features.images, model.vision_tower(media.pixels, layer=-2)[:, 1:])  # without the CLS token
    assert torch.equal(features.sounds, model.audio_encoder(media.mel, layer=-1, lengths=media.lengths))
    assert features.sound_mask.sum(dim=1).tolist() == media.lengths.tolist() == [9, 17, 50, 1]


@torch.no_grad()
def test_sounds_without_lengths_are_whole():
    model = build()
    ids, media = one(model.multimodal_cfg, 2, ("sound", 1, 12), 2)
    assert (model(ids, media=Media(mel=media.mel)) - model(ids, media=media)).abs().max() < 1e-5


# ---- one word after another ----


@torch.no_grad()
@variants
def test_cached_equals_uncached(changes):
    model = build(changes)
    ids, padding, media = batched(model.multimodal_cfg, [(*parts, 6) for parts in PROMPTS])
    whole = model(ids, media=media, padding=padding)
    cache = model.make_cache(len(ids), ids.shape[1])
    T = ids.shape[1] - 6
    pieces = [model(ids[:, :T], media=media, padding=padding[:, :T], cache=cache),
              model(ids[:, T : T + 2], padding=padding[:, : T + 2], cache=cache)]  # fmt: skip
    pieces += [model(ids[:, i : i + 1], padding=padding[:, : i + 1], cache=cache) for i in range(T + 2, T + 6)]
    assert ((torch.cat(pieces, dim=1) - whole)[padding]).abs().max() < 1e-5
    cache.rewind()
    words = torch.arange(12).view(6, 2)
    assert (model(words, cache=cache) - model(words)).abs().max() < 1e-5  # nothing of the media is left


@torch.no_grad()
def test_nothing_is_left_of_media_whose_reading_failed():
    model = build(CROSS["cross"])
    ids, media = one(model.multimodal_cfg, 3, ("image", 1), 4)
    cache = model.make_cache(1, 6)
    with pytest.raises(ContextOverflowError):
        model(ids, media=media, cache=cache)
    words = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(words, cache=cache), model(words))
    assert (model(words[:, :1], cache=cache) - model(torch.tensor([[1, 2, 3, 1]]))[:, 3:]).abs().max() < 1e-5


@modes
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.4}], ids=str)
def test_generation_cached_or_not_alone_or_in_a_batch(changes, sampling):
    model = build(changes)
    cfg = model.multimodal_cfg
    ids, padding, media = batched(cfg)
    options = {"padding": padding, "inputs": {"media": media}, **sampling}
    out = generate(model, ids, 10, **options)
    assert out.shape == (6, ids.shape[1] + 10) and out[:, ids.shape[1] :].max() < 512
    assert torch.equal(out, generate(model, ids, 10, use_cache=False, **options))
    assert torch.equal(out, generate(model, ids, 10, prefill_chunk=4, **options))
    if "seed" not in sampling:
        for b, parts in enumerate(PROMPTS):
            alone, own = one(cfg, *parts)
            inputs = {} if own is None else {"media": own}
            assert generate(model, alone, 10, inputs=inputs, **sampling)[0, alone.shape[1] :].tolist() == (
                out[b, ids.shape[1] :].tolist())  # fmt: skip


@torch.no_grad()
@modes
def test_generation_is_the_best_word_each_time(changes):
    model = build(changes)
    ids, media = one(model.multimodal_cfg, 2, ("image", 1), ("sound", 2, 9), 3)
    words = ids
    for _ in range(8):
        words = torch.cat([words, model(words, media=media)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(generate(model, ids, 8, inputs={"media": media}), words)
    other = generate(model, ids, 8, inputs={"media": one(model.multimodal_cfg, ("image", 5), ("sound", 6, 9))[1]})
    assert not torch.equal(other, words)


def test_the_repetition_penalty_leaves_placeholders_alone():
    model = build()
    ids, media = one(model.multimodal_cfg, 4, ("image", 1), ("sound", 2, 9))
    out = generate(model, ids, 6, repetition_penalty=50.0, inputs={"media": media})[0]
    words = [i for i in out.tolist() if i < 512]
    assert len(words) == 10 == len(set(words))


@modes
def test_a_text_stream(changes, smol):
    model = build({**changes, "text": TextConfig.tiny(vocab_size=smol.vocab_size)})
    cfg = model.multimodal_cfg
    ids, media = one(cfg, 2, ("image", 1), 3)
    stream = TextStream(model, smol, ids[0].tolist(), inputs={"media": media}, max_new_tokens=12, stop_ids=())
    text = "".join(stream)
    expected = generate(model, ids, 12, inputs={"media": media})[0, ids.shape[1] :].tolist()
    assert stream.new_ids == expected and text == smol.decode(expected)


@pytest.mark.parametrize("n_prompts", [0, 2])
def test_keys_and_values_are_computed_once_a_prompt(monkeypatch, n_prompts):
    model = build({"cross_layers": (0, 1), "n_prompts": n_prompts})
    shapes, own = [], CrossAttentionBlock.keys_values
    monkeypatch.setattr(
        CrossAttentionBlock, "keys_values", lambda block, memory: shapes.append(memory.shape) or own(block, memory))
    monkeypatch.setattr(VisionTower, "forward", _counted(VisionTower.forward, towers := []))
    ids, media = one(model.multimodal_cfg, 2, ("image", 1), 3, ("image", 2))
    generate(model, ids, 9, inputs={"media": media})
    assert shapes == [(1, 8, 64)] * 2 and len(towers) == 1
    generate(model, torch.tensor([[1, 2]]), 9)
    assert len(shapes) == 2 and len(towers) == 1


def _counted(function, calls):
    def counted(*args, **options):
        calls.append(None)
        return function(*args, **options)

    return counted


# ---- any order and number ----

PARTS = st.lists(st.one_of(
    st.integers(1, 3), st.tuples(st.just("image"), st.integers(0, 9)),
    st.tuples(st.just("sound"), st.integers(0, 9), st.integers(1, 50))), min_size=1, max_size=6)  # fmt: skip


@settings(max_examples=40)
@example(prompts=[[("sound", 0, 4)]], variant="layers")  # what no stack has to fill up
@given(prompts=st.lists(PARTS, min_size=1, max_size=3), variant=st.sampled_from(sorted(VARIANTS)))
def test_any_prompts_run_and_have_as_many_places_as_the_bridges_make(prompts, variant):
    model = FITTING.setdefault(variant, build(VARIANTS[variant]))
    cfg = model.multimodal_cfg
    prompts = [[1, *parts] for parts in prompts]
    ids, padding, media = batched(cfg, prompts)
    with torch.no_grad():
        out = model(ids, media=media, padding=padding)
        assert out.shape == (*ids.shape, 512) and out.isfinite().all()
        tokens = model.bridged(model.perceive(media)) if media else {}
    for kind, token in (("image", cfg.image_token), ("audio", cfg.audio_token)):
        n = 0
        if kind in tokens:
            _, real = tokens[kind]
            n = len(real) if cfg.cross_layers else int(real.sum()) + 2 * len(real)
        assert int((ids == token).sum()) == n


FITTING: dict[str, MultimodalLlama] = {}


# ---- what is refused ----


@modes
@pytest.mark.parametrize(("change", "message"), [
    (lambda ids, media, n: (ids, None), "hold {n} places? for image features, but 0 w(as|ere) given"),  # noqa: ARG005
    (lambda ids, media, n: (ids.clamp(max=500), media), "hold 0 places for image features, but {n} w(as|ere)"),  # noqa: ARG005
    (lambda ids, media, _: (torch.cat([ids, ids[:, 2:3]], dim=1), media), "hold {more} places? for image .* {n} w"),
    (lambda ids, media, n: (ids, join_media([media, media])), "hold {n} places? for image .* {twice} w(as|ere)"),  # noqa: ARG005
    (lambda ids, media, n: (ids[:, : 1 + n], media), "hold {less} places? for image .* {n} w(as|ere) .* cut"),
    (lambda ids, media, n: (ids + 2, media), "token id 514 is outside the vocabulary of 512"),  # noqa: ARG005
    (lambda ids, media, n: (ids - 600, media), "token id -5"),  # noqa: ARG005
    (lambda ids, media, n: (ids[0], media), r"shape \(B, T\)"),  # noqa: ARG005
    (lambda ids, media, n: (ids[:, :0], media), "no tokens"),  # noqa: ARG005
])  # fmt: skip
def test_places_and_media_that_do_not_match(changes, change, message):  # faults 16 and 22
    model = build(changes)
    ids, media = one(model.multimodal_cfg, 2, ("image", 1), 2)
    n = int((ids == IMAGE).sum())
    numbers = {"n": n, "more": n + 1, "twice": 2 * n, "less": n - 1}
    with pytest.raises(InputError, match=message.format(**numbers)):
        model(*change(ids, media, n)[:1], media=change(ids, media, n)[1])


def test_a_long_prompt_with_media_is_refused_with_both_numbers():  # fault 18
    model = build()
    ids, media = one(model.multimodal_cfg, 250, ("image", 1))
    with pytest.raises(ContextOverflowError, match="257 pass the context of 256"):
        model(torch.cat([ids, ids[:, :1]], dim=1), media=media)
    assert model(ids, media=media).shape == (1, 256, 512)


@modes
def test_media_for_a_missing_organ(changes):
    both = MultimodalConfig.tiny()
    eye, ear = build({**changes, "audio": None}), build({**changes, "vision": None})
    words = torch.tensor([[1, 2]])
    image, sound = Media(picture(both, 1)[None]), make_media([], [noise(both, 1, 9)])
    with pytest.raises(InputError, match="no eye, but images"):
        ear(words, media=image)
    with pytest.raises(InputError, match="no ear, but sounds"):
        eye(words, media=sound)
    with pytest.raises(InputError, match="no eye, but images"):
        ear(words, features=Features(images=torch.randn(1, 16, 32)))
    for model, token in ((ear, IMAGE), (eye, SOUND)):  # its place alone, too
        with pytest.raises(InputError, match=str(token)):
            model(torch.tensor([[1, token, 2]]))


def test_media_behind_the_first_tokens_are_refused_where_they_are_looked_at():
    model = build(CROSS["cross"])
    ids, media = one(model.multimodal_cfg, 2, ("image", 1), 2)
    cache = model.make_cache(1, 32)
    model(ids, media=media, cache=cache)
    with pytest.raises(InputError, match="holds 5 tokens already.*rewind"):
        model(ids, media=media, cache=cache)
    assert cache.length == 5
    spliced = build()
    ids, media = one(spliced.multimodal_cfg, 2, ("image", 1), 2)
    cache = spliced.make_cache(1, 32)  # where they are spliced they may come later
    with torch.no_grad():
        spliced(ids[:, :2], cache=cache)
        later = spliced(ids[:, 2:], media=media, cache=cache)
        assert (later - spliced(ids, media=media)[:, 2:]).abs().max() < 1e-5


def test_parts_of_another_shape_are_refused():
    cfg = MultimodalConfig.tiny()
    for name, part in (("text", Llama3Model(TextConfig.tiny(n_layers=3))),
                       ("vision", VisionTower(VisionConfig.tiny("clip"))),
                       ("audio", AudioEncoder(replace(cfg.audio, n_mels=8)))):  # fmt: skip
        with pytest.raises(ConfigError, match=f"the {name} model has"):
            MultimodalLlama(cfg, **{name: part})


# ---- training ----


def test_given_parts_are_taken_as_they_are():
    cfg = MultimodalConfig.tiny()
    parts = {"text": Llama3Model(cfg.text), "vision": VisionTower(cfg.vision), "audio": AudioEncoder(cfg.audio)}
    state = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    model = MultimodalLlama(cfg, **parts)
    assert model.vision_tower is parts["vision"] and model.audio_encoder is parts["audio"]
    assert all(torch.equal(v, state[name][k]) for name, part in parts.items() for k, v in part.state_dict().items())
    assert model.lm_head.weight is model.embed_tokens.weight
    assert not any(p.is_meta for p in model.parameters()) and model.cos is parts["text"].cos


TEXT_PARTS = {"embed_tokens", "layers", "norm", "lm_head"}
TOWERS, BRIDGES = {"vision_tower", "audio_encoder"}, {"image_bridge", "audio_bridge", "gated"}


@pytest.mark.parametrize(("wish", "expected"), [
    ({}, BRIDGES), ({"text": True}, BRIDGES | TEXT_PARTS), ({"towers": True, "bridges": False}, TOWERS),
    ({"text": True, "towers": True}, TEXT_PARTS | TOWERS | BRIDGES), ({"bridges": False}, set()),
])  # fmt: skip
def test_what_trains_and_what_gets_gradients(wish, expected):
    model = build({"cross_layers": (1,), "n_prompts": 2, "text": TextConfig.tiny(tie_embeddings=False)})
    assert model.set_trainable(**wish) is model
    parts = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == expected
    frozen = [n for n, p in model.named_parameters() if n.split(".")[0] in expected and not p.requires_grad]
    assert frozen == (["audio_encoder.embed_positions"] if "audio_encoder" in expected else [])
    if expected:
        ids, padding, media = batched(model.multimodal_cfg)
        model(ids, media=media, padding=padding)[padding].pow(2).mean().backward()
        with_gradient = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == expected
    with pytest.raises(TypeError):
        model.set_trainable(True)


@pytest.mark.parametrize("towers", [True, False])
def test_towers_of_which_nothing_trains_keep_no_graph(towers):
    model = build().set_trainable(towers=towers)
    _, _, media = batched(model.multimodal_cfg)
    features = model.perceive(media)
    assert features.images.requires_grad == features.sounds.requires_grad == towers
    assert torch.is_grad_enabled() and not features.images.is_inference()
    with torch.no_grad():
        assert not build().perceive(media).images.requires_grad


@pytest.mark.parametrize("changes", [{}, CROSS["cross"]], ids=["spliced", "cross"])
def test_bridges_learn_to_name_a_colour(changes):
    """Black and white pictures, one word each: only the bridges train, and the words come right."""
    model = build({"audio": None, **changes}, gates=0.0).set_trainable()
    cfg = model.multimodal_cfg
    ids = torch.tensor([[1, *[IMAGE] * cfg.n_image_places(), 2]] * 2)
    targets = torch.full_like(ids, IGNORE)  # placeholders are no targets: there is nothing to say there
    targets[:, -1] = torch.tensor([100, 200])
    media = Media(torch.stack([torch.full((3, 32, 32), value) for value in (-1.0, 1.0)]))
    features = model.perceive(media)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    for _ in range(40):
        logits = model(ids, features=features)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(ids, media=media)[:, -1].argmax(dim=-1).tolist() == [100, 200]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


# ---- LoRA ----

LORA = {
    "text": ({}, ["layers.*.q_proj", "layers.1.mlp.up_proj"], {"layers"}),
    "towers": ({}, ["out_proj", "fc1"], TOWERS),
    "projectors": ({}, ["linear_1", "linear_2"], {"image_bridge", "audio_bridge"}),
    "perceivers": (SPLICED["perceivers"], ["*resampler*"], {"image_bridge", "audio_bridge"}),
    "gated": ({"cross_layers": (1,), "n_prompts": 2}, ["cross_attn.q_proj", "cross_attn.v_proj", "gated.1.mlp.up_proj"],
              {"gated"}),
    "all linears": (CROSS["cross"], ["q_proj", "v_proj", "linear_1"], {"layers", *TOWERS, *BRIDGES}),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "targets", "parts"), LORA.values(), ids=LORA)
def test_every_part_carries_lora(changes, targets, parts, tmp_path):
    model = build(changes)
    ids, padding, media = batched(model.multimodal_cfg)

    def run(model):
        return model(ids, media=media, padding=padding)

    base = run(model).detach()
    apply_lora(model, r=2, alpha=4, targets=targets)
    assert {path.split(".")[0] for path in lora_modules(model)} == parts
    assert torch.equal(run(model), base)  # B is zero
    with torch.no_grad():
        for n, module in enumerate(lora_modules(model).values()):
            module.lora_b["default"].normal_(0, 0.2, generator=torch.Generator().manual_seed(n))
    tuned = run(model)
    tuned[padding].pow(2).mean().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in trained)
    with torch.no_grad():
        tuned = tuned.detach()
        assert (tuned - base).abs().max() > 1e-3
        set_lora_enabled(model, False)
        assert torch.equal(run(model), base)
        set_lora_enabled(model, True)
        merge_lora(model)
        assert (run(model) - tuned).abs().max() < 1e-4
        unmerge_lora(model)
        assert torch.equal(run(model), tuned)
        with pytest.raises(CheckpointError, match="not merged"):
            save_pretrained(model, tmp_path / "whole")
        save_adapter(model, tmp_path / "adapter")
        other = build(changes)
        load_adapter(other, tmp_path / "adapter")
        assert torch.equal(run(other), tuned)
        merge_lora(other)
        save_pretrained(other, tmp_path / "whole")
        assert torch.equal(run(from_pretrained(tmp_path / "whole")[0]), run(other))
        with pytest.raises(CheckpointError, match="another base"):
            load_adapter(build(changes, seed=1), tmp_path / "adapter")


# ---- files ----


@torch.no_grad()
@variants
def test_saved_and_loaded_bit_for_bit(changes, tmp_path):
    model = build(changes)
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(tmp_path / "m")[0]
    assert again.multimodal_cfg == model.multimodal_cfg and not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert (again.lm_head.weight is again.embed_tokens.weight) == model.cfg.tie_embeddings
    ids, padding, media = batched(model.multimodal_cfg)
    assert torch.equal(again(ids, media=media, padding=padding), model(ids, media=media, padding=padding))
    if "audio_encoder" in dict(again.named_children()):
        assert not again.audio_encoder.embed_positions.requires_grad


@torch.no_grad()
@modes
def test_bf16(changes, tmp_path):
    model = build(changes)
    save_pretrained(model, tmp_path / "m")
    half = from_pretrained(tmp_path / "m", dtype=torch.bfloat16)[0]
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    ids, padding, media = batched(model.multimodal_cfg)
    full, rough = model(ids, media=media, padding=padding), half(ids, media=media, padding=padding)
    assert rough.dtype == torch.bfloat16
    assert (rough - full)[padding].abs().mean() < 0.1 * full[padding].abs().mean()
    assert generate(half, ids, 3, padding=padding, inputs={"media": media}).shape == (6, ids.shape[1] + 3)
    save_pretrained(half, tmp_path / "half")
    again = from_pretrained(tmp_path / "half")[0]
    assert torch.equal(again(ids, media=media, padding=padding), rough)


@torch.no_grad()
@modes
def test_a_bf16_text_model_with_fresh_bridges(changes):
    """Bridges and towers are in fp32, the text model is not."""
    model = build({**changes, "text": TextConfig.tiny(dtype=torch.bfloat16)})
    ids, padding, media = batched(model.multimodal_cfg)
    assert model.image_bridge.start.dtype == torch.float32
    out = model(ids, media=media, padding=padding)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert generate(model, ids, 3, padding=padding, inputs={"media": media}).shape[1] == ids.shape[1] + 3


def test_folders_that_are_no_whole_model(tmp_path):
    model = build()
    save_pretrained(model, tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="notes.txt"):
        save_pretrained(model, tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    other = build(CROSS["cross"])
    save_pretrained(other, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_bytes((tmp_path / "m" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="unexpected .*\n.*gated"):
        from_pretrained(tmp_path / "other")[0]


# ---- around a real text model ----


@torch.no_grad()
def test_smollm2_with_eyes_and_ears_still_reads_as_before(smollm2):
    text, tokenizer = smollm2
    cfg = MultimodalConfig.tiny(text=text.cfg)
    model = MultimodalLlama(cfg, text=text).eval()
    assert (cfg.image_token, cfg.audio_token) == (49_152, 49_153)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    assert torch.equal(model(ids), text(ids))
    words, media = tokenizer.encode("Look:"), make_media([picture(cfg, 1)], [noise(cfg, 2, 9)])
    places = [cfg.image_token] * cfg.n_image_places() + [cfg.audio_token] * cfg.n_audio_places(9)
    mixed = torch.tensor([[*words, *places, *ids[0].tolist()]])
    logits = model(mixed, media=media)
    assert torch.equal(logits[:, : len(words)].argmax(-1), text(torch.tensor([words])).argmax(-1))
    assert logits.shape[-1] == 49_152 and logits.isfinite().all()
    gated = MultimodalLlama(MultimodalConfig.tiny(text=text.cfg, cross_layers=(0, 15)), text=text).eval()
    assert torch.equal(gated(ids), text(ids))
    out = generate(gated, ids, 8)
    assert torch.equal(out, generate(text, ids, 8)) and "Paris" in tokenizer.decode(out[0].tolist())


def test_rewinding_between_two_pictures_sees_what_was_seen_there():
    model = build({"cross_layers": (0, 1), "audio": None})
    ids = torch.tensor([[5, IMAGE, 6, 7, IMAGE, 8, 9]])
    media = Media(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    cache = model.make_cache(1, 16)
    with torch.no_grad():
        whole = model(ids, media=media, cache=cache)
        cache.rewind(3)
        again = model(ids[:, 3:4], cache=cache)
    assert (again[:, 0] - whole[:, 3]).abs().max() < 1e-5


def test_media_and_features_are_one_too_many():
    model = build({"audio": None})
    media = Media(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="give one of them"):
        model(torch.tensor([[1]]), media=media, features=model.perceive(media))


def test_saved_and_loaded_each_weight_keeps_its_dtype(tmp_path):
    model = build({"text": TextConfig.tiny(dtype=torch.bfloat16)})
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    save_pretrained(model, tmp_path / "m")
    loaded = from_pretrained(tmp_path / "m")[0]
    assert {name: p.dtype for name, p in loaded.named_parameters()} == kinds
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("changes", [{}, {"cross_layers": (0, 1)}], ids=["spliced", "gated"])
def test_texts_that_share_a_row_see_their_own_pictures_alone(changes):
    torch.manual_seed(0)
    model = MultimodalLlama(MultimodalConfig.tiny(**changes)).eval()
    for block in model.gated.values():
        torch.nn.init.ones_(block.cross_attn_attn_gate)
    cfg = model.multimodal_cfg
    places = [cfg.image_token] * cfg.n_image_places()
    one, other, plain = [1, *places, 3, 4], [2, 5, *places, 6], [7, 8]
    features = Features(images=torch.randn(2, 16, 32))
    row = torch.tensor([one + other + plain])
    segments = torch.tensor([[1] * len(one) + [2] * len(other) + [3] * len(plain)])
    with torch.no_grad():
        together = model.hidden_states(row, features=features, segments=segments)[0]
        alone = [model.hidden_states(torch.tensor([text]), features=seen)[0] for text, seen in (
            (one, Features(images=features.images[:1])), (other, Features(images=features.images[1:])), (plain, None))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
