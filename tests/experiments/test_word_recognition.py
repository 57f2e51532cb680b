"""word_recognition: features as alone, the classifier by hand, measures on tones, and the real thing on few voices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llamamm.assets.spoken_words import Clip, Words, load_words
from llamamm.errors import InputError
from llamamm.experiments.word_recognition import (
    BATCH,
    WordClassifier,
    _kept,
    clip_features,
    kept_by_layer,
    measure_words,
    random_encoder,
)
from llamamm.pretrained.towers import load_audio_encoder
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.config import AudioConfig
from llamamm.senses.mel import cut_mel, log_mel


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return AudioEncoder(AudioConfig.tiny()).eval()


def noise(n, seed=0):
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


# ---- features ----


@torch.no_grad()
def test_features_are_the_mean_over_the_sound_alone(encoder):
    waves = [noise(2000), noise(16_000, 1), noise(1, 2)]
    found = clip_features(encoder, waves)
    assert found.shape == (3, 32) and found.dtype == torch.float32 and not found.requires_grad
    for features, wave, n in zip(found, waves, (7, 50, 1), strict=True):  # 2000 / 320 = 6.25
        alone = encoder(log_mel(wave, n_mels=16)[None, :, : 2 * n])[0]  # (n, C)
        torch.testing.assert_close(features, alone.mean(dim=0), rtol=0, atol=1e-5)


def test_features_do_not_depend_on_the_batch(encoder):
    waves = [noise(300 * (k % 5 + 1), k) for k in range(2 * BATCH + 1)]
    found = clip_features(encoder, waves)
    assert len(found) == len(waves)
    for k in (0, BATCH - 1, BATCH, 2 * BATCH):
        torch.testing.assert_close(found[k], clip_features(encoder, waves[k : k + 1])[0], rtol=0, atol=1e-5)


def test_features_of_an_encoder_in_16_bits_are_fp32(encoder):
    found = clip_features(encoder.bfloat16(), [noise(3000)])
    assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("waves, said", [
    ([], "0 waves"), ([torch.zeros(0)], "empty"), ([torch.zeros(480_001)], "480001 samples"),
    ([torch.zeros(320, dtype=torch.int16)], "int16"), ([torch.full((320,), math.nan)], "NaN"),
])  # fmt: skip
def test_what_is_no_clip_is_refused(encoder, waves, said):
    with pytest.raises(InputError, match=said):
        clip_features(encoder, waves)


# ---- classifier ----

FEATURES = torch.tensor([[1.0, 50.0], [3.0, 50.0], [1.2, 50.0], [2.8, 50.0]])
SAID = ["go", "stop", "go", "stop"]


def test_the_classifier_by_hand():
    classifier = WordClassifier(2, ["go", "stop"])
    curve = classifier.fit(FEATURES, SAID, steps=100)
    assert len(curve) == 100 and curve[0] == pytest.approx(math.log(2), abs=1e-6)  # it begins with no opinion
    assert classifier.mean.tolist() == pytest.approx([2, 50])
    # deviations -1, 1, -0.8, 0.8: (2 * 1 + 2 * 0.64) / 3; the channel that never changes is not divided by 0
    assert classifier.deviation.tolist() == pytest.approx([math.sqrt(3.28 / 3), 1e-6])
    assert curve[-1] < 0.5 * curve[0] and all(b < a for a, b in zip(curve, curve[1:], strict=False))
    guesses = classifier.predict(torch.tensor([[0.0, 50.0], [5.0, 50.0], [2.0, 50.0]]))
    assert [g.word for g in guesses[:2]] == ["go", "stop"] and all(g.probability > 0.8 for g in guesses[:2])
    assert guesses[2].probability == pytest.approx(0.5, abs=1e-3)  # between the two
    assert guesses[1].probability == pytest.approx(
        classifier(torch.tensor([[5.0, 50.0]])).softmax(dim=1)[0, 1].item(), abs=1e-6)


def test_fitting_again_gives_the_same_and_draws_nothing():
    classifier, other = WordClassifier(2, ["go", "stop"]), WordClassifier(2, ["go", "stop"])
    state = torch.random.get_rng_state()
    with torch.no_grad():  # it learns where gradients are off
        first = classifier.fit(FEATURES, SAID, steps=30)
    weights = classifier.linear.weight.clone()
    classifier.fit(-FEATURES, SAID, steps=30)
    assert classifier.fit(FEATURES, SAID, steps=30) == first and torch.equal(classifier.linear.weight, weights)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert other.fit(FEATURES, SAID, steps=30) == first


@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_offset_of_features_do_not_matter(scale, offset):
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    words = ["a", "b", "c"] * 4
    plain, changed = WordClassifier(3, "abc"), WordClassifier(3, "abc")
    a = plain.fit(features, words, steps=20)
    b = changed.fit(scale * features + offset, words, steps=20)
    assert a == pytest.approx(b, abs=1e-3)
    assert (plain(features) - changed(scale * features + offset)).abs().max() < 1e-2


@pytest.mark.parametrize("features, words, said", [
    (torch.zeros(2, 3), ["a", "a"], r"\(n, 2\), got torch.float32 \(2, 3\)"),
    (torch.zeros(2), ["a", "b"], r"\(2,\)"),
    (torch.zeros(2, 2, dtype=torch.int64), ["a", "b"], "int64"),
    (torch.zeros(2, 2), ["a", "x"], "1 of the words are not among the classifier's 2: x"),
    (torch.zeros(3, 2), ["a", "b"], "3 features and 2 words"),
    (torch.zeros(1, 2), ["a"], "1 features and 1 words"),
    (torch.tensor([[0.0, 0.0], [math.nan, 0.0]]), ["a", "b"], "1 of 2 features are NaN"),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused_and_changes_nothing(features, words, said):
    classifier = WordClassifier(2, ["a", "b"])
    classifier.fit(FEATURES, ["a", "b", "a", "b"], steps=5)
    before = [t.clone() for t in classifier.state_dict().values()]
    with pytest.raises(InputError, match=said):
        classifier.fit(features, words)
    assert all(torch.equal(a, b) for a, b in zip(before, classifier.state_dict().values(), strict=True))


@pytest.mark.parametrize("vocabulary", [["a"], [], ["a", "a"]])
def test_vocabularies_that_cannot_be_are_refused(vocabulary):
    with pytest.raises(InputError, match="each once"):
        WordClassifier(2, vocabulary)


def test_features_of_another_width_are_not_classified():
    with pytest.raises(InputError, match=r"\(n, 2\), got torch.float32 \(1, 5\)"):
        WordClassifier(2, ["a", "b"]).predict(torch.zeros(1, 5))


# ---- measurement ----


def tone(hz, n=3200):
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(n) / 16_000)


def clips(spec):
    """[(hz, word, voice), ...]"""
    return [Clip(tone(hz), word, voice) for hz, word, voice in spec]


def test_what_is_measured_by_hand(encoder):
    train = clips([(300, "low", "a"), (320, "low", "b"), (3000, "high", "a"), (3100, "high", "b")])
    test = clips([(310, "low", "c"), (3050, "high", "c"), (3020, "low", "c")])  # the last one is labelled wrong
    real = clips([(305, "high", "d")])  # and this one
    found = measure_words(Words(train, test, real), encoder, steps=80)
    counts = {part: (h.n, h.right, h.commonest) for part, h in found.heard.items()}
    assert counts == {"train": (4, 4, 2), "test": (3, 2, 2), "real": (1, 0, 1)}
    assert [(m.part, m.said, m.heard.word, m.voice) for m in found.mistakes] == [
        ("test", "low", "high", "c"), ("real", "high", "low", "d")]  # fmt: skip
    assert all(0.5 < m.heard.probability <= 1 for m in found.mistakes)
    assert found.n_words == 2 and found.seconds > 0
    console = Console(width=120)
    with console.capture() as capture:
        console.print(found.table())
    text = capture.get()
    for part in ("2 words", "voices of the training", "other voices", "66.7%", "50.0%", "100.0%",
                 "misheard: high as low (d), low as high (c)"):  # fmt: skip
        assert part in text


def test_the_random_encoders_count_is_its_own():
    """An encoder whose weights are all zero says nothing of a clip; one with random weights tells tones apart."""
    deaf = AudioEncoder(AudioConfig.tiny()).eval()
    for parameter in deaf.parameters():
        torch.nn.init.zeros_(parameter)
    train = clips([(300, "low", "a"), (320, "low", "b"), (3000, "high", "a"), (3100, "high", "b")])
    found = measure_words(Words(train, train, train), deaf, steps=80)
    assert {(h.right, h.random) for h in found.heard.values()} == {(2, 4)}
    assert len(found.mistakes) == 4  # of test and real; training is not listed


def test_a_random_encoder_is_fresh_and_leaves_the_generator_alone(encoder):
    state = torch.random.get_rng_state()
    first, again, other = (random_encoder(encoder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.cfg == encoder.cfg and not first.training
    weights = [e.conv1.weight for e in (encoder, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])


def test_real_words_in_new_voices_and_of_people(words_dir):
    """A few of the voices, so that it is quick; `llamamm experiment words` takes all."""
    words = load_words(words_dir)
    voices, others = ("Andrea", "Lee", "f2", "m3", "shelby"), ("adam", "linda")
    some = Words([c for c in words.train if c.voice in voices], [c for c in words.test if c.voice in others],
                 words.real)  # fmt: skip
    found = measure_words(some, load_audio_encoder("whisper-tiny", dtype=torch.float32)).heard
    assert {part: h.n for part, h in found.items()} == {"train": 200, "test": 80, "real": 33}
    assert found["train"].right >= 0.99 * 200
    assert found["test"].right > 0.9 * 80
    assert found["real"].right > 20
    for part in ("test", "real"):  # what the pretraining brings
        assert found[part].random < found[part].right - 0.1 * found[part].n


# ---- what fades ----


def test_what_is_kept_by_hand():
    """Two words, two voices: features that say the word alone, the voice alone."""
    word, voice = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    same_word, same_voice = (a[:, None] == a for a in (word, voice))
    words, voices = (_kept(torch.stack([a, a], dim=1), same_word, same_voice) for a in (word, voice))
    assert words == pytest.approx((1.0, -1.0, 1.0), abs=1e-6)
    assert voices[:2] == pytest.approx((-1.0, 1.0), abs=1e-6)


@torch.no_grad()
def test_stages_are_the_encoders_own(encoder, generator):
    clips = [Clip(0.1 * torch.randn(2000 + 320 * n, generator=generator), word, voice)
             for n, (word, voice) in enumerate([("go", "a"), ("go", "b"), ("ten", "a"), ("ten", "b")])]  # fmt: skip
    kept = kept_by_layer(encoder, clips)
    assert list(kept) == ["log-mel", "0", "1", "2"]
    points = torch.stack([encoder(cut_mel(c.wave, n_mels=16)[None], layer=2)[0].mean(dim=0) for c in clips])
    same = [torch.tensor([[a[i] == b[i] for b in clips] for a in clips]) for i in (1, 2)]
    assert kept["2"] == pytest.approx(_kept(points, *same), abs=1e-5)
