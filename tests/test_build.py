"""The kernels compile elsewhere too: with other compilers, for other processors and systems."""

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import random_gaussians

from instantgi import native
from instantgi.points import dither, triangulate
from instantgi.render import rasterize, rasterize_mixture

CUDA = Path(__file__).parents[1] / "cuda"
STRICT = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
UNIX = ["-fPIC", "-pthread"]
ALL_SETS = ["baseline", "avx2", "avx512"]


def load_build() -> Any:
    """A fresh copy of cuda/build.py, for what sys.platform is now."""
    spec = importlib.util.spec_from_file_location("build", CUDA / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "compiler, headers",
    [
        ("g++", "/usr/include"),
        ("clang++", "/usr/include"),
        ("clang++ --target=aarch64-linux-gnu", "/usr/aarch64-linux-gnu/include"),
        ("aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu/include"),
        ("x86_64-w64-mingw32-g++-posix", "/usr/x86_64-w64-mingw32/include"),
    ],
)
def test_other_compilers_take_the_kernels_without_a_warning(compiler, headers):
    command = compiler.split()
    if not (shutil.which(command[0]) and Path(headers).is_dir()):
        pytest.skip(f"needs {command[0]} and {headers}")
    files = [str(path) for path in sorted(CUDA.glob("*_cpu.cpp"))]
    done = subprocess.run([*command, *STRICT, *files], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    "system, machine, suffix, sets, flags, tag",
    [
        ("linux", "aarch64", ".so", ["baseline"], UNIX, "linux_"),
        ("linux", "x86_64", ".so", ALL_SETS, UNIX, "linux_"),
        (
            "darwin",
            "arm64",
            ".dylib",
            ["baseline"],
            [*UNIX, "-mmacosx-version-min=11.0"],
            "macosx_11_0_arm64",
        ),
        ("win32", "AMD64", ".dll", ALL_SETS, [], ""),
    ],
)
def test_each_system_has_its_flags(monkeypatch, system, machine, suffix, sets, flags, tag):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    build = load_build()
    assert build.SUFFIX == suffix and list(build.instruction_sets()) == sets
    has_march = any("-march" in flag for each in build.instruction_sets().values() for flag in each)
    assert has_march == (len(sets) > 1)
    assert build.system_flags("clang++") == flags
    assert build.platform_tag().startswith(tag)


@pytest.mark.parametrize(
    "system, text",
    [
        ("linux", r"install g\+\+ or clang \(Debian: apt install g\+\+\), or set CXX"),
        ("darwin", "install Apple's command line tools"),
        ("win32", "install LLVM .* or MinGW-w64; Visual C"),
    ],
)
def test_a_missing_compiler_is_said_with_where_to_get_one(monkeypatch, system, text):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    build = load_build()
    with pytest.raises(RuntimeError, match=text):
        build.compiler()
    monkeypatch.setenv("CXX", "mycc")
    with pytest.raises(RuntimeError, match="CXX names a compiler that is not there: 'mycc'"):
        build.compiler()


def digest() -> str:
    """Of what the kernels make of a scene."""
    torch.manual_seed(0)
    gaussians = random_gaussians(500, 61, 47, seed=0).to(torch.float32)
    fields = [field.requires_grad_() for field in (gaussians.means, gaussians.cholesky)]
    made = []
    for draw in (rasterize, rasterize_mixture):
        picture = draw(gaussians, 61, 47)
        made += [picture, *torch.autograd.grad(picture.square().sum(), fields)]
    points = dither(torch.rand(61, 47), 3)
    made += [points, triangulate(points)[0]]
    data = b"".join(each.detach().numpy().tobytes() for each in made)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
def test_gcc_and_clang_make_the_same_bits(monkeypatch, tmp_path):
    compilers = [name for name in ("g++", "clang++") if shutil.which(name)]
    if len(compilers) < 2:
        pytest.skip("needs g++ and clang++")
    build, found = load_build(), set()
    name = native.instruction_set()
    flags = build.instruction_sets()[name]
    monkeypatch.setattr(build, "instruction_sets", lambda: {name: flags})
    try:
        for compiler in compilers:
            monkeypatch.setenv("CXX", compiler)
            build.build(tmp_path / compiler)
            monkeypatch.setattr(native, "FOLDER", tmp_path / compiler)
            native.cpu_library.cache_clear()
            found.add(digest())
    finally:
        monkeypatch.undo()
        native.cpu_library.cache_clear()
    assert len(found) == 1
