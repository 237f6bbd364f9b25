"""Stands in for `instantgi.native.call_cuda` on machines without a GPU; see cuda_emulator.h."""

import contextlib
import ctypes
import functools
import re
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from instantgi import native, similarity
from instantgi.fit import adan, gaussianimage, local_adam
from instantgi.models import fields
from instantgi.points.dither import dither_map_cuda
from instantgi.render import cuda, mixture, ops, points

TESTS = Path(__file__).parent
CUDA = TESTS.parent / "cuda"
KERNEL = re.compile(r'extern "C" __global__ void\s+(\w+)\(')

OPERATORS = {
    "rasterize_sum": ops.rasterize_sum_cuda,
    "rasterize_sum_backward": ops.rasterize_sum_backward_cuda,
    "rasterize_error": ops.rasterize_error_cuda,
    "rasterize_error_backward": ops.rasterize_error_backward_cuda,
    "order_by_place": cuda.order_by_place,
    "rasterize_mixture": mixture.rasterize_mixture_cuda,
    "rasterize_mixture_backward": mixture.rasterize_mixture_backward_cuda,
    "rasterize_points": points.rasterize_points_cuda,
    "rasterize_points_backward": points.rasterize_points_backward_cuda,
    "local_adam_": local_adam.local_adam_cuda,
    "adan_": adan.adan_cuda,
    "gaussianimage": gaussianimage.gaussianimage_cuda,
    "gaussianimage_backward": gaussianimage.gaussianimage_backward_cuda,
    "dither_map": dither_map_cuda,
    "ssim": similarity.ssim_cuda,
    "describe_triangles": fields.describe_triangles_cuda,
}


@contextlib.contextmanager
def in_place_of_cpu_kernels():
    """Operators on tensors in main memory do what they would do on a GPU."""
    library = torch.library.Library("instantgi", "IMPL")
    launch, native.call_cuda = native.call_cuda, call_cuda
    try:
        for name, function in OPERATORS.items():
            library.impl(name, function, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
        native.call_cuda = launch


def call_cuda(
    op: str, kernel: str, blocks: int, threads: int, *arguments, real: torch.dtype = torch.float32
) -> None:
    """Run a kernel on tensors in main memory.

    Raises:
        RuntimeError: if threads wait for ever or exchange with ones that have returned.
    """
    raw = (ctypes.c_uint64 * len(arguments))(*map(_bits, arguments))
    function = getattr(_library(op, real), f"emulate_{kernel}")
    function.restype = ctypes.c_char_p
    size = (ctypes.c_int64(blocks), ctypes.c_int64(threads))
    if error := function(*size, raw, ctypes.c_int64(len(arguments))):
        raise RuntimeError(f"{kernel}: {error.decode()}")


def _bits(value: Tensor | int | float | None) -> int:
    if value is None:
        return 0
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return value.data_ptr()
    if isinstance(value, float):
        return struct.unpack("Q", struct.pack("d", value))[0]
    return int(value) & (2**64 - 1)


@functools.cache
def _library(op: str, real: torch.dtype) -> ctypes.CDLL:
    source = CUDA / f"{op}_cuda.cu"
    name = {torch.float32: "float", torch.float64: "double"}[real]
    flags = ["-std=c++17", f"-DREAL={name}", f"-I{CUDA}", f"-I{TESTS}", "-x", "c++"]
    # the kernels' names, macros expanded
    command = ["g++", "-E", "-P", "-include", "cuda_emulator.h", *flags, str(source)]
    expanded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = ['#include "cuda_emulator.h"', "#define __global__", f'#include "{source.name}"']
    for kernel in KERNEL.findall(expanded):
        lines.append(
            f'extern "C" const char* emulate_{kernel}(int64_t blocks, int64_t threads, '
            "const uint64_t* raw, int64_t count) "
            f"{{ return emulator::launch<&{kernel}>(blocks, threads, raw, count); }}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        command = ["g++", "-O1", "-ffp-contract=off", "-fPIC", "-shared", *flags]
        # an index beyond an array, shared ones as well, ends the program
        command += ["-fsanitize=bounds,shift,integer-divide-by-zero"]
        command += ["-fsanitize-undefined-trap-on-error", "-", "-o", str(path)]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[:4000]}")
        return ctypes.CDLL(str(path))
