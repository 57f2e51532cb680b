"""senses.audio: equal to Whisper's encoder, positions by hand, clips in a batch equal to clips alone, bad input."""

import math

import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from llamamm.errors import InputError
from llamamm.senses.audio import AudioEncoder, encode_wave, sinusoids
from llamamm.senses.config import AudioConfig
from llamamm.senses.mel import log_mel
from llamamm.weights.loading import fill
from llamamm.weights.tensors import refs_of
from llamamm.weights.tower_names import audio_names

SHAPES = {"tiny": (384, 4, 6, 80), "base": (512, 6, 8, 80), "wide mel": (64, 2, 4, 128)}


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_features_equal_whispers(shape, generator):
    C, n_layers, n_heads, n_mels = shape
    torch.manual_seed(0)
    theirs = WhisperEncoder(WhisperConfig(d_model=C, encoder_layers=n_layers, encoder_attention_heads=n_heads,
                                          encoder_ffn_dim=4 * C, num_mel_bins=n_mels)).eval()  # fmt: skip
    for name, parameter in theirs.named_parameters():
        if name != "embed_positions.weight":
            torch.nn.init.normal_(parameter, std=0.05)
    cfg = AudioConfig.whisper(C, n_layers, n_heads, n_mels=n_mels)
    ours = fill(lambda: AudioEncoder(cfg), audio_names(refs_of(theirs.state_dict())), dtype=torch.float32, device="cpu")
    mel = torch.randn(1, n_mels, 3000, generator=generator)
    expected = theirs(mel, output_hidden_states=True)
    assert (ours(mel) - expected.last_hidden_state).abs().max() < 1e-4
    assert (ours(mel, layer=-2) - expected.hidden_states[-2]).abs().max() < 1e-4
    assert not ours.embed_positions.requires_grad


def test_positions_by_hand():
    # width 4: speeds 1 and 1 / 10,000; at place 2: sin 2, sin 0.0002, cos 2, cos 0.0002
    assert sinusoids(3, 4)[2].tolist() == pytest.approx([math.sin(2), 0.0002, math.cos(2), 1.0], abs=1e-6)
    theirs = WhisperEncoder(WhisperConfig(d_model=32, encoder_layers=1, encoder_attention_heads=2)).embed_positions
    assert (sinusoids(1500, 32) - theirs.weight).abs().max() < 1e-6


@torch.no_grad()
def test_clips_in_a_batch_equal_each_cut_and_alone(generator):
    encoder = AudioEncoder(AudioConfig.tiny()).eval()
    mel = torch.randn(3, 16, 100, generator=generator)
    lengths = torch.tensor([50, 7, 1])
    together = encoder(mel, lengths=lengths)
    for clip, n, out in zip(mel, lengths.tolist(), together, strict=True):
        alone = encoder(clip[None, :, : 2 * n])[0]
        assert alone.shape == (n, 32)
        assert (out[:n] - alone).abs().max() < 1e-5 and (out[n:] == 0).all()
    assert (encoder(mel)[0] - together[0]).abs().max() < 1e-5  # a full clip needs no mask


@torch.no_grad()
@pytest.mark.parametrize("filling", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [None, -2])
def test_what_stands_after_a_clip_is_not_heard_not_even_nan(generator, filling, layer):
    encoder = AudioEncoder(AudioConfig.tiny()).eval()
    mel, lengths = torch.randn(2, 16, 40, generator=generator), torch.tensor([20, 7])
    expected = encoder(mel, lengths=lengths, layer=layer)
    mel[1, :, 14:] = filling
    assert torch.equal(encoder(mel, lengths=lengths, layer=layer), expected)
    assert encoder(mel, layer=layer)[1].isnan().any()  # without lengths it is


@torch.no_grad()
def test_a_long_sound_is_read_piece_by_piece(generator):
    cfg = AudioConfig.whisper(32, 1, 2)
    encoder = AudioEncoder(cfg).eval()
    wave = 0.1 * torch.randn(35 * 16_000 + 100, generator=generator)
    features = encode_wave(encoder, wave)
    assert features.shape == (1500 + 251, 32)  # 5 s and 100 samples: 250 places and one that is begun
    assert torch.equal(features[:1500], encoder(log_mel(wave[:480_000])[None])[0])
    assert torch.equal(features[1500:], encode_wave(encoder, wave[480_000:]))
    assert encode_wave(encoder, wave[:1000], layer=0).shape == (4, 32)
    with pytest.raises(InputError):
        encode_wave(encoder, wave[:0])


def test_an_encoder_trains_but_for_its_positions(generator):
    encoder = AudioEncoder(AudioConfig.tiny())
    encoder(torch.randn(2, 16, 20, generator=generator), lengths=torch.tensor([10, 4])).pow(2).mean().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == ["embed_positions"]
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("mel", "lengths", "message"),
    [
        (torch.zeros(16, 100), None, r"\(B, 16, T\), got torch.float32 \(16, 100\); log_mel"),
        (torch.zeros(1, 80, 100), None, r"\(1, 80, 100\)"),
        (torch.zeros(1, 16, 100, dtype=torch.int64), None, "int64"),
        (torch.zeros(1, 16, 99), None, "99 frames; .*even"),
        (torch.zeros(1, 16, 102), None, "102 frames; .*from 2 to 100"),
        (torch.zeros(1, 16, 100, device="meta"), None, "on meta, the encoder on cpu"),
        (torch.zeros(2, 16, 100), torch.tensor([1]), r"shape \(2,\).*\(1,\)"),
        (torch.zeros(2, 16, 100), torch.tensor([0, 51]), "from 1 to 50.*0 to 51"),
    ],
)
def test_what_is_no_spectrogram_is_refused(mel, lengths, message):
    with pytest.raises(InputError, match=message):
        AudioEncoder(AudioConfig.tiny())(mel, lengths=lengths)
