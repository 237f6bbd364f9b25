"""The one loop that fits Gaussians to a picture; what differs between methods is a `Fitter`."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from instantgi.gaussians import MOST_GAUSSIANS, Gaussians, kind_of
from instantgi.metrics import psnr_from_mse
from instantgi.render.draw import draw
from instantgi.representations import Representation, flat

Made = TypeVar("Made", bound=Representation, covariant=True)
GROWING = ("lig", "imagegs")  # methods that end with more Gaussians than they may start with
SUMS = Literal["instantgi", "gaussianimage", "gaussianimage-rs"]


@runtime_checkable
class Fitter(Protocol[Made]):
    """A method: its parameters and how one step moves them.

    One that fits in stages may also have `next_stage() -> bool`: begin the next one now, if there
    is any, and say whether. It is asked when the error has stalled, before the fit ends.
    """

    def start(self, image: Tensor, init: Any, num_gaussians: int, seed: int) -> None:
        """Make the parameters for image [C, H, W], from `init` where it is given."""

    def step(self, progress: float) -> Tensor:
        """Move the parameters once; the sum of squared errors before the move (float64, a scalar).

        `progress` runs from 0 to 1 over the iterations or seconds of the fit.
        """
        ...

    def gaussians(self) -> Made:
        """The Gaussians as they are now."""
        ...


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a caller sees while a fit runs.

    Attributes:
        iteration: steps done.
        seconds: since the fit began, without the time spent in callbacks.
        psnr: dB, of the float picture before the last step.
        fitter: what is fitting; its `gaussians()` are those of now.
    """

    iteration: int
    seconds: float
    psnr: float
    fitter: Fitter[Any]


@overload
def fit_image(
    image: Tensor, init: Gaussians | None = None, *, method: SUMS = ..., **limits: Any
) -> Gaussians: ...
@overload
def fit_image(image: Tensor, init: Any = None, *, method: Fitter[Made], **limits: Any) -> Made: ...
@overload
def fit_image(image: Tensor, init: Any = None, *, method: str, **limits: Any) -> Representation: ...
def fit_image(  # pyright: ignore[reportInconsistentOverload]: the limits are named once, here
    image: Float[Tensor, "C H W"],
    init: Representation | None = None,
    *,
    method: str | Fitter[Any] = "instantgi",
    num_gaussians: int | None = None,
    iterations: int | None = None,
    seconds: float | None = None,
    psnr: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    report_every: int = 10,
    on_progress: Callable[[Progress], None] | None = None,
) -> Any:
    """Gaussians whose picture is as close to the image as the method brings it.

    Stops at whichever comes first of `iterations`, `seconds`, `psnr` and `patience`; schedules
    follow the share of iterations or seconds that has passed. Without a limit of seconds the same
    seed gives the same bytes on the same machine.

    Args:
        image: in [0, 1], any number of channels.
        init: where to start; by default the method's own start with `num_gaussians`.
        method: a name of `instantgi.fit.METHODS`, or a `Fitter`. "lig" makes `Levels`, "imagegs"
            a `Mixture` and "sgi" `Seeds`, all others Gaussians whose picture is their sum.
        num_gaussians: by default 0.11 per pixel, or those of `init`, which only "imagegs" lets grow
            to more, and "lig" begin its next levels; an upper limit for "instantgi" and "sgi". At
            most 2**26.
        iterations: steps, each one forward and one backward pass; by default 300 unless
            `seconds` or `patience` is set.
        seconds: wall-clock time, from the end of the start.
        psnr: dB; stops once the float picture has reached it.
        patience: stops after so many steps in which the PSNR rose by less than 0.01 dB; a method
            with stages ("lig", "imagegs") goes on to the next one instead, while there is one.
            "sgi" needs iterations or seconds beside it.
        seed: of the random start and choices of the method, if it has any.
        report_every: steps between two looks at the error (PSNR stop, plateau, callback).
        on_progress: called with `Progress` at every look and at the end.

    Raises:
        ValueError: if an argument is out of range, the image is not finite, or `init` does not fit
            it.
    """
    from instantgi.fit import make_fitter
    from instantgi.fit.start import default_count

    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        raise ValueError(
            f"image must be a float tensor [C, H, W] in [0, 1], got {kind_of(image)}; read_image "
            "makes one of a file"
        )
    if image.numel() == 0:
        raise ValueError(f"image must have at least one pixel, got {list(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("image has values that are not finite")
    if init is not None and flat(init).colors.shape[1] != len(image):
        channels = flat(init).colors.shape[1]
        raise ValueError(f"init has {channels} channels, the image has {len(image)}")
    for name, value in {"num_gaussians": num_gaussians, "iterations": iterations}.items():
        if value is not None and (isinstance(value, str) or value != int(value)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be below 2^63, got {seed}")
    limits = {"iterations": iterations, "seconds": seconds, "psnr": psnr, "patience": patience}
    for name, value in limits.items():
        if value is not None and not (0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of at least 0, got {value}")
    if iterations is None and seconds is None and patience is None:
        iterations = 300
    if num_gaussians is None:
        num_gaussians = default_count(*image.shape[1:]) if init is None else len(init)
    elif not 1 <= num_gaussians <= MOST_GAUSSIANS:
        raise ValueError(f"num_gaussians must be 1 to {MOST_GAUSSIANS}, got {num_gaussians}")
    elif init is not None and isinstance(method, str) and num_gaussians != len(init):
        if not method.startswith(GROWING) or num_gaussians < len(init):
            raise ValueError(
                f'num_gaussians is not for method "{method}" with init, which has {len(init)}, got '
                f"{num_gaussians}"
            )
    image = image.detach()
    fitter = make_fitter(method) if isinstance(method, str) else method
    if not isinstance(fitter, Fitter):
        raise ValueError(f"method must be a name or a Fitter, got {kind_of(method)}")
    if getattr(fitter, "needs_schedule", False) and iterations is None and seconds is None:
        name = type(fitter).__name__
        raise ValueError(f"{name} needs iterations or seconds, which its levels follow")
    fitter.start(image, init, num_gaussians, seed)
    watch = _Watch(image, iterations, seconds, psnr, patience, report_every, on_progress)
    while not watch.is_over():
        watch.step(fitter)
    watch.finish(fitter)
    return fitter.gaussians().detach()


class _Watch:
    """Counts steps and seconds, and knows when to stop."""

    def __init__(self, image, iterations, seconds, psnr, patience, report_every, on_progress):
        self.image, self.iterations, self.seconds = image, iterations, seconds
        self.psnr, self.patience = psnr, patience
        self.report_every, self.on_progress = max(1, report_every), on_progress
        self.iteration, self.looked_at, self.squares = 0, 0, image.new_zeros(())
        self.best, self.best_iteration = -math.inf, 0
        self.began, self.stopped = time.perf_counter(), False

    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def progress(self) -> float:
        """Share of the work that is done: of the limit that will be reached first."""
        shares = [0.0]
        if self.iterations:
            shares.append(self.iteration / self.iterations)
        if self.seconds:
            shares.append(self.elapsed() / self.seconds)
        return min(1.0, max(shares))

    def is_over(self) -> bool:
        done = self.iterations is not None and self.iteration >= self.iterations
        late = self.seconds is not None and self.elapsed() >= self.seconds
        return done or late or self.stopped

    def _drawn_psnr(self, fitter: Fitter) -> float:
        picture = draw(fitter.gaussians(), *self.image.shape[1:])
        return psnr_from_mse(float((picture - self.image).square().mean()))

    def step(self, fitter: Fitter) -> None:
        self.squares = fitter.step(self.progress())
        self.iteration += 1
        if self.iteration % self.report_every == 0:
            self._look(fitter)

    def finish(self, fitter: Fitter) -> None:
        if self.iteration > self.looked_at:
            self._look(fitter)

    def _look(self, fitter: Fitter) -> None:
        self.looked_at = self.iteration
        psnr = psnr_from_mse(float(self.squares) / self.image.numel())
        if math.isnan(psnr):
            raise RuntimeError(
                f"the fit diverged at step {self.iteration}: the error is not a number"
            )
        if psnr > self.best + 0.01:
            self.best, self.best_iteration = psnr, self.iteration
        stalled = (
            self.patience is not None and self.iteration - self.best_iteration >= self.patience
        )
        # `psnr` is of before the step, and a step can lose a little: look at what is returned.
        reached = (
            self.psnr is not None and psnr >= self.psnr and self._drawn_psnr(fitter) >= self.psnr
        )
        if stalled and not reached and getattr(fitter, "next_stage", bool)():
            self.best, self.best_iteration, stalled = -math.inf, self.iteration, False
        self.stopped = stalled or reached
        if self.on_progress:
            before = time.perf_counter()
            self.on_progress(Progress(self.iteration, self.elapsed(), psnr, fitter))
            self.began += time.perf_counter() - before
