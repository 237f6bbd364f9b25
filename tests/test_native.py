import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
import types
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


# --- CUDA, without a GPU -------------------------------------------------------------------------


class FakeCore:
    """What call_cuda needs of cuda-core; it keeps what is launched."""

    __version__ = "0"

    def __init__(self) -> None:
        self.launched: list[tuple] = []
        self.entered: list[int] = []
        self.handles: list[int] = []
        self.ObjectCode = self
        self.Stream = self

    def Device(self, index: int) -> "FakeCore":
        self.entered.append(index)
        return self

    def set_current(self) -> None:
        pass

    def from_handle(self, handle: int) -> str:
        self.handles.append(handle)
        return f"stream {handle}"

    def from_cubin(self, code: bytes) -> "FakeCore":
        return self

    def get_kernel(self, name: str) -> str:
        return f"kernel {name}"

    def LaunchConfig(self, grid: int, block: int) -> tuple[int, int]:
        return grid, block

    def launch(self, *arguments: object) -> None:
        self.launched.append(arguments)


class OnGPU(torch.Tensor):
    """A tensor in main memory that says it is on a GPU."""

    @property
    def device(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda", 1)


@pytest.fixture
def core(monkeypatch):
    core = FakeCore()
    monkeypatch.setattr(native, "_cuda_core", lambda: core)
    monkeypatch.setattr(native, "cubin", lambda op, real, arch: f"{op} {real} {arch}".encode())
    monkeypatch.setattr(native, "_of_thread", threading.local())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    stream = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    caches = native._stream, native._cuda_kernel, native._cuda_module
    for cache in caches:
        cache.cache_clear()
    yield core
    for cache in caches:
        cache.cache_clear()


def test_kernels_are_launched_on_the_stream_and_device_of_the_tensors(core):
    tensor = torch.zeros(3).as_subclass(OnGPU)
    for _ in range(2):
        native.call_cuda("adan", "adan", 7, 128, 5, 0.5, tensor, None)
    expected = "stream 1", (7, 128), "kernel adan", 5, 0.5, tensor.data_ptr(), 0
    assert core.launched == [expected] * 2
    assert core.entered == [1] and core.handles == [1]  # once; 0, torch's default, is 1 here
    thread = threading.Thread(target=native.call_cuda, args=("adan", "adan", 1, 32, tensor))
    thread.start()
    thread.join()
    assert core.entered == [1, 1]  # another thread has no context yet
    native.call_cuda("adan", "adan", 0, 32, tensor)
    assert len(core.launched) == 3


def test_tensors_on_two_devices_are_refused(core):
    tensor = torch.zeros(3).as_subclass(OnGPU)
    with pytest.raises(ValueError, match="on one device, got some on cuda:1 and some on cpu"):
        native.call_cuda("adan", "adan", 1, 32, tensor, torch.zeros(3))
    with pytest.raises(ValueError, match="some on the CPU and some on meta"):
        native.call_cpu("adan", torch.zeros(3, device="meta"))


def test_a_gpu_that_cannot_be_used_says_why(monkeypatch):
    assert native.choose_device("auto") == native.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match='device must be auto, cpu or cuda, got "tpu"'):
        native.choose_device("tpu")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(RuntimeError, match="cannot be used: this torch is built without CUDA"):
        native.choose_device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(RuntimeError, match="torch finds no NVIDIA GPU"):
        native.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    with pytest.warns(UserWarning, match="using the CPU.* capability 6.1, .* need 7.5"):
        assert native.choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(native, "nvrtc_version", lambda: (13, 0))
    assert native.choose_device("auto") == torch.device("cuda", 3)


def test_what_is_cached_goes_with_how_it_was_compiled(monkeypatch, tmp_path):
    pytest.importorskip("cuda.core")
    monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(native, "compile_cuda", lambda *what: made.append(what) or b"code")
    for _ in range(2):
        assert native.cubin("adan", "float", "sm_90") == b"code"
    assert len(made) == 1 and len(list(tmp_path.iterdir())) == 1
    usual = native.compile_options
    monkeypatch.setattr(native, "compile_options", lambda *what: usual(*what) | {"fma": False})
    native.cubin("adan", "float", "sm_90")
    assert len(made) == 2
    assert not usual("dither", "float", "sm_90")["ftz"] and usual("adan", "float", "sm_90")["ftz"]


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("INSTANTGI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert native.cache_folder() == Path(tempfile.gettempdir()) / "instantgi"
