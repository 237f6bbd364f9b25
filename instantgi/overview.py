"""Draws one sheet about one picture: what it was, what became of it, where it errs and why."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from instantgi.gaussians import Gaussians

PAPER, MAT, RULE = (252, 252, 250), (240, 240, 237), (205, 206, 204)
INK, SOFT, ACCENT = (28, 30, 34), (112, 116, 122), (200, 62, 28)
HEAT = ((8, 8, 20), (72, 18, 98), (170, 40, 92), (240, 110, 40), (252, 210, 80), (255, 255, 235))
CHANNELS = {"gray": "gray", "rgb": "RGB", "rgba": "RGB with opacity"}
MARGIN, GAP, TITLE_HEIGHT = 40, 32, 34
PANEL_AREA = 200_000  # pixels of the sheet
THINNEST = 14  # pixels of the sheet: a picture of 1x4096 is stretched to be seen
ERROR_GAINS = (8, 16, 32)  # the smallest that brings the mean error to 24 levels, or the last
ELLIPSES_WANTED = 500  # in the part that is magnified
SUPERSAMPLING = 3  # of lines; Pillow draws them without antialiasing

Box = tuple[int, int, int, int]  # left, top, right, bottom


def draw_overview(
    original: UInt8[Tensor, "C H W"],
    initial: UInt8[Tensor, "C H W"],
    final: UInt8[Tensor, "C H W"],
    gaussians: Gaussians,
    report: dict[str, Any],
) -> Image.Image:
    """Six panels over one another, two rows of three, under a headline.

    Args:
        original, initial, final: the picture, where the fit started and where it ended.
        gaussians: of `final`.
        report: of `instantgi.infer.infer_image`, with all but `seconds_total`.
    """
    height, width = original.shape[1:]
    box_width, box_height = _panel_size(height, width)
    columns = [MARGIN + i * (box_width + GAP) for i in range(3)]
    sheet_width = columns[-1] + box_width + MARGIN
    lines = _wrap(_caption(report), sheet_width - 2 * MARGIN, 16)
    top = MARGIN + 44 + 24 * len(lines) + 18
    rows = [top, top + TITLE_HEIGHT + box_height + GAP]
    sheet = Image.new("RGB", (sheet_width, rows[1] + TITLE_HEIGHT + box_height + MARGIN), PAPER)
    _write_headline(sheet, str(report["image"]), lines)

    boxes = [
        (left, row + TITLE_HEIGHT, left + box_width, row + TITLE_HEIGHT + box_height)
        for row in rows
        for left in columns
    ]
    crop = _busiest_crop(gaussians, height, width, box_height / box_width)
    *_, start, end = (stage for stage in report["stages"] if stage["name"] != "heuristic")
    place = _paste_picture(sheet, boxes[0], original)
    _mark_crop(sheet, place, crop, height, width)
    _paste_picture(sheet, boxes[1], initial)
    _paste_picture(sheet, boxes[2], final)
    gain = _paste_error(sheet, boxes[3], original, final)
    factor = _paste_ellipses(sheet, boxes[4], final, gaussians, crop)
    _paste_curve(sheet, boxes[5], report)

    stretched = "stretched" if _is_stretched(height, width, box_height, box_width) else ""
    titles = [
        ("Original", stretched),
        ("Initial", _decibels(start)),
        ("Final", _decibels(end)),
        (f"Error, {gain}x", ""),
        ("Gaussians at 1 sigma", f"magnified {factor:.1f}x"),
        ("PSNR over time", f"{report['iterations']:,} steps"),
    ]
    for box, (title, note) in zip(boxes, titles, strict=True):
        _write_title(sheet, box, title, note)
    _draw_heat_scale(sheet, boxes[3], gain)
    return sheet


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of a panel: of the picture's shape, if that is not extreme."""
    aspect = min(max(width / height, 0.62), 2.2)
    return round(math.sqrt(PANEL_AREA * aspect)), round(math.sqrt(PANEL_AREA / aspect))


# --- text --------------------------------------------------------------------------------------


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """In the letters that Pillow's own font has: ASCII, without accents."""
    letters = unicodedata.normalize("NFKD", text)
    kept = (letter for letter in letters if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in kept)


def _caption(report: dict[str, Any]) -> list[str]:
    *_, start, end = (stage for stage in report["stages"] if stage["name"] != "heuristic")
    seconds = sum(stage["seconds"] for stage in report["stages"])
    parts = [
        f"{report['width']} x {report['height']}, {CHANNELS[report['channels']]}",
        f"{report['num_gaussians']:,} Gaussians",
        f"{report['method']}, {report['iterations']:,} steps, {seconds:.2f} s",
        f"{_decibels(start)} to {_decibels(end)}",
    ]
    if end["ms_ssim"] is not None:
        parts.append(f"MS-SSIM {end['ms_ssim']:.4f}")
    return [*parts, f"{report['bytes']:,} bytes of gaussians.gi"]


def _decibels(stage: dict[str, Any]) -> str:
    return "lossless" if stage["lossless"] else f"{stage['psnr']:.2f} dB"


def _wrap(parts: Sequence[str], width: int, size: int) -> list[str]:
    """The parts in as few lines as they fit into."""
    lines, font = [parts[0]], _font(size)
    for part in parts[1:]:
        longer = f"{lines[-1]}   |   {part}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _shorten(text: str, width: float, size: int) -> str:
    """The text, with dots in the middle if it is too long."""
    font, kept = _font(size), text
    while font.getlength(kept) > width and len(text) > 4:
        half = (len(text) - 1) // 2
        text = text[:half] + text[half + 1 :]
        kept = text[:half] + "..." + text[half:]
    return kept


def _write_headline(sheet: Image.Image, path: str, lines: list[str]) -> None:
    draw = ImageDraw.Draw(sheet)
    name = _plain(path.replace("\\", "/").rstrip("/").rpartition("/")[2])
    name = _shorten(name, sheet.width - 2 * MARGIN, 30)
    draw.text((MARGIN, MARGIN - 8), name, INK, _font(30))
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 36 + 24 * i), line, SOFT, _font(16))


def _write_title(sheet: Image.Image, box: Box, title: str, note: str) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((box[0], box[1] - 10), title, INK, _font(18), anchor="ls")
    draw.text((box[2], box[1] - 10), note, SOFT, _font(16), anchor="rs")


# --- pictures ----------------------------------------------------------------------------------


def _fitted_size(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """Width and height in the box: by a whole factor where pixels will show as squares."""
    scale = min(box_width / width, box_height / height)
    scale = math.floor(scale) if scale >= 3 else scale
    fitted = max(THINNEST, round(scale * width)), max(THINNEST, round(scale * height))
    return min(fitted[0], box_width), min(fitted[1], box_height)


def _is_stretched(height: int, width: int, box_height: int, box_width: int) -> bool:
    return min(box_width / width, box_height / height) * min(height, width) < THINNEST - 1


def _centered(box: Box, width: int, height: int) -> Box:
    left = box[0] + (box[2] - box[0] - width) // 2
    top = box[1] + (box[3] - box[1] - height) // 2
    return left, top, left + width, top + height


def _paste(sheet: Image.Image, box: Box, picture: Image.Image) -> Box:
    """Where the picture is now: in the middle of the box, framed, the rest of the box as a mat."""
    draw = ImageDraw.Draw(sheet)
    place = _centered(box, *picture.size)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), MAT)
    sheet.paste(picture, place[:2])
    draw.rectangle((place[0] - 1, place[1] - 1, place[2], place[3]), outline=RULE)
    return place


def _paste_picture(sheet: Image.Image, box: Box, picture: UInt8[Tensor, "C H W"]) -> Box:
    height, width = picture.shape[1:]
    size = _fitted_size(height, width, box[3] - box[1], box[2] - box[0])
    return _paste(sheet, box, _resized(picture, size))


def _resized(picture: UInt8[Tensor, "C H W"], size: tuple[int, int]) -> Image.Image:
    """As RGB of (width, height), averaged where it shrinks, opacity over a checkerboard."""
    array = picture.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if len(picture) == 1 else array)
    magnified = size[0] >= 3 * image.width or size[1] >= 3 * image.height
    smooth = Image.Resampling.LANCZOS if not magnified else Image.Resampling.NEAREST
    image = image.resize(size, smooth, reducing_gap=None if magnified else 2.0)
    if image.mode != "RGBA":
        return image.convert("RGB")
    board = _checkerboard(*size)
    board.paste(image, mask=image.getchannel("A"))
    return board


def _checkerboard(width: int, height: int, side: int = 8) -> Image.Image:
    y, x = np.mgrid[:height, :width] // side
    board = np.where((x + y) % 2, np.uint8(255), np.uint8(214))
    return Image.fromarray(board).convert("RGB")


def _mark_crop(sheet: Image.Image, place: Box, crop: Box, height: int, width: int) -> None:
    if (crop[2] - crop[0], crop[3] - crop[1]) == (width, height):
        return
    scale_x, scale_y = (place[2] - place[0]) / width, (place[3] - place[1]) / height
    left, right = (place[0] + round(x * scale_x) for x in (crop[0], crop[2]))
    top, bottom = (place[1] + round(y * scale_y) for y in (crop[1], crop[3]))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=(255, 255, 255), width=4)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=ACCENT, width=2)


# --- error -------------------------------------------------------------------------------------


def _paste_error(
    sheet: Image.Image, box: Box, original: UInt8[Tensor, "C H W"], final: UInt8[Tensor, "C H W"]
) -> int:
    """Draw the mean absolute difference of the channels as heat; how many times it is magnified."""
    error = np.zeros(original.shape[1:], np.float32)
    for before, after in zip(original.numpy(), final.numpy(), strict=True):
        error += np.maximum(before, after) - np.minimum(before, after)
    error /= len(original)
    height, width = error.shape
    size = _fitted_size(height, width, box[3] - box[1], box[2] - box[0])
    magnified = size[0] >= 3 * width or size[1] >= 3 * height
    average = Image.Resampling.NEAREST if magnified else Image.Resampling.BOX
    shrunk = np.asarray(Image.fromarray(error).resize(size, average))
    enough = (gain for gain in ERROR_GAINS if gain * shrunk.mean() >= 24)
    gain = next(enough, ERROR_GAINS[-1])
    levels = (shrunk * gain).clip(0, 255).round().astype(np.uint8)
    _paste(sheet, box, Image.fromarray(_heat_table()[levels]))
    return gain


def _heat_table() -> np.ndarray:
    """[256, 3] from dark to light."""
    stops = np.linspace(0, 255, len(HEAT))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _draw_heat_scale(sheet: Image.Image, box: Box, gain: int) -> None:
    draw, width, height = ImageDraw.Draw(sheet), 96, 10
    last = f"{256 // gain} of 255"
    right = box[2] - math.ceil(_font(14).getlength(last)) - 8
    colors = _heat_table()[np.linspace(0, 255, width).astype(int)]
    bar = Image.fromarray(np.broadcast_to(colors, (height, width, 3)).copy())
    sheet.paste(bar, (right - width, box[1] - 21))
    draw.text((box[2], box[1] - 11), last, SOFT, _font(14), anchor="rs")
    draw.text((right - width - 7, box[1] - 11), "0", SOFT, _font(14), anchor="rs")


# --- Gaussians ---------------------------------------------------------------------------------


def _busiest_crop(gaussians: Gaussians, height: int, width: int, aspect: float) -> Box:
    """The part of the picture, of the panel's shape, in which most Gaussians lie.

    It is as large as would hold `ELLIPSES_WANTED` if they were spread evenly.
    """
    area = height * width * min(1.0, ELLIPSES_WANTED / max(1, len(gaussians)))
    crop_height = min(height, max(1, round(math.sqrt(area * aspect))))
    crop_width = min(width, max(1, round(math.sqrt(area / aspect))))
    if (crop_height, crop_width) == (height, width):
        return 0, 0, width, height
    # counts in cells of a quarter of the crop, then sums of windows of cells
    cell_height, cell_width = math.ceil(crop_height / 4), math.ceil(crop_width / 4)
    rows, columns = math.ceil(height / cell_height), math.ceil(width / cell_width)
    cells = gaussians.means.numpy() // (cell_width, cell_height)
    x, y = cells.clip(0, (columns - 1, rows - 1)).astype(int).T
    counts = np.bincount(y * columns + x, minlength=rows * columns).reshape(rows, columns)
    window = (min(4, rows), min(4, columns))
    sums = np.lib.stride_tricks.sliding_window_view(counts, window).sum((2, 3))
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    left = min(column * cell_width, width - crop_width)
    top = min(row * cell_height, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _paste_ellipses(
    sheet: Image.Image, box: Box, final: UInt8[Tensor, "C H W"], gaussians: Gaussians, crop: Box
) -> float:
    """Draw the crop, faded, and the ellipses over it; how many times it is magnified."""
    left, top, right, bottom = crop
    factor = min((box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top))
    size = (
        max(THINNEST, round(factor * (right - left))),
        max(THINNEST, round(factor * (bottom - top))),
    )
    picture = _resized(final[:, top:bottom, left:right], size)
    fine = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]
    canvas = Image.blend(picture, Image.new("RGB", size, PAPER), 0.75).resize(fine)
    scale = np.array([fine[0] / (right - left), fine[1] / (bottom - top)])
    draw = ImageDraw.Draw(canvas)
    colors = np.asarray(picture)
    for outline in _outlines(gaussians, crop):
        points = ((outline - (left, top)) * scale).clip(-1e5, 1e5)
        x, y = (points.mean(0) / SUPERSAMPLING).clip(0, (size[0] - 1, size[1] - 1)).astype(int)
        color = colors[y, x]
        corners = [(x, y) for x, y in points.tolist()]
        draw.polygon(corners, tuple(color.tolist()))
        draw.line(corners + corners[:1], tuple((color // 2).tolist()), width=2)
    _paste(sheet, box, canvas.resize(size, Image.Resampling.BOX))
    return factor


def _outlines(gaussians: Gaussians, crop: Box) -> np.ndarray:
    """The ellipses at 1 sigma that reach the crop, [N, corners, 2], the largest first."""
    means, cholesky = gaussians.means.numpy(), gaussians.cholesky.numpy()
    reach = np.stack([np.abs(cholesky[:, 0]), np.hypot(cholesky[:, 1], cholesky[:, 2])], -1)
    seen = ((means + reach > crop[:2]) & (means - reach < crop[2:])).all(-1)
    means, cholesky = means[seen].astype(np.float64), cholesky[seen].astype(np.float64)
    order = np.abs(cholesky[:, 0] * cholesky[:, 2]).argsort(kind="stable")[::-1]
    corners = 28 if len(means) > 100 else 120  # few ellipses are drawn large
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    l11, l21, l22 = cholesky[order].T[:, :, None]  # [N, 1] each
    x, y = l11 * np.cos(turn), l21 * np.cos(turn) + l22 * np.sin(turn)
    return np.stack([x, y], -1) + means[order, None]


# --- curve -------------------------------------------------------------------------------------


def _paste_curve(sheet: Image.Image, box: Box, report: dict[str, Any]) -> None:
    points = _curve_points(report)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), (255, 255, 255), RULE)
    if not points:
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(middle, "without error from the start", SOFT, _font(16), anchor="mm")
        return
    x_ticks = _ticks(0, max(x for x, _ in points) or 1, 5)
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points), 6)
    plot = (box[0] + 52, box[1] + 34, box[2] - 24, box[3] - 50)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        along = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return plot[0] + across * (plot[2] - plot[0]), plot[3] - along * (plot[3] - plot[1])

    for y in y_ticks:
        level = place(x_ticks[0], y)[1]
        draw.line((plot[0], level, plot[2], level), (232, 232, 230))
        draw.text((plot[0] - 9, level), f"{y:g}", SOFT, _font(14), anchor="rm")
    for x in x_ticks:
        foot = place(x, y_ticks[0])[0]
        draw.line((foot, plot[3], foot, plot[3] + 5), SOFT)
        draw.text((foot, plot[3] + 10), f"{x:g}", SOFT, _font(14), anchor="mt")
    draw.line((plot[0], plot[3], plot[2], plot[3]), SOFT)
    draw.text((plot[0] - 9, box[1] + 8), "dB", SOFT, _font(14), anchor="rt")
    draw.text(((plot[0] + plot[2]) / 2, box[3] - 8), "seconds", SOFT, _font(14), anchor="mb")
    _draw_line(sheet, box, [place(*point) for point in points])


def _curve_points(report: dict[str, Any]) -> list[tuple[float, float]]:
    """(seconds, dB): where the fit started, its steps, its end."""
    *starts, fit = report["stages"]
    offset = sum(stage["seconds"] for stage in starts)
    points = [(offset, starts[-1]["psnr"])]
    points += [(offset + seconds, psnr) for _, seconds, psnr in report["curve"]]
    points += [(offset + fit["seconds"], fit["psnr"])]
    return [(x, y) for x, y in points if y is not None]


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """About so many round numbers that enclose low and high."""
    span = max(high - low, 1e-3 * max(1.0, abs(high)))
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def _draw_line(sheet: Image.Image, box: Box, points: Sequence[tuple[float, float]]) -> None:
    """The curve and a dot at both ends, antialiased."""
    fine = 4
    mask = Image.new("L", (fine * (box[2] - box[0]), fine * (box[3] - box[1])))
    draw = ImageDraw.Draw(mask)
    scaled = [(fine * (x - box[0]), fine * (y - box[1])) for x, y in points]
    if len(scaled) > 1:
        draw.line(scaled, 255, width=round(2.4 * fine), joint="curve")
    for x, y in (scaled[0], scaled[-1]):
        draw.ellipse((x - 4.5 * fine, y - 4.5 * fine, x + 4.5 * fine, y + 4.5 * fine), 255)
    mask = mask.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BOX)
    sheet.paste(ACCENT, box[:2], mask)
