"""generation.transcribe: openai-whisper's words and scores on real speech, batches, windows, tokens, silence."""

import numpy as np
import pytest
import torch
import whisper as openai
from transformers import WhisperForConditionalGeneration

from llamamm import Tokenizer, load_whisper
from llamamm.assets.spoken_words import load_recordings
from llamamm.errors import CheckpointError, InputError
from llamamm.generation.transcribe import Heard, SpeechTokens, hear, transcribe, transcribe_all
from llamamm.senses.mel import log_mel
from tests.senses.test_whisper_decoder import as_openai

# openai-whisper leaves its vocabulary's file open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SETTINGS = {"is_multilingual": False, "suppress_tokens": [1, 2], "begin_suppress_tokens": [220]}


@pytest.fixture(scope="module")
def real(whisper_tiny_dir):
    """The real model and its tokens. Shared: change neither."""
    return load_whisper(whisper_tiny_dir)


@pytest.fixture(scope="module")
def recordings(words_dir):
    return load_recordings(words_dir)


@pytest.fixture(scope="module")
def theirs(real):
    return as_openai(real[0])


OPTIONS = openai.DecodingOptions(language="en", without_timestamps=True, fp16=False)


@torch.no_grad()
def test_words_and_scores_equal_openai_whispers_on_real_speech(real, theirs, recordings):
    model, tokens = real
    for recording in recordings.values():
        mel = log_mel(recording.wave)[None]
        (expected,), (heard,) = theirs.decode(mel, OPTIONS), hear(model, tokens, mel)
        assert heard.ids == expected.tokens and tokens.text(heard.ids) == expected.text
        assert heard.no_speech == pytest.approx(expected.no_speech_prob, abs=1e-5)
        assert heard.mean_log_prob == pytest.approx(expected.avg_logprob, abs=1e-4)
        ids = torch.tensor([[*tokens.prompt, *heard.ids]])
        assert (model(mel, ids) - theirs(mel, ids)).abs().max() < 1e-4


@torch.no_grad()
def test_scores_equal_transformers_on_real_speech(real, recordings, whisper_tiny_dir):
    model, tokens = real
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_dir).eval()
    mel = log_mel(recordings["goforward.wav"].wave)[None]
    ids = torch.tensor([[*tokens.prompt, *hear(model, tokens, mel)[0].ids]])
    assert (model(mel, ids) - whisper(mel, decoder_input_ids=ids).logits).abs().max() < 1e-4


def test_it_writes_what_is_said(real, recordings):
    assert transcribe(*real, recordings["goforward.wav"].wave) == "Go forward 10 meters."
    assert transcribe(*real, recordings["goforward.wav"].wave.numpy()) == "Go forward 10 meters."


def test_the_tokens_are_openais(real, theirs):
    task = openai.decoding.DecodingTask(theirs, OPTIONS)
    _, tokens = real
    assert tokens.prompt == task.initial_tokens and tokens.end == task.tokenizer.eot
    assert {*tokens.never} == {*task._get_suppress_tokens()}
    assert {*tokens.never_first} == {*task.tokenizer.encode(" "), task.tokenizer.eot}
    assert tokens.no_speech == task.tokenizer.no_speech


def test_clips_together_equal_clips_alone(real, recordings):
    model, tokens = real
    waves = [r.wave for r in recordings.values()]
    alone = [transcribe(model, tokens, wave) for wave in waves]
    assert transcribe_all(model, tokens, waves, batch_size=2) == alone
    mels = torch.stack([log_mel(wave) for wave in waves])
    for heard, mel in zip(hear(model, tokens, mels), mels, strict=True):
        (one,) = hear(model, tokens, mel[None])
        assert heard.ids == one.ids and heard.mean_log_prob == pytest.approx(one.mean_log_prob, abs=1e-3)
    assert transcribe_all(model, tokens, []) == []


def test_a_long_recording_is_read_by_windows(real, recordings):
    wave = recordings["goforward.wav"].wave
    quiet = torch.zeros(16_000 * 28 - len(wave))
    said = []
    text = transcribe(*real, torch.cat([wave, quiet, wave]), on_window=said.append)
    assert text == "Go forward 10 meters. Go forward 10 meters."
    assert said == ["Go forward 10 meters.", "Go forward 10 meters."]


def test_max_new_tokens_cuts(real, recordings):
    model, tokens = real
    mel = log_mel(recordings["goforward.wav"].wave)[None]
    (whole,), (cut,) = hear(model, tokens, mel), hear(model, tokens, mel, max_new_tokens=2)
    assert cut.ids == whole.ids[:2]
    assert hear(model, tokens, mel, max_new_tokens=len(whole.ids))[0].ids == whole.ids
    for wrong in (0, 447):
        with pytest.raises(InputError, match=f"from 1 to 446, got {wrong}"):
            hear(model, tokens, mel, max_new_tokens=wrong)


def test_what_is_silence():
    assert Heard([1], 0.7, -1.1).is_silence
    assert not Heard([1], 0.5, -1.1).is_silence and not Heard([1], 0.7, -0.9).is_silence
    assert Heard([1], 0.91, -0.1).is_silence


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-2])
def test_where_nobody_speaks_nothing_is_written(real, level, generator):
    assert transcribe(*real, level * torch.randn(32_000, generator=generator)) == ""


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(2, 16_000), torch.zeros(9, dtype=torch.int16),
                                  np.full(9, np.nan), torch.full((9,), 30_000.0)])  # fmt: skip
def test_what_is_no_wave_is_refused(real, wave):
    with pytest.raises(InputError):
        transcribe(*real, wave)


def test_more_than_30_seconds_are_refused_where_clips_are_asked_for(real):
    with pytest.raises(InputError, match="30.1 s; the model sees"):
        transcribe_all(*real, [torch.zeros(481_600)])


# ---- tokens ----


class OtherTokenizer:
    """As much of a tokenizer as `SpeechTokens.read` asks for."""

    def __init__(self, *names):
        self.special_tokens = {f"<|{name}|>": 100 + n for n, name in enumerate(names)}


MULTILINGUAL = ("endoftext", "startoftranscript", "en", "de", "transcribe", "nospeech", "notimestamps")


def test_a_multilingual_model_is_told_language_and_task():
    settings = {**SETTINGS, "is_multilingual": True}
    found = SpeechTokens.read(OtherTokenizer(*MULTILINGUAL), settings, language="de")
    assert found.prompt == (101, 103, 104, 106) and found.end == 100 and found.no_speech == 105
    with pytest.raises(InputError, match="no language 'xx'"):
        SpeechTokens.read(OtherTokenizer(*MULTILINGUAL), settings, language="xx")


def test_tokens_that_lack_are_named(whisper_tiny_dir, smollm2_dir):
    with pytest.raises(CheckpointError, match="lacks <|startoftranscript|>, <|notimestamps|>"):
        SpeechTokens.read(Tokenizer(smollm2_dir), SETTINGS)
    with pytest.raises(InputError, match="English alone, not 'de'"):
        load_whisper(whisper_tiny_dir, language="de")
    assert SpeechTokens.read(OtherTokenizer("endoftext", "startoftranscript", "notimestamps"), {}).no_speech is None


def test_without_a_token_for_silence_there_is_none(real, recordings):
    model, tokens = real
    less = SpeechTokens(tokens.tokenizer, tokens.prompt, tokens.end, tokens.never, tokens.never_first)
    (heard,) = hear(model, less, log_mel(recordings["goforward.wav"].wave)[None])
    assert heard.no_speech == 0.0 and tokens.text(heard.ids) == "Go forward 10 meters."
