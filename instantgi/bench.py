"""Results: every picture by every method within every budget, and under which conditions."""

import hashlib
import importlib.util
import json
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from instantgi import native
from instantgi.files import check_ours, held, replace_on_success
from instantgi.images import read_image, suffixes
from instantgi.infer import DEFAULT_CHECKPOINT, ON_CPU, device_name, read_picture
from instantgi.measure import (
    FILE,
    METRICS,
    NO_FILE,
    SECONDS,
    WITHOUT_FILE,
    Budget,
    code,
    fit_picture,
    measure,
    measure_file,
    metrics_in,
    profile_of,
)
from instantgi.summaries import markdown, summarise

__all__ = ["Budget", "conditions", "load_rows", "markdown", "pictures_in", "run_bench"]

EXPECTED = ("num_gaussians", "psnr_start", "psnr", "ms_ssim", *SECONDS)  # in every row
TEXTS = ("image", "method", "date", "commit")  # likewise
MARK = "<!-- instantgi bench -->"  # the first line of a table that may be replaced


def pictures_in(folder: str | Path) -> list[Path]:
    """The pictures of a folder, by name; hidden files, as `._x.png` of macOS, are none.

    Raises:
        NotADirectoryError: if it is no folder.
        ValueError: if there are none.
    """
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder}: is not a folder")
    known = suffixes()
    found = sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in known and path.name[0] != "." and not path.is_dir()
    )
    if not found:
        raise ValueError(f"{folder}: holds no pictures ({' '.join(sorted(known))})")
    return found


def readable(pictures: Sequence[Path]) -> list[Path]:
    """Those that can be read; a warning for each other one.

    Raises:
        ValueError: if none can.
    """
    found = []
    for path in pictures:
        try:
            read_image(path)
            found.append(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; left out", stacklevel=2)
    if not found:
        raise ValueError("none of these pictures can be read")
    return found


def digest(path: Path) -> str:
    """Of the picture's file: another one of the same name has rows of its own."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def run_bench(
    pictures: Sequence[Path],
    output: str | Path,
    *,
    methods: Sequence[str],
    budgets: Sequence[Budget],
    profile: str | None = None,
    background: str | None = None,
    seed: int = 0,
    start: str = "auto",
    checkpoint: str = DEFAULT_CHECKPOINT,
    device: str = "auto",
    curve: bool = False,
    metrics: Sequence[str] = (),
    quiet: bool = True,
) -> dict[str, Any]:
    """The results of all fits, also written to `output` as JSON after each of them.

    At the end the table is written beside it, as `<name>.md`. Rows that are there already stay as
    they are, with the conditions of their making, unless the picture's file is another, or they
    lack the curve, one of the metrics, or a file of the profile asked for; `means` are over the
    pictures, methods and budgets of this call. A method that cannot meet a budget of bytes for a
    picture has no row there, and a warning says so.

    Args:
        profile: of the files; "none" for no files; None as suits each method, see `profile_of`,
            which also keeps rows of another profile or without a file.
        metrics: names in METRICS; of the pictures of 8 bits, as the PSNR.

    Raises:
        ValueError: if `output` is no name of a JSON file, or holds other settings or something
            else; before any fit, if a metric or a file cannot be had.
        RuntimeError: before any fit, if what is asked for needs what is not installed.
        OSError: before any fit, if another call writes to `output`, or there is a table not ours.
    """
    if Path(output).suffix.lower() != ".json":
        raise ValueError(f"{output}: results go to a file that ends in .json")
    if importlib.util.find_spec("scipy") is None:
        raise RuntimeError('intervals of means need scipy: pip install "instantgi[bench]"')
    settings: dict[str, Any] = {"background": background}
    settings |= {"seed": seed, "start": start, "checkpoint": checkpoint}
    settings |= {"device": native.choose_device(device).type}
    # where the rest runs on a GPU these do not: the row of each says where it was made
    own = {method: settings for method in methods}
    if device == "auto":
        own |= {method: settings | {"device": "cpu"} for method in methods if method in ON_CPU}
    _check_files(methods, budgets, profile)
    table = Path(output).with_suffix(".md")
    check_ours(table, MARK)
    digests = {path: digest(path) for path in pictures}
    wanted = [
        (path, digests[path], method, budget)
        for path in pictures
        for budget in budgets
        for method in methods
    ]
    wanted = list(dict.fromkeys(wanted))
    asked = {*metrics, "curve"} if curve else {*metrics}
    with held(output):
        made = {_key(row): row for row in load_rows(output, settings)}
        columns = _columns_to_measure(wanted, made, asked, profile)
        _check_metrics(columns, background)
        for method in methods:
            _warm_up(method, own[method], profile)
        for case in with_bar(list(columns), quiet, "fits"):
            path, picture, method, budget = case
            recipe = budget.recipe(method, own[method])
            try:
                row = measure(path, recipe, budget, columns[case], profile)
            except ValueError as error:
                if not budget.is_of_bytes:
                    raise
                warnings.warn(f"{path.name}, {method}: {error}", stacklevel=2)
                continue
            made.pop(_key_of(case, known=False), None)
            made[_key_of(case)] = {"picture": picture} | row | provenance(own[method]["device"])
            _save(output, settings, list(made.values()), summarise(list(made.values()), metrics))
        chosen = [row for row in (_find(made, case) for case in wanted) if row]
        if not chosen:
            raise ValueError("no method could meet its budget for any of these pictures")
        results = _save(output, settings, list(made.values()), summarise(chosen, metrics))
        with replace_on_success(table) as partial:
            partial.write_text(f"{MARK}\n{markdown(results)}\n", encoding="utf-8")
        return results


Case = tuple[Path, str, str, Budget]  # picture, its digest, method


def _check_files(methods: Sequence[str], budgets: Sequence[Budget], profile: str | None) -> None:
    """Before all fits: bytes are of files."""
    without = [method for method in methods if method in WITHOUT_FILE]
    if without and profile not in (None, NO_FILE):
        raise ValueError(f"no file can hold what {without[0]} makes; leave out it or --profile")
    if any(budget.is_of_bytes for budget in budgets):
        if without:
            raise ValueError(f"no file can hold what {without[0]} makes; leave out it or the bytes")
        if profile == NO_FILE:
            raise ValueError("a budget of bytes is of files; choose another profile than none")


def _columns_to_measure(
    wanted: list[Case], made: dict[str, dict], asked: set[str], profile: str | None
) -> dict[Case, set[str]]:
    """The optional columns of each row that is not there or lacks one; it keeps those it has."""
    columns = {}
    for case in wanted:
        old = _find(made, case)
        lacks_file = profile not in (None, NO_FILE, old.get("profile"))
        if not old or not asked <= old.keys() or lacks_file:
            columns[case] = asked | (old.keys() & {*METRICS, "curve"})
    return columns


def _check_metrics(columns: dict[Case, set[str]], background: str | None) -> None:
    """Whether they can be had of these pictures: tried on a corner of each before all fits."""
    needed: dict[Path, set[str]] = {}
    for (path, *_), names in columns.items():
        needed.setdefault(path, set()).update(metrics_in(names))
    for path, names in needed.items():
        if names:
            _try_metrics(path, background, metrics_in(names))


def _try_metrics(path: Path, background: str | None, metrics: list[str]) -> None:
    corner = read_picture(path, background)[:, :64, :64]
    try:
        for name in metrics:
            METRICS[name](corner, corner)
    except ImportError as error:
        raise RuntimeError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _key(row: dict[str, Any]) -> str:
    key = [row["image"], row.get("picture"), row["method"], row["budget"]]
    return json.dumps(key, sort_keys=True)


def _key_of(case: Case, known: bool = True) -> str:
    path, picture, method, budget = case
    row = {"image": path.name, "method": method, "budget": budget.given()}
    return _key(row | ({"picture": picture} if known else {}))


def _find(made: dict[str, dict], case: Case) -> dict[str, Any]:
    """Its row; one from before there were digests is of any picture of this name."""
    return made.get(_key_of(case)) or made.get(_key_of(case, known=False), {})


def with_bar(wanted: list, quiet: bool, name: str) -> Iterator[Any]:
    """The same, with a bar on a terminal."""
    from tqdm import tqdm

    yield from tqdm(
        wanted, desc=name, leave=False, dynamic_ncols=True, disable=True if quiet else None
    )


def _warm_up(method: str, settings: dict[str, Any], profile: str | None) -> None:
    """What a method loads at its first use is not part of the first picture's time."""
    image = torch.rand(3, 16, 16)
    recipe = Budget(iterations=1, num_gaussians=20).recipe(method, settings)
    made = fit_picture(image, recipe).made
    profile = profile or profile_of(made)
    if profile != NO_FILE:
        measure_file(code(made, image, profile), image, torch.device(settings["device"]))


# --- the file ----------------------------------------------------------------------------------


def load_rows(output: str | Path, settings: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a file of results; none if there is no file.

    Files from before there were other budgets say how many Gaussians there were among the settings.

    Args:
        settings: that the file must have been made with; None for any.

    Raises:
        ValueError: if it holds other settings, or something else.
    """
    if not Path(output).exists():
        return []
    try:
        results = json.loads(Path(output).read_text(encoding="utf-8"))
        # files from before there were networks and CUDA do not name these
        written = {"start": "heuristic", "checkpoint": DEFAULT_CHECKPOINT, "device": "cpu"}
        written |= results["settings"]
        before = {name: written[name] for name in settings or {}}
        count = written.get("num_gaussians")
        rows = [{"budget": _old_budget(row, count)} | row for row in results["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{output}: not results of a bench; choose another file") from None
    check_rows(output, rows, TEXTS, EXPECTED, (*METRICS, *FILE, "iterations"))
    if before != (settings or {}):
        raise ValueError(f"{output}: made with {before}, not with {settings}; choose another file")
    return rows


def check_rows(
    path: str | Path,
    rows: list[dict[str, Any]],
    texts: Sequence[str],
    numbers: Sequence[str],
    optional: Sequence[str] = (),
) -> None:
    """Raises ValueError unless each row has these, numbers being finite or null."""
    for number, row in enumerate(rows, 1):
        for name in (*texts, *numbers, *(name for name in optional if name in row)):
            value, is_text = row.get(name), name in texts
            if is_text or name not in row:
                fits = isinstance(value, str)
            else:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = value is None or (is_number and math.isfinite(value))
            if not fits:
                kind = "text" if is_text else "a number"
                came = json.dumps(value) if name in row else "none"
                raise ValueError(f"{path}: row {number}: {name} must be {kind}, got {came}")


def _old_budget(row: dict[str, Any], num_gaussians: int | None) -> dict[str, Any]:
    return Budget(iterations=row["iterations"], num_gaussians=num_gaussians).given()


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


# --- conditions --------------------------------------------------------------------------------


def conditions() -> dict[str, str | int]:
    """What a time depends on."""
    from instantgi import __version__

    return {
        "instantgi": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
        "instruction set": native.instruction_set(),
        **provenance(),
    }


def provenance(device: str = "cpu") -> dict[str, str | int]:
    """Of a result, its clocks included.

    Args:
        device: that it was made on, besides the processor.
    """
    gpu = "" if device == "cpu" else f"{device_name(torch.device(device))} with "
    return {
        "torch": str(torch.__version__),
        "device": gpu + _processor(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


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
