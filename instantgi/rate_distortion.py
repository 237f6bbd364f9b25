"""Rate and distortion of files of Gaussians next to those of other codecs, on the same pictures."""

import csv
import dataclasses
import functools
import importlib.util
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.bench import check_rows, conditions, digest, provenance, with_bar
from instantgi.codec import open_file
from instantgi.codec.gaussianimage import Coded, fit_coded
from instantgi.codec.target import Target, encode_image
from instantgi.files import held, replace_on_success
from instantgi.images import flatten_alpha, read_image, to_8bit
from instantgi.infer import score
from instantgi.plots import Lines, Point, draw_lines
from instantgi.render import rasterize
from instantgi.summaries import facts

OURS, ANCHOR, PUBLISHED = "instantgi", "jpeg", "gaussianimage"
ROWS, TABLE, PLOT, SHEET = "results.json", "results.md", "results.svg", "results.csv"
TEXTS = ("image", "picture", "codec", "date", "commit")  # in every row
NUMBERS = ("bytes", "bpp", "psnr", "ms_ssim", "encoding_time", "decoding_time")


@dataclasses.dataclass(frozen=True)
class Codec:
    """Another codec: pictures [C, H, W] in [0, 1] to bytes at a setting, and back."""

    description: str
    settings: tuple[float, ...]  # from small files to large ones
    encode: Callable[[Tensor, float], bytes]
    decode: Callable[[bytes], Tensor]
    needs: str = "PIL"  # the module


def codecs(published_iterations: int = 50_000) -> dict[str, Codec]:
    """What there is to compare with, by name; each at its own effort for small files.

    Args:
        published_iterations: of either stage of GaussianImage's codec.
    """
    steps = tuple(float(quality) for quality in (1, 3, 5, 8, 12, 18, 26, 36, 48, 62, 76, 88))
    return {
        "jpeg": Codec(
            "JPEG, Pillow, 4:2:0, optimised, progressive",
            steps,
            _by_pillow("JPEG", quality=_quality, optimize=True, progressive=True),
            _from_pillow,
        ),
        "jpeg2000": Codec(
            "JPEG 2000, Pillow, irreversible, one layer",
            tuple(2**octave for octave in np.arange(-4, 1.6, 0.5).tolist()),
            _by_pillow(
                "JPEG2000",
                quality_layers=lambda bpp, channels: [8 * channels / bpp],
                quality_mode="rates",
                irreversible=True,
                mct=lambda _, channels: int(channels == 3),
            ),
            _from_pillow,
        ),
        "webp": Codec(
            "WebP, Pillow, method 6",
            (0.0, *steps[1:]),
            _by_pillow("WEBP", quality=_quality, method=6),
            _from_pillow,
        ),
        "avif": Codec(
            "AVIF, Pillow, 4:4:4, speed 6",
            tuple(float(quality) for quality in (10, 15, 20, 26, 32, 40, 48, 56, 64, 72, 80)),
            _by_pillow("AVIF", quality=_quality, subsampling="4:4:4", speed=6),
            _from_pillow,
        ),
        "jpegxl": Codec(
            "JPEG XL, imagecodecs, effort 7, by distance",
            (15.0, 12.0, 9.0, 7.0, 5.0, 3.5, 2.5, 1.8, 1.3, 0.9),
            _by_jpegxl,
            _from_jpegxl,
            "imagecodecs",
        ),
        PUBLISHED: Codec(
            f"GaussianImage as published, {published_iterations} steps twice, fixed lengths",
            (800.0, 1000.0, 3000.0, 5000.0, 7000.0, 9000.0),
            lambda image, num: fit_coded(image, int(num), published_iterations).pack(
                *image.shape[1:]
            ),
            _from_coded,
        ),
    }


def _from_coded(data: bytes) -> Tensor:
    coded, height, width = Coded.unpack(data)
    return rasterize(coded.gaussians(height, width), height, width)


def _by_pillow(name: str, **options: Any) -> Callable[[Tensor, float], bytes]:
    """Options that are functions are given the setting and the number of channels."""

    def encode(image: Tensor, setting: float) -> bytes:
        from PIL import Image

        pixels = to_8bit(image).movedim(0, 2).numpy()
        picture = Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels)
        made = {
            key: value(setting, len(image)) if callable(value) else value
            for key, value in options.items()
        }
        buffer = io.BytesIO()
        picture.save(buffer, name, **made)
        return buffer.getvalue()

    return encode


def _quality(setting: float, _: int) -> int:
    return int(setting)


def _from_pillow(data: bytes) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return _as_image(np.array(picture))


def _by_jpegxl(image: Tensor, distance: float) -> bytes:
    import imagecodecs

    pixels = to_8bit(image).movedim(0, 2).contiguous().numpy()
    return bytes(imagecodecs.jpegxl_encode(pixels.squeeze(), distance=distance, effort=7))


def _from_jpegxl(data: bytes) -> Tensor:
    import imagecodecs

    return _as_image(np.array(imagecodecs.jpegxl_decode(data)))


def _as_image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(2, 0) / 255


# --- measuring ---------------------------------------------------------------------------------


def run_rate_distortion(
    pictures: Sequence[Path],
    folder: str | Path,
    *,
    names: Sequence[str],
    rates: Sequence[float],
    iterations: int | None = None,
    seconds: float | None = None,
    published_iterations: int = 50_000,
    quiet: bool = True,
) -> str:
    """The table as Markdown; it and everything it is made of go to `folder`.

    `results.json` has a row for each file and is written after each of them: a later call keeps
    rows of the same kind and adds the rest. `results.csv` has the same rows, `<codec>.json` the
    means for each setting as CompressAI writes them, `results.svg` the curves.

    Args:
        names: of codecs, "instantgi" being ours.
        rates: bits per pixel, at which ours is measured and all are compared.
        iterations, seconds: of ours, see `Target`.
        published_iterations: of either stage of GaussianImage's codec.

    Raises:
        ValueError: if a codec is not known or not installed, or `folder` holds something else.
        OSError: if it does, or another call writes there.
    """
    folder, others = Path(folder), codecs(published_iterations)
    for name in names:
        if name != OURS and name not in others:
            raise ValueError(f"codec must be one of {OURS}, {', '.join(others)}, got {name!r}")
        if name != OURS:
            _check_installed(name, others[name].needs)
    _check_installed("a plot", "matplotlib")
    _check_installed("BD-rate", "scipy")
    folder.mkdir(parents=True, exist_ok=True)
    effort: dict[str, dict[str, Any]] = dict.fromkeys(names, {})
    effort[OURS] = {"iterations": iterations, "seconds": seconds}
    effort[PUBLISHED] = {"iterations": published_iterations}
    settings = {name: tuple(rates) if name == OURS else others[name].settings for name in names}
    digests = {path: digest(path) for path in pictures}
    wanted = [
        (path, name, float(setting), effort[name])
        for path in pictures
        for name in names
        for setting in settings[name]
    ]
    with held(folder / ROWS):
        _check_ours(folder, names)
        made = {_key(row): row for row in _load_rows(folder / ROWS)}
        for path, name, setting, limits in with_bar(wanted, quiet, "files"):
            key = (digests[path], name, setting, json.dumps(limits))
            if key in made:
                continue
            target = Target(bpp=setting, **limits) if name == OURS else None
            row = {"image": path.name, "picture": digests[path], "codec": name, "setting": setting}
            try:
                row |= {"effort": limits} | _measure(path, others.get(name), setting, target)
            except ValueError as error:  # a rate that this picture cannot have
                warnings.warn(f"{path.name}, {name}: {error}", stacklevel=2)
                continue
            made[key] = row | provenance()
            _write(folder / ROWS, _as_json(list(made.values())))
        keys = [(digests[path], name, setting, json.dumps(e)) for path, name, setting, e in wanted]
        chosen = [made[key] for key in keys if key in made]
        if not chosen:
            raise ValueError(f"{folder}: no file could be made of these pictures at these rates")
        for name in names:
            described = (
                others[name].description
                if name in others
                else f"files of Gaussians, {effort[OURS]}"
            )
            means = json.dumps(compressai(chosen, name, described), indent=2)
            _write(folder / f"{name}.json", means + "\n")
        _write_sheet(folder / SHEET, chosen)
        _draw(folder / PLOT, chosen)
        text = markdown(chosen, rates)
        _write(folder / TABLE, text + "\n")
        return text


def _check_ours(folder: Path, names: Sequence[str]) -> None:
    """A folder with rows is ours; in another one nothing is replaced."""
    is_ours = (folder / ROWS).exists()
    for name in (TABLE, PLOT, SHEET, *(f"{codec}.json" for codec in names)):
        if (folder / name).exists() and not is_ours:
            raise FileExistsError(
                f"{folder}: holds {name}, which is not ours to replace; choose another folder"
            )


def _check_installed(name: str, module: str) -> None:
    from PIL import Image

    Image.init()
    is_there = importlib.util.find_spec(module) is not None
    if not is_there or (name.upper() in ("AVIF", "WEBP") and name.upper() not in Image.SAVE):
        raise ValueError(f"{name} needs {module}: pip install -U 'instantgi[bench]'")


def _key(row: dict[str, Any]) -> tuple[str, str, float, str]:
    return row["picture"], row["codec"], float(row["setting"]), json.dumps(row["effort"])


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Float[Tensor, "C H W"]:
    """Opacity is laid over white: not all codecs have it."""
    return flatten_alpha(read_image(path), "white")


def _measure(
    path: Path, codec: Codec | None, setting: float, target: Target | None
) -> dict[str, Any]:
    image = _read(path)
    began = time.perf_counter()
    data = codec.encode(image, setting) if codec else encode_image(image, target)
    encoded = time.perf_counter()
    drawn = codec.decode(data) if codec else open_file(data).render()
    decoded = time.perf_counter()
    # some have no gray and give the same three times
    scores = score(to_8bit(drawn[: len(image)]), to_8bit(image))
    row = {
        "height": image.shape[1],
        "width": image.shape[2],
        "bytes": len(data),
        "bpp": 8 * len(data) / image[0].numel(),
        "psnr": scores.psnr,
        "ms_ssim": scores.ms_ssim,
        "encoding_time": encoded - began,
        "decoding_time": decoded - encoded,
    }
    if codec and codec.decode is _from_coded:
        bits = Coded.unpack(data)[0].counted_bits()
        names = ("bpp_counted", "bpp_counted_entropy")
        row |= {name: count / image[0].numel() for name, count in zip(names, bits, strict=True)}
    return row


def _load_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        [_key(row) for row in rows]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not results of this; choose another folder") from None
    check_rows(path, rows, TEXTS, ("setting", *NUMBERS))
    return rows


def _as_json(rows: list[dict[str, Any]]) -> str:
    listed = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in rows)
    return f'{{\n"conditions": {json.dumps(conditions())},\n"rows": [\n{listed}\n]\n}}\n'


def _write(path: Path, text: str) -> None:
    with replace_on_success(path) as partial:
        partial.write_text(text, encoding="utf-8")


# --- summaries ---------------------------------------------------------------------------------


def compressai(rows: list[dict[str, Any]], codec: str, description: str) -> dict[str, Any]:
    """Means over pictures at each setting, in the schema of CompressAI's results."""
    settings = dict.fromkeys(row["setting"] for row in rows if row["codec"] == codec)
    groups = [
        [row for row in rows if (row["codec"], row["setting"]) == (codec, setting)]
        for setting in settings
    ]
    groups.sort(key=lambda group: mean(row["bpp"] for row in group))
    names = {"psnr-rgb": "psnr", "ms-ssim-rgb": "ms_ssim", "bpp": "bpp"}
    names |= {name: name for name in ("encoding_time", "decoding_time")}
    results = {name: [_mean(group, key) for group in groups] for name, key in names.items()}
    return {"name": codec, "description": description, "results": results}


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    """None counts for nothing: an error of zero, an MS-SSIM of a small picture."""
    known = [row[name] for row in rows if row[name] is not None]
    return mean(known) if known else None


def curves(rows: list[dict[str, Any]], codec: str) -> dict[str, list[tuple[float, float]]]:
    """(bpp, dB) of each picture, by rising bpp."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["codec"] == codec and row["psnr"] is not None:
            found.setdefault(row["image"], []).append((row["bpp"], row["psnr"]))
    return {image: sorted(points) for image, points in found.items()}


def quality_at(points: list[tuple[float, float]], rate: float) -> float:
    """dB, interpolated over the logarithm of the rate; nan outside of the curve, but for 5 %."""
    rates, levels = zip(*points, strict=True)
    if not rates[0] / 1.05 <= rate <= rates[-1] * 1.05:
        return math.nan
    return float(np.interp(math.log(rate), np.log(rates), levels))


def bd_rate(anchor: list[tuple[float, float]], points: list[tuple[float, float]]) -> float | None:
    """Bytes more than the anchor's at equal PSNR, as a share: −0.2 is a fifth less.

    Bjøntegaard's measure: the mean difference of ln(bpp) over the decibels that both curves reach,
    interpolated by monotone cubics (PCHIP). None if they share none.
    """
    from scipy.interpolate import PchipInterpolator

    low, high, sums = -math.inf, math.inf, []
    for curve in (anchor, points):
        rising = [curve[0]]
        for point in curve[1:]:
            if point[1] > rising[-1][1]:
                rising.append(point)
        if len(rising) < 2:
            return None
        low, high = max(low, rising[0][1]), min(high, rising[-1][1])
        sums.append(PchipInterpolator([db for _, db in rising], [math.log(r) for r, _ in rising]))
    if high <= low:
        return None
    areas = [float(curve.integrate(low, high)) for curve in sums]
    return math.expm1((areas[1] - areas[0]) / (high - low))


def markdown(rows: list[dict[str, Any]], rates: Sequence[float]) -> str:
    """The table, below it the conditions."""
    count = len({row["image"] for row in rows})
    made = "; ".join(facts(rows, conditions()))
    return "\n".join(table(rows, rates)) + f"\n\n{count} pictures; {made}"


def table(rows: list[dict[str, Any]], rates: Sequence[float]) -> list[str]:
    """PSNR at the rates, BD-rate against JPEG and seconds, a line for each codec.

    A dash is where a picture's curve does not reach. Rates of GaussianImage are also those that
    its authors count, without headers, with fixed lengths and with entropy coding.
    """
    for count in ("bpp_counted", "bpp_counted_entropy"):
        again = [row for row in rows if count in row and row["codec"] == PUBLISHED]
        label = f"{PUBLISHED}, {count.replace('_', ' ')}"
        rows = [*rows, *(row | {"codec": label, "bpp": row[count]} for row in again)]
    names = list(dict.fromkeys(row["codec"] for row in rows))
    anchors = curves(rows, ANCHOR)
    head = ["codec", *(f"dB at {rate:g} bpp" for rate in rates), "BD-rate against JPEG"]
    head += ["encode s", "decode s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name in names:
        each = curves(rows, name)
        cells = [name]
        for rate in rates:
            levels = [quality_at(points, rate) for points in each.values()]
            level = mean(levels) if levels else math.nan
            cells.append("-" if math.isnan(level) else f"{level:.2f}")
        shares = [bd_rate(anchors[image], each[image]) for image in each if image in anchors]
        known = [share for share in shares if share is not None]
        cells.append(f"{100 * mean(known):+.1f} %" if known else "-")
        chosen = [row for row in rows if row["codec"] == name]
        cells += [f"{_mean(chosen, key):.3f}" for key in ("encoding_time", "decoding_time")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _write_sheet(path: Path, rows: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    _write(path, buffer.getvalue())


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    lines: Lines = {}
    for name in dict.fromkeys(row["codec"] for row in rows):
        results = compressai(rows, name, "")["results"]
        points = zip(results["bpp"], results["psnr-rgb"], strict=True)
        lines[name] = [Point(rate, level) for rate, level in points if level is not None]
    lines = {name: points for name, points in lines.items() if points}
    draw_lines(path, lines, "bits per pixel of the whole file", strong=OURS)
