"""pretrained.towers: folders as transformers writes them and as the Hub has them, real weights on real
input, refusals."""

import json

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from llamamm import (
    from_pretrained,
    load_audio_encoder,
    load_image,
    load_image_processor,
    load_vision_tower,
    load_whisper,
    log_mel,
)
from llamamm.assets.spoken_words import load_recordings
from llamamm.errors import CheckpointError, ConfigError, FetchError, TokenizerError
from llamamm.weights.tensors import refs_of
from llamamm.weights.tower_names import speech_names

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
SIX = {"intermediate_size": 64}
MODELS = {
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config={**SMALL, **SIX}, projection_dim=8)),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config={**SMALL, **SIX})),
    "siglip, no head": lambda: SiglipModel(SiglipConfig(
        text_config=TEXT, vision_config={**SMALL, **SIX, "vision_use_head": False})),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL)),
    "dinov2, classifier": lambda: Dinov2ForImageClassification(Dinov2Config(**SMALL)),
    "vit, classifier": lambda: ViTForImageClassification(ViTConfig(**SMALL, **SIX)),
}  # fmt: skip


def saved(model, folder):
    """Random weights everywhere, zeros and ones too, written by transformers."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_gives_equal_features(name, tmp_path, generator):
    model = saved(MODELS[name](), tmp_path)
    tower = next((getattr(model, a) for a in ("vision_model", "dinov2", "vit") if hasattr(model, a)), model)
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    ours = load_vision_tower(tmp_path)
    assert (ours(pixels) - tower(pixel_values=pixels).last_hidden_state).abs().max() < 1e-4
    assert not ours.training and ours(pixels).dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("kind", [WhisperModel, WhisperForConditionalGeneration])
def test_a_whole_whisper_gives_its_encoder(kind, tmp_path, generator):
    small = {f"{part}_{key}": value for part in ("encoder", "decoder")
             for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    ids = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")}
    model = saved(kind(WhisperConfig(d_model=32, vocab_size=99, **small, **ids)), tmp_path)
    mel = torch.randn(1, 80, 3000, generator=generator)
    expected = model.get_encoder()(mel).last_hidden_state
    assert (load_audio_encoder(tmp_path)(mel) - expected).abs().max() < 1e-4


def test_the_names_of_old_files_are_read(tmp_path, generator):
    """As CLIP's and SigLIP's repositories have them: a prefix, and a table of position numbers that is derived."""
    saved(MODELS["clip"](), tmp_path)
    before = load_vision_tower(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("vision_model.embeddings.") for name in tensors)
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    assert torch.equal(load_vision_tower(tmp_path)(pixels), before(pixels))


def test_dtypes(tmp_path, generator):
    saved(MODELS["dinov2"](), tmp_path)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    half = load_vision_tower(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(pixels).dtype == torch.bfloat16
    assert (half(pixels).float() - load_vision_tower(tmp_path)(pixels)).abs().mean() < 0.1


# ---- what does not fit ----


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / "config.json").unlink(), CheckpointError, "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), CheckpointError, "not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), CheckpointError, "no JSON object"),
        (lambda d: change(d, model_type="llama"), ConfigError, "'llama'; vision towers here are vit, clip"),
        (lambda d: change(d, num_hidden_layers=3), CheckpointError, r"missing \(.*\n  encoder.layers.2.layer_norm1"),
        (lambda d: change(d, image_size=42), CheckpointError, r"position_embedding: the checkpoint has \(5, 32\)"),
        (lambda d: (d / "model.safetensors").unlink(), CheckpointError, "model.safetensors"),
    ],
)
def test_what_does_not_fit_is_named(spoil, error, message, tmp_path):
    saved(MODELS["dinov2"](), tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load_vision_tower(tmp_path)


def test_a_name_twice_is_refused(tmp_path):
    saved(MODELS["dinov2"](), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.layer.0.layernorm_before.weight"] = tensors["encoder.layer.0.norm1.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer_norm1.weight twice"):
        load_vision_tower(tmp_path)


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_vision_tower, "whisper-tiny", "is an audio model, .*vision towers are vit-s"),
        (load_audio_encoder, "vit-s", "is a vision tower, .*audio models are whisper-tiny"),
        (load_image_processor, "smollm2", "is a text model"),
        (load_vision_tower, "nosuch", "none of the assets vit-s"),
    ],
)
def test_an_asset_of_another_kind_is_refused(load, name, message):
    with pytest.raises(FetchError, match=message):
        load(name)


# ---- real weights ----


@torch.no_grad()
def test_the_real_vit_equals_transformers_on_a_photo(vit_s_dir):
    with cbook.get_sample_data("grace_hopper.jpg") as file:  # a photograph that comes with matplotlib
        photo = load_image(file.read())
    assert photo.size == (512, 600)
    tower, processor = load_vision_tower("vit-s"), load_image_processor("vit-s")
    pixels = processor([photo, photo.transpose(Image.Transpose.ROTATE_90)])
    expected = Dinov2Model.from_pretrained(vit_s_dir)(pixels).last_hidden_state
    features = tower(pixels)
    assert features.shape == (2, 257, 384)
    assert (features - expected).abs().max() < 1e-4
    assert tower.cfg == load_vision_tower(vit_s_dir).cfg and tower.cfg.family == "dinov2"


@torch.no_grad()
def test_the_real_whisper_equals_transformers_on_a_sound(whisper_tiny_dir):
    t = torch.arange(32_000) / 16_000
    hum = sum(torch.sin(2 * torch.pi * 120 * k * t) / k for k in range(1, 20))  # a voice's harmonics
    wave = 0.1 * hum * (torch.sin(2 * torch.pi * 2 * t) > 0)  # in syllables
    mel = log_mel(wave)[None]
    theirs = WhisperModel.from_pretrained(whisper_tiny_dir).get_encoder().eval()
    assert (load_audio_encoder("whisper-tiny")(mel) - theirs(mel).last_hidden_state).abs().max() < 1e-4


@torch.no_grad()
def test_the_real_whisper_equals_transformers_on_speech_and_its_decoder_hears_it(whisper_tiny_dir, words_dir):
    spoken = load_recordings(words_dir)["goforward.wav"]
    mel = log_mel(spoken.wave)[None]
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_dir).eval()
    features = load_audio_encoder("whisper-tiny")(mel)
    assert (features - whisper.get_encoder()(mel).last_hidden_state).abs().max() < 1e-4
    tokenizer = WhisperTokenizerFast.from_pretrained(whisper_tiny_dir)
    start = whisper.config.decoder_start_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    ids = list(start)  # greedy: the decoder reads what our encoder heard
    while ids[-1] != whisper.config.eos_token_id and len(ids) < 20:
        heard = BaseModelOutput(last_hidden_state=features)
        ids.append(int(whisper(encoder_outputs=heard, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = tokenizer.decode(ids, skip_special_tokens=True).lower()
    assert spoken.text.startswith("go forward") and "go forward" in text, text


@torch.no_grad()
@pytest.mark.parametrize("kind", [WhisperModel, WhisperForConditionalGeneration])
def test_a_folder_of_transformers_gives_a_whole_whisper(kind, tmp_path, generator, whisper_tiny_dir):
    small = {f"{part}_{key}": value for part in ("encoder", "decoder")
             for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    ids = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")}
    theirs = saved(kind(WhisperConfig(d_model=32, vocab_size=51_864, **small, **ids)), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((whisper_tiny_dir / name).read_bytes())
    model, tokens = load_whisper(tmp_path)
    mel, said = torch.randn(1, 80, 3000, generator=generator), torch.tensor([[*tokens.prompt, 838, 10_700]])
    out = theirs(mel, decoder_input_ids=said)
    expected = out.logits if kind is WhisperForConditionalGeneration else (
        out.last_hidden_state @ theirs.decoder.embed_tokens.weight.T)  # fmt: skip
    assert (model(mel, said) - expected).abs().max() < 1e-3  # scores reach 30
    assert not model.training


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: (d / "generation_config.json").unlink(), CheckpointError, "no generation_config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), TokenizerError, "no tokenizer.json"),
        (lambda d: change(d, decoder_layers=5), CheckpointError, r"decoder.layers.4.self_attn_layer_norm"),
        (lambda d: change(d, vocab_size=None), ConfigError, "lacks vocab_size"),
    ],
)
def test_a_whisper_that_is_not_whole_is_named(spoil, error, message, tmp_path, whisper_tiny_dir):
    for file in whisper_tiny_dir.iterdir():
        if file.suffix == ".safetensors":
            (tmp_path / file.name).symlink_to(file)
        else:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load_whisper(tmp_path)


def test_a_head_of_its_own_is_refused():
    embedding = torch.randn(5, 4)
    refs = refs_of({"model.decoder.embed_tokens.weight": embedding, "proj_out.weight": embedding + 1})
    with pytest.raises(CheckpointError, match="proj_out.weight differs"):
        speech_names(refs)


# ---- the settings of processors ----


def tiny_whisper():
    small = {f"{part}_{key}": 1 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    ids = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")}
    return WhisperConfig(d_model=32, vocab_size=99, num_mel_bins=16, max_source_positions=50, **small, **ids)


SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 48}, "resample": 2,
          "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.4, 0.3]}  # fmt: skip


@pytest.mark.parametrize("files", [
    {"preprocessor_config.json": SIGLIP},
    {"processor_config.json": {"processor_class": "SiglipProcessor", "image_processor": SIGLIP}},
    {"processor_config.json": {"image_processor": SIGLIP}, "preprocessor_config.json": {**SIGLIP, "resample": 3}},
    {"processor_config.json": {"processor_class": "SiglipProcessor"}, "preprocessor_config.json": SIGLIP},
    {"processor_config.json": {"image_processor": SIGLIP, "feature_extractor": {"feature_size": 80}}},
])  # fmt: skip
def test_image_settings_are_found_where_transformers_finds_them(files, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(load_image_processor(tmp_path)(image), theirs, rtol=0, atol=2e-6)


def test_a_folder_without_image_settings_says_so(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"feature_extractor": {}}')
    with pytest.raises(CheckpointError, match="no preprocessor_config.json and no processor_config.json with"):
        load_image_processor(tmp_path)


@pytest.mark.parametrize("changes, said", [
    ({}, None), ({"feature_size": 80}, "feature_size=80.*16"), ({"hop_length": 80}, "hop_length=80.*160"),
    ({"n_fft": 512}, "n_fft"), ({"sampling_rate": 8000}, "sampling_rate"), ({"dither": 0.1}, "dither=0.1"),
    ({"chunk_length": 30}, "chunk_length=30"), ({"padding_value": 0.5}, "padding_value"),
    ({"padding_side": "left"}, "padding_side"), ({"dither": None, "return_attention_mask": True}, None),
    ({"preemphasis": 0.97}, "preemphasis"), ({"feature_extractor_type": "ClapFeatureExtractor"}, "Clap"),
])  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_another_log_mel_than_ours_is_refused(changes, said, nested, tmp_path):
    saved(WhisperModel(tiny_whisper()), tmp_path)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1).to_dict() | changes
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"feature_extractor": extractor} if nested else extractor))
    if said is None:
        assert load_audio_encoder(tmp_path).cfg.n_mels == 16
    else:
        with pytest.raises(ConfigError, match=said):
            load_audio_encoder(tmp_path)


@pytest.mark.parametrize("load, make", [(load_audio_encoder, lambda: WhisperModel(tiny_whisper())),
                                        (load_vision_tower, MODELS["dinov2"]), (load_vision_tower, MODELS["clip"])])
def test_a_key_that_nobody_knows_is_refused(load, make, tmp_path):
    saved(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    inner = config.get("vision_config", config)
    inner.update(attention_dropout=0.1, _commit_hash="f00", use_cache=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path)
    inner.update(num_register_tokens=4)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="num_register_tokens=4.*take it out"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_vision_tower, load_audio_encoder, load_image_processor, from_pretrained])
def test_an_option_that_no_loader_has_is_not_taken_in_silence(load, tmp_path):
    with pytest.raises(TypeError, match="'revison'.*local_files_only, revision, token"):
        load(tmp_path, revison="main")
