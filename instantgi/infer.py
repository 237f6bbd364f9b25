"""One picture → Gaussians, with a report and an overview of how it went.

A result is a folder of `gaussians.gi`, `init.png` (where the fit started), `render.png`,
`overview.png` and `report.json`. It appears whole or not at all.
"""

import dataclasses
import functools
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from instantgi.codec import Metadata, encode, open_file
from instantgi.codec.index import software
from instantgi.files import replace_on_success
from instantgi.fit import (
    Fitter,
    Progress,
    default_count,
    fit_image,
    heuristic_start,
    make_fitter,
    solve_colors,
)
from instantgi.fit.loop import GROWING
from instantgi.fit.network import expected_steps, is_ahead, network_fit, network_start
from instantgi.folders import prepare_folder, replace_folder, vanishing
from instantgi.gaussians import MOST_GAUSSIANS
from instantgi.images import flatten_alpha, read_image, read_metadata, to_8bit, write_image
from instantgi.metrics import bits_per_pixel, ms_ssim, psnr_of_levels
from instantgi.native import choose_device
from instantgi.render.draw import draw
from instantgi.representations import Representation, Seeds, flat

GAUSSIANS, REPORT, SNAPSHOT = "gaussians.gi", "report.json", "snapshot.gi"
RESULTS = (GAUSSIANS, "init.png", "render.png", "overview.png", REPORT, SNAPSHOT)
STARTS = ("auto", "network", "heuristic")
ON_CPU = ("lig-paper", "imagegs-paper")  # methods that nothing else draws
DEFAULT_CHECKPOINT = "tiny"
# of a recipe, which are of one method alone, and as what they stand in files and commands
CHOICES = {
    "rate": ("sgi", "lambda"),
    "levels": ("lig", "levels"),
    "prefixes": ("imagegs", "prefixes"),
}
CHANNELS = {1: "gray", 3: "rgb", 4: "rgba"}
SOLVE_ITERATIONS = 10
SURE = 20  # steps that bring any fit above the start from a network
MAX_CURVE_POINTS = 400
LOOK_EVERY = {"cuda": 25}  # steps; a look at the error waits for the GPU


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a result depends on, apart from the picture and this version.

    Attributes:
        method: a name of `instantgi.fit.METHODS`.
        start: of the method "instantgi": "network"; "heuristic", from the picture's gradient; or
            "auto", the better of both for as long a fit, see `instantgi.fit.network.is_ahead`.
        checkpoint: the network, see `InstantGI.from_pretrained`; a start of "heuristic" needs none.
        patch_size: side of the largest dithering cell of either start.
        num_gaussians: an upper limit; None for `default_count`, and with the start "network" for
            as many as it sees fit.
        init: a file of Gaussians to start from.
        iterations: where the fit stops, whichever of the three comes first; see `fit_image`.
        seconds: the same.
        psnr: the same, dB.
        background: a color of CSS to lay the picture over; None keeps opacity as a fourth channel.
        seed: of methods that draw random numbers.
        device: "cpu", "cuda", or "auto", see `instantgi.native.choose_device`; of a method in
            ON_CPU "auto" is the CPU.
        rate: of the method "sgi", see `instantgi.fit.SGI`; None for its own.
        levels: of the method "lig", likewise.
        prefixes: of the method "imagegs", likewise.
    """

    method: str = "instantgi"
    start: str = "auto"
    checkpoint: str = DEFAULT_CHECKPOINT
    patch_size: int = 3
    num_gaussians: int | None = None
    init: str | None = None
    iterations: int | None = 300
    seconds: float | None = None
    psnr: float | None = None
    background: str | None = None
    seed: int = 0
    device: str = "auto"
    rate: float | None = None
    levels: int | None = None
    prefixes: float | None = None

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f'start must be one of {", ".join(STARTS)}, got "{self.start}"')
        for name, (method, _) in CHOICES.items():
            if getattr(self, name) is not None and self.method != method:
                raise ValueError(f'{name} is of the method "{method}", got "{self.method}"')

    def choose_device(self) -> torch.device:
        is_cpu = self.device == "auto" and self.method in ON_CPU
        return choose_device("cpu" if is_cpu else self.device)

    def make_fitter(self) -> Fitter[Any]:
        return make_fitter(self.method, **self.choices())

    def choices(self) -> dict[str, Any]:
        """What was chosen of the method."""
        found = {name: getattr(self, name) for name in CHOICES}
        return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the pipeline that is done."""

    name: str  # heuristic or network, then colors; or random; or init; and at last fit
    seconds: float  # of this stage alone
    gaussians: Representation
    iterations: int = 0  # of the fit


@dataclasses.dataclass(frozen=True)
class Scores:
    """How close a picture of 8 bits is to its target."""

    psnr: float | None = None  # dB; None without a picture, or with an error of zero
    ms_ssim: float | None = None  # None without a picture, or below 161 pixels
    lossless: bool = False


def read_picture(path: str | Path, background: str | None = None) -> Float[Tensor, "C H W"]:
    """The picture in a file, laid over a background if one is given."""
    image = read_image(path)
    return image if background is None else flatten_alpha(image, background)


def run_stages(
    image: Float[Tensor, "C H W"],
    recipe: Recipe,
    on_progress: Callable[[Progress], None] | None = None,
    look_every: int | None = None,
) -> Iterator[Stage]:
    """The stages of the recipe, each yielded when it is done; the last one is the fit.

    The Gaussians of the stage `heuristic` are still black: they have a shape, and no colors yet.
    What the caller does between two stages and in `on_progress` (called after each step, on a GPU
    after every 25) is not timed.

    Args:
        image: on any device; the Gaussians are on that of the recipe.
        look_every: steps; on a GPU `on_progress` is then called as often, if that is more often.
    """
    image = image.to(recipe.choose_device())
    names = []
    for stage in _start_stages(image, recipe):
        names.append(stage.name)
        yield stage
    steps, aside = 0, 0.0

    def look(progress: Progress) -> None:
        nonlocal steps, aside
        steps, began = progress.iteration, time.perf_counter()
        if on_progress:
            on_progress(progress)
        aside += time.perf_counter() - began

    height, width = image.shape[1:]
    limits = (height, width, recipe.iterations, recipe.seconds)
    wanted = _wanted(height, width, recipe)
    began = time.perf_counter()
    fitted = fit_image(
        image,
        # a random start is drawn again: through `init` its parameters would come back rounded
        init=None if stage.name == "random" else stage.gaussians,
        method=network_fit(expected_steps(*limits)) if "network" in names else recipe.make_fitter(),
        num_gaussians=None if wanted is None else max(wanted, len(stage.gaussians)),
        iterations=recipe.iterations,
        seconds=recipe.seconds,
        psnr=recipe.psnr,
        seed=recipe.seed,
        report_every=min(LOOK_EVERY.get(image.device.type, 1), look_every or sys.maxsize),
        on_progress=look,
    )
    if "network" in names and steps < SURE:
        fitted = _better(image, stage.gaussians, fitted)
    yield _timed("fit", began + aside, fitted, steps)


def _count(height: int, width: int, recipe: Recipe) -> int:
    """As many Gaussians as are asked for, or usual."""
    usual = default_count(height, width, recipe.patch_size)
    return usual if recipe.num_gaussians is None else recipe.num_gaussians


def _wanted(height: int, width: int, recipe: Recipe) -> int | None:
    """How many Gaussians a fit that begins with fewer ends with; None for those of the start.

    A result that is fitted on says how many it was to have.
    """
    if recipe.init is None:
        return None if recipe.method == "instantgi" else _count(height, width, recipe)
    if recipe.method not in GROWING:
        return None
    found = (open_file(recipe.init).metadata.recipe or {}).get("num_gaussians")
    return found if isinstance(found, int) and 0 < found <= MOST_GAUSSIANS else None


def _better(image: Tensor, start: Representation, fitted: Representation) -> Representation:
    """The first steps from a network lose some of what it knew."""
    errors = [
        float((draw(gaussians, *image.shape[1:]) - image).square().sum())
        for gaussians in (start, fitted)
    ]
    return start if errors[0] < errors[1] else fitted


def _start_stages(image: Tensor, recipe: Recipe) -> Iterator[Stage]:
    """Where the fit starts: from a file, from the picture's gradient, or as the method has it."""
    height, width = image.shape[1:]
    count, num = recipe.num_gaussians, _count(height, width, recipe)
    limits = (height, width, recipe.iterations, recipe.seconds)
    start = recipe.start
    if start == "auto":
        start = "network" if is_ahead(*limits) else "heuristic"
        count = num
    if recipe.init is None and recipe.method == "instantgi" and start == "network":
        importlib.import_module("instantgi.models")  # imports are not part of any stage
    began = time.perf_counter()
    if recipe.init is not None:
        gaussians = _load_start(recipe.init, image)
        yield _timed("init", began, gaussians)
    elif recipe.method == "instantgi":
        if start == "network":
            network = _load_network(recipe.checkpoint, str(image.device))
            steps = expected_steps(*limits)
            gaussians = network_start(network, image, count, recipe.patch_size, steps)
        else:
            gaussians = heuristic_start(image, num, recipe.patch_size)
        yield _timed(start, began, gaussians)
        began = time.perf_counter()
        gaussians = solve_colors(gaussians, image, SOLVE_ITERATIONS)
        yield _timed("colors", began, gaussians)
    else:
        fitter = recipe.make_fitter()
        fitter.start(image, None, num, recipe.seed)
        gaussians = fitter.gaussians()
        yield _timed("random", began, gaussians)


def _timed(name: str, began: float, gaussians: Representation, iterations: int = 0) -> Stage:
    """A stage that is done: what a GPU still has to do for it is waited for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Stage(name, time.perf_counter() - began, gaussians, iterations)


@functools.lru_cache(maxsize=2)
def _load_network(checkpoint: str, device: str) -> Any:
    """Once for all pictures of a call."""
    from instantgi.models import InstantGI

    return InstantGI.from_pretrained(checkpoint).to(device)


def _load_start(path: str, image: Tensor) -> Representation:
    file = open_file(path)
    channels, height, width = image.shape
    if (file.channels, file.height, file.width) != (channels, height, width):
        raise ValueError(
            f"{path}: is of {file.width}x{file.height} pixels in {file.channels} channels, "
            f"the picture is {width}x{height} in {channels}; start from Gaussians of the same kind"
        )
    return file.made().to(image)


def _save(path: Path, gaussians: Representation, size: tuple[int, int], metadata: Metadata) -> None:
    is_short = isinstance(gaussians, Seeds) and gaussians.context is not None
    profile = "seeds" if is_short else "lossless"
    data = encode(gaussians.to("cpu"), *size, profile=profile, metadata=metadata)
    with replace_on_success(path) as partial:
        partial.write_bytes(data)


def score(picture: UInt8[Tensor, "C H W"], image: UInt8[Tensor, "C H W"]) -> Scores:
    """PSNR and MS-SSIM of two pictures of 8 bits."""
    decibels = psnr_of_levels(picture, image)
    if math.isinf(decibels):
        decibels = None
    # channel by channel, which is how MS-SSIM is defined: all at once would take thrice the memory
    channels = [ms_ssim(a[None] / 255, b[None] / 255) for a, b in zip(picture, image, strict=True)]
    known = [value.item() for value in channels if value is not None]
    similarity = sum(known) / len(known) if known else None
    return Scores(decibels, similarity, lossless=decibels is None)


class Curve:
    """PSNR over the steps of a fit, thinned to a few hundred points."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []  # steps, seconds, dB
        self._last: tuple[int, float, float] | None = None
        self._stride = 1

    def add(self, progress: Progress) -> None:
        self._last = (progress.iteration, progress.seconds, progress.psnr)
        if not math.isfinite(progress.psnr):
            self._last = None
        elif progress.iteration % self._stride == 0:
            self.points.append(self._last)
        if len(self.points) > MAX_CURVE_POINTS:
            self._stride *= 2
            self.points = [point for point in self.points if point[0] % self._stride == 0]

    def whole(self) -> list[tuple[int, float, float]]:
        """All points, the last one as well."""
        missing = self._last is not None and self._last not in self.points[-1:]
        return self.points + ([self._last] if self._last and missing else [])


def infer_image(
    path: str | Path,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    snapshot_every: int | None = None,
    keep_metadata: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """The report of one picture, after its result is written to `folder`.

    Args:
        path: of the picture.
        folder: replaced if it is an older result of ours.
        recipe: `Recipe()` by default.
        snapshot_every: steps between two writes of `snapshot.gi` into the folder while
            the fit runs; the finished result takes its place.
        keep_metadata: also store what `read_metadata` finds in the picture.
        on_progress: called after each step, on a GPU after every 25.

    Raises:
        ImageError, OSError: if the picture cannot be read or the folder cannot be written.
        ValueError: if the recipe does not suit the picture.
    """
    recipe, folder = recipe or Recipe(), Path(folder)
    with vanishing(folder):
        return _write_result(
            path, folder, recipe, snapshot_every, keep_metadata, on_progress or (lambda _: None)
        )


def _write_result(
    path: str | Path,
    folder: Path,
    recipe: Recipe,
    snapshot_every: int | None,
    keep_metadata: bool,
    on_progress: Callable[[Progress], None],
) -> dict[str, Any]:
    began = time.perf_counter()
    image = read_picture(path, recipe.background)
    seconds_read = time.perf_counter() - began
    prepare_folder(folder, RESULTS)
    original = to_8bit(image)
    height, width = image.shape[1:]
    curve, snapshots = Curve(), 0

    def look(progress: Progress) -> None:
        nonlocal snapshots
        curve.add(progress)
        if snapshot_every and progress.iteration // snapshot_every > snapshots:
            snapshots = progress.iteration // snapshot_every
            folder.mkdir(exist_ok=True)
            made = progress.fitter.gaussians()
            metadata = _metadata(recipe, height, width, progress.iteration)
            _save(folder / SNAPSHOT, made, (height, width), metadata)
        on_progress(progress)

    stages: list[dict[str, Any]] = []
    pictures: list[Tensor] = []
    for stage in run_stages(image, recipe, look, snapshot_every):
        scores = Scores()
        if stage.name != "heuristic":
            pictures.append(to_8bit(draw(stage.gaussians, height, width).cpu()))
            scores = score(pictures[-1], original)
        timed = {"name": stage.name, "seconds": stage.seconds}
        stages.append(timed | dataclasses.asdict(scores))
    report: dict[str, Any] = {
        "image": str(path),
        "height": height,
        "width": width,
        "channels": CHANNELS[len(image)],
        "num_gaussians": len(stage.gaussians),
        "method": recipe.method,
        "iterations": stage.iterations,
        "device": device_name(flat(stage.gaussians).means.device),
        "threads": torch.get_num_threads(),
        "seed": recipe.seed,
        "version": _version(),
        "recipe": dataclasses.asdict(recipe),
        "seconds_read": seconds_read,
        "stages": stages,
        **dataclasses.asdict(scores),
        "curve": [(steps, round(at, 4), round(level, 4)) for steps, at, level in curve.whole()],
    }
    with replace_folder(folder, RESULTS) as partial:
        gaussians = stage.gaussians.to("cpu")
        metadata = _metadata(recipe, height, width, stage.iterations)
        if keep_metadata:
            metadata = dataclasses.replace(metadata, **read_metadata(path))
        _save(partial / GAUSSIANS, gaussians, (height, width), metadata)
        num_bytes = (partial / GAUSSIANS).stat().st_size
        report["bytes"] = num_bytes
        report["bpp"] = bits_per_pixel(num_bytes, height, width)
        report["bytes_of"] = GAUSSIANS
        _write_pictures(partial, original, pictures, gaussians, report)
        report["seconds_total"] = time.perf_counter() - began
        (partial / REPORT).write_text(to_json(report), encoding="utf-8")
    return report


def _metadata(recipe: Recipe, height: int, width: int, iterations: int) -> Metadata:
    """How a result was made, without the names of files on this machine."""
    made = {"method": recipe.method, "iterations": iterations, "seed": recipe.seed}
    num = recipe.num_gaussians or _wanted(height, width, recipe)
    if num is not None:
        made["num_gaussians"] = num
    made |= {CHOICES[name][1]: value for name, value in recipe.choices().items()}
    return dataclasses.replace(software(), recipe=made)


def device_name(device: torch.device) -> str:
    """ "cpu", or the model of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def to_json(report: dict[str, Any]) -> str:
    """One line for each entry, so that a person can read it too; never NaN or Infinity."""
    lines = (f"  {json.dumps(key)}: {json.dumps(report[key], allow_nan=False)}" for key in report)
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_pictures(
    folder: Path,
    original: UInt8[Tensor, "C H W"],
    pictures: list[Tensor],
    gaussians: Representation,
    report: dict[str, Any],
) -> None:
    from instantgi.overview import draw_overview

    *_, initial, final = pictures
    write_image(folder / "init.png", initial / 255)
    write_image(folder / "render.png", final / 255)
    sheet = draw_overview(original, initial, final, flat(gaussians), report)
    sheet.save(folder / "overview.png")


def _version() -> str:
    from instantgi import __version__

    return __version__
