import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

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
    with pytest.raises(
        ValueError,
        match=r"argument 1 must be a contiguous tensor on cpu, got \[2, 4\] on cpu and not",
    ):
        native.call_cpu("nothing", 3, torch.ones(4, 4).T[::2])
    with pytest.raises(ValueError, match=r"must be a contiguous tensor on cpu, got \[3\] on meta$"):
        native.call_cpu("nothing", torch.ones(3, device="meta"))


def test_a_kernel_that_refuses_raises_value_error():
    gaussians = random_gaussians(3, 8, 9)
    gaussians.means[1] = torch.nan
    with pytest.raises(
        ValueError, match="^rasterize_sum: Gaussian 1 has a parameter that is not finite$"
    ):
        rasterize(gaussians, 8, 9)


# --- CUDA, without a GPU -----------------------------------------------------------------------


class OnGPU(torch.Tensor):
    """Says that it is on GPU 1, and has an address there."""

    @staticmethod
    def __new__(cls, num: int):
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, (num,), device=torch.device("cuda", 1)
        )

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        raise NotImplementedError

    def data_ptr(self) -> int:
        return 2**40


@pytest.fixture
def launches(monkeypatch):
    """What would be launched."""
    made: list = []
    core = SimpleNamespace(
        Device=lambda index: SimpleNamespace(set_current=lambda: made.append(("device", index))),
        Stream=SimpleNamespace(from_handle=lambda handle: ("stream", handle)),
        LaunchConfig=lambda **sizes: sizes,
        launch=lambda *arguments: made.append(arguments),
    )
    monkeypatch.setattr(native, "_cuda_core", lambda: core)
    monkeypatch.setattr(native, "_cuda_kernel", lambda *names: names)
    monkeypatch.setattr(native, "_current", threading.local())
    native._stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    yield made
    native._stream.cache_clear()


def test_a_launch_has_device_stream_sizes_and_plain_numbers(launches):
    tensor = OnGPU(3)
    for _ in range(2):
        native.call_cuda("adan", "step", 5, 64, tensor, 7, 0.5, None)
    told, *both = launches
    assert told == ("device", 1)  # once in this thread
    # the legacy default stream has handle 1 where a stream is meant
    launch = (("stream", 1), {"grid": 5, "block": 64}, ("adan", "step", "float", (9, 0)))
    assert both == [(*launch, 2**40, 7, 0.5, 0)] * 2
    assert [type(value) for value in both[0][3:]] == [int, int, float, int]


def test_every_thread_tells_its_device(launches):
    tensor = OnGPU(3)
    for _ in range(2):
        thread = threading.Thread(target=native.call_cuda, args=("adan", "step", 1, 1, tensor))
        thread.start()
        thread.join()
    assert launches.count(("device", 1)) == 2


def test_no_blocks_are_no_launch_and_tensors_of_two_devices_an_error(launches):
    tensor = OnGPU(3)
    native.call_cuda("adan", "step", 0, 64, tensor)
    with pytest.raises(
        ValueError, match=r"^step: argument 1 must be .* on cuda:1, got \[2\] on cpu$"
    ):
        native.call_cuda("adan", "step", 1, 64, tensor, torch.ones(2))
    assert not launches


def pretend_gpu(monkeypatch, capability=(9, 0), built=True, available=True):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(native, "nvrtc_version", lambda: (13, 0))


def test_a_device_is_chosen_by_name(monkeypatch):
    pretend_gpu(monkeypatch)
    assert native.cuda_error() is None
    assert native.choose_device("auto") == native.choose_device("cuda") == torch.device("cuda:1")
    assert native.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match='must be auto, cpu or cuda, got "tpu"'):
        native.choose_device("tpu")


@pytest.mark.parametrize(
    "found, said",
    [
        ({"built": False}, "built without CUDA"),
        ({"capability": (6, 1)}, r"capability 6\.1, the CUDA kernels need 7\.5"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_a_warning_or_an_error(monkeypatch, found, said):
    pretend_gpu(monkeypatch, **found)
    with pytest.raises(RuntimeError, match=f"the GPU cannot be used: .*{said}"):
        native.choose_device("cuda")
    with pytest.warns(UserWarning, match=f"using the CPU, .*{said}"):
        assert native.choose_device("auto") == torch.device("cpu")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    pretend_gpu(monkeypatch, available=False)
    assert native.choose_device("auto") == torch.device("cpu")
    assert "torch finds no NVIDIA GPU" in str(native.cuda_error())


def test_the_bindings_of_this_torch_are_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert native.bindings_needed().endswith('pip install "cuda-bindings==12.*"')


@pytest.mark.parametrize(
    "capability, name", [((7, 5), "sm_75"), ((12, 0), "sm_120"), ((13, 0), "compute_121")]
)
def test_a_gpu_newer_than_nvrtc_gets_code_that_its_driver_completes(monkeypatch, capability, name):
    monkeypatch.setattr(native, "newest_architecture", lambda: 121)
    assert native.architecture(capability) == name


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("INSTANTGI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert native.cache_folder() == Path(tempfile.gettempdir()) / "instantgi"
