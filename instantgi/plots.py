"""Curves of results: PSNR over bits, seconds or Gaussians, each with its name at its end."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instantgi.files import check_ours, replace_on_success
from instantgi.measure import Budget, is_mark
from instantgi.summaries import level_of

MARK = "instantgi bench"  # in every plot, which a later one may replace
KINDS = ("rate", "gaussians", "seconds")
NOTHING = "nothing to plot: give several values of a budget, or --curve with 20 steps or more"
LINE = 11.0  # points from one name to the next
# after Okabe and Ito, "Color universal design", 2008: told apart by all; black is for the strong
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31")


class Point(NamedTuple):
    x: float
    y: float
    half_width: float | None = None  # of the interval of y


Lines = dict[str, list[Point]]  # by name


def draw_lines(
    path: str | Path, lines: Lines, xlabel: str, ylabel: str = "PSNR, dB", strong: str = ""
) -> None:
    """An SVG of the lines over a logarithmic axis, intervals as bands.

    Args:
        strong: the name of the line that is black and thick.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    colors = iter(COLORS * len(lines))
    for name, points in lines.items():
        x, y, half_widths = zip(*sorted(points), strict=True)
        color = "black" if name == strong else next(colors)
        axes.plot(x, y, color=color, marker="o", ms=3, lw=2.2 if name == strong else 1.3)
        if None not in half_widths:
            low = [level - half for level, half in zip(y, half_widths, strict=True)]
            high = [level + half for level, half in zip(y, half_widths, strict=True)]
            axes.fill_between(x, low, high, color=color, alpha=0.1, lw=0)
    _plain_ticks(axes)
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _name_ends(axes, list(lines))
    # neither the date nor random names: the same numbers are the same file
    with rc_context({"svg.hashsalt": "instantgi"}), replace_on_success(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": MARK})


def _plain_ticks(axes: Any) -> None:
    """1, 2, 5, 10, … as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name_ends(axes: Any, names: Sequence[str]) -> None:
    """Names right of the last points, moved up where one would lie on another."""
    axes.figure.draw_without_rendering()  # now the places of points are known
    scale = 72 / axes.figure.dpi  # points of type in a pixel
    ends = []
    for name, line in zip(names, axes.lines, strict=True):
        x, y = axes.transData.transform(line.get_xydata()[-1]) * scale
        ends.append((y, x, name, line))
    placed: list[tuple[float, float, float]] = []  # left, right, height of each name so far
    for y, x, name, line in sorted(ends, key=lambda end: end[:3]):
        left, right, height = x, x + 6.5 * len(name), y
        for other_left, other_right, other_height in placed:
            if left < other_right and other_left < right and height < other_height + LINE:
                height = other_height + LINE
        placed.append((left, right, height))
        axes.annotate(
            name,
            line.get_xydata()[-1],
            xytext=(6, height - y),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=9,
            va="center",
            annotation_clip=False,
            bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0},
        )


# --- of a bench --------------------------------------------------------------------------------


def check_plots(budgets: Sequence[Budget], curve: bool, output: str | Path) -> None:
    """What can be said before all fits of whether `plot_means` will draw.

    Raises:
        RuntimeError: if matplotlib is not installed.
        ValueError: if there will be nothing to plot.
        FileExistsError: if a plot would replace a file that is not ours.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError('plots need matplotlib: pip install "instantgi[bench]"')
    steps = budgets[0].iterations
    points = 2 if steps is None else sum(map(is_mark, range(min(steps, 20) + 1)))
    if len(set(budgets)) < 2 and not (curve and points > 1):
        raise ValueError(NOTHING)
    for kind in KINDS:
        check_ours(_plot_of(output, kind), MARK)


def _plot_of(output: str | Path, kind: str) -> Path:
    return Path(output).with_name(f"{Path(output).stem}-{kind}.svg")


def plot_means(means: list[dict[str, Any]], output: str | Path) -> list[Path]:
    """The plots that these means have points for, beside the JSON file of results.

    `<name>-rate.svg` is PSNR of the files over bits per pixel, `<name>-gaussians.svg` over the
    number of Gaussians, `<name>-seconds.svg` over the time of fits, their start included: each if
    that is what differs between the rows; where nothing does, the last is of their curves.
    Methods whose files are of different profiles are named with these.

    Raises:
        ValueError: if there is none.
    """
    varied = _varied(means)
    sizes = {"num_gaussians", "num_bytes", "bpp"} & varied
    over_time = "seconds from the picture in memory on"
    kinds: dict[str, tuple[str, Lines]] = {}
    if sizes:
        coded = [row for row in means if _of_rate(row)]
        if len({row.get("profile") for row in coded}) > 1:
            coded = [row | {"method": _with_profile(row)} for row in coded]
        kinds["rate"] = "bits per pixel of the whole file", _lines(coded, _of_rate)
    elif varied:
        kinds["seconds"] = over_time, _lines(means, _of_seconds)
    else:
        kinds["seconds"] = over_time, _lines(means, _of_curve)
    if "num_gaussians" in sizes:
        kinds["gaussians"] = "Gaussians", _lines(means, _of_count)
    written, first = [], means[0]
    for kind, (xlabel, lines) in kinds.items():
        if lines:
            written.append(_plot_of(output, kind))
            strong = next((name for name in lines if name == _with_profile(first)), first["method"])
            draw_lines(written[-1], lines, xlabel, strong=strong)
    if not written:
        raise ValueError(NOTHING)
    return written


def _with_profile(row: dict[str, Any]) -> str:
    return f"{row['method']}, {row.get('profile') or 'several profiles'}"


def _varied(means: list[dict[str, Any]]) -> set[str]:
    """Names of budgets that have several values."""
    names = {name for row in means for name in row["budget"]}
    return {name for name in names if len({row["budget"].get(name) for row in means}) > 1}


def _lines(means: list[dict[str, Any]], points_of: Callable[[dict], list[Point]]) -> Lines:
    lines: Lines = {}
    for row in means:
        points = [point for point in points_of(row) if point.x > 0]
        if points:
            lines.setdefault(row["method"], []).extend(points)
    return {
        name: points for name, points in lines.items() if len({point.x for point in points}) > 1
    }


def _of_rate(row: dict[str, Any]) -> list[Point]:
    if row.get("bpp") is None or row["psnr_file"] is None:
        return []
    is_level = level_of(row["budget"]) == "psnr_file"
    return [Point(row["bpp"], row["psnr_file"], row["interval"] if is_level else None)]


def _of_curve(row: dict[str, Any]) -> list[Point]:
    found = row.get("curve", [])
    return [Point(each["seconds"], each["psnr"], each["interval"]) for each in found]


def _of_seconds(row: dict[str, Any]) -> list[Point]:
    if level_of(row["budget"]) != "psnr" or row["psnr"] is None:
        return []
    spent = row["seconds_start"] + row["seconds_colors"] + row["seconds_fit"]
    return [Point(spent, row["psnr"], row["interval"])]


def _of_count(row: dict[str, Any]) -> list[Point]:
    if row["psnr"] is None or level_of(row["budget"]) != "psnr":
        return []
    return [Point(row["num_gaussians"], row["psnr"], row["interval"])]
