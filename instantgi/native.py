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


def instruction_set() -> str:
    """The best set of this machine: "avx512", "avx2" or "baseline".

    Follows torch's own choice, and with it the environment variable ATEN_CPU_CAPABILITY.
    """
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """The CPU kernels for this machine's instruction set.

    Raises:
        RuntimeError: if the install did not compile them or they cannot be loaded.
    """
    path = FOLDER / f"libinstantgi_{instruction_set()}{SUFFIX}"
    if not path.is_file():
        raise RuntimeError(f"the CPU kernels are missing from this install ({path.name}): {REINSTALL}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"the CPU kernels cannot be loaded ({error}): {REINSTALL}") from error
    library.instantgi_set_parallel_region(_parallel_region())
    return library


def _parallel_region() -> ctypes.c_void_p:
    """`GOMP_parallel` of the OpenMP runtime that torch has loaded, or null; see cuda/parallel.h."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        # RTLD_NOLOAD: only the copy that is already running, never a second one
        try:
            runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return ctypes.c_void_p(None)


def call_cpu(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call `instantgi_<name>` of the CPU library: tensors as pointers, then the thread count.

    Tensors must be contiguous and on the CPU; integers are passed as int64, floats as double, None as
    a null pointer. The kernel returns 0, or a text that becomes a RuntimeError.
    """
    function = getattr(cpu_library(), f"instantgi_{name}")
    function.restype = ctypes.c_char_p
    error = function(*map(_to_c, arguments), ctypes.c_int64(torch.get_num_threads()))
    if error:
        raise RuntimeError(f"{name}: {error.decode()}")


def _to_c(value: Tensor | int | float | None):
    if isinstance(value, Tensor):
        assert value.is_contiguous() and value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(None)
