"""What of this install works, and what is missing: what a report of a bug needs."""

import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from instantgi import native
from instantgi.bench import conditions, graphics_card, kernels_error
from instantgi.gaussians import Gaussians
from instantgi.render import rasterize

# A module of each package that an extra installs, by which a missing one is noticed.
EXTRAS = {
    "gpu": ("cuda.core",),
    "bench": ("imagecodecs", "matplotlib", "scipy"),
    "metrics": ("flip_evaluator", "lpips", "torchvision"),
    "train": ("jsonargparse", "lightning", "rich", "scipy", "tensorboard", "timm", "wandb"),
}


def examine() -> dict[str, Any]:
    """Each thing by its name; "kernels" is "work" or says why they do not."""
    found: dict[str, Any] = conditions() | {"system": platform.platform()}
    found["package"] = str(Path(__file__).parent)
    found["kernels"] = _kernels()
    found["kernel library"] = str(native.cpu_library_path())
    runs_on = "torch's OpenMP" if native.parallel_region().value else "threads of its own"
    found["kernels run on"] = runs_on
    found["graphics card"] = graphics_card()
    found["CUDA kernels"] = native.cuda_error() or _cuda_kernels(torch.device("cuda"))
    found["cache folder"] = f"{native.cache_folder()} ({_writable(native.cache_folder())})"
    found["torchvision"] = _torchvision()
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if not _is_there(name)]
        found[f"extra {extra}"] = _said(extra, missing)
    found["variables"] = _variables()
    return found


def _kernels() -> str:
    """Loads them and draws a Gaussian of which one pixel is known."""
    if error := kernels_error():
        return error
    one = Gaussians(torch.full((1, 2), 1.5), torch.tensor([[1.0, 0, 1]]), torch.ones(1, 1))
    value = float(rasterize(one, 3, 3)[0, 1, 1])
    return "work" if abs(value - 1) < 1e-5 else f"draw {value} where 1 is right: {native.REINSTALL}"


def _cuda_kernels(device: torch.device) -> str:
    """Draws a few Gaussians there and here; says what failed, or how they differ."""
    turns = torch.arange(20) / 3
    means = torch.stack([8 + 6 * turns.cos(), 8 + 6 * turns.sin()], 1)
    few = Gaussians(means, torch.tensor([[1.5, 0.3, 1.0]]).repeat(20, 1), torch.ones(20, 3) / 2)
    try:
        there = rasterize(few.to(device), 16, 16).cpu()
    except Exception as error:  # of the driver, of torch, of cuda-core: each has its own
        return f"do not run: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    # a term on the cut-off may count or not: 1/255 of a color
    difference = float((there - rasterize(few, 16, 16)).abs().nan_to_num(torch.inf).max())
    if difference > 0.6 / 255:
        return f"draw what differs from the CPU's picture by {difference:.2g}: please report it"
    return "usable"


def _writable(folder: Path) -> str:
    """Whether compiled CUDA kernels will be kept."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return "writable"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return f"cannot be written, {reason}: name another with INSTANTGI_CACHE"


def _torchvision() -> str:
    """An install that does not fit to torch fails at its import, and with it LPIPS and timm."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "not installed, needed by the extras metrics and train only"
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError, AttributeError) as error:
        return (
            f"{version} does not fit to torch {torch.__version__} ({error}): "
            "pip install --upgrade torch torchvision"
        )
    return version


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _said(extra: str, missing: list[str]) -> str:
    if not missing:
        return "complete"
    return f'without {", ".join(missing)}: pip install "instantgi[{extra}]"'


def _variables() -> str:
    """Those of the environment that change what is done."""
    names = ("ATEN_CPU_CAPABILITY", "INSTANTGI_CACHE", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    names += ("CUDA_VISIBLE_DEVICES",)
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "none"
