"""cli.talk: `llamamm transcribe`, and what is no recording."""

import re

import pytest
import torch

from llamamm.senses.waves import load_wave, save_wave
from tests.cli.test_main import main, run  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def spoken(words_dir):
    return words_dir / "recordings" / "goforward.wav"


def test_a_recording_is_written_down(spoken):
    result = run("transcribe", spoken)
    assert (result.exit_code, result.stdout) == (0, "Go forward 10 meters.\n")


def test_a_long_recording_is_a_line_for_each_window(spoken, tmp_path):
    wave = load_wave(spoken)
    save_wave(tmp_path / "long.wav", torch.cat([wave, torch.zeros(16_000 * 28 - len(wave)), wave]))
    assert run("transcribe", tmp_path / "long.wav").stdout == 2 * "Go forward 10 meters.\n"


def test_silence_is_said_to_be_silence(tmp_path):
    save_wave(tmp_path / "silence.wav", torch.zeros(16_000))
    result = run("transcribe", tmp_path / "silence.wav")
    assert (result.exit_code, result.stdout) == (0, "") and "nobody speaks" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such.wav"], "cannot open the sound 'no-such.wav': No such file"),
        (["https://example.org/a.wav"], "is an address"),
        (["."], r"cannot open the sound '\.': Is a directory"),
        (["SPOKEN", "--model", "smollm2"], "is a text model.*audio models are whisper-tiny"),
        (["SPOKEN", "--language", "de"], "English alone, not 'de'"),
        (["SPOKEN", "--dtype", "int3"], "int3"),
        (["SPOKEN", "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_be_is_one_line_with_exit_code_2(main, spoken, arguments, message):  # noqa: F811
    code, out, err = main("transcribe", *(spoken if a == "SPOKEN" else a for a in arguments))
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert re.match(rf"error: .*{message}", line), err


@pytest.mark.parametrize("content", [b"", b"RIFF\x10\x00\x00\x00WAVEfmt ", b"not a sound" * 99])
def test_a_file_that_is_no_sound_is_named(main, tmp_path, content):  # noqa: F811
    (tmp_path / "a.wav").write_bytes(content)
    code, out, err = main("transcribe", tmp_path / "a.wav")
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1 and "a.wav" in err
