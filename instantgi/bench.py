"""Tables: every picture by every method with every number of steps, and under which conditions."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from instantgi import native
from instantgi.files import replace_on_success
from instantgi.fit import Progress
from instantgi.images import to_8bit
from instantgi.infer import Recipe, read_picture, run_stages, score
from instantgi.metrics import flip, lpips, psnr, ssim
from instantgi.render.draw import draw

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".gif",
    ".avif",
)
METRICS = {"ssim": ssim, "lpips": lpips, "flip": flip}  # beyond PSNR and MS-SSIM
AVERAGED = ("num_gaussians", "psnr_start", "psnr", "ms_ssim")
SECONDS = ("seconds_start", "seconds_colors", "seconds_fit")


def pictures_in(folder: str | Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        NotADirectoryError: if it is no folder.
        ValueError: if there are none.
    """
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder}: is not a folder")
    found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: holds no pictures ({' '.join(SUFFIXES)})")
    return found


def run_bench(
    pictures: Sequence[Path],
    output: str | Path,
    *,
    methods: Sequence[str],
    iterations: Sequence[int],
    num_gaussians: int | None = None,
    background: str | None = None,
    seed: int = 0,
    start: str = "auto",
    device: str = "auto",
    curve: bool = False,
    metrics: Sequence[str] = (),
    quiet: bool = True,
) -> dict[str, Any]:
    """The results of all fits, also written to `output` as JSON after each of them.

    Rows that are there already stay as they are, with the date and commit of their making, unless
    they lack the curve or one of the metrics; `means` are over the pictures, methods and steps of
    this call.

    Args:
        metrics: names in METRICS; of the pictures of 8 bits, as the PSNR.

    Raises:
        ValueError: if `output` holds other settings, or something else; before any fit, if a metric
            cannot be had of a picture.
        RuntimeError: before any fit, if a metric needs what is not installed.
    """
    settings: dict[str, Any] = {"num_gaussians": num_gaussians, "background": background}
    settings |= {"seed": seed, "start": start, "device": str(native.choose_device(device))}
    rows = _load_rows(output, settings)
    made = {_key(row): row for row in rows}
    wanted = [
        (path, method, steps) for path in pictures for steps in iterations for method in methods
    ]
    wanted = list(dict.fromkeys(wanted))
    columns = _columns_to_measure(wanted, made, {*metrics, "curve"} if curve else {*metrics})
    _check_metrics(columns, background)
    for method in methods:
        _warm_up(method, settings)
    for path, method, steps in with_bar(list(columns), quiet, "fits"):
        recipe = Recipe(method=method, iterations=steps, **settings)
        row = _measure(path, recipe, columns[path, method, steps])
        made[path.name, method, steps] = row | provenance()
        rows = list(made.values())
        _save(output, settings, rows, summarise(rows, metrics))
    chosen = [made[path.name, method, steps] for path, method, steps in wanted]
    return _save(output, settings, list(made.values()), summarise(chosen, metrics))


def _columns_to_measure(
    wanted: list[tuple[Path, str, int]], made: dict[tuple[str, str, int], dict], asked: set[str]
) -> dict[tuple[Path, str, int], set[str]]:
    """The optional columns of each row that is not there or lacks one; it keeps those it has."""
    columns = {}
    for path, method, steps in wanted:
        old = made.get((path.name, method, steps), {})
        if not old or not asked <= old.keys():
            columns[path, method, steps] = asked | (old.keys() & {*METRICS, "curve"})
    return columns


def _metrics_in(columns: Iterable[str]) -> list[str]:
    return [name for name in METRICS if name in columns]


def _check_metrics(columns: dict[tuple[Path, str, int], set[str]], background: str | None) -> None:
    """Whether they can be had of these pictures: tried on a corner of each before all fits."""
    needed: dict[Path, set[str]] = {}
    for (path, _, _), names in columns.items():
        needed.setdefault(path, set()).update(_metrics_in(names))
    for path, names in needed.items():
        if names:
            _try_metrics(path, background, _metrics_in(names))


def _try_metrics(path: Path, background: str | None, metrics: list[str]) -> None:
    corner = read_picture(path, background)[:, :64, :64]
    try:
        for name in metrics:
            METRICS[name](corner, corner)
    except ImportError as error:
        raise RuntimeError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["image"], row["method"], row["iterations"]


def with_bar(wanted: list, quiet: bool, name: str) -> Iterator[Any]:
    """The same, with a bar on a terminal."""
    from tqdm import tqdm

    yield from tqdm(
        wanted, desc=name, leave=False, dynamic_ncols=True, disable=True if quiet else None
    )


def _warm_up(method: str, settings: dict[str, Any]) -> None:
    """What a method loads at its first use is not part of the first picture's time."""
    few: dict[str, Any] = settings | {"num_gaussians": 20}
    recipe = Recipe(method=method, iterations=1, **few)
    list(run_stages(torch.rand(3, 16, 16), recipe))


def _measure(path: Path, recipe: Recipe, columns: set[str]) -> dict[str, Any]:
    """One row: the fit of one picture, with these optional columns."""
    image = read_picture(path, recipe.background)
    height, width = image.shape[1:]
    points: list[dict[str, float | None]] = []

    def look(progress: Progress) -> None:
        if "curve" in columns and _is_mark(progress.iteration):
            drawn = draw(progress.fitter.gaussians(), height, width)
            level = _finite(psnr(drawn.cpu(), image))
            point = {"iterations": progress.iteration, "seconds": progress.seconds, "psnr": level}
            points.append(point)

    seconds: dict[str, float] = dict.fromkeys(SECONDS, 0.0)
    names = {"colors": "seconds_colors", "fit": "seconds_fit"}
    start, network = None, None
    for stage in run_stages(image, recipe, look):
        seconds[names.get(stage.name, "seconds_start")] = stage.seconds
        drawn = draw(stage.gaussians, height, width).cpu()
        if stage.name != "fit":
            start = psnr(drawn, image)
        if stage.name == "network":
            network = {"psnr_network": start}
    final, target = to_8bit(drawn), to_8bit(image)
    scores = score(final, target)
    row = {
        "image": path.name,
        "method": recipe.method,
        "iterations": recipe.iterations,
        "height": height,
        "width": width,
        "num_gaussians": len(stage.gaussians),
        "psnr_start": None if start is None else _finite(start),
        "psnr": scores.psnr,
        "ms_ssim": scores.ms_ssim,
        **{name: float(METRICS[name](final / 255, target / 255)) for name in _metrics_in(columns)},
        "lossless": scores.lossless,
        **seconds,
    } | (network or {})
    return row | ({"curve": points} if "curve" in columns else {})


def _is_mark(step: int) -> bool:
    """10, 20, 50, 100, 200, 500, …"""
    while step >= 100 and step % 10 == 0:
        step //= 10
    return step in (10, 20, 50)


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def summarise(rows: list[dict[str, Any]], metrics: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Means over pictures for each method and number of steps, in the order of the rows.

    None counts for nothing: a PSNR without error, an MS-SSIM of a small picture; nor does a row
    that lacks one of the metrics.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["iterations"]), []).append(row)
    means = []
    for (method, steps), group in groups.items():
        summary: dict[str, Any] = {"method": method, "iterations": steps, "images": len(group)}
        for name in (*AVERAGED, *metrics, *SECONDS):
            known = [row[name] for row in group if row.get(name) is not None]
            summary[name] = mean(known) if known else None
        means.append(summary)
    return means


# --- the file ----------------------------------------------------------------------------------


def _load_rows(output: str | Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not Path(output).exists():
        return []
    try:
        results = json.loads(Path(output).read_text(encoding="utf-8"))
        # files from before there were networks and CUDA do not name these
        written = {"start": "heuristic", "device": "cpu"} | results["settings"]
        before = {name: written[name] for name in settings}
        rows = results["rows"]
        [(_key(row), [row[name] for name in (*AVERAGED, *SECONDS)]) for row in rows]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{output}: not results of a bench; choose another file") from None
    if before != settings:
        raise ValueError(f"{output}: made with {before}, not with {settings}; choose another file")
    return rows


def _save(
    output: str | Path,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    means: list[dict[str, Any]],
) -> dict[str, Any]:
    results = {"settings": settings, "conditions": conditions(), "means": means, "rows": rows}
    lines = [f'"{name}": {json.dumps(results[name])}' for name in ("settings", "conditions")]
    for name in ("means", "rows"):
        listed = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in results[name])
        lines.append(f'"{name}": [\n{listed}\n]')
    with replace_on_success(output) as partial:
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return results


def markdown(results: dict[str, Any]) -> str:
    """The means as a table, below it the conditions."""
    metrics = _metrics_in({name for row in results["means"] for name in row})
    head = ("method", "steps", "pictures", "Gaussians", "start dB", "PSNR dB", "MS-SSIM")
    head += (*(name.upper() for name in metrics), "start s", "colors s", "fit s")
    digits = (0, 2, 2, 4, *(4 for _ in metrics), 3, 3, 2)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in results["means"]:
        cells = [row["method"], str(row["iterations"]), str(row["images"])]
        for name, places in zip((*AVERAGED, *metrics, *SECONDS), digits, strict=True):
            cells.append("-" if row[name] is None else f"{row[name]:.{places}f}")
        lines.append("| " + " | ".join(cells) + " |")
    made = sorted({(row["date"], row["commit"]) for row in results["rows"]})
    facts = [
        f"{name} {value}"
        for name, value in results["conditions"].items()
        if name not in ("date", "commit")
    ]
    facts += [f"{date} at commit {commit}" for date, commit in made]
    return "\n".join(lines) + "\n\n" + "; ".join(facts)


# --- conditions --------------------------------------------------------------------------------


def conditions() -> dict[str, str | int]:
    """What a time depends on."""
    from instantgi import __version__

    return {
        "instantgi": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instruction set": native.instruction_set(),
        **provenance(),
    }


def provenance() -> dict[str, str]:
    """Of a result."""
    return {"commit": _commit(), "date": time.strftime("%Y-%m-%d")}


def _commit() -> str:
    """Of the source tree that the package runs from, if it is one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "none"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kernels_error() -> str | None:
    """Why the CPU kernels do not load; None if they do."""
    try:
        native.cpu_library()
    except RuntimeError as error:
        return str(error)
    return None


def graphics_card() -> str:
    if not torch.cuda.is_available():
        return "none"
    return torch.cuda.get_device_name()
