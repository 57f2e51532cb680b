"""llama32_vision.model: logits equal to transformers', cached and batched, text alone, gates closed, Meta's
row rule."""

from dataclasses import replace

import pytest
import torch
from transformers import MllamaConfig as HFConfig
from transformers import MllamaForConditionalGeneration, MllamaTextConfig, MllamaVisionConfig

from llamamm.errors import ConfigError, InputError
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel, TiledImages
from llamamm.multimodal.cross_attention import CrossAttentionBlock
from llamamm.text.model import Llama3Model
from llamamm.weights.mllama_names import mllama_names
from llamamm.weights.tensors import refs_of

VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_global_layers": 2, "attention_heads": 4, "image_size": 28,
          "intermediate_size": 64, "vision_output_dim": 96, "patch_size": 7,
          "intermediate_layers_indices": [1, 2]}  # fmt: skip
TEXT = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1, 3],
        "max_position_embeddings": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
IMAGE = 512
TILES = [[[1]], [[2]], [[3]], [[4]], [[4, 1]], [[1, 2, 4]], [[4], [1]], [[4, 2], [1, 3]], [[2, 1], [3, 0]]]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = HFConfig(vision_config=MllamaVisionConfig(**VISION), text_config=MllamaTextConfig(**TEXT),
                      image_token_index=IMAGE)  # fmt: skip
    model = MllamaForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # gates and biases too
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def build(theirs, **options):
    model = MllamaModel(MllamaConfig.from_hf(theirs.config.to_dict()), **options).eval()
    named = {name: ref.read() for name, ref in mllama_names(refs_of(theirs.state_dict())).items()}
    model.load_state_dict(named, strict=True)
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return build(theirs, like_transformers=True)


def inputs(tiles, *, first_word=2, seed=1):
    """A batch of prompts of 12 tokens with as many images each as `tiles` has numbers in a row."""
    generator = torch.Generator().manual_seed(seed)
    n_tiles = torch.tensor(tiles)
    B, n_images = n_tiles.shape
    ids = {0: 0, 1: 1, 2: 5, 3: 3, 4: 6}  # a shape of so many tiles
    images = TiledImages(torch.randn(B, n_images, 4, 3, 28, 28, generator=generator),
                         torch.tensor([[ids[n] for n in row] for row in tiles]), n_tiles)  # fmt: skip
    words = torch.randint(3, 500, (B, 12), generator=generator)
    sees = torch.zeros(B, 12, n_images, 4, dtype=torch.bool)
    for b in range(B):
        for i in range(n_images):
            sees[b, first_word + 3 * i :, i, : tiles[b][i]] = True
            if i + 1 < n_images:
                sees[b, first_word + 3 * (i + 1) :, i] = False
    return words, images, sees


def reference(theirs, ids, images, sees):
    mask = (torch.arange(4) < images.n_tiles.clamp(min=1)[..., None]).long()
    return theirs(input_ids=ids, pixel_values=images.pixels, aspect_ratio_ids=images.aspect_ratio_ids,
                  aspect_ratio_mask=mask, cross_attention_mask=sees.long()).logits  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_logits_equal_transformers(theirs, ours, tiles):
    for first_word in (0, 2):  # text before the image, and none
        ids, images, sees = inputs(tiles, first_word=first_word)
        assert (ours(ids, images=images, sees=sees) - reference(theirs, ids, images, sees)).abs().max() < 1e-4


@torch.no_grad()
def test_text_alone_equals_transformers_and_a_llama_of_the_text_blocks(theirs, ours):
    ids, _, _ = inputs([[1]])
    out = ours(ids)
    assert (out - theirs(input_ids=ids).logits).abs().max() < 1e-4
    llama = Llama3Model(ours.cfg.replace(n_layers=2)).eval()
    state = {k: v for k, v in ours.state_dict().items() if k.startswith(("norm", "lm_head"))}
    state["embed_tokens.weight"] = ours.embed_tokens.weight[:512]
    for place, n in enumerate((0, 2)):
        state.update({k.replace(f"layers.{n}.", f"layers.{place}."): v for k, v in ours.state_dict().items()
                      if k.startswith(f"layers.{n}.")})  # fmt: skip
    llama.load_state_dict(state, strict=True)
    assert torch.equal(llama(ids), out)


@torch.no_grad()
def test_cached_equals_uncached_and_images_are_read_once(ours, monkeypatch):
    ids, images, sees = inputs([[4, 2], [1, 3]])
    whole = ours(ids, images=images, sees=sees)
    cache = ours.make_cache(batch_size=2, max_length=32)
    pieces = [ours(ids[:, :8], images=images, sees=sees[:, :8], cache=cache)]
    monkeypatch.setattr(ours, "memory", None)  # not needed again
    pieces += [ours(ids[:, i : i + 1], cache=cache) for i in range(8, 12)]
    assert (torch.cat(pieces, dim=1) - whole).abs().max() < 1e-5
    cache.rewind()
    assert (ours(ids, cache=cache) - ours(ids)).abs().max() < 1e-5  # nothing of the images is left


@torch.no_grad()
def test_generation_equals_transformers(theirs, ours):
    ids, images, sees = inputs([[4, 2]])
    mask = (torch.arange(4) < images.n_tiles[..., None]).long()
    expected = theirs.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images.pixels, do_sample=False,
        aspect_ratio_ids=images.aspect_ratio_ids, aspect_ratio_mask=mask, cross_attention_mask=sees.long(),
        max_new_tokens=6, min_new_tokens=6,
    )  # fmt: skip
    cache = ours.make_cache(max_length=32)
    logits, found = ours(ids, images=images, sees=sees, cache=cache, last_only=True), []
    for _ in range(6):
        scores = logits[:, -1].clone()
        scores[:, 2] = float("-inf")  # as min_new_tokens does
        found.append(scores.argmax(dim=-1, keepdim=True))
        logits = ours(found[-1], cache=cache)
    assert torch.equal(torch.cat(found, dim=1), expected[:, 12:])


@torch.no_grad()
def test_in_metas_rule_blind_text_is_left_as_it_was(theirs):
    meta = build(theirs)
    ids, images, sees = inputs([[2]], first_word=3)
    with_images, without = meta(ids, images=images, sees=sees), meta(ids)
    assert (with_images[:, :3] - without[:, :3]).abs().max() < 1e-6  # words before the image know nothing of it
    assert (with_images[:, 3:] - without[:, 3:]).abs().max() > 1e-3
    hf = build(theirs, like_transformers=True)
    assert (hf(ids, images=images, sees=sees)[:, :3] - without[:, :3]).abs().max() > 1e-3  # there they do


@torch.no_grad()
def test_fresh_gates_are_closed():
    torch.manual_seed(0)
    model = MllamaModel(MllamaConfig.tiny()).eval()
    ids, images, sees = inputs([[4, 2]])
    assert torch.equal(model(ids, images=images, sees=sees), model(ids))


def test_gates_open_in_training():
    torch.manual_seed(0)
    model = MllamaModel(MllamaConfig.tiny())
    ids, images, sees = inputs([[2]])
    model(ids, images=images, sees=sees).pow(2).mean().backward()
    gates = [m.cross_attn_attn_gate for m in model.layers if isinstance(m, CrossAttentionBlock)]
    assert all(gate.grad.abs().sum() > 0 for gate in gates)


def test_names_there_and_back(ours):
    hf_name = MllamaModel.hf_name
    assert all(next(iter(mllama_names(refs_of({hf_name(n): p})))) == n for n, p in ours.state_dict().items())
    assert hf_name("layers.1.cross_attn.q_proj.weight") == "language_model.model.layers.1.cross_attn.q_proj.weight"
    assert hf_name("lm_head.weight") == "language_model.lm_head.weight"
    assert (hf_name("vision_model.transformer.0.self_attn.out_proj.weight")
            == "vision_model.transformer.layers.0.self_attn.o_proj.weight")


def test_configuration_there_and_back(theirs):
    cfg = MllamaConfig.from_hf(theirs.config.to_dict())
    assert cfg == MllamaConfig.tiny() == MllamaConfig.from_hf(cfg.to_hf())
    big = MllamaConfig.llama32_11b_vision()
    assert MllamaConfig.from_hf(big.to_hf()) == big
    assert HFConfig(**big.to_hf()).vision_config.vision_output_dim == big.vision.n_features == 7680
    with torch.device("meta"):
        assert MllamaModel(big).n_parameters() == 10_670_220_835


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, im, s: (ids, replace(im, pixels=im.pixels[:, :, :3]), s), "B, I, 4, 3, 28"),
        (lambda ids, im, s: (ids, replace(im, aspect_ratio_ids=im.aspect_ratio_ids + 8), s), "0 to 8, got 9"),
        (lambda ids, im, s: (ids, replace(im, n_tiles=im.n_tiles[0]), s), r"shape \(1, 1\)"),
        (lambda ids, im, s: (ids, im, s[:, :5]), r"sees must be bool of shape \(1, 12, 1, 4\)"),
        (lambda ids, im, s: (ids + 600, im, s), "outside the vocabulary of 520"),
    ],
)
def test_what_does_not_fit_is_refused(ours, change, message):
    ids, images, sees = change(*inputs([[1]]))
    with pytest.raises(InputError, match=message):
        ours(ids, images=images, sees=sees)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MllamaConfig.tiny(cross_layers=(1, 4)), r"\(1, 4\) must be different blocks of 4"),
        (lambda: MllamaConfig.tiny(image_token=520), "520 has no row in a table of 520"),
        (lambda: MllamaConfig.from_hf({"model_type": "llava"}), "'llava'"),
        (lambda: MllamaConfig.from_hf({"model_type": "mllama", "vision_config": {**VISION, "vision_output_dim": 64}}),
         "vision_output_dim is 64, the tower gives 96"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@torch.no_grad()
def test_what_the_head_reads(ours):
    """As of any Llama: hidden_states is a forward without the head, also of rows that pack several texts."""
    ids, images, sees = inputs([[4, 2]])
    hidden = ours.hidden_states(ids, images=images, sees=sees)
    assert torch.equal(ours.lm_head(hidden), ours(ids, images=images, sees=sees))
    packed = torch.cat([ids[:, 2:6], ids[:, 2:9]], dim=1)
    segments = torch.tensor([[0] * 4 + [1] * 7])
    alone = torch.cat([ours(ids[:, 2:6]), ours(ids[:, 2:9])], dim=1)
    torch.testing.assert_close(ours(packed, segments=segments), alone, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="hold no images"):
        ours(ids, images=images, segments=torch.zeros_like(ids))
