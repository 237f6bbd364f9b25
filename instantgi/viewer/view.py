"""A file of Gaussians → one page that shows it, without a network and without a server."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from instantgi.codec.bitstream import FormatError, unpack
from instantgi.codec.index import Index
from instantgi.files import read_bytes

FOLDER = Path(__file__).parent
DECODER = "decode.js"  # what runs in a worker, with the modules it imports
PAGE = "page.js"  # the module that imports all others
IMPORT = re.compile(r'^import (\{[^}]*\}|\* as \w+) from "\./(\w+)\.js";\n', re.M)
EXPORT = re.compile(r"^export (?=(?:class|function|const) (\w+))", re.M)


def page_of(path: str | Path, original: str | Path | None = None, *, whole: bool = True) -> str:
    """The page of a `.gi` file, as HTML that needs nothing else.

    Args:
        original: a picture of the same size to compare with; the page holds its pixels as sRGB of
            8 bits, without what else its file says.
        whole: False also takes the beginning of a file, which is shown coarser.

    Raises:
        FormatError: if the file is none of ours, or damaged.
        ValueError: if the original has another size.
        ImageError, OSError: if either cannot be read.
    """
    file, data = Index(path, whole=whole), read_bytes(path, "file")
    try:
        unpack(data, whole=whole)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    if not file.is_whole and not any(part.present() for part in file.parts):
        why = "is only the beginning of a file, and ends before any Gaussian can be drawn"
        raise FormatError(f"{path}: {why}")
    given = {"name": Path(path).name, "file": _base64(data[: file.num_bytes])}
    if original is not None:
        picture = _png_of(original, file.height, file.width)
        given |= {"original": _base64(picture), "originalName": Path(original).name}
    page = (FOLDER / "page.html").read_text("utf-8")
    parts = {
        "/*STYLE*/": (FOLDER / "page.css").read_text("utf-8"),
        "/*GIVEN*/": json.dumps(given).replace("<", "\\u003c"),
    } | joined_scripts()
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], page)


def joined_scripts() -> dict[str, str]:
    """All modules in two scripts: what decodes, which works alone as well, and then the rest.

    A module is a function that is called once and returns what it exports.
    """
    decoder = list(_in_order(DECODER))
    rest = [name for name in _in_order(PAGE) if name not in decoder]
    scripts = {"/*DECODER*/": decoder, "/*PAGE*/": rest}
    return {
        place: "\n".join(['"use strict";', *map(_as_function, names)])
        for place, names in scripts.items()
    }


def _in_order(name: str, before: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of modules, each after those that it imports."""
    seen = set(before)
    for _, stem in IMPORT.findall((FOLDER / name).read_text("utf-8")):
        for other in _in_order(f"{stem}.js", tuple(seen)):
            seen.add(other)
            yield other
    if name not in seen:
        yield name


def _as_function(name: str) -> str:
    source = (FOLDER / name).read_text("utf-8")
    exported = ", ".join(EXPORT.findall(source))
    source = IMPORT.sub(lambda found: _as_constant(*found.groups()), source)
    source = EXPORT.sub("", source)
    return f"const ${Path(name).stem} = (() => {{\n{source}return {{ {exported} }};\n}})();"


def _as_constant(names: str, stem: str) -> str:
    return f"const {names.removeprefix('* as ')} = ${stem};\n"


def _png_of(original: str | Path, height: int, width: int) -> bytes:
    """The pixels as any browser shows them: upright and sRGB, 8 bits."""
    from PIL import Image

    from instantgi.images import read_image, to_8bit

    image = read_image(original)
    if tuple(image.shape[1:]) != (height, width):
        raise ValueError(
            f"{original}: is {image.shape[2]}x{image.shape[1]}, the Gaussians are of a picture of "
            f"{width}x{height}"
        )
    pixels = to_8bit(image).permute(1, 2, 0).numpy()
    written = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(written, "PNG")
    return written.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
