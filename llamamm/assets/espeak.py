"""eSpeak NG, a speech synthesiser, as a program of its own: text in, samples out. `llamamm.assets.spoken_words`
runs it.

    stdin   [{"text": "seven", "voice": "en-us+Andy", "speed": 160, "pitch": 50}, ...] as JSON
    stdout  the rate, then for each text how many samples it has, and the samples: little-endian, 4, 4 and 2 bytes each

Never imported: eSpeak NG is under the GPL, version 3, and this package is not; and its library, in one process with
PyTorch's threads, waits for them. Imports nothing but the standard library and `espeakng_loader`, which brings the
library (an extra: `pip install 'llamamm[speech]'`).
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from typing import Any

# Numbers of speak_lib.h
SYNCHRONOUS = 2  # samples come to a callback, while the call that asked for them waits
UTF_8 = 1
SPEED, PITCH = 1, 3  # words a minute; 0 to 100


def main() -> None:
    """Speak what stdin asks for; end with a line on stderr where that cannot be."""
    import espeakng_loader

    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    lib.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
                                 ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]  # fmt: skip
    rate = lib.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        sys.exit("eSpeak NG does not start with its data folder")
    lib.espeak_ng_SetRandSeed(ctypes.c_long(0))  # else the breath in some voices begins with the clock's seconds
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def keep(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    lib.espeak_SetSynthCallback(keep)
    out = sys.stdout.buffer
    out.write(struct.pack("<i", rate))
    for request in json.load(sys.stdin):
        voice = request["voice"]
        # For each text anew, which empties the voice's echo: else a text would begin with the end of the one before.
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            sys.exit(f"eSpeak NG has no voice {voice!r}")
        chunks.clear()
        say(lib, request)
        data = b"".join(chunks)
        if not any(data):
            sys.exit(f"eSpeak NG is silent at {request['text']!r} in the voice {voice!r}")
        out.write(struct.pack("<i", len(data) // 2) + data)


def say(lib: ctypes.CDLL, request: dict[str, Any]) -> None:
    """Speak one text; the samples go to the callback."""
    for parameter, value in ((SPEED, request["speed"]), (PITCH, request["pitch"])):
        if lib.espeak_SetParameter(parameter, value, 0) != 0:
            sys.exit(f"eSpeak NG takes no speed {request['speed']} with pitch {request['pitch']}")
    text = request["text"].encode()
    if lib.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF_8, None, None) != 0:
        sys.exit(f"eSpeak NG cannot say {request['text']!r}")


if __name__ == "__main__":
    main()
