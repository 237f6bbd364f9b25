"""What rows of a bench say together: means with intervals, differences, and the table of them."""

import json
import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from instantgi.measure import FILE, METRICS, ROUNDED, SECONDS

AVERAGED = ("iterations", "num_gaussians", "psnr_start", "psnr", "ms_ssim")
CONFIDENCE = 0.95
Row = dict[str, Any]


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of the mean, by Student's t; None of fewer than two values.

    t(0.975, n − 1) s / √n: the values are taken for independent and about normal.
    """
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * stdev(values) / math.sqrt(len(values))


def summarise(rows: list[Row], metrics: Sequence[str] = ()) -> list[Row]:
    """Means over pictures for each method within each budget, in the order of the rows.

    None counts for nothing: a PSNR without error, an MS-SSIM of a small picture; nor does a row
    that lacks a column. Next to the PSNR is its interval, and how far it is ahead of the first
    method's on the same pictures within the same budget, with the interval of these differences:
    pictures differ much more than methods do, and the differences leave that out. At equal bytes
    all of this is of the decoded files.
    """
    means, groups = [], _grouped(rows)
    for (method, budget), group in groups.items():
        level = level_of(group[0]["budget"])
        summary = {"method": method, "budget": group[0]["budget"], "images": len(group)}
        for name in (*AVERAGED, *metrics, *SECONDS, *FILE):
            known = _known(group, name)
            summary[name] = mean(known) if known else None
        profiles = {row.get("profile") for row in group}
        summary["profile"] = profiles.pop() if len(profiles) == 1 else None
        summary["interval"] = half_width(_known(group, level))
        summary |= _ahead(group, groups.get((rows[0]["method"], budget), []), level)
        if all("curve" in row for row in group):
            summary["curve"] = mean_curve(group)
        means.append(summary)
    return means


def level_of(budget: dict[str, Any]) -> str:
    """The column that methods are compared by."""
    return "psnr_file" if {"num_bytes", "bpp"} & budget.keys() else "psnr"


def _grouped(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """By method and budget."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        budget = json.dumps(row["budget"], sort_keys=True)
        groups.setdefault((row["method"], budget), []).append(row)
    return groups


def _known(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _ahead(rows: list[Row], first: list[Row], level: str) -> dict[str, float | None]:
    """Mean difference to the first method on the same pictures, dB, and its interval."""
    other = {row["image"]: row.get(level) for row in first}
    pairs = [(row.get(level), other.get(row["image"])) for row in rows]
    differences = [one - two for one, two in pairs if one is not None and two is not None]
    if rows is first or not differences:
        return {"ahead": None, "ahead_interval": None}
    return {"ahead": mean(differences), "ahead_interval": half_width(differences)}


def mean_curve(rows: list[Row]) -> list[dict[str, float | None]]:
    """PSNR over pictures at each of the steps that all their curves have.

    Seconds are from the picture in memory on, the start included.
    """
    steps = [{point["iterations"] for point in row["curve"]} for row in rows]
    points = []
    for step in sorted(set.intersection(*steps)):
        here = [_at(row, step) for row in rows]
        levels = [level for _, level in here if level is not None]
        if levels:
            seconds = mean(at for at, _ in here)
            point = {"iterations": step, "seconds": seconds, "psnr": mean(levels)}
            points.append(point | {"interval": half_width(levels)})
    return points


def _at(row: Row, step: int) -> tuple[float, float | None]:
    point = next(each for each in row["curve"] if each["iterations"] == step)
    return row["seconds_start"] + row["seconds_colors"] + point["seconds"], point["psnr"]


# --- the table ---------------------------------------------------------------------------------

# column of the means, its head, decimals
ALWAYS = (("num_gaussians", "Gaussians", 0), ("psnr_start", "start dB", 2), ("psnr", "PSNR dB", 2))
CLOCKS = (("seconds_start", "start s", 3), ("seconds_colors", "colors s", 3))
CLOCKS += (("seconds_fit", "fit s", 2),)
OF_FILE = (("bytes", "bytes", 0), ("bpp", "bpp", 4), ("psnr_file", "file dB", 2))
OF_FILE += (("seconds_encode", "encode s", 3), ("seconds_decode", "decode s", 4))
OF_FILE += (("seconds_render", "render s", 4),)


def table(means: list[Row]) -> list[str]:
    """The means as lines of Markdown; columns that no row has are left out."""
    metrics = [(name, name.upper(), 4) for name in METRICS if name in means[0]]
    columns = [*ALWAYS, ("ms_ssim", "MS-SSIM", 4), *metrics, *CLOCKS]
    has_files = any(row.get("bytes") is not None for row in means)
    has_limits = any(limit_of(row["budget"]) for row in means)
    first = means[0]["method"]
    has_ahead = any(row.get("ahead") is not None for row in means)
    head = ["method", *(["within"] if has_limits else []), "steps", "pictures"]
    head += [name for _, name, _ in columns]
    head += ["profile", *(name for _, name, _ in OF_FILE)] if has_files else []
    head += [f"dB above {first}"] if has_ahead else []
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in means:
        cells = [row["method"], *([limit_of(row["budget"]) or "-"] if has_limits else [])]
        cells += [_cell(row["iterations"], 0), str(row["images"])]
        cells += _cells(row, columns)
        if has_files:
            cells += [row.get("profile") or "-", *_cells(row, OF_FILE)]
        if has_ahead:
            cells.append(_signed(row.get("ahead"), row.get("ahead_interval")))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def limit_of(budget: dict[str, Any]) -> str:
    """What is equal besides steps and Gaussians, in words; nothing if that is all."""
    units = {"seconds": "s", "num_bytes": "bytes", "bpp": "bpp"}
    return ", ".join(f"{budget[name]:g} {unit}" for name, unit in units.items() if name in budget)


def _cells(row: Row, columns: Sequence[tuple[str, str, int]]) -> list[str]:
    """The PSNR that methods are compared by has its interval."""
    level, around = level_of(row["budget"]), row.get("interval")
    return [
        _cell(row.get(name), digits, around if name == level else None)
        for name, _, digits in columns
    ]


def _cell(value: float | None, digits: int, interval: float | None = None) -> str:
    if value is None:
        return "-"
    around = "" if interval is None else f" ± {interval:.{digits}f}"
    return f"{value:.{digits}f}{around}"


def _signed(value: float | None, interval: float | None) -> str:
    return ("+" if value is not None and value >= 0 else "") + _cell(value, 2, interval)


def markdown(results: dict[str, Any]) -> str:
    """The table of the means, below it what ± is and the conditions."""
    lines = table(results["means"])
    notes = []
    if any(row.get("interval") is not None for row in results["means"]):
        notes.append(
            "±: half the 95 % confidence interval of a mean over pictures, by Student's t; what "
            "stands above another method is the mean of differences on the same pictures\n"
        )
    if any(row.get("profile") in ROUNDED for row in results["means"]):
        notes.append(
            "Rounded files of plain sums are of Gaussians that were fitted to being rounded, by "
            "the 120 steps and color solves of `encode`, whatever method made them: one that has "
            "not converged gains by it\n"
        )
    return "\n".join([*lines, "", *notes, "; ".join(facts(results["rows"], results["conditions"]))])


def facts(rows: Sequence[Row], conditions: dict[str, Any]) -> list[str]:
    """What the results depend on: of this call, but for what the rows know of theirs."""
    found = []
    for name, value in conditions.items():
        if name in ("date", "commit"):
            continue
        values = [value]
        if any(name in row for row in rows):
            values = sorted({str(row.get(name, "unknown")) for row in rows})
        found.append(f"{name} {' and '.join(map(str, values))}")
    made = sorted({(row["date"], row["commit"]) for row in rows if "date" in row})
    return found + [f"{date} at commit {commit}" for date, commit in made]
