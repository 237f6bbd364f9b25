"""What benchmarks measure with: runs in turns, exp as the yardstick, a header, peak memory."""

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch

from instantgi import native

EXP = "exp"


def milliseconds(functions: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Times of each function, run in turns: a busy machine then slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for name in list(functions) * 2:
        functions[name]()  # warm up
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def spread(values: list[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    low, _, high = quantiles(values, n=4)
    return median(values), high - low


def exp_of(num_values: int) -> Callable[[], object]:
    """torch.exp over so many floats, from memory to memory, both already touched."""
    x = torch.empty(num_values).uniform_(-5.5, 0)
    y = torch.empty_like(x)
    return lambda: torch.exp(x, out=y)


def peak_megabytes(function: Callable[[], object]) -> float:
    """How far the resident memory rises during the call; nan where the system does not tell."""
    before, _ = resident_megabytes(reset_peak=True)
    function()
    return resident_megabytes()[1] - before


def resident_megabytes(reset_peak: bool = False) -> tuple[float, float]:
    """MiB resident now, and the most since the last reset; nan where the system does not tell."""
    try:
        if reset_peak:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        return _status("VmRSS") / 1024, _status("VmHWM") / 1024
    except OSError:
        return float("nan"), float("nan")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def conditions(device: torch.device | None = None) -> dict[str, str | int]:
    """The header of a table, with the GPU where that is what the work ran on."""
    found: dict[str, str | int] = {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction set": native.instruction_set(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
