"""Loads the kernels; the only module that knows how.

Those for the CPU were compiled by the install. Those for CUDA come as source, which NVRTC compiles
at their first use and a folder in the user's cache keeps. Nothing is loaded at import. What is
missing or broken is an error that says what to do; nothing falls back silently to something slow.
"""

import contextlib
import ctypes
import functools
import hashlib
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
        ValueError: if the kernel refuses its arguments, with the kernel's text.
        MemoryError: if there is not enough memory.
    """
    function = getattr(cpu_library(), f"instantgi_{name}")
    function.restype = ctypes.c_char_p
    error = function(*map(_to_c, arguments), ctypes.c_int64(torch.get_num_threads()))
    if error:
        kind = MemoryError if error in OUT_OF_MEMORY else ValueError
        raise kind(f"{name}: {error.decode()}")


def _to_c(value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        if value.device.type != "cpu":
            raise ValueError(
                f"tensors must be on one device, got some on the CPU and some on {value.device}: "
                "move them with .to(device)"
            )
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
# Here a*b + c stays two roundings, as on the CPU, so that a map is dithered to the same points.
ROUNDED_TWICE = {"dither"}
_of_thread = threading.local()  # `devices`: whose contexts it has entered
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
        RuntimeError: if something that CUDA needs is missing, and says what.
    """
    if blocks == 0:
        return
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
    device = tensors[0].device
    if others := {str(each.device) for each in tensors} - {str(device)}:
        raise ValueError(
            f"tensors must be on one device, got some on {device} and some on {others.pop()}: move "
            "them with .to(device)"
        )
    cuda = _cuda_core()
    with torch.cuda.device(device):
        _enter_context(device)
        # handle 0 is the legacy default stream, which is 1 where a stream is meant
        handle = torch.cuda.current_stream(device).cuda_stream or 1
        config = cuda.LaunchConfig(grid=blocks, block=threads)
        loaded = _cuda_kernel(op, kernel, REALS[real], torch.cuda.get_device_capability(device))
        cuda.launch(_stream(handle), config, loaded, *map(_to_cuda, arguments))


def _enter_context(device: torch.device) -> None:
    """A launch needs a context in its thread, which torch makes only with work of its own."""
    entered = vars(_of_thread).setdefault("devices", set())
    if device.index not in entered:
        _cuda_core().Device(device.index).set_current()
        entered.add(device.index)


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Any:
    """Another's stream: cuda-core makes a class for each call, some 50 µs."""
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
    arch = f"sm_{capability[0]}{capability[1]}"
    return _cuda_core().ObjectCode.from_cubin(cubin(op, real, arch))


def _too_old(capability: tuple[int, int]) -> str:
    found, needed = (".".join(map(str, version)) for version in (capability, OLDEST))
    return (
        f"this GPU has compute capability {found}, the CUDA kernels need {needed} or later; use "
        "the CPU"
    )


def cubin(op: str, real: str, arch: str) -> bytes:
    """The machine code of cuda/<op>_cuda.cu, from the cache if it is there.

    Raises:
        RuntimeError: if it cannot be compiled.
    """
    source, options = cuda_source(op), compile_options(op, real, arch)
    versions = nvrtc_version(), getattr(_cuda_core(), "__version__", "")
    key = hashlib.sha256(repr((source, op, options, versions)).encode()).hexdigest()
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
    """Where compiled CUDA kernels are kept; INSTANTGI_CACHE names another folder."""
    if chosen := os.environ.get("INSTANTGI_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        try:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a user whom the system does not know, as in containers
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
        raise RuntimeError(f"NVRTC cannot be loaded ({error}): {GPU_EXTRA}") from error
    assert int(error) == 0
    return major, minor


def compile_options(name: str, real: str, arch: str) -> dict[str, Any]:
    """Of NVRTC; where points hang on each bit, numbers are rounded as on the CPU."""
    is_exact = name in ROUNDED_TWICE
    return {
        "arch": arch,
        "std": "c++17",
        "define_macro": ("REAL", real),
        "ftz": not is_exact,
        "fma": not is_exact,
        "prec_div": True,
        "prec_sqrt": True,
    }


def compile_cuda(source: str, name: str, real: str, arch: str) -> bytes:
    """Machine code for a GPU of this architecture ("sm_90"); needs none to be there."""
    cuda = _cuda_core()
    options = cuda.ProgramOptions(**compile_options(name, real, arch))
    try:
        return bytes(cuda.Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # of a class that differs between versions of cuda-core
        text = str(error)
        raise RuntimeError(
            f"NVRTC {'.'.join(map(str, nvrtc_version()))} cannot compile {name}_cuda.cu for "
            f"{arch}: {text[:2000]}"
        ) from error
