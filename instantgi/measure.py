"""One row of a table: a picture by a method within a budget, its real file, and four clocks."""

import dataclasses
import math
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from instantgi.codec import encode, encode_quantised, entropy, open_file
from instantgi.codec.header import Steps
from instantgi.codec.refit import fit_quantised
from instantgi.codec.target import BITS, Target, encode_image
from instantgi.fit import Progress
from instantgi.gaussians import Gaussians
from instantgi.images import to_8bit
from instantgi.infer import Recipe, read_picture, run_stages, score
from instantgi.metrics import bits_per_pixel, flip, lpips, psnr, psnr_of_levels, ssim
from instantgi.render.draw import draw
from instantgi.representations import Levels, Representation, Seeds, Splats, flat

METRICS = {"ssim": ssim, "lpips": lpips, "flip": flip}  # beyond PSNR and MS-SSIM
SECONDS = ("seconds_start", "seconds_colors", "seconds_fit")  # together all before the file
FILE = ("bytes", "bpp", "psnr_file", "seconds_encode", "seconds_decode", "seconds_render")
ROUNDED = ("compact", "fast")  # profiles
NO_FILE = "none"  # instead of a profile
WITHOUT_FILE = ("lig-paper", "3dgs")  # methods that make what no file can hold
DRAWS = 7  # of which the time of drawing is the median
TRIES = 6  # fits to come near a number of bytes
NEAR = 0.02  # below it


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every method is given alike.

    Attributes:
        iterations: steps of each fit.
        seconds: time of the fit, from the end of its start, instead of steps.
        num_gaussians: None for 0.11 per pixel.
        num_bytes, bpp: of a real file, instead of a number of Gaussians.
    """

    iterations: int | None = None
    seconds: float | None = None
    num_gaussians: int | None = None
    num_bytes: int | None = None
    bpp: float | None = None

    def __post_init__(self) -> None:
        for names in (("iterations", "seconds"), ("num_gaussians", "num_bytes", "bpp")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(
                    f"a budget is one of {', '.join(names)}, got {' and '.join(given)}"
                )
        if self.is_of_bytes and self.seconds is not None:
            raise ValueError("a budget of bytes is met by several fits; limit their iterations")

    @property
    def is_of_bytes(self) -> bool:
        return self.num_bytes is not None or self.bpp is not None

    def given(self) -> dict[str, Any]:
        """Without what it leaves open."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def bytes_of(self, height: int, width: int) -> int:
        """Bytes of the file of a picture of this size."""
        if self.num_bytes is not None:
            return self.num_bytes
        assert self.bpp is not None
        return max(1, round(self.bpp * height * width / 8))

    def recipe(self, method: str, settings: dict[str, Any]) -> Recipe:
        limits = {"iterations": self.iterations, "seconds": self.seconds}
        return Recipe(method=method, num_gaussians=self.num_gaussians, **limits, **settings)


@dataclasses.dataclass(frozen=True)
class Coded:
    """A file, and how long it took from Gaussians in memory to bytes."""

    data: bytes
    profile: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a method made of a picture.

    Attributes:
        columns: of its row: steps, PSNR of its start, clocks of its stages.
        coded: its file, where that was looked for.
    """

    made: Representation
    columns: dict[str, Any]
    coded: Coded | None = None


def measure(
    path: Path, recipe: Recipe, budget: Budget, columns: Collection[str], profile: str | None
) -> dict[str, Any]:
    """One row: the fit of one picture, and its file.

    Args:
        columns: optional ones, of METRICS and "curve".
        profile: of the file; None as suits what was made, see `profile_of`.

    Raises:
        ValueError: if no file of the method comes near the bytes of the budget.
    """
    image = read_picture(path, recipe.background)
    height, width = image.shape[1:]
    if budget.is_of_bytes:
        wanted = budget.bytes_of(height, width)
        fit = _file_of if recipe.method == "instantgi" else _fit_below
        fitted = fit(image, recipe, wanted, profile)
    else:
        fitted = fit_picture(image, recipe, with_curve="curve" in columns)
    made = fitted.made
    final, target = to_8bit(draw(made, height, width).cpu()), to_8bit(image)
    scores = score(final, target)
    row = {
        "image": path.name,
        "method": recipe.method,
        "budget": budget.given(),
        "height": height,
        "width": width,
        "num_gaussians": len(made),
        "psnr": scores.psnr,
        "ms_ssim": scores.ms_ssim,
        **{name: float(METRICS[name](final / 255, target / 255)) for name in metrics_in(columns)},
        "lossless": scores.lossless,
        **fitted.columns,
    }
    profile = profile or profile_of(made)
    if profile == NO_FILE:
        return row
    coded = fitted.coded or code(made, image, profile)
    return row | measure_file(coded, image, recipe.choose_device())


def metrics_in(columns: Collection[str]) -> list[str]:
    return [name for name in METRICS if name in columns]


def fit_picture(image: Float[Tensor, "C H W"], recipe: Recipe, with_curve: bool = False) -> Fitted:
    """The fit of a picture by a recipe, with the clock of each stage.

    Args:
        with_curve: also the PSNR after 10, 20, 50, 100, … steps.
    """
    height, width = image.shape[1:]
    points: list[dict[str, float | None]] = []

    def look(progress: Progress) -> None:
        if with_curve and is_mark(progress.iteration):
            drawn = draw(progress.fitter.gaussians(), height, width)
            level = _finite(psnr(drawn.cpu(), image))
            point = {"iterations": progress.iteration, "seconds": progress.seconds, "psnr": level}
            points.append(point)

    seconds: dict[str, float] = dict.fromkeys(SECONDS, 0.0)
    names = {"colors": "seconds_colors", "fit": "seconds_fit"}
    starts: dict[str, float | None] = {"psnr_start": None}
    for stage in run_stages(image, recipe, look):
        seconds[names.get(stage.name, "seconds_start")] = stage.seconds
        if stage.name != "fit":
            starts["psnr_start"] = _finite(psnr(draw(stage.gaussians, height, width).cpu(), image))
        if stage.name == "network":
            starts["psnr_network"] = starts["psnr_start"]
    columns = {"iterations": stage.iterations, **starts, **seconds}
    return Fitted(stage.gaussians, columns | ({"curve": points} if with_curve else {}))


def is_mark(step: int) -> bool:
    """10, 20, 50, 100, 200, 500, …"""
    while step >= 100 and step % 10 == 0:
        step //= 10
    return step in (10, 20, 50)


def _finite(value: float) -> float | None:
    return value if abs(value) != math.inf else None


# --- files -------------------------------------------------------------------------------------


def profile_of(made: Representation, is_of_bytes: bool = False) -> str:
    """The profile of a file that suits what was made.

    "seeds" for seeds that are rounded; "none" for splats and for what the published kernels draw,
    which no file can hold; of all others "compact" where bytes count, and "lossless", as `fit`
    writes them.
    """
    if isinstance(made, Seeds) and made.context is not None:
        return "seeds"
    is_published = isinstance(made, Levels) and any(level.is_published for level in made.levels)
    if is_published or isinstance(made, Splats):
        return NO_FILE
    return "compact" if is_of_bytes else "lossless"


def code(made: Representation, image: Float[Tensor, "C H W"], profile: str) -> Coded:
    """The file of what was made of the image.

    Gaussians whose picture is their sum are fitted to being rounded (`fit_quantised`), which the
    clock counts: colors that cancel each other, which long fits make, would not survive it. A fit
    that has not converged gains by it. Others are rounded as they are.
    """
    height, width = image.shape[1:]
    began = time.perf_counter()
    if profile in ROUNDED and isinstance(made, Gaussians | Seeds):
        gaussians = flat(made).detach()
        steps = Steps.for_density(len(gaussians) / (height * width))
        quantised = fit_quantised(image.to(gaussians.means), gaussians, steps)
        data = encode_quantised(quantised, height, width, steps, profile)
    else:
        data = encode(made.to("cpu"), height, width, profile=profile)
    return Coded(data, profile, time.perf_counter() - began)


def measure_file(
    coded: Coded, image: Float[Tensor, "C H W"], device: torch.device
) -> dict[str, Any]:
    """Columns of a real file: its bytes, the PSNR of what it decodes to, and three clocks.

    `seconds_encode` runs from Gaussians in memory to bytes. `seconds_decode` is cold: from bytes in
    memory to all pixels, once, on the CPU, with the tables of the entropy coder made anew; the
    start of a process and its imports are not in it. `seconds_render` is warm: the median of seven
    drawings of the decoded Gaussians on the device.
    """
    height, width = image.shape[1:]
    _forget_tables()
    began = time.perf_counter()
    drawn = open_file(coded.data).render()
    decoded = time.perf_counter() - began
    return {
        "profile": coded.profile,
        "bytes": len(coded.data),
        "bpp": bits_per_pixel(len(coded.data), height, width),
        "psnr_file": _finite(psnr_of_levels(to_8bit(drawn), to_8bit(image))),
        "seconds_encode": coded.seconds,
        "seconds_decode": decoded,
        "seconds_render": _seconds_to_draw(open_file(coded.data).made().to(device), height, width),
    }


def _seconds_to_draw(made: Representation, height: int, width: int) -> float:
    times = []
    for _ in range(1 + DRAWS):  # the first one warms up
        began = time.perf_counter()
        drawn = draw(made, height, width)
        if drawn.is_cuda:
            torch.cuda.synchronize(drawn.device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _forget_tables() -> None:
    """What the entropy coder keeps from one file to the next."""
    for function in vars(entropy).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


# --- equal bytes -------------------------------------------------------------------------------


def _file_of(image: Tensor, recipe: Recipe, wanted: int, profile: str | None) -> Fitted:
    """Ours: `encode_image` chooses the Gaussians and how coarse they are rounded.

    Their encoding is timed again, alone: what it decodes to gives the same bytes.
    """
    profile = profile or "compact"
    target = Target(num_bytes=wanted, iterations=recipe.iterations)
    began = time.perf_counter()
    data = encode_image(image.to(recipe.choose_device()), target, profile)
    columns = _columns_of_search(recipe, time.perf_counter() - began)
    file = open_file(data)
    made = file.made()
    began = time.perf_counter()
    encode(made, file.height, file.width, profile=profile, steps=file.steps)
    return Fitted(made, columns, Coded(data, profile, time.perf_counter() - began))


def _fit_below(image: Tensor, recipe: Recipe, wanted: int, profile: str | None) -> Fitted:
    """The fit with as many Gaussians as bring its file just below so many bytes.

    Their number is tried by what a Gaussian usually takes, then by what the files so far took.
    """
    bits = BITS.get(profile or "compact", 32.0 * (5 + len(image)))
    num, tried = max(2, int(8 * wanted / bits)), list[tuple[int, int]]()
    best: Fitted | None = None
    largest = 0  # bytes below the wanted ones so far
    began = time.perf_counter()
    while num not in dict(tried) and len(tried) < TRIES and largest < (1 - NEAR) * wanted:
        fitted = fit_picture(image, dataclasses.replace(recipe, num_gaussians=num))
        coded = code(fitted.made, image, profile or profile_of(fitted.made, is_of_bytes=True))
        size = len(coded.data)
        if largest < size <= wanted:
            best, largest = dataclasses.replace(fitted, coded=coded), size
        tried.append((num, size))
        num = _next_count(tried, (1 - NEAR / 2) * wanted)
    if best is None:
        smallest = min(size for _, size in tried)
        raise ValueError(f"{wanted} bytes cannot be reached, the smallest file has {smallest}")
    columns = _columns_of_search(recipe, time.perf_counter() - began)
    return dataclasses.replace(best, columns=columns | {"fits": len(tried)})


def _columns_of_search(recipe: Recipe, seconds: float) -> dict[str, Any]:
    """All that comes before the file is one clock: fits, and files that were tried."""
    clocks = dict.fromkeys(SECONDS, 0.0) | {"seconds_fit": seconds}
    return {"iterations": recipe.iterations, "psnr_start": None, **clocks}


def _next_count(tried: list[tuple[int, int]], wanted: float) -> int:
    """On the line through the last two files, or through the only one and none at all."""
    (num, size), (before, less) = tried[-1], tried[-2] if len(tried) > 1 else (0, 0)
    slope = (size - less) / (num - before)
    if slope <= 0:  # more Gaussians in fewer bytes
        slope = size / num
    return max(2, int(num + (wanted - size) / slope))
