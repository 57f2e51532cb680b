"""senses.whisper_decoder: equal to openai-whisper and transformers, cached equal to uncached, bad input."""

import pytest
import torch
from transformers import WhisperConfig as TheirConfig
from transformers import WhisperForConditionalGeneration
from whisper.model import ModelDimensions, disable_sdpa
from whisper.model import Whisper as OpenAIWhisper

from llamamm.errors import ConfigError, ContextOverflowError, InputError
from llamamm.senses.config import AudioConfig, EncoderConfig
from llamamm.senses.whisper_decoder import Whisper, WhisperConfig, WhisperDecoder
from llamamm.weights.loading import fill
from llamamm.weights.tensors import refs_of
from llamamm.weights.tower_names import speech_names

OPENAI_NAMES = (  # ours -> openai-whisper's, each tried in turn
    ("encoder.encoder.layers", "encoder.blocks"), ("decoder.layers", "decoder.blocks"),
    ("embed_positions", "positional_embedding"), ("embed_tokens", "token_embedding"),
    ("encoder_attn_layer_norm", "cross_attn_ln"), ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn", "cross_attn"), ("self_attn", "attn"), ("final_layer_norm", "mlp_ln"),
    ("layer_norm1", "attn_ln"), ("layer_norm2", "mlp_ln"), ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"), ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"),
    ("out_proj", "out"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"),
)  # fmt: skip


def as_openai(model: Whisper) -> OpenAIWhisper:
    """The same weights in openai-whisper's own model."""
    c, e, d = model.cfg, model.cfg.audio.encoder, model.cfg.decoder
    theirs = OpenAIWhisper(ModelDimensions(c.audio.n_mels, c.audio.n_positions, e.hidden_size, e.n_heads, e.n_layers,
                                           c.vocab_size, c.n_tokens, d.hidden_size, d.n_heads, d.n_layers))  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, openai in OPENAI_NAMES:
            name = name.replace(ours, openai)
        state[name] = tensor
    theirs.load_state_dict(state)
    return theirs.eval()


def random_whisper(cfg: WhisperConfig | None = None) -> Whisper:
    torch.manual_seed(0)
    model = Whisper(cfg or WhisperConfig.tiny()).eval()
    for name, parameter in model.named_parameters():
        if name != "encoder.embed_positions":
            torch.nn.init.normal_(parameter, std=0.2)  # norms and biases too, so that each counts
    return model


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 2, 4), (48, 3, 6)])
def test_scores_equal_openai_whispers(shape, generator):
    C, n_layers, n_heads = shape
    audio = AudioConfig(AudioConfig.whisper(32 if C == 32 else C, 2, 4).encoder, 16, 50)
    decoder = EncoderConfig(C, 4 * C, n_layers, n_heads, norm_eps=1e-5, key_bias=False)
    ours = random_whisper(WhisperConfig(audio, decoder, vocab_size=96, n_tokens=24))
    mel, ids = torch.randn(2, 16, 100, generator=generator), torch.randint(96, (2, 24), generator=generator)
    assert (ours(mel, ids) - as_openai(ours)(mel, ids)).abs().max() < 1e-4


@torch.no_grad()
def test_scores_equal_transformers(generator):
    small = {f"{part}_{key}": n for part in ("encoder", "decoder")
             for key, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    ids = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")}
    cfg = TheirConfig(d_model=32, vocab_size=96, num_mel_bins=16, max_source_positions=50, max_target_positions=24,
                      **small, **ids)  # fmt: skip
    torch.manual_seed(0)
    theirs = WhisperForConditionalGeneration(cfg).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    named = speech_names(refs_of(theirs.state_dict()))
    ours = fill(lambda: Whisper(WhisperConfig.from_hf(cfg.to_dict())), named, dtype=torch.float32, device="cpu")
    mel, ids = torch.randn(2, 16, 100, generator=generator), torch.randint(96, (2, 9), generator=generator)
    assert (ours(mel, ids) - theirs(mel, decoder_input_ids=ids).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1] * 9, [2, 1, 1, 5], [8, 1]])
def test_cached_equals_uncached(cuts, generator):
    decoder = random_whisper().decoder
    features, ids = torch.randn(2, 7, 32, generator=generator), torch.randint(96, (2, 9), generator=generator)
    cache = decoder.listen(features, max_length=9)
    parts = [decoder(part, cache) for part in ids.split(cuts, dim=1)]
    assert (torch.cat(parts, dim=1) - decoder(ids, features)).abs().max() < 1e-5
    assert cache.length == 9


@torch.no_grad()
def test_a_token_sees_no_later_token_and_all_of_the_sound(generator):
    decoder = random_whisper().decoder
    features, ids = torch.randn(1, 7, 32, generator=generator), torch.arange(6)[None]
    before = decoder(ids, features)
    later = ids.clone()
    later[0, 4] = 90
    assert torch.equal(decoder(later, features)[0, :4], before[0, :4])
    changed = features.clone()
    changed[0, 6] += 1.0  # the last place: of it even the first token hears
    assert (decoder(ids, changed) - before).abs().amax(dim=-1).min() > 1e-4


@torch.no_grad()
def test_the_sound_is_projected_once(generator):
    decoder = random_whisper().decoder
    calls = []
    for layer in decoder.layers:
        layer.encoder_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    cache = decoder.listen(torch.randn(1, 7, 32, generator=generator))
    for i in range(5):
        decoder(torch.tensor([[i]]), cache)
    assert len(calls) == 2


@torch.no_grad()
def test_weights_are_those_that_the_kernel_uses(generator):
    block = random_whisper().decoder.layers[0].encoder_attn
    x, source = torch.randn(1, 3, 32, generator=generator), torch.randn(1, 7, 32, generator=generator)
    k, v = block.keys_values(source)
    weights = block.weights(x, k)
    assert weights.shape == (1, 4, 3, 7) and (weights.sum(-1) - 1).abs().max() < 1e-6
    assert (block.out_proj((weights @ v).transpose(1, 2).flatten(2)) - block(x, k, v)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_looks_are_those_of_openai_whisper(layer, generator):
    model = random_whisper()
    features, ids = torch.randn(2, 50, 32, generator=generator), torch.randint(96, (2, 5), generator=generator)
    theirs, found = as_openai(model).decoder, []
    theirs.blocks[layer].cross_attn.register_forward_hook(lambda *given: found.append(given[-1][1]))
    with disable_sdpa():
        theirs(ids, features)
    looks = model.decoder.looks(ids, features, layer=layer)
    assert looks.shape == (2, 4, 5, 50) and (looks - found[0].softmax(dim=-1)).abs().max() < 1e-5
    assert not model.decoder.layers[layer].encoder_attn._forward_pre_hooks
    with pytest.raises(InputError, match="from 0 to 1, got 2"):
        model.decoder.looks(ids, features, layer=2)


def test_it_trains(generator):
    model = Whisper(WhisperConfig.tiny())
    scores = model(torch.randn(2, 16, 100, generator=generator), torch.randint(96, (2, 5), generator=generator))
    scores.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == ["encoder.embed_positions"]
    assert sum(p.numel() for p in Whisper(WhisperConfig.whisper_tiny_en()).parameters()) == 37_760_256


FEATURES = torch.zeros(1, 7, 32)


@pytest.mark.parametrize(
    ("ids", "features", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), FEATURES, InputError, r"\(B, T\), got torch.int64 \(3,\)"),
        (torch.zeros(1, 3), FEATURES, InputError, r"int64.*float32"),
        (torch.zeros(1, 0, dtype=torch.int64), FEATURES, InputError, r"\(1, 0\)"),
        (torch.tensor([[96]]), FEATURES, InputError, "from 0 to 95, got 96 to 96"),
        (torch.tensor([[-1]]), FEATURES, InputError, "got -1 to -1"),
        (torch.tensor([[1], [2]]), FEATURES, InputError, "for 2 clips, 1 were heard"),
        (torch.zeros(1, 25, dtype=torch.int64), FEATURES, ContextOverflowError, "25 .*1 to 24"),
        (torch.tensor([[1]]), torch.zeros(1, 7, 30), InputError, r"\(B, S, 32\).*\(1, 7, 30\)"),
        (torch.tensor([[1]]), torch.zeros(7, 32), InputError, r"\(7, 32\)"),
    ],
)
def test_what_it_cannot_take_is_refused(ids, features, error, message):
    with pytest.raises(error, match=message):
        WhisperDecoder(WhisperConfig.tiny())(ids, features)


@torch.no_grad()
def test_a_full_cache_is_refused_and_stays_as_it_was():
    decoder = random_whisper().decoder
    cache = decoder.listen(FEATURES, max_length=3)
    decoder(torch.tensor([[1, 2]]), cache)
    with pytest.raises(ContextOverflowError, match="2 tokens and 2 more pass the 3"):
        decoder(torch.tensor([[3, 4]]), cache)
    assert cache.length == 2


HF = {"model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 96,
      "decoder_layers": 2, "decoder_attention_heads": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_layers": None}, "lacks decoder_layers"),
        ({"scale_embedding": True}, "scale_embedding=True"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, got 0"),
        ({"decoder_attention_heads": 5}, "32 is not a multiple of n_heads 5"),
        ({"model_type": "wav2vec2"}, "'wav2vec2'"),
    ],
)
def test_a_configuration_that_is_not_built_is_refused(changes, message):
    assert WhisperConfig.from_hf(HF).n_tokens == 448
    with pytest.raises(ConfigError, match=message):
        WhisperConfig.from_hf({**HF, **changes})


def test_the_two_halves_must_be_equally_wide():
    with pytest.raises(ConfigError, match="64 wide, the encoder 32"):
        WhisperConfig(AudioConfig.tiny(), EncoderConfig(64, 64, 1, 2), vocab_size=9)
