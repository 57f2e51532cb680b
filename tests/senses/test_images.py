"""senses.images: every kind of image becomes RGB, 8 bit, upright, opaque; what is none gets a named error."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llamamm.errors import InputError
from llamamm.senses.images import image_tensor, load_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def picture(height=24, width=40, channels=3, seed=0):
    """Smooth, so that a lossy format keeps it, with no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(seed)
    planes = [127 + 100 * np.sin(x / (5 + k) + y / 9 + rng.uniform(0, 6)) for k in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def pixels(image):
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return np.asarray(image)


def png_header(width, height):
    """A PNG that says it is width x height and holds next to nothing."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# ---- what comes in ----


def test_path_str_bytes_pil_array_and_tensor_give_the_same(tmp_path):
    array = picture()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(array), "PNG"))
    for given_ in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        Image.fromarray(array),
        array,
        array.astype(np.float64) / 255,
        torch.from_numpy(array).permute(2, 0, 1),
        (torch.from_numpy(array).permute(2, 0, 1) / 255).requires_grad_(),
    ):
        np.testing.assert_array_equal(pixels(load_image(given_)), array)


def test_tensor_of_an_image():
    array = picture()
    x = image_tensor(array)
    assert x.dtype == torch.uint8 and x.is_contiguous()
    assert torch.equal(x, torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_and_tensors(shape):
    array = picture(5, 7, 1).reshape(shape)
    want = np.repeat(array.reshape(5, 7, 1), 3, axis=2)
    np.testing.assert_array_equal(pixels(load_image(array)), want)
    tensor = torch.from_numpy(array.reshape((1, 5, 7)[3 - len(shape):]))
    np.testing.assert_array_equal(pixels(load_image(tensor)), want)


def test_floats_are_rounded_not_cut():
    array = np.array([[0.0, 0.5, 0.999, 1.0]])  # times 255: 0, 127.5, 254.7, 255
    assert pixels(load_image(array))[0, :, 0].tolist() == [0, 128, 255, 255]
    half = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    assert pixels(load_image(half))[0, :, 0].tolist() == [0, 255]


def test_an_array_of_one_pixel_and_a_file_of_one():
    assert pixels(load_image(np.full((1, 1, 3), 7, np.uint8))).tolist() == [[[7, 7, 7]]]
    assert pixels(load_image(encoded(Image.new("RGB", (1, 1), GREEN), "PNG"))).tolist() == [[[0, 255, 0]]]


def test_what_was_given_is_left_alone():
    array = picture()
    image = Image.fromarray(array)
    load_image(image).putpixel((0, 0), (1, 2, 3))
    load_image(array).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(array, picture())
    np.testing.assert_array_equal(np.asarray(image), picture())


@pytest.mark.parametrize("given_, said", [
    (np.zeros((2, 3, 5), np.uint8), "(2, 3, 5)"),
    (np.zeros((3, 8, 9), np.uint8), "(3, 8, 9)"),  # channels first
    (torch.zeros(8, 9, 3), "(8, 9, 3)"),  # channels last
    (np.zeros((1, 4, 4, 3), np.uint8), "list"),
    (np.zeros(4, np.uint8), "(4,)"),
    (torch.zeros(0, 4), "(0, 4)"),
    (np.zeros((4, 0, 3), np.uint8), "0 pixels"),
    (np.array([[0.0, 255.0]]), "0 to 255"),
    (np.array([[-1.0, 1.0]]), "-1 to 1"),
    (np.array([[0.5, 1e300]]), "1e+300"),
    (np.array([[0.5, np.nan]]), "1 of an image's 2 values"),
    (np.array([[0.5, np.inf, -np.inf]]), "2 of an image's 3 values"),
    (np.zeros((4, 4), np.int64), "int64"),
    (np.zeros((4, 4), np.uint16), "uint16"),
    (torch.zeros(4, 4, dtype=torch.bool), "bool"),
    (Image.new("RGB", (0, 5)), "0 x 5"),
    ([1, 2], "list"),
    (None, "NoneType"),
    ("https://example.org/cat.png", "download"),
    ("data:image/png;base64,AAAA", "URL"),
    ("no-such-file.png", "No such file"),
    ("a\0b.png", "null"),
    (b"", "0 bytes"),
    (b"hello", "5 bytes"),
])  # fmt: skip
def test_what_is_no_image_is_refused_with_its_numbers(given_, said):
    with pytest.raises(InputError) as error:
        load_image(given_)
    assert said in str(error.value)


@pytest.mark.parametrize("given_, said", [
    (np.zeros(4, np.uint8), r"an image is given as array \(H, W\) or \(H, W, 1\|3\|4\), got shape \(4,\)"),
    (torch.zeros(4), r"an image is given as tensor \(H, W\) or \(1\|3\|4, H, W\), got shape \(4,\)"),
])  # fmt: skip
def test_what_an_image_is_given_as_is_said_in_english(given_, said):
    with pytest.raises(InputError, match=f"^{said}"):
        load_image(given_)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot open"):
        load_image(tmp_path)


# ---- damaged files ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_whole_files_are_read_and_cut_ones_refused(kind, tmp_path):
    array = picture(60, 50)
    data = encoded(Image.fromarray(array), kind)
    got = pixels(load_image(data)).astype(int)
    assert np.abs(got - array).mean() < (12 if kind in ("JPEG", "GIF", "WEBP") else 1e-9)
    for part in (10, len(data) // 3, len(data) * 2 // 3):
        path = tmp_path / "cut"
        path.write_bytes(data[:part])
        for given_ in (data[:part], path):
            with pytest.raises(InputError):
                load_image(given_)


def test_a_lazy_pil_image_of_a_cut_file_is_refused():
    data = encoded(Image.fromarray(picture()), "PNG")
    with Image.open(io.BytesIO(data[: len(data) * 2 // 3])) as lazy, pytest.raises(InputError, match="the PIL image"):
        load_image(lazy)


@settings(max_examples=150)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF"]), data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own words about the damage
def test_any_damage_gives_an_image_or_the_named_error(kind, data):
    whole = bytearray(encoded(Image.fromarray(picture(9, 11)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert pixels(load_image(bytes(whole))).size > 0
    except InputError:
        pass


def test_a_decompression_bomb_is_refused_before_it_goes_off():
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="is refused") as error:
        load_image(png_header(60_000, 60_000))
    assert "3600000000" in str(error.value) and str(2 * limit) in str(error.value)
    # From once to twice the limit PIL warns, which is an error here.
    with pytest.raises(InputError, match="is refused.*100000000 pixels"):
        load_image(png_header(10_000, 10_000))
    assert Image.MAX_IMAGE_PIXELS == limit


def test_formats_that_start_programs_are_not_opened():
    eps = encoded(Image.fromarray(picture()), "EPS")
    with pytest.raises(InputError, match="known format"):
        load_image(eps)


# ---- kinds of pixels ----


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP"
                                                                               else {}))  # fmt: skip
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert pixels(load_image(data))[4, 4].tolist() == list(RED)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow make red
    data = encoded(ink, kind)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(pixels(load_image(data))[8, 8], RED, atol=3)


@pytest.mark.parametrize("mode, colour, alpha, want", [
    ("RGBA", RED, 0, WHITE), ("RGBA", RED, 255, RED), ("RGBA", RED, 128, (255, 127, 127)),
    ("LA", (100,), 0, WHITE), ("LA", (100,), 255, (100, 100, 100)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_what_is_transparent_shows_white(kind, mode, colour, alpha, want):
    data = encoded(Image.new(mode, (4, 4), (*colour, alpha)), kind)
    np.testing.assert_array_equal(pixels(load_image(data))[1, 1], want)


def test_alpha_in_arrays_and_tensors():
    array = np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)
    for given_ in (array, array / 255, torch.from_numpy(array).permute(2, 0, 1)):
        assert pixels(load_image(given_)).tolist() == [[list(WHITE), list(RED)]]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 1)
    got = pixels(load_image(encoded(image, "PNG")))
    assert got[0, 0].tolist() == list(GREEN) and got[1, 1].tolist() == list(RED)
    for kind in ("PNG", "GIF"):
        got = pixels(load_image(encoded(image, kind, transparency=0)))
        assert got[0, 0].tolist() == list(GREEN) and got[1, 1].tolist() == list(WHITE)
    got = pixels(load_image(encoded(image, "PNG", transparency=bytes([128, 0]))))  # an alpha for each colour
    assert got[0, 0].tolist() == list(WHITE) and got[1, 1].tolist() == [255, 127, 127]


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "YCbCr", "HSV", "1", "RGBX", "L"])
def test_rare_modes_come_out_right(mode):
    first = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")  # Pillow converts to some modes by way of another
    image = Image.fromarray(picture()).convert(first).convert(mode)
    assert image.mode == mode
    want = Image.fromarray(picture()).convert("L" if mode in ("La", "1", "L") else "RGB").convert("RGB")
    tolerance = {"1": 128, "PA": 20}.get(mode, 4)  # black and white, and 216 colours, are dithered
    assert np.abs(pixels(load_image(image)).astype(int) - np.asarray(want)).mean() < tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled(kind):
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)  # 257 times 0, 1, 128, 255
    data = encoded(Image.fromarray(values), kind)
    assert Image.open(io.BytesIO(data)).mode in ("I;16", "I")
    assert pixels(load_image(data))[0].tolist() == [[v, v, v] for v in (0, 1, 128, 255)]


def test_32_bit_and_float_pictures():
    assert pixels(load_image(Image.fromarray(np.array([[0, 65_535]], np.int32))))[0, :, 0].tolist() == [0, 255]
    unit, counts = np.array([[0, 0.5, 1]], np.float32), np.array([[0, 100.4, 255]], np.float32)
    assert pixels(load_image(encoded(Image.fromarray(unit), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(load_image(Image.fromarray(counts)))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("values, said", [
    (np.array([[0, 65_536]], np.int32), "65536"), (np.array([[-1, 5]], np.int32), "-1"),
    (np.array([[0, 300]], np.float32), "300"), (np.array([[-0.5, 1]], np.float32), "-0.5"),
    (np.array([[0, np.nan]], np.float32), "nan"),
])  # fmt: skip
def test_wide_values_out_of_range_are_refused(values, said):
    with pytest.raises(InputError, match=said):
        load_image(Image.fromarray(values))


def test_16_bits_with_a_transparent_grey():
    values = np.array([[0, 1000, 65_535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    assert pixels(load_image(data))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("orientation, turned", [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)),
    (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)), (8, lambda a: np.rot90(a)),
])  # fmt: skip
def test_exif_notes_are_followed(orientation, turned):
    array = picture(5, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(load_image(encoded(Image.fromarray(array), "PNG", exif=exif)))
    np.testing.assert_array_equal(got, turned(array))
    jpeg = pixels(load_image(encoded(Image.fromarray(picture(40, 64)), "JPEG", exif=exif)))
    assert np.abs(jpeg.astype(int) - turned(picture(40, 64))).mean() < 12


# ---- a colour that a PNG file calls transparent ----


def png(rows, *, depth, kind, key, interlaced=False, exif=None):
    """A PNG file by hand. rows: of samples (H, W, channels); key: the transparent colour's samples, or bytes."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def lines(samples):
        out = b""
        for line in samples:
            bits = "".join(f"{int(value):0{depth}b}" for value in line.flat)
            bits += "0" * (-len(bits) % 8)
            out += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
        return out

    rows = np.asarray(rows)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [rows[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [rows]
    packed = zlib.compress(b"".join(lines(part) for part in parts if part.size))
    key = key if isinstance(key, bytes) else struct.pack(f">{len(key)}H", *key)
    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, kind, 0, 0, interlaced)
    middle = chunk(b"eXIf", exif) if exif else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"tRNS", key) + chunk(b"IDAT", packed)
            + chunk(b"IEND", b""))


GREY_KIND, RGB_KIND = 0, 2
KEY = (0x1234, 0x5678, 0x9ABC)
NEAR = (0x1235, 0x5678, 0x9ABC)  # another colour, the same in 8 bits
WIDE = np.array([[KEY, NEAR], [(0x34, 0x78, 0xBC), (0, 0, 0)], [NEAR, KEY]])
WIDE_WANT = [[WHITE, (0x12, 0x56, 0x9A)], [(0, 0, 0), (0, 0, 0)], [(0x12, 0x56, 0x9A), WHITE]]


@pytest.mark.parametrize("interlaced", [False, True])
def test_rgb_of_16_bits_is_compared_in_16_bits(interlaced, tmp_path):
    data = png(WIDE, depth=16, kind=RGB_KIND, key=KEY, interlaced=interlaced)
    (tmp_path / "a.png").write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    for source in (data, tmp_path / "a.png", io.BytesIO(data), opened):
        assert pixels(load_image(source)).tolist() == [[list(c) for c in row] for row in WIDE_WANT]
    assert opened.info["transparency"] == KEY  # what was given is left as it is


def test_a_small_key_of_16_bits_is_not_taken_for_one_of_8():
    rows = np.array([[(0x0010, 0, 0), (0x1000, 0, 0), (0x1010, 0, 0)]])
    got = pixels(load_image(png(rows, depth=16, kind=RGB_KIND, key=(0x10, 0, 0))))
    assert got.tolist() == [[[255, 255, 255], [16, 0, 0], [16, 0, 0]]]


def test_a_turned_picture_of_16_bits_turns_its_transparency_too():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    data = png(WIDE, depth=16, kind=RGB_KIND, key=KEY, exif=exif.tobytes())
    want = np.rot90(np.array(WIDE_WANT), -1)
    np.testing.assert_array_equal(pixels(load_image(data)), want)


def test_an_image_already_read_is_compared_by_what_is_left_of_it():
    opened = Image.open(io.BytesIO(png(WIDE, depth=16, kind=RGB_KIND, key=KEY)))
    opened.load()
    got = pixels(load_image(opened))
    assert got[1, 0].tolist() == [0, 0, 0] and got[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth(depth):
    most = 2**depth - 1
    values = np.array([[0, 1, most // 2, most]])[..., None]
    for key in {0, 1, most // 2, most}:
        got = pixels(load_image(png(values, depth=depth, kind=GREY_KIND, key=(key,))))[0, :, 0]
        want = [255 if value == key else round(value * 255 / most) for value in values[0, :, 0].tolist()]
        assert got.tolist() == want


def test_rgb_of_8_bits_and_a_key_with_bits_above_them():
    rows = np.array([[(1, 2, 3), (1, 2, 4)]])
    assert pixels(load_image(png(rows, depth=8, kind=RGB_KIND, key=(1, 2, 3)))).tolist() == [[[255] * 3, [1, 2, 4]]]


# ---- open files ----


def test_open_files_are_read_from_where_they_stand_and_stand_there_again(tmp_path):
    data = encoded(Image.fromarray(picture()), "PNG")
    (tmp_path / "a.png").write_bytes(b"junk" + data)
    opened = (open(tmp_path / "a.png", "rb", buffering=size) for size in (-1, 0))
    for file in (io.BytesIO(b"junk" + data), *opened):
        with file:
            file.seek(4)
            for _ in range(2):
                np.testing.assert_array_equal(pixels(load_image(file)), picture())
            assert file.tell() == 4
    assert image_tensor(io.BytesIO(data)).shape == (3, 24, 40)


def test_open_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    with open(tmp_path / "a.png", encoding="latin-1") as text, pytest.raises(InputError, match="mode 'rb'"):
        load_image(text)
    written = io.BytesIO()
    Image.fromarray(picture()).save(written, "PNG")
    with pytest.raises(InputError, match=r"seek\(0\)"):
        load_image(written)
    with pytest.raises(InputError, match="5 bytes is no whole image") as caught:
        load_image(io.BytesIO(b"hello"))
    assert "object at" not in str(caught.value)


def test_what_a_decoder_says_names_no_object_in_memory(monkeypatch):
    def broken(_self):
        raise OSError(f"broken data stream in {io.BytesIO()!r}")

    data = encoded(Image.fromarray(picture()), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
    with pytest.raises(InputError, match="bytes cannot be decoded .*broken data stream in it") as error:
        load_image(data)
    assert "object at" not in str(error.value)
