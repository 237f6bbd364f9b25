"""Reads and writes pictures as tensors [C, H, W] in [0, 1].

C is 1 for gray, 3 for RGB, 4 for RGB with opacity. The values are the stored ones (sRGB, not linear
light); opacity is not multiplied into the colors.
"""

import contextlib
import io
import logging
import math
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, ImageColor, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)
from torch import Tensor

from instantgi.files import check_place, read_bytes, replace_on_success
from instantgi.gaussians import kind_of

# Raster formats only: EPS, for one, would be handed to Ghostscript, a program interpreter. TGA has
# no signature of its own, so it is tried last.
READABLE = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000"),
    *("QOI", "ICO", "PSD", "DDS", "SGI", "PCX", "TGA"),
)
WRITABLE = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}
LONGEST_SIDE = {"PNG": 2**31 - 1, "WEBP": 16383, "TIFF": 2**31 - 1, "JPEG": 65500}
SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
PART = 2**20  # values converted at a time: their copies are few and stay in the cache
AGAIN = "copy or download it again"

ORIENTATION = 0x0112  # the tag of EXIF
# description, make, model, software, date, artist, copyright; the folders of the camera and of GPS
EXIF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825)

_pillow_lock = threading.RLock()


class ImageError(ValueError):
    """The file is no picture that can be read whole; the text says what is wrong and what to do."""


def read_image(
    path: str | os.PathLike[str], max_pixels: int = 400_000_000
) -> Float[Tensor, "channels height width"]:
    """The picture in a file, upright, as float32 in [0, 1]: gray (C = 1), RGB (3) or RGBA (4).

    | stored as | read as |
    |---|---|
    | gray, bilevel | C = 1 |
    | RGB, palette, YCbCr, CMYK, Lab | C = 3 |
    | any of these with transparency (a channel, a palette entry or a color key) | C = 4 |
    | the same, but opaque at every pixel | C = 1 or 3: nothing is lost |
    | 16 bits: PNG, TIFF, binary PPM; gray in any format | all 16 bits, v / 65535 |
    | 16 bits in color elsewhere (CMYK, JPEG 2000, AVIF) | the upper 8 bits |
    | float | as stored, must lie in [0, 1] |
    | several frames or pages | the first one |

    The orientation in EXIF (or XMP) is applied. An ICC profile is applied, by Pillow, to pictures
    of 8 bits, so that values are sRGB; one that is sRGB already, that does not fit the picture or
    is broken changes nothing, and 16-bit values stay as stored, as do gAMA and cICP of PNG.
    Broken EXIF does not keep a picture from being read. Nothing goes by the suffix of the file.

    Damage that can be seen is refused: a file that ends early, wrong checksums in PNG, pixel data
    that do not decode. (JPEG has no checksums: a changed bit may pass.)

    Args:
        path: the file. Memory while reading is the file and up to 25 bytes per pixel.
        max_pixels: larger pictures are refused by their header, before memory is taken.

    Raises:
        ImageError: if the file is not a picture, damaged, or too large.
        FileNotFoundError, IsADirectoryError, PermissionError: if there is no file to read.
    """
    data = read_bytes(path, "picture")
    try:
        with _quiet_pillow():
            samples = _decode(data, max_pixels)
        return samples.to_tensor()
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except MemoryError as error:
        raise ImageError(f"{path}: too large for the memory of this machine") from error
    except Exception as error:  # damaged bytes make decoders raise anything, even TypeError
        raise ImageError(f"{path}: {_explain(error, data)}") from error


def suffixes() -> set[str]:
    """Of the files that `read_image` reads, in lower case."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in READABLE}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """What a picture says of itself, as far as it is true of what `read_image` returns.

    Returns:
        "exif", without the orientation, which is applied; and "icc", the color profile of pictures
        with more than 8 bits, whose values stay as stored. What is missing or broken is left out.

    Raises:
        ImageError: if the file is not a picture.
        FileNotFoundError, IsADirectoryError, PermissionError: if there is no file to read.
    """
    data = read_bytes(path, "picture")
    found: dict[str, bytes] = {}
    with _quiet_pillow():
        try:
            picture = Image.open(io.BytesIO(data), formats=[n for n in READABLE if n in Image.OPEN])
        except Exception as error:
            raise ImageError(f"{path}: {_explain(error, data)}") from error
        with contextlib.suppress(Exception):  # broken metadata raises anything
            found["exif"] = picture.getexif().tobytes()
        profile = picture.info.get("icc_profile")
        if profile and (picture.mode.startswith(("I", "F")) or _has_16_bits(picture, data)):
            found["icc"] = profile
    kept = _clean_exif(found.pop("exif", b""))
    return found | ({"exif": kept} if kept else {})


def _clean_exif(data: bytes) -> bytes | None:
    """What is true of the picture at any size and in any format; None if that is nothing.

    Tags of the pixels' layout would override a writer's own, and the orientation is applied.
    """
    with _quiet_pillow(), contextlib.suppress(Exception):  # hostile bytes raise anything
        exif = Image.Exif()
        exif.load(data)
        for tag in list(exif):
            if tag not in EXIF_TAGS:
                del exif[tag]
        return exif.tobytes() if exif else None
    return None


def _fits(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile is of pictures with so many channels: bytes 16 to 19 say its space."""
    return profile[16:20] == (b"GRAY" if channels == 1 else b"RGB ")


def flatten_alpha(
    image: Float[Tensor, "channels height width"], background: str
) -> Float[Tensor, "opaque_channels height width"]:
    """The picture laid over one color: α c + (1 - α) background, in stored values as browsers do.

    Args:
        image: RGBA; gray and RGB pictures are returned as they are.
        background: a name or hex code of CSS ("white", "#ff8800").

    Raises:
        ValueError: if the background is not a color.
    """
    color = _parse_color(background).to(image)
    if image.shape[0] != 4:
        return image
    return torch.lerp(color[:, None, None], image[:3], image[3:])


def to_8bit(image: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """The nearest of 256 levels, after clamping to [0, 1]: what a file of 8 bits holds.

    Raises:
        ValueError: if a value is NaN.
    """
    levels = torch.empty(image.shape, dtype=torch.uint8, device=image.device)
    parts = image.detach().reshape(-1).split(PART), levels.view(-1).split(PART)
    for values, nearest in zip(*parts, strict=True):
        if values.isnan().any():
            raise ValueError("the image holds NaN, which no level of 8 bits stands for")
        nearest.copy_(values.clamp(0, 1).mul_(255).round_())
    return levels


def write_image(
    path: str | os.PathLike[str],
    image: Float[Tensor, "channels height width"],
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Write a picture of 8 bits, whole or not at all, in the format that the suffix names.

    .png, .webp and .tif keep every value of `to_8bit(image)` (.webp stores gray as RGB); .jpg is
    lossy, quality 95.

    Args:
        path: an existing file is replaced.
        image: gray, RGB or RGBA (C = 1, 3, 4), clamped to [0, 1].
        icc: the color profile of the values; without one they are meant as sRGB. One of another
            number of channels is left out.
        exif: of which what is true of any picture is stored with them.

    Raises:
        ValueError: if the format is unknown or cannot hold the picture.
        FileNotFoundError, IsADirectoryError, PermissionError: if the file cannot be written.
    """
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        raise ValueError(f"image must be a float tensor [C, H, W] in [0, 1], got {kind_of(image)}")
    check_writable(path, *image.shape)
    file_format, options = WRITABLE[Path(path).suffix.lower()]
    array = to_8bit(image).permute(1, 2, 0).contiguous().cpu().numpy()
    picture = Image.fromarray(array[:, :, 0] if len(image) == 1 else array)
    kept = _clean_exif(exif) if exif else None
    extra: dict[str, bytes] = {"exif": kept} if kept else {}
    if icc and _fits(icc, len(image)):
        extra["icc_profile"] = icc
    with replace_on_success(path) as partial:
        try:
            picture.save(partial, file_format, **options, **extra)
        except OSError as error:
            if error.errno:
                raise
            raise OSError(f"{path}: cannot be written ({error})") from error  # libtiff's code


def check_writable(path: str | os.PathLike[str], channels: int, height: int, width: int) -> None:
    """Raises what `write_image` would raise for a picture of this kind, at this place."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE and not Path(path).is_dir():
        raise ValueError(f"{path}: unknown format {suffix!r}; use one of {', '.join(WRITABLE)}")
    check_place(path)
    _check_storable(path, channels, height, width, WRITABLE[suffix][0])


def _check_storable(
    path: str | os.PathLike[str], channels: int, height: int, width: int, file_format: str
) -> None:
    longest = LONGEST_SIDE[file_format]
    if channels not in (1, 3, 4):
        raise ValueError(f"{path}: an image has 1, 3 or 4 channels [C, H, W], this has {channels}")
    if channels == 4 and file_format == "JPEG":
        raise ValueError(f"{path}: JPEG has no opacity; use .png, or flatten_alpha first")
    if not 1 <= min(height, width) <= max(height, width) <= longest:
        raise ValueError(
            f"{path}: {file_format} takes sides of 1 to {longest} pixels, got {width}x{height}"
        )


def _parse_color(name: str) -> Tensor:
    try:
        return torch.tensor(ImageColor.getrgb(name)[:3]) / 255
    except ValueError:
        raise ValueError(f"background must be like white or #ff8800, got {name!r}") from None


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow without its own limit of pixels, warnings and log lines, which are global settings."""
    logger = logging.getLogger("PIL")
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            logger.setLevel(level)


def _explain(error: Exception, data: bytes) -> str:
    """What is wrong with these bytes, from what a decoder said about them."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, UnidentifiedImageError):
        return _explain_unidentified(data)
    if re.search("truncated|not enough", text, re.IGNORECASE) or isinstance(error, EOFError):
        return f"the file is truncated; {AGAIN}"
    return f"the file is damaged ({text or type(error).__name__}); {AGAIN}"


def _explain_unidentified(data: bytes) -> str:
    if data.startswith(b"\x89GI\r"):
        return "a file of Gaussians, not a picture; instantgi decode draws it"
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            return f"the header of this {name} is damaged; {AGAIN}"
    return "not a picture, or in a format that this Pillow does not read; convert it to PNG"


@dataclass(frozen=True)
class _Samples:
    """Pixels as they are stored, in any layout and byte order."""

    color: np.ndarray  # [H, W] gray or [H, W, 3] RGB
    alpha: np.ndarray | None  # [H, W]
    white: int  # the stored value that means 1

    def oriented(self, orientation: int) -> "_Samples":
        alpha = None if self.alpha is None else _upright(self.alpha, orientation)
        return _Samples(_upright(self.color, orientation), alpha, self.white)

    def to_tensor(self) -> Tensor:
        height, width = self.color.shape[:2]
        planes = [self.color] if self.color.ndim == 2 else list(np.moveaxis(self.color, 2, 0))
        if self.alpha is not None and (self.alpha != self.white).any():
            planes = (planes * 3)[:3] + [self.alpha]
        image = np.empty((len(planes), height, width), np.float32)
        for channel, plane in zip(image, planes, strict=True):
            channel[:] = plane
        image /= self.white
        return torch.from_numpy(image)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the pixels as they want to be shown: EXIF 2.3, section 4.6.4, tag Orientation."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _decode(data: bytes, max_pixels: int) -> _Samples:
    if not data:
        raise ImageError(f"the file is empty; {AGAIN}")
    Image.init()
    readable = [name for name in READABLE if name in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=readable) as picture:
        _check_size(picture.width, picture.height, max_pixels)
        if picture.format == "PNG":
            _check_png(data)
        samples = _decode_16bit(picture, data)
        picture.load()
        # read after the pixels: PNG may store it behind them, and Pillow turns TIFF by itself
        orientation = _orientation(picture)
        samples = samples or _decode_by_pillow(picture)
    return samples.oriented(orientation)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the header says {width}x{height} pixels, which is no picture")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} pixels are more than the limit of {max_pixels}; "
            "reduce the picture, or raise max_pixels"
        )


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata raises anything, and is no reason to refuse the picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _decode_by_pillow(picture: Image.Image) -> _Samples:
    if picture.mode.startswith(("I", "F")):
        return _decode_deep_gray(picture)
    profile = picture.info.get("icc_profile")
    transparent = picture.has_transparency_data
    mode = "L" if picture.mode in ("1", "L", "LA", "La") else "RGB"
    if transparent:
        picture = picture.convert(mode + "A")
    alpha = np.asarray(picture.getchannel("A")) if transparent else None
    if picture.mode not in ("CMYK", "LAB"):
        picture = _convert(picture, mode)
    return _Samples(np.asarray(_to_srgb(picture, profile)), alpha, 255)


def _decode_deep_gray(picture: Image.Image) -> _Samples:
    """Gray with more than 8 bits: 12, 16 or 32 bits, or float."""
    gray = np.asarray(picture)
    white = 1 if picture.mode == "F" else 65535
    if isinstance(picture, TiffImageFile) and picture.mode.startswith("I;16"):
        white = 2 ** max(picture.tag_v2.get(BITSPERSAMPLE, (16,))) - 1
        if picture.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white; Pillow leaves it so
            gray = white - gray
    if not 0 <= gray.min() <= gray.max() <= white:  # also refuses NaN
        raise ImageError(
            f"its values, {gray.min():g} to {gray.max():g}, lie outside 0 to {white}; rescale them"
        )
    key = picture.info.get("transparency")
    return _Samples(gray, None if key is None else np.where(gray == key, 0, white), white)


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The colors of a picture in mode L, RGB, CMYK or LAB as sRGB, in mode L or RGB."""
    mode = "L" if picture.mode == "L" else "RGB"
    try:
        transform = _transform_to_srgb(picture.mode, profile)
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one of another kind of picture
        transform = None
    if transform is None or (picture.mode == "RGB" and _is_identity(transform)):
        return _convert(picture, mode)
    return _convert(transform.apply(picture), mode)


def _transform_to_srgb(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    if mode == "LAB":
        source = ImageCms.createProfile("LAB")
    elif profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    else:
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no color moves by more than 2 levels: profiles of sRGB differ by their rounding."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    moved = np.asarray(transform.apply(Image.fromarray(grid)))
    return int(np.abs(moved.astype(int) - grid).max()) <= 2


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    """Pillow's own `convert` would copy a picture that has the mode already."""
    return picture if picture.mode == mode else picture.convert(mode)


def _decode_16bit(picture: ImageFile.ImageFile, data: bytes) -> _Samples | None:
    """The pixels of a color picture with 16 bits, which Pillow would cut to 8; None for others."""
    if not _has_16_bits(picture, data):
        return None
    if picture.format == "PNG":
        return _decode_png_16bit(picture, data)
    if isinstance(picture, TiffImageFile):
        return _decode_tiff_16bit(picture, data)
    return _decode_ppm_16bit(picture, data)


def _has_16_bits(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a picture in color, or with opacity, has them."""
    if picture.format == "PNG":
        return data[24] == 16 and data[25] != 0  # bit depth, color type
    if isinstance(picture, TiffImageFile) and picture.mode in ("RGB", "RGBA"):
        return max(picture.tag_v2.get(BITSPERSAMPLE, (8,))) >= 16
    return picture.format == "PPM" and picture.mode == "RGB"


def _decode_png_16bit(picture: ImageFile.ImageFile, data: bytes) -> _Samples:
    # only what the pixels need: libpng would print warnings on metadata it dislikes
    kept = [chunk for kind, chunk in _png_chunks(data) if kind in (b"IHDR", b"IDAT", b"IEND")]
    color_type = data[25]  # 2: RGB, 4: gray and opacity, 6: RGBA
    bands = 3 if color_type == 2 else 4
    pixels = _decode_by_opencv(b"".join([data[:8], *kept]), picture.height, picture.width, bands)
    color = pixels[..., 0] if color_type == 4 else pixels[..., :3]
    key = picture.info.get("transparency")
    if key is not None:
        return _Samples(color, np.where((color == key).all(-1), 0, 65535), 65535)
    return _Samples(color, pixels[..., 3] if bands == 4 else None, 65535)


def _decode_tiff_16bit(picture: TiffImageFile, data: bytes) -> _Samples:
    pixels = _decode_by_opencv(data, picture.height, picture.width, len(picture.mode))
    if picture.mode == "RGB":
        return _Samples(pixels, None, 65535)
    color, alpha = pixels[..., :3], pixels[..., 3]
    if 1 in picture.tag_v2.get(EXTRASAMPLES, ()):  # 1: the colors are multiplied by alpha
        color = np.minimum(color / np.maximum(alpha, 1)[..., None] * 65535.0, 65535)
    return _Samples(color, alpha, 65535)


def _decode_ppm_16bit(picture: ImageFile.ImageFile, data: bytes) -> _Samples | None:
    codec, _, offset, arguments = picture.tile[0]
    if codec != "ppm" or not isinstance(arguments, tuple):  # one byte per value, or plain text
        return None
    maximum = int(arguments[1])
    shape = (picture.height, picture.width, 3)
    if maximum < 256:
        return None
    if len(data) < offset + 2 * math.prod(shape):
        raise ImageError(f"the file is truncated; {AGAIN}")
    pixels = np.frombuffer(data, ">u2", math.prod(shape), offset).reshape(shape)
    return _Samples(pixels, None, maximum)


def _decode_by_opencv(data: bytes, height: int, width: int, bands: int) -> np.ndarray:
    """[H, W, bands] uint16, RGB or RGBA."""
    import cv2  # slow to load, and needed for few pictures

    log = cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)
    if pixels is None or pixels.shape != (height, width, bands) or pixels.dtype != np.uint16:
        raise ImageError("its 16-bit pixels are damaged or of a rare kind; convert it to PNG")
    return pixels[..., [2, 1, 0, 3][:bands]]


def _check_png(data: bytes) -> None:
    """Pillow does not compare the checksums of pixel data."""
    for kind, chunk in _png_chunks(data):
        # an upper-case first letter marks the chunks that a reader cannot do without
        if kind[:1].isupper() and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ImageError(
                f"the file is damaged (wrong checksum in {kind.decode('latin-1')}); {AGAIN}"
            )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and bytes (length, kind, content, checksum) of each chunk, up to the end mark."""
    position, kind = 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ImageError(f"the file is truncated; {AGAIN}")
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            raise ImageError(f"the file is truncated; {AGAIN}")
        yield kind, memoryview(data)[position : position + 12 + length]
        position += 12 + length
