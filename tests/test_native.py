import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi import native
from instantgi.render import rasterize

TESTS = Path(__file__).parent

DRAW = """
import sys, torch
from scenes import random_gaussians
from instantgi import native
from instantgi.render import rasterize
from instantgi.render.ops import rasterize_sum_backward
gaussians = random_gaussians(800, 61, 75, channels=5)
image = rasterize(gaussians, 61, 75)
grads = rasterize_sum_backward(image, gaussians.means, gaussians.cholesky, gaussians.colors, None)
torch.save([native.instruction_set(), image, *grads], sys.argv[1])
"""


def run(code: str, *arguments: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(TESTS)} | variables
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, list[torch.Tensor]]:
    """What every instruction set of this machine draws."""
    pictures = {}
    for capability in ("default", "avx2", "avx512"):
        path = tmp_path_factory.mktemp("native") / "drawn.pt"
        run(DRAW, str(path), ATEN_CPU_CAPABILITY=capability)
        name, *pictures_of = torch.load(path)
        pictures[name] = pictures_of
    return pictures


def test_a_machine_can_always_fall_back_to_the_baseline(drawn):
    assert "baseline" in drawn
    assert native.instruction_set() in drawn


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_instruction_sets_agree(drawn, name):
    if name not in drawn:
        pytest.skip(f"this machine has no {name}")
    image, *grads = drawn[name]
    expected, *expected_grads = drawn["baseline"]
    # fused or separate multiplications: 3e-6 a term as in test_rasterize, plus 800 · 2**-24; a
    # pixel on the cut-off may fall on either side, which moves it by 1/255 and the gradients of
    # that Gaussian by 1/255 of a gradient of up to 8 · 3.33² / 0.85
    assert_close(image, expected, rtol=5e-5, atol=1.1 / 255)
    assert ((image - expected).abs() > 5e-5 * expected + 1e-6).sum() <= 2 * 5
    for grad, other in zip(grads, expected_grads, strict=True):
        assert ((grad - other).abs() > 1e-4 * (1 + other.abs().amax())).any(-1).sum() <= 4
        assert_close(grad, other, rtol=1e-4, atol=8 * 5 * 3.33**2 / 0.85 / 255)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at libraries of Linux only")
def test_a_library_that_was_cut_is_not_loaded(tmp_path, monkeypatch):
    path = native.cpu_library_path()
    assert not native._is_cut(path)
    (tmp_path / path.name).write_bytes(path.read_bytes()[:-1000])
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.cpu_library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"\(libinstantgi_.* is not whole\): reinstall with"):
            native.cpu_library()
    finally:
        native.cpu_library.cache_clear()


def test_a_missing_library_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.cpu_library.cache_clear()
    try:
        message = (
            r"the CPU kernels are missing from this install \(libinstantgi_.*\): "
            r"reinstall with a C\+\+17 compiler \(in a copy .*: pip install .* -e \.\)"
        )
        with pytest.raises(RuntimeError, match=message):
            rasterize(random_gaussians(3, 8, 9), 8, 9)
    finally:
        native.cpu_library.cache_clear()


def test_a_broken_library_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    name = f"libinstantgi_{native.instruction_set()}{native.SUFFIX}"
    (tmp_path / name).write_bytes(b"\x7fELF and nothing else")
    native.cpu_library.cache_clear()
    try:
        with pytest.raises(
            RuntimeError, match="the CPU kernels cannot be loaded .*: reinstall with"
        ):
            native.cpu_library()
    finally:
        native.cpu_library.cache_clear()


def test_loading_keeps_denormals():
    """GCC before 13 links -ffast-math with code that flushes denormals in the whole process."""
    code = """
import torch
from instantgi import native
tiny = torch.tensor(1e-310, dtype=torch.float64)
native.cpu_library()
assert (tiny / 2).item() == 5e-311 and 1e-310 / 2 == 5e-311
print((torch.full((100000,), 1e-40) * 0.5).min().item() > 0)
"""
    assert run(code) == "True"


def test_the_thread_pool_of_torch_is_shared():
    libraries = list((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not libraries:
        pytest.skip("this torch brings no libgomp")
    assert native.parallel_region().value


def test_every_source_that_cuda_needs_is_there():
    root = Path(native.__file__).parent.parent
    folder = root / "cuda" if (root / "cuda").is_dir() else native.FOLDER
    assert "whitening" in (folder / "rasterize_sum.h").read_text()


def test_arguments_are_passed_by_kind():
    assert isinstance(native._to_c(None), ctypes.c_void_p)
    assert native._to_c(2**40).value == 2**40
    assert native._to_c(0.1).value == 0.1
    tensor = torch.ones(3)
    assert native._to_c(tensor).value == tensor.data_ptr()
    with pytest.raises(AssertionError):
        native._to_c(torch.ones(4, 4).T[::2])


def test_a_kernel_that_refuses_raises_value_error():
    gaussians = random_gaussians(3, 8, 9)
    gaussians.means[1] = torch.nan
    with pytest.raises(
        ValueError, match="^rasterize_sum: Gaussian 1 has a parameter that is not finite$"
    ):
        rasterize(gaussians, 8, 9)
