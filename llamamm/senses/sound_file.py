"""Sound files, read block by block: WAV here, the rest by the `soundfile` package.

    a file -> samples a second, blocks (channels, n) of whatever numbers the file holds

No size in a file is believed before it is compared with what is there. A program that writes into a pipe cannot go
back and fill in the sizes, so it leaves a number that stands for "to the end": 0 or one about 2^31 or 2^32.

Sources: RIFF WAVE, Multimedia Programming Interface and Data Specifications 1.0, 1991; RF64 and BW64, EBU Tech 3306
and ITU-R BS.2088. Told in notebook 12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from llamamm.errors import InputError, MissingDependencyError

BLOCK = 1 << 20  # numbers read from a file at a time

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
CONTAINERS = b"RIFF", b"RF64", b"BW64"  # the last two have 64-bit sizes, in a part of their own, `ds64`
KNOWN_PARTS = b"fmt ", b"data", b"fact", b"LIST"
NEAR = 1 << 16  # ffmpeg leaves 2^32 - 1, sox about 2^31 - 40, arecord 2^31, others 2^31 - 4096


def read_blocks(file: BinaryIO, name: str) -> tuple[int, Iterator[np.ndarray]]:
    """The rate and the samples of a file that can seek, from its begin. name: what messages call it.

    Raises InputError for a file that is damaged or cut short, also while blocks are taken; MissingDependencyError.
    """
    head = file.read(12)
    header = _wav_header(file, name) if head[:4] in CONTAINERS and head[8:] == b"WAVE" else None
    if header is not None:
        return header[0], _wav_blocks(file, *header[1:])
    file.seek(0)
    return _soundfile_blocks(file, name)


# ---- WAV: a row of chunks, each a name, a size and that many bytes ----


def _wav_header(file: BinaryIO, name: str) -> tuple[int, int, int, int, str] | None:
    """rate, bytes to read, channels, bytes a sample and numpy type; the file then stands at the samples.

    None: a codec in WAV.
    """
    file_size = file.seek(0, 2)
    position, fmt, long_size = 12, None, None
    while position + 8 <= file_size:
        file.seek(position)
        chunk, size = struct.unpack("<4sI", file.read(8))
        position += 8
        left = file_size - position
        if chunk == b"data":
            size = _data_size(file, size, left, long_size)
        if size > left:
            raise InputError(f"{name}: the WAV file's {chunk!r} part should have {size} bytes, {left} are left: cut "
                             f"short; download or record it again")
        if chunk == b"fmt ":
            if size < 16:
                raise InputError(f"{name}: the WAV file's format has {size} bytes, it needs 16: damaged")
            fmt = file.read(min(size, 40))
        if chunk == b"ds64" and size >= 16:
            long_size = struct.unpack("<Q", file.read(16)[8:])[0]
        if chunk == b"data":
            break
        position = _next_part(file, position + size)
    else:
        raise InputError(f"{name}: the WAV file has no sound in its {file_size} bytes: cut short or damaged")
    file.seek(position)
    if fmt is None:
        raise InputError(f"{name}: the WAV file does not say its format before its sound: damaged")
    code, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", fmt[:16])
    if code == EXTENSIBLE and len(fmt) >= 26:
        code = struct.unpack("<H", fmt[24:26])[0]  # the true one is where the long form's identifier begins
    kind = {PCM: "u" if bits <= 8 else "i", FLOAT: "f"}.get(code)
    if kind is None:
        return None
    width = -(-bits // 8)  # 12 bits stand at the top of 2 bytes
    if width not in ((1, 2, 3, 4) if code == PCM else (4, 8)) or code == FLOAT and bits % 8:
        raise InputError(f"{name}: WAV samples of {bits} bits, format {code}, are not read; convert it to 16 bits")
    if channels == 0 or frame_bytes != channels * width:
        raise InputError(f"{name}: the WAV file has {frame_bytes} bytes for {channels} samples of {bits} bits: damaged")
    return rate, size - size % frame_bytes, channels, width, f"<{kind}{width}"


def _data_size(file: BinaryIO, size: int, left: int, long_size: int | None) -> int:
    """The bytes of sound, where the file says `size`, with `left` more in it; long_size: what its ds64 part says."""
    if size == 2**32 - 1 and long_size is not None:
        return left if long_size == 0 or long_size >= 2**63 - NEAR else long_size  # the same, of 64 bits
    if size == 0 and left and not _are_parts(file, left):
        return left
    stands_for_any = 2**31 - NEAR <= size <= 2**31 or size >= 2**32 - NEAR
    return left if stands_for_any and size > left else size


def _are_parts(file: BinaryIO, left: int) -> bool:
    """Whether what follows is a row of parts up to the end: then no sound stands before it. Leaves the place alone."""
    begin = place = file.tell()
    end = begin + left
    while place + 8 <= end:
        file.seek(place)
        chunk, size = struct.unpack("<4sI", file.read(8))
        if not (chunk.isascii() and chunk.decode().isprintable() and chunk.strip()):
            break
        place += 8 + size + size % 2
    file.seek(begin)
    return place in (end, end + 1)  # the last byte, a filler, may be missing


def _next_part(file: BinaryIO, end: int) -> int:
    """Where the part after one that ends at `end` begins: at an even place, but some writers forget the filler."""
    if end % 2 == 0:
        return end
    file.seek(end)
    return end if file.read(4) in KNOWN_PARTS else end + 1


def _wav_blocks(file: BinaryIO, n_bytes: int, channels: int, width: int, dtype: str) -> Iterator[np.ndarray]:
    frame = channels * width
    while n_bytes > 0:
        wanted = min(n_bytes, max(1, BLOCK // channels) * frame)
        data = file.read(wanted)
        if len(data) < wanted:  # written to or cut since its size was taken
            raise InputError(f"the WAV file ended {wanted - len(data)} bytes early while it was read; try again")
        n_bytes -= len(data)
        if width == 3:  # no number type has 3 bytes: a zero below each makes it one of 4, with the same full scale
            three = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = np.pad(three, ((0, 0), (1, 0))).reshape(-1).view("<i4")
        else:
            values = np.frombuffer(data, dtype)
        yield values.reshape(-1, channels).T


# ---- everything else ----


def _soundfile_blocks(file: BinaryIO, name: str) -> tuple[int, Iterator[np.ndarray]]:
    soundfile = _soundfile_package(name)

    class Forward(soundfile.SoundFile):
        """Read in order: the library would else jump after each block, which fails in FLAC without a length."""

        def seekable(self) -> bool:
            return False

    try:
        sound = Forward(file)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: it takes the bytes for headerless samples
        raise InputError(f"{name} is no sound file of a known format ({_said(error)}); convert it to WAV") from None

    def blocks() -> Iterator[np.ndarray]:
        # Block by block: a header may promise any length, and only what is there takes memory.
        with sound:
            while True:
                try:
                    block = sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise InputError(f"{name}: its sound cannot be decoded ({_said(error)}): cut short or "
                                     f"damaged") from None
                if len(block) == 0:
                    return
                yield block.T

    return sound.samplerate, blocks()


def _said(error: Exception) -> str:
    """Without the name of the object in memory that the library was given."""
    return str(getattr(error, "error_string", error)).rstrip(".")


def _soundfile_package(name: str) -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, the library that it wraps is not
        raise MissingDependencyError(f"{name} is not a WAV file of plain samples; other sound is read by the soundfile "
                                     f"package: pip install 'llamamm[audio]'") from None
    return soundfile
