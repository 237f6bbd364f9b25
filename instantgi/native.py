"""Loads the kernels; the only module that knows how.

Those for the CPU were compiled by the install. Those for CUDA come as source, which NVRTC compiles
at their first use and a folder in the user's cache keeps. Nothing is loaded at import. What is
missing or broken is an error that says what to do; nothing falls back silently to something slow.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import re
import struct
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instantgi.files import replace_on_success

FOLDER = Path(__file__).parent / "native"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
REINSTALL = (
    "reinstall with a C++17 compiler (in a copy of the repository: pip install --force-reinstall "
    "--no-deps -e .)"
)
_forked = False  # whether this process is the fork of another that had loaded torch
OUT_OF_MEMORY = (b"not enough memory", b"out of memory")  # the kernels' answers to bad_alloc


def instruction_set() -> str:
    """The best set of this machine: "avx512", "avx2" or "baseline".

    Follows torch's own choice, and with it the environment variable ATEN_CPU_CAPABILITY.
    """
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(
        torch.backends.cpu.get_cpu_capability(), "baseline"
    )


def cpu_library_path() -> Path:
    return FOLDER / f"libinstantgi_{instruction_set()}{SUFFIX}"


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """The CPU kernels for this machine's instruction set.

    Raises:
        RuntimeError: if the install did not compile them or they cannot be loaded.
    """
    path = cpu_library_path()
    if not path.is_file():
        raise RuntimeError(
            f"the CPU kernels are missing from this install ({path.name}): {REINSTALL}"
        )
    if _is_cut(path):
        raise RuntimeError(
            f"the CPU kernels cannot be loaded ({path.name} is not whole): {REINSTALL}"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"the CPU kernels cannot be loaded ({error}): {REINSTALL}") from error
    library.instantgi_set_parallel_region(parallel_region())
    return library


def _is_cut(path: Path) -> bool:
    """Whether a library of Linux ends before its table of sections does, which stands last: the
    loader would map it nevertheless, and the process die."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return False
    (begin,), (size, num) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return path.stat().st_size < begin + size * num


def parallel_region() -> ctypes.c_void_p:
    """`GOMP_parallel` of the OpenMP runtime that torch has loaded, or null; see cuda/parallel.h."""
    libraries = () if _forked else (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")
    for path in sorted(libraries):
        # RTLD_NOLOAD: only the copy that is already running, never a second one
        try:
            runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return ctypes.c_void_p(None)


def _leave_parallel_region() -> None:
    """A forked child has none of the OpenMP threads; their runtime would wait for them forever."""
    global _forked
    _forked = True
    if cpu_library.cache_info().currsize:
        cpu_library().instantgi_set_parallel_region(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_parallel_region)


def call_cpu(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call `instantgi_<name>` of the CPU library: tensors as pointers, then the thread count.

    Tensors must be contiguous and on the CPU; integers are passed as int64, floats as double, None
    as a null pointer.

    Raises:
        ValueError: if a tensor is not like that, or with the text of a kernel that refuses them.
        MemoryError: if there is not enough memory.
    """
    _check_tensors(name, arguments, torch.device("cpu"))
    function = getattr(cpu_library(), f"instantgi_{name}")
    function.restype = ctypes.c_char_p
    error = function(*map(_to_c, arguments), ctypes.c_int64(torch.get_num_threads()))
    if error:
        kind = MemoryError if error in OUT_OF_MEMORY else ValueError
        raise kind(f"{name}: {error.decode()}")


def _check_tensors(name: str, arguments: tuple, device: torch.device) -> None:
    """A kernel reads addresses: of another device or layout, they are of something else."""
    for position, value in enumerate(arguments):
        if not isinstance(value, Tensor) or (value.device == device and value.is_contiguous()):
            continue
        layout = "" if value.is_contiguous() else " and not contiguous"
        raise ValueError(
            f"{name}: argument {position} must be a contiguous tensor on {device}, got "
            f"{list(value.shape)} on {value.device}{layout}"
        )


def _to_c(value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(None)


# --- CUDA --------------------------------------------------------------------------------------

GPU_EXTRA = 'pip install "instantgi[gpu]"'
OLDEST = (7, 5)  # compute capability
REALS = {torch.float32: "float", torch.float64: "double"}
# Here a*b + c stays two roundings and denormals stay what they are, as on the CPU, so that a map is
# dithered to the same points.
ROUNDED_TWICE = {"dither"}
CHECKSUM = 32  # bytes of SHA-256 in front of a cached kernel


def call_cuda(
    op: str,
    kernel: str,
    blocks: int,
    threads: int,
    *arguments: Tensor | int | float | None,
    real: torch.dtype = torch.float32,
) -> None:
    """Launch a kernel of cuda/<op>_cuda.cu on torch's current stream of the tensors' device.

    Tensors must be contiguous and on one GPU; integers are passed as int64, floats as double, None
    as a null pointer.

    Args:
        blocks: 0 launches nothing.
        threads: of a block.
        real: what REAL stands for in the source.

    Raises:
        ValueError: if a tensor is not like that.
        RuntimeError: if something that CUDA needs is missing, and says what.
    """
    if blocks == 0:
        return
    device = next(value.device for value in arguments if isinstance(value, Tensor))
    _check_tensors(kernel, arguments, device)
    cuda = _cuda_core()
    with torch.cuda.device(device):
        _make_current(device.index)
        # handle 0 is the legacy default stream, which is 1 where a stream is meant
        handle = torch.cuda.current_stream(device).cuda_stream or 1
        config = cuda.LaunchConfig(grid=blocks, block=threads)
        loaded = _cuda_kernel(op, kernel, REALS[real], torch.cuda.get_device_capability(device))
        cuda.launch(_stream(handle), config, loaded, *map(_to_cuda, arguments))


_current = threading.local()  # .devices: those that cuda-core has seen in this thread


def _make_current(index: int) -> None:
    """cuda-core wants to be told of a device, once in each thread."""
    devices = _current.__dict__.setdefault("devices", set())
    if index not in devices:
        _cuda_core().Device(index).set_current()
        devices.add(index)


@functools.lru_cache(64)
def _stream(handle: int) -> Any:
    return _cuda_core().Stream.from_handle(handle)


def _to_cuda(value: Tensor | int | float | None) -> int | float:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return 0 if value is None else value


def cuda_error() -> str | None:
    """Why the CUDA kernels do not run here, in a line; None if they do."""
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA: install one that is"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU, or its driver is missing or too old (see nvidia-smi)"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return _too_old(capability)
    try:
        nvrtc_version()
    except RuntimeError as error:
        return str(error)
    return None


def choose_device(name: str) -> torch.device:
    """ "cpu" or "cuda" as asked; "auto" is the GPU if there is one.

    Where there is one that cannot be used for something that is missing, "auto" is the CPU, and a
    warning says so.

    Raises:
        RuntimeError: if "cuda" is asked for and cannot be used; says why.
        ValueError: if the name is another.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be auto, cpu or cuda, got "{name}"')
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if (error := cuda_error()) is None:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise RuntimeError(f"the GPU cannot be used: {error}")
    warnings.warn(f"using the CPU, the GPU cannot be used: {error}", stacklevel=2)
    return torch.device("cpu")


def _cuda_core() -> Any:
    try:
        import cuda.core as core

        if not hasattr(core, "Program"):  # before 0.5
            import cuda.core.experimental as core  # pyright: ignore[reportMissingImports]: older
    except ImportError as error:
        raise RuntimeError(f"CUDA kernels need cuda-core ({error}): {GPU_EXTRA}") from error
    return core


@functools.cache
def _cuda_kernel(op: str, kernel: str, real: str, capability: tuple[int, int]) -> Any:
    return _cuda_module(op, real, capability).get_kernel(kernel)


@functools.cache
def _cuda_module(op: str, real: str, capability: tuple[int, int]) -> Any:
    if capability < OLDEST:
        raise RuntimeError(_too_old(capability))
    arch, objects = architecture(capability), _cuda_core().ObjectCode
    load = objects.from_ptx if arch.startswith("compute_") else objects.from_cubin
    return load(cubin(op, real, arch))


def architecture(capability: tuple[int, int]) -> str:
    """What NVRTC compiles for. The driver completes what is for an older GPU than this one."""
    newest = newest_architecture()
    number = 10 * capability[0] + capability[1]
    return f"sm_{number}" if number <= newest else f"compute_{newest}"


def newest_architecture() -> int:
    """120 for compute capability 12.0: the last one that NVRTC knows."""
    nvrtc_version()  # says what is missing
    from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue]: no stubs

    error, known = nvrtc.nvrtcGetSupportedArchs()
    assert int(error) == 0
    return max(known)


def _too_old(capability: tuple[int, int]) -> str:
    found, needed = (".".join(map(str, version)) for version in (capability, OLDEST))
    return (
        f"this GPU has compute capability {found}, the CUDA kernels need {needed} or later; use "
        "the CPU"
    )


def cubin(op: str, real: str, arch: str) -> bytes:
    """The code of cuda/<op>_cuda.cu, from the cache if it is there: machine code for an
    architecture like "sm_90", PTX for one like "compute_90".

    Raises:
        RuntimeError: if it cannot be compiled.
    """
    source = cuda_source(op)
    made_by = (nvrtc_version(), version_of("cuda-core"))
    said = repr((source, op, sorted(cuda_options(op, real, arch).items()), made_by))
    key = hashlib.sha256(said.encode()).hexdigest()
    path = cache_folder() / f"{op}_{real}_{arch}_{key[:32]}.cubin"
    if (code := _read_checked(path)) is not None:
        return code
    code = compile_cuda(source, op, real, arch)
    # A cache that cannot be written costs time, nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_on_success(path) as partial:
            partial.write_bytes(hashlib.sha256(code).digest() + code)
    return code


def _read_checked(path: Path) -> bytes | None:
    """What was cached, if it is there and whole."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    checksum, code = stored[:CHECKSUM], stored[CHECKSUM:]
    return code if hashlib.sha256(code).digest() == checksum else None


def cache_folder() -> Path:
    """Where compiled CUDA kernels are kept; INSTANTGI_CACHE names another folder.

    A user without a home has it among the temporary files.
    """
    if chosen := os.environ.get("INSTANTGI_CACHE"):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        base = tempfile.gettempdir()
    return Path(base) / "instantgi"


def cuda_source(op: str) -> str:
    """cuda/<op>_cuda.cu with our headers in their places."""
    root = FOLDER if (FOLDER / f"{op}_cuda.cu").is_file() else Path(__file__).parents[1] / "cuda"

    def expanded(name: str) -> str:
        text = (root / name).read_text(encoding="utf-8").replace("#pragma once", "")
        return re.sub(
            r'^#include "(.+)"$', lambda match: expanded(match[1]), text, flags=re.MULTILINE
        )

    try:
        return expanded(f"{op}_cuda.cu")
    except OSError as error:
        raise RuntimeError(f"a CUDA source is missing ({error}): reinstall instantgi") from error


def nvrtc_version() -> tuple[int, int]:
    """Of the compiler that comes with torch's CUDA packages or with cuda-core.

    Raises:
        RuntimeError: if there is none.
    """
    _cuda_core()
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue]: no stubs

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"NVRTC cannot be loaded ({error}): {bindings_needed()}") from error
    assert int(error) == 0
    return major, minor


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def bindings_needed() -> str:
    """The command that installs the cuda-bindings of this torch's CUDA, and what is there now."""
    there, cuda = version_of("cuda-bindings"), torch.version.cuda
    if cuda is None:
        return GPU_EXTRA
    wanted = f'pip install "cuda-bindings=={cuda.split(".")[0]}.*"'
    return f"torch {torch.__version__} is of CUDA {cuda}, cuda-bindings here is {there}: {wanted}"


def cuda_options(name: str, real: str, arch: str) -> dict[str, Any]:
    """What NVRTC is told of a source."""
    rounded_twice = name in ROUNDED_TWICE
    return {
        "arch": arch,
        "std": "c++17",
        "define_macro": ("REAL", real),
        "ftz": not rounded_twice,
        "fma": not rounded_twice,
        "prec_div": True,
        "prec_sqrt": True,
    }


def compile_cuda(source: str, name: str, real: str, arch: str) -> bytes:
    """Code for GPUs of this architecture, see `cubin`; machine code needs none to be there."""
    cuda = _cuda_core()
    options = cuda.ProgramOptions(**cuda_options(name, real, arch))
    try:
        kind = "ptx" if arch.startswith("compute_") else "cubin"
        return bytes(cuda.Program(source, "c++", options).compile(kind).code)
    except Exception as error:  # of a class that differs between versions of cuda-core
        text = str(error)
        raise RuntimeError(
            f"NVRTC {'.'.join(map(str, nvrtc_version()))} cannot compile {name}_cuda.cu for "
            f"{arch}: {text[:2000]}"
        ) from error
