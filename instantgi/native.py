"""Loads the kernels that the install compiled; the only module that knows how.

Nothing is loaded at import. A missing or broken library is an error that says what to do; nothing
falls back silently to something slow.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "native"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
REINSTALL = "reinstall with a C++17 compiler (pip install --force-reinstall --no-deps instantgi)"
_forked = False  # whether this process is the fork of another that had loaded torch
OUT_OF_MEMORY = (b"not enough memory", b"out of memory")  # the kernels' answers to bad_alloc


def instruction_set() -> str:
    """The best set of this machine: "avx512", "avx2" or "baseline".

    Follows torch's own choice, and with it the environment variable ATEN_CPU_CAPABILITY.
    """
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(
        torch.backends.cpu.get_cpu_capability(), "baseline"
    )


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """The CPU kernels for this machine's instruction set.

    Raises:
        RuntimeError: if the install did not compile them or they cannot be loaded.
    """
    path = FOLDER / f"libinstantgi_{instruction_set()}{SUFFIX}"
    if not path.is_file():
        raise RuntimeError(
            f"the CPU kernels are missing from this install ({path.name}): {REINSTALL}"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"the CPU kernels cannot be loaded ({error}): {REINSTALL}") from error
    library.instantgi_set_parallel_region(_parallel_region())
    return library


def _parallel_region() -> ctypes.c_void_p:
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
        assert value.is_contiguous() and value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(None)
