import io
import os
import re
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.testing import assert_close

from instantgi import images
from instantgi.files import replace_on_success
from instantgi.images import ImageError, flatten_alpha, read_image, to_8bit, write_image

DATA = Path(__file__).parents[2] / "shared/data"
needs_data = pytest.mark.skipif(not (DATA / "odd").is_dir(), reason="no folder shared/data/odd")

LEVELS = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)  # [H, W, RGBA]
DEEP = np.random.default_rng(1).integers(0, 65536, (7, 5, 4), dtype=np.uint16)


def as_tensor(array: np.ndarray, white: int = 255) -> torch.Tensor:
    array = np.atleast_3d(array).astype(np.float32) / np.float32(white)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 2, 0)))


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the array's depth and bands; further chunks (kind, content) precede the pixels."""
    height, width = array.shape[:2]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[np.atleast_3d(array).shape[2]]
    header = struct.pack(">2I5B", width, height, 8 * array.itemsize, color_type, 0, 0, 0)
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    every = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in every
    )


def tiff(array: np.ndarray, order: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of 16 bits, [H, W, 1 to 4]; `tags` such as t274=6 come on top."""
    height, width, bands = array.shape
    pixels = array.astype(f"{order}u2").tobytes()
    values = {256: width, 257: height, 258: 16, 259: 1, 262: 2 if bands > 2 else 1, 273: 8}
    values |= {277: bands, 278: height, 279: len(pixels)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
        for tag, value in sorted(values.items())
        if not (tag == 258 and bands > 1)
    )
    if bands > 1:  # one depth per band, behind the directory
        start = 8 + len(pixels) + 2 + 12 * len(values) + 4
        first, last = entries[:24], entries[24:]
        entries = first + struct.pack(f"{order}HHII", 258, 3, bands, start) + last
    directory = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    depths = struct.pack(f"{order}{bands}H", *[values[258]] * bands)
    return magic + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + directory + depths


def save(picture: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads bytes as if they came from a file."""

    def read_bytes(data: bytes, name: str = "picture.png", **options) -> torch.Tensor:
        (tmp_path / name).write_bytes(data)
        return read_image(tmp_path / name, **options)

    return read_bytes


# --- kinds of pictures


@pytest.mark.parametrize(
    "mode, bands", [("L", [0]), ("RGB", [0, 1, 2]), ("RGBA", [0, 1, 2, 3]), ("LA", [0, 0, 0, 3])]
)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_channels_follow_the_kind(read, mode, bands, file_format):
    own = LEVELS[..., [0, 3]] if mode == "LA" else LEVELS[..., bands]
    data = save(Image.fromarray(own.squeeze(), mode), file_format)
    assert_close(read(data), as_tensor(LEVELS[..., bands]), rtol=0, atol=0)


def test_bilevel_is_gray_of_zeros_and_ones(read):
    bits = LEVELS[..., 0] > 127
    assert_close(read(save(Image.fromarray(bits), "PNG")), as_tensor(bits, 1), rtol=0, atol=0)


def test_palette_becomes_rgb_and_a_transparent_entry_alpha(read):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    rgb = np.array([[[10, 20, 30], [40, 50, 60]]])
    rgba = np.array([[[10, 20, 30, 255], [40, 50, 60, 0]]])
    assert_close(read(save(picture, "PNG")), as_tensor(rgb), rtol=0, atol=0)
    assert_close(read(save(picture, "PNG", transparency=1)), as_tensor(rgba), rtol=0, atol=0)
    assert_close(read(save(picture, "GIF", transparency=1)), as_tensor(rgba), rtol=0, atol=0)


@pytest.mark.parametrize("levels", [LEVELS, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("bands", [1, 3])
def test_color_key_becomes_alpha(read, levels, bands):
    color = levels[..., :bands]
    key = struct.pack(f">{bands}H", *color[2, 3])
    white = np.iinfo(levels.dtype).max
    alpha = np.where((color == color[2, 3]).all(-1), 0, white)
    expected = np.concatenate([np.broadcast_to(color, (7, 5, 3)), alpha[..., None]], axis=-1)
    assert_close(read(png(color, (b"tRNS", key))), as_tensor(expected, white), rtol=0, atol=0)


@pytest.mark.parametrize("mode, channels", [("RGBA", 3), ("LA", 1)])
def test_opaque_alpha_is_dropped(read, mode, channels):
    picture = Image.fromarray(LEVELS[..., :3]).convert(mode)
    assert picture.getchannel("A").getextrema() == (255, 255)
    assert len(read(save(picture, "PNG"))) == channels


def test_cmyk_becomes_rgb(read):
    picture = Image.new("CMYK", (3, 2), (0, 255, 255, 0))
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 3)
    assert_close(read(save(picture, "TIFF")), red, rtol=0, atol=0)
    # JPEG loses up to a few levels, even in a constant picture
    assert_close(read(save(picture, "JPEG")), red, rtol=0, atol=4 / 255)


def test_lab_becomes_rgb(read):
    picture = Image.new("LAB", (3, 2), (137, 128, 128))  # L* = 100 * 137 / 255 = 53.7: gray 129
    assert_close(
        read(save(picture, "TIFF")), torch.full((3, 2, 3), 129 / 255), rtol=0, atol=2 / 255
    )


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(read, file_format):
    colors = [(255, 0, 0), (0, 255, 0)]
    frames = [Image.new("RGB", (4, 3), color) for color in colors]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = save(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert_close(read(data), as_tensor(np.asarray(frames[0])), rtol=0, atol=0)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1)])
def test_smallest_and_thinnest(read, height, width):
    levels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert_close(read(png(levels)), as_tensor(levels), rtol=0, atol=0)


def test_suffix_is_irrelevant(read):
    data = save(Image.fromarray(LEVELS), "WEBP", lossless=True, exact=True)
    assert_close(read(data, "wrong.jpg"), read(data, "no-suffix"), rtol=0, atol=0)


# --- more than 8 bits


@pytest.mark.parametrize("bands", [[0], [0, 3], [0, 1, 2], [0, 1, 2, 3]])
def test_png_keeps_16_bits(read, bands):
    expected = DEEP[..., [0, 0, 0, 3] if bands == [0, 3] else bands]
    assert_close(read(png(DEEP[..., bands])), as_tensor(expected, 65535), rtol=0, atol=0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_tiff_keeps_16_bits(read, order, bands):
    data = tiff(DEEP[..., :bands], order, **({"t338": 2} if bands == 4 else {}))
    assert_close(read(data), as_tensor(DEEP[..., :bands], 65535), rtol=0, atol=0)


def test_tiff_multiplied_by_alpha_is_divided(read):
    color, alpha = DEEP[..., :3] // 2, DEEP[..., 3:] // 4 * 2 + 32768
    stored = (color.astype(np.uint64) * alpha // 65535).astype(np.uint16)
    expected = as_tensor(np.concatenate([color, alpha], axis=-1), 65535)
    # one level of the product is up to 65535 / 32768 levels of the color
    image = read(tiff(np.concatenate([stored, alpha], axis=-1), t338=1))
    assert_close(image, expected, rtol=0, atol=2.1 / 65535)


def test_tiff_whose_zero_is_white(read):
    expected = as_tensor(65535 - DEEP[..., :1], 65535)
    assert_close(read(tiff(DEEP[..., :1], t262=0)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("maximum", [1000, 65535])
@pytest.mark.parametrize("kind, bands", [(b"P5", 1), (b"P6", 3)])
def test_pnm_keeps_16_bits(read, maximum, kind, bands):
    levels = DEEP[..., :bands].astype(int) % (maximum + 1)
    data = kind + b" 5 7 %d\n" % maximum + levels.astype(">u2").tobytes()
    # Pillow scales gray to 65535 and rounds
    assert_close(read(data), as_tensor(levels, maximum), rtol=0, atol=0.5001 / 65535)
    with pytest.raises(ImageError, match="truncated"):
        read(data[:-1])


def test_float_is_taken_as_it_is(read):
    values = DEEP[..., 0].astype(np.float32) / 65536
    assert_close(read(save(Image.fromarray(values), "TIFF")), as_tensor(values, 1), rtol=0, atol=0)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_float_outside_0_to_1_is_refused(read, value):
    data = save(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match="outside 0 to 1; rescale"):
        read(data)


# --- orientation

# EXIF 2.3, section 4.6.4: where row 0 and column 0 of the stored picture are to be seen
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    row, column = SIDES[orientation]
    stored = upright if row in ("top", "bottom") else upright.swapaxes(0, 1)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    return np.ascontiguousarray(stored[:, ::-1] if column in ("bottom", "right") else stored)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(read, file_format, orientation):
    picture = Image.fromarray(stored_as(LEVELS, orientation))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = save(picture, file_format, exif=exif(orientation), **options)
    assert_close(read(data), as_tensor(LEVELS), rtol=0, atol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_is_applied(read, orientation):
    blocks = np.kron(LEVELS[:4, :3, 0], np.ones((16, 16), np.uint8))
    picture = Image.fromarray(stored_as(blocks, orientation))
    data = save(picture, "JPEG", quality=100, exif=exif(orientation))
    # each 8x8 block is constant, so only the step of its mean remains, 1 / 8 level, and rounding
    assert_close(read(data), as_tensor(blocks), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_16_bits(read, orientation):
    stored = stored_as(DEEP[..., :3], orientation)
    expected = as_tensor(DEEP[..., :3], 65535)
    chunk = (b"eXIf", exif(orientation).tobytes()[6:])  # without the word Exif that JPEG puts first
    assert_close(read(png(stored, chunk)), expected, rtol=0, atol=0)
    assert_close(read(tiff(stored, t274=orientation)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_ignored(read, orientation):
    data = save(Image.fromarray(LEVELS), "PNG", exif=exif(orientation))
    assert_close(read(data), as_tensor(LEVELS), rtol=0, atol=0)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"junk" * 9])
def test_broken_exif_is_ignored_in_silence(read, capfd, content):
    picture = Image.new("L", (8, 8), 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read(save(picture, "JPEG", exif=b"Exif\0\0" + content))
    assert_close(image, torch.full((1, 8, 8), 100 / 255), rtol=0, atol=0)
    assert capfd.readouterr() == ("", "")


# --- color profiles


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB whose first channel is blue and whose last one is red."""
    red, blue, free = b"rXYZ", b"bXYZ", b"????"
    return srgb_profile().replace(red, free).replace(blue, red).replace(free, blue)


@pytest.mark.parametrize("bands", [3, 4])
def test_profile_is_applied_to_8_bits(read, bands):
    picture = Image.fromarray(LEVELS[..., :bands])
    image = read(save(picture, "PNG", icc_profile=swapped_profile()))
    expected = as_tensor(LEVELS[..., [2, 1, 0, 3][:bands]])
    # lcms computes with 16 bits and rounds the matrices of the profile to 1 / 65536
    assert_close(image, expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(
    "levels, profile",
    [
        (LEVELS, srgb_profile()),
        (LEVELS, b"no profile"),
        (LEVELS, swapped_profile()[:300]),
        (LEVELS[..., 0], swapped_profile()),  # a profile for RGB in a gray picture
    ],
    ids=["sRGB", "junk", "truncated", "of another kind"],
)
def test_profile_that_says_nothing_changes_nothing(read, capfd, levels, profile):
    image = read(save(Image.fromarray(levels), "PNG", icc_profile=profile))
    assert_close(image, as_tensor(levels), rtol=0, atol=0)
    assert capfd.readouterr() == ("", "")


def test_profile_is_not_applied_to_16_bits(read, capfd):
    profile = b"name\0\0" + zlib.compress(swapped_profile())
    image = read(png(DEEP, (b"iCCP", profile)))
    assert_close(image, as_tensor(DEEP, 65535), rtol=0, atol=0)
    assert capfd.readouterr() == ("", "")


# --- refusals


def refusal(read, data: bytes, name: str = "cat.png", **options) -> str:
    with pytest.raises(ImageError) as caught:
        read(data, name, **options)
    path, text = str(caught.value).split(f"{name}: ")
    assert "\n" not in path + text
    return text


def test_refusals_name_the_file_and_say_what_to_do(read):
    whole = save(Image.fromarray(LEVELS), "PNG")
    again = "copy or download it again"
    assert refusal(read, b"") == f"the file is empty; {again}"
    assert refusal(read, whole[:-20]) == f"the file is truncated; {again}"
    assert (
        refusal(read, whole[:16] + bytes(8) + whole[24:])
        == f"the header of this PNG is damaged; {again}"
    )
    assert refusal(read, b"not a picture").startswith("not a picture, or in a format that")
    changed = whole[:-18] + bytes([whole[-18] ^ 1]) + whole[-17:]  # in the pixels
    assert refusal(read, changed) == f"the file is damaged (wrong checksum in IDAT); {again}"
    assert refusal(read, whole, max_pixels=34) == (
        "5x7 pixels are more than the limit of 34; reduce the picture, or raise max_pixels"
    )


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="^none.png: there is no such file$"):
        read_image("none.png")
    with pytest.raises(IsADirectoryError, match="is a folder; name the pictures in it$"):
        read_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path):
    write_image(tmp_path / "a.png", torch.zeros(1, 1, 1))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(PermissionError, match="a.png: no permission to read this file$"):
        read_image(tmp_path / "a.png")


def test_programs_in_the_guise_of_pictures_are_not_run(read):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    assert refusal(read, program).startswith("not a picture")


def test_huge_header_is_refused_before_memory_is_taken(read):
    whole = png(LEVELS)
    header = b"IHDR" + struct.pack(">2I5B", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
    data = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    assert "pixels are more than the limit" in refusal(read, data)


def test_limits_of_pillow_neither_hold_nor_change(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    assert read(png(LEVELS)).shape == (4, 7, 5)
    assert Image.MAX_IMAGE_PIXELS == 3
    refusal(read, b"")
    assert Image.MAX_IMAGE_PIXELS == 3


@pytest.mark.parametrize("levels", [LEVELS, DEEP], ids=["8 bits", "16 bits"])
def test_png_cut_anywhere_is_refused(read, levels):
    whole = png(levels)
    for length in range(len(whole)):
        refusal(read, whole[:length])


@pytest.mark.parametrize("levels", [LEVELS, DEEP], ids=["8 bits", "16 bits"])
def test_png_with_any_byte_changed_is_refused(read, levels, capfd):
    whole = png(levels)
    for position in range(8, len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        refusal(read, bytes(changed))
    assert capfd.readouterr() == ("", "")


SAVED = {
    "JPEG": {},
    "progressive JPEG": {"progressive": True},
    "GIF": {},
    "WEBP": {},
    "BMP": {},
    "TIFF": {},
    "packed TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
    "TGA": {},
    "JPEG2000": {},
}


def saved(name: str) -> bytes:
    levels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return save(Image.fromarray(levels), name.split()[-1], **SAVED[name])


@pytest.mark.parametrize("name", SAVED)
def test_half_a_file_is_refused(read, name, capfd):
    whole = saved(name)
    refusal(read, whole[: len(whole) // 2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [*SAVED, "16-bit TIFF"])
def test_damaged_files_are_refused_or_read_whole(read, name, capfd):
    whole = tiff(DEEP) if name == "16-bit TIFF" else saved(name)
    random = np.random.default_rng(4)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in random.integers(0, min(len(whole), 400), 3):  # headers are at the front
            damaged[position] = random.integers(256)
        try:
            image = read(bytes(damaged), max_pixels=10**6)
        except ImageError:
            continue
        assert image.isfinite().all() and 0 <= image.min() <= image.max() <= 1
    if name != "packed TIFF":  # the libtiff in Pillow prints what it thinks of packed pixels
        assert capfd.readouterr() == ("", "")


# --- a folder of hard cases

TURNED = {
    *(f"odd/exif-orientation/{name}_{n}.jpg" for name in ("Landscape", "Portrait") for n in "5678"),
    "odd/generated/exif-orientation-6-384x256.jpg",
    "odd/generated/exif-orientation-8-384x256.jpg",
    "odd/pillow/hopper_orientation_6.webp",
}
# Pillow does not see the wrong checksum of this one. Of those that it refuses, OpenCV reads three:
# ultrahdr.jpg and the truncated JPEGs as half a picture, and png_decompression_dos.png, whose text
# is made to fill the memory. To refuse them is right.
REFUSED = {"odd/pngsuite/xcsn0g01.png"}
GRAY = {"1", "L", "LA", "I", "I;16"}


def odd_files() -> list:
    if not (DATA / "odd").is_dir():
        return []
    rows = [line.split("\t") for line in (DATA / "IMAGES.tsv").read_text().splitlines()]
    return [pytest.param(*row[:5], id=row[0]) for row in rows if row[0].startswith("odd/")]


@needs_data
@pytest.mark.parametrize("path, file_format, mode, width, height", odd_files())
def test_odd_file_is_read_or_refused(path, file_format, mode, width, height, capfd):
    if file_format == "unreadable-by-design" or path in REFUSED:
        with pytest.raises(ImageError, match=rf"^[^\n]*{re.escape(path)}: [^\n]+$"):
            read_image(DATA / path)
    else:
        image = read_image(DATA / path)
        size = (int(width), int(height)) if path in TURNED else (int(height), int(width))
        assert image.shape[1:] == size
        assert image.shape[0] in ((1, 4) if mode in GRAY else (3, 4))
        assert image.dtype == torch.float32 and image.is_contiguous()
        assert image.isfinite().all() and 0 <= image.min() <= image.max() <= 1
    assert capfd.readouterr() == ("", "")


@needs_data
@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_photos_of_all_orientations_are_upright(name):
    folder = DATA / "odd/exif-orientation"
    expected = read_image(folder / f"{name}_1.jpg")
    for orientation in range(9):
        image = read_image(folder / f"{name}_{orientation}.jpg")
        # each was compressed by itself, with its number drawn in; turned wrongly it differs by 0.2
        assert (image - expected).abs().mean() < 0.02, orientation


# --- opacity, levels


def test_flatten_alpha_mixes_by_opacity():
    image = torch.tensor([0.2, 0.4, 0.6, 0.25])[:, None, None]
    # 0.25 c + 0.75 background, one rounding of 2**-24 per term
    expected = torch.tensor([0.05 + 0.75, 0.1, 0.15])[:, None, None]
    assert_close(flatten_alpha(image, "#ff0000"), expected, rtol=1e-6, atol=1e-7)
    assert_close(flatten_alpha(image, "red"), expected, rtol=1e-6, atol=1e-7)


def test_flatten_alpha_is_exact_at_both_ends():
    image = torch.cat([as_tensor(LEVELS[..., :3]), torch.zeros(1, 7, 5)])
    assert_close(flatten_alpha(image, "white"), torch.ones(3, 7, 5), rtol=0, atol=0)
    image[3] = 1
    assert_close(flatten_alpha(image, "white"), image[:3], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_flatten_alpha_leaves_opaque_pictures(channels):
    image = torch.rand(channels, 2, 3)
    assert flatten_alpha(image, "black") is image


@pytest.mark.parametrize("background", ["", "no color", "#12"])
def test_flatten_alpha_refuses_what_is_no_color(background):
    with pytest.raises(ValueError, match="background must be"):
        flatten_alpha(torch.zeros(4, 1, 1), background)


def test_to_8bit_inverts_division_by_255():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8bit(levels / 255), levels)
    assert torch.equal(to_8bit((levels / 255).double()), levels)


def test_to_8bit_works_on_parts_of_any_layout(monkeypatch):
    values = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = (values * 255).round().byte().permute(1, 2, 0)
    monkeypatch.setattr(images, "PART", 11)
    assert torch.equal(to_8bit(values.permute(1, 2, 0)), expected)
    assert to_8bit(values[:0]).shape == (0, 5, 7)
    values[2, 4, 6] = torch.nan
    with pytest.raises(ValueError, match="the image holds NaN"):
        to_8bit(values)


def test_to_8bit_rounds_to_nearest_and_clamps():
    values = torch.tensor([-torch.inf, -0.1, 0.49 / 255, 0.51 / 255, 254.51 / 255, 2, torch.inf])
    assert to_8bit(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_8bit(torch.tensor([0.0, torch.nan]))


# --- writing


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_read_image_inverts_write_image(tmp_path, suffix, channels):
    image = as_tensor(LEVELS[..., :channels])
    write_image(tmp_path / f"a{suffix}", image)
    expected = image.expand(3, -1, -1) if suffix == ".webp" and channels == 1 else image
    assert_close(read_image(tmp_path / f"a{suffix}"), expected, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close(tmp_path, channels):
    ramp = torch.linspace(0, 1, 64).expand(channels, 32, 64).contiguous()
    write_image(tmp_path / "a.jpg", ramp)
    assert_close(read_image(tmp_path / "a.jpg"), ramp, rtol=0, atol=4 / 255)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("a.xyz", (3, 2, 2), "unknown format '.xyz'; use one of .png, .webp"),
        ("a", (3, 2, 2), "unknown format ''"),
        ("a.jpg", (4, 2, 2), "JPEG has no opacity; use .png, or flatten_alpha first"),
        ("a.png", (2, 2, 2), "1, 3 or 4 channels .C, H, W., this has 2"),
        ("a.png", (3, 0, 2), "PNG takes sides of 1 to .* got 2x0"),
        ("a.webp", (1, 1, 16384), "WEBP takes sides of 1 to 16383 pixels, got 16384x1"),
    ],
)
def test_write_image_refuses_what_a_format_cannot_hold(tmp_path, name, shape, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, torch.zeros(shape))
    assert not list(tmp_path.iterdir())


def test_longest_sides_are_written(tmp_path):
    for name, longest in (("a.webp", 16383), ("a.jpg", 65500)):
        write_image(tmp_path / name, torch.zeros(1, 1, longest))
        assert read_image(tmp_path / name).shape[2] == longest


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    def fail(picture, path, *args, **options):
        Path(path).write_bytes(b"half a pict")
        raise error

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(type(error)):
        write_image(tmp_path / "a.png", torch.zeros(1, 1, 1))
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_replace_on_success_says_why_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    for path, error, message in (
        (tmp_path / "none/a", FileNotFoundError, "there is no folder .*none; create it first"),
        (tmp_path / "file/a", NotADirectoryError, "is a file, not a folder"),
        (tmp_path, IsADirectoryError, "is a folder; give the name of a file in it"),
    ):
        with pytest.raises(error, match=message), replace_on_success(path):
            raise AssertionError("the block began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_replace_on_success_needs_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="a.json: no permission to write here"):
        with replace_on_success(tmp_path / "a.json"):
            pass


def test_replaced_file_has_the_usual_rights(tmp_path):
    (tmp_path / "usual").touch()
    with replace_on_success(tmp_path / "a.json") as partial:
        partial.write_text("{}")
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "a.json")]
    assert rights[0] == rights[1]


def test_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there/file")
    with replace_on_success(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new"


def test_devices_are_written_to_and_not_replaced():
    with replace_on_success(os.devnull) as partial:
        partial.write_text("gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_import_loads_nothing_heavy():
    code = "import sys, instantgi.images; print({'cv2', 'scipy', 'torchvision'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
