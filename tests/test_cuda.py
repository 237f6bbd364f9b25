"""CUDA kernels against those of the CPU, on a GPU where there is one, emulated everywhere.

The rasterizer against its definition: test_rasterize.py, whose tests run on every device.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import cuda_emulator
import pytest
import torch
from scenes import random_gaussians
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from instantgi import native
from instantgi.fit import (
    LIG,
    SGI,
    GaussianImage,
    ImageGS,
    LocalAdam,
    fit_image,
    heuristic_start,
    solve_colors,
)
from instantgi.fit.adan import Adan
from instantgi.fit.replay import Replay
from instantgi.gaussians import Gaussians
from instantgi.models.fields import LocalFields, describe_triangles
from instantgi.models.look import Look, look_target
from instantgi.points import make_mesh
from instantgi.points.dither import dither_map, dither_map_reference
from instantgi.points.gradient import gradient_map
from instantgi.render import mixture_at, rasterize, rasterize_mixture
from instantgi.render.draw import draw
from instantgi.render.ops import order_by_place, rasterize_error, to_blocks
from instantgi.representations import Level, Levels, flat
from instantgi.similarity import mean_ssim

CUDA = Path(__file__).parents[1] / "cuda"
OPS = sorted(path.name.removesuffix("_cuda.cu") for path in CUDA.glob("*_cuda.cu"))
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "emulated"])
def on_gpu(request):
    """A function that calls another one where CUDA kernels run; results come back to the CPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch.cuda.is_available() is False")

    def call(function, *arguments):
        if request.param == "emulated":
            with cuda_emulator.in_place_of_cpu_kernels():
                return function(*arguments)
        return moved(function(*(moved(value, "cuda") for value in arguments)), "cpu")

    return call


def moved(value, device: str):
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        kind: Any = type(value)  # a named tuple, or a plain one
        return kind(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value.to(device) if isinstance(value, torch.Tensor | Gaussians) else value


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Discs and stripes in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    planes = [
        0.5 + 0.4 * torch.sin(x / (2 + k) + y / 5) * (torch.hypot(x - 9, y - 12) < 4 + 3 * k)
        for k in range(channels)
    ]
    return torch.stack(planes)


def fields(gaussians: Gaussians) -> tuple[torch.Tensor, ...]:
    return gaussians.means, gaussians.cholesky, gaussians.colors


# points


@pytest.mark.parametrize(
    "height, width",
    [(1, 1), (1, 9), (9, 1), (2, 2), (3, 2), (7, 5), (61, 47), (33, 300), (1030, 3), (1025, 1)],
)
def test_dithering_puts_the_same_points(on_gpu, height, width):
    cells = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(on_gpu(dither_map, cells), dither_map_reference(cells))


def test_dithering_of_nothing(on_gpu):
    for size in ((0, 4), (4, 0)):
        assert on_gpu(torch.ops.instantgi.dither_map, torch.zeros(size)).shape == size


# the network's kernel


@pytest.mark.parametrize("channels, side", [(1, 8), (2, 12), (3, 16), (4, 8)])
def test_triangles_are_described_the_same(on_gpu, channels, side):
    image = picture(23, 31, channels)
    mesh = make_mesh(image[0] + 0.05, 3, 60)
    grid = LocalFields(0, grid=side).grid
    expected = describe_triangles(image, mesh, grid, 2, 50)
    for part, other in zip(
        on_gpu(describe_triangles, image, mesh, grid, 2, 50), expected, strict=True
    ):
        # sums in another order; the smallest deviation, 0.01, magnifies what pixels differ by
        assert_close(part, other, rtol=1e-4, atol=1e-4)


def test_a_mesh_that_names_what_is_not_there_is_refused(on_gpu):
    image = picture(20, 20)
    mesh = make_mesh(image[0], 3, 30)
    for name in ("triangles", "neighbors"):
        indices = getattr(mesh, name).clone()
        indices[3, 1] = 10**6
        with pytest.raises(ValueError, match="names a point or a neighbor that is not there"):
            on_gpu(describe_triangles, image, mesh._replace(**{name: indices}), LocalFields(0).grid)


def test_a_look_moves_the_same(on_gpu):
    torch.manual_seed(0)
    look, image = Look(), picture(24, 30)
    mesh = make_mesh(image[0] + 0.05, 3, 60)
    num = len(mesh.triangles)
    gaussians, memory = random_gaussians(num, 24, 30), torch.randn(num, 32)

    def run(gaussians, memory, neighbors, target):
        with torch.no_grad():
            return look.to(memory.device)(gaussians, memory, neighbors, target, 24, 30)

    arguments = (gaussians, memory, mesh.neighbors, look_target(image))
    expected = run(*arguments)
    for part, other in zip(fields(on_gpu(run, *arguments)), fields(expected), strict=True):
        assert_close(part, other, rtol=1e-3, atol=1e-3)


# fits


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_solved_colors_are_the_same(on_gpu, channels):
    image, gaussians = picture(21, 33, channels), random_gaussians(40, 21, 33, channels=channels)
    expected = solve_colors(gaussians, image, 4)
    # four iterations amplify what sums in another order differ by
    assert_close(
        on_gpu(solve_colors, gaussians, image, 4).colors, expected.colors, rtol=0, atol=1e-4
    )


METHODS: dict[str, Any] = {
    "instantgi": lambda: LocalAdam(relocations=()),
    "gaussianimage": GaussianImage,
    "gaussianimage-rs": lambda: GaussianImage("rs"),
    "lig": LIG,
    "imagegs": ImageGS,
    "sgi": lambda: SGI(features=4, per_seed=2),
}
STARTS: dict[str, dict[str, Any]] = {  # where not from Gaussians that are given
    "lig": {"num_gaussians": 60},
    "imagegs": {"num_gaussians": 60},
    "sgi": {"num_gaussians": 600},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_takes_the_same_steps(on_gpu, method):
    image, init = picture(21, 33), random_gaussians(30, 21, 33)

    def fit(image, init):
        start = STARTS.get(method, {"init": init})
        return fit_image(image, method=METHODS[method](), iterations=8, **start)

    one, same = on_gpu(fit, image, init), fit(image, init)
    for part, other in zip(fields(flat(one)), fields(flat(same)), strict=True):
        # Adam divides by the size of a gradient: where that is tiny, rounding shows
        assert_close(part, other, rtol=0, atol=5e-3)


def test_a_fit_moves_idle_gaussians_and_improves(on_gpu):
    image = picture(24, 40)

    def fit(image):
        method = LocalAdam(relocations=(0.3,))
        return fit_image(image, method=method, num_gaussians=60, iterations=30)

    expected, made = fit(image), on_gpu(fit, image)
    errors = [(rasterize(each, 24, 40) - image).square().mean() for each in (expected, made)]
    # where a Gaussian goes hangs on rounding: quality is compared, not places
    assert errors[1] < 1.3 * errors[0]


def test_a_fit_gives_the_same_bytes_twice(on_gpu):
    image = picture(24, 40)

    def fit(image):
        return fit_image(image, num_gaussians=60, iterations=25)

    for part, other in zip(fields(on_gpu(fit, image)), fields(on_gpu(fit, image)), strict=True):
        assert torch.equal(part, other)


def test_the_start_is_as_good(on_gpu):
    image = picture(40, 30)

    def error(gaussians: Gaussians) -> float:
        drawn = rasterize(solve_colors(gaussians, image, 5), 40, 30)
        return float((drawn - image).square().mean())

    expected, made = heuristic_start(image, 100), on_gpu(heuristic_start, image, 100)
    # blurs that round differently can move points
    assert abs(len(made) - len(expected)) <= 4
    assert error(made) == pytest.approx(error(expected), rel=0.2)


def test_adan_moves_the_same(on_gpu):
    random = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, 3, generator=random), torch.randn(3, 7, 3, generator=random)

    def run(start, gradients):
        parameter = start.clone().requires_grad_()
        optimizer = Adan([parameter], lr=0.01)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    assert_close(on_gpu(run, start, gradients), run(start, gradients), rtol=0, atol=1e-6)


# the order by place


@pytest.mark.parametrize("height, width", [(100, 160), (300, 7)])
def test_order_by_place_is_a_curve(on_gpu, height, width):
    means = random_gaussians(4000, height, width).means
    order = on_gpu(order_by_place, means, height, width)
    assert torch.equal(order.sort().values, torch.arange(4000))

    def steps(means: torch.Tensor) -> torch.Tensor:
        return (means[1:] - means[:-1]).norm(dim=1)

    # the mean distance of neighbors in space is 0.5 / √density
    spacing = 0.5 * (height * width / 4000) ** 0.5
    assert steps(means[order]).median() < 4 * spacing
    assert steps(means[order]).mean() < 0.1 * steps(means).mean() + 4 * spacing


def test_means_far_outside_have_a_place(on_gpu):
    means = torch.tensor([[float("nan"), 1e30], [-1e30, float("inf")], [3.0, 4.0]])
    assert sorted(on_gpu(order_by_place, means, 10, 12).tolist()) == [0, 1, 2]


def test_many_gaussians_in_one_tile_and_many_chunks(on_gpu):
    # several batches of shared memory in a tile, and more chunks than a group has
    gaussians = random_gaussians(9000, 20, 36, scales=(0.5, 3))
    expected = rasterize(gaussians, 20, 36)
    # 9,000 additions of terms that are rounded to 3e-6, and some on the cut-off
    actual = on_gpu(rasterize, gaussians, 20, 36)
    assert ((actual - expected).abs() > 1e-4 * expected).float().mean() < 0.02
    assert_close(actual, expected, rtol=1e-4, atol=2 / 255)


def test_many_gaussians_in_one_tile_of_a_mixture(on_gpu):
    gaussians = random_gaussians(9000, 20, 36, scales=(0.5, 3))
    expected = rasterize_mixture(gaussians, 20, 36, top_k=30)
    actual = on_gpu(lambda scene: rasterize_mixture(scene, 20, 36, top_k=30), gaussians)
    # the last of 30 weights, where rounding may choose another, is at most a 30th of all
    assert_close(actual, expected, rtol=0, atol=1 / 30)
    assert ((actual - expected).abs() > 1e-6).float().mean() < 0.01


def test_a_mixture_gives_the_same_bytes_twice(on_gpu):
    scene, points = random_gaussians(400, 40, 50, scales=(1, 6)), torch.rand(300, 2) * 40

    def run(scene, points):
        leaves = scene.map(lambda field: field.clone().requires_grad_())
        picture, values = rasterize_mixture(leaves, 40, 50), mixture_at(leaves, points)
        grads = torch.autograd.grad(picture.sin().sum() + values.cos().sum(), fields(leaves))
        return picture.detach(), values.detach(), *grads

    first, second = on_gpu(run, scene, points), on_gpu(run, scene, points)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("num, num_points", [(9000, 600), (6, 40_000)])
def test_values_and_gradients_at_many_points(on_gpu, num, num_points):
    scene = random_gaussians(num, 40, 60, scales=(0.5, 4) if num > 6 else (9, 30))
    random = torch.Generator().manual_seed(0)
    points = torch.rand(num_points, 2, generator=random) * torch.tensor([60.0, 40.0])

    def run(scene, points):
        leaves = scene.map(lambda field: field.clone().requires_grad_())
        values = mixture_at(leaves, points, top_k=32)
        return values.detach(), *torch.autograd.grad(values.sin().sum(), fields(leaves))

    for part, other in zip(on_gpu(run, scene, points), run(scene, points), strict=True):
        # sums in another order; at some points rounding chooses another last weight
        error = (part - other).abs()
        assert (error > 1e-4 * other.abs().max()).float().mean() < 0.01


# tensors that have a device but no values: to mix devices is an error, and so is to look at one


class Launches(TorchDispatchMode):
    """Operators do what they would do on a GPU; the names of the kernels that they launch."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.kernels, self.values = [], FakeTensorMode(allow_non_fake_inputs=True)
        monkeypatch.setattr(native, "call_cuda", self.launch)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    def launch(self, op, kernel, blocks, threads, *arguments, real=torch.float32):
        native._check_tensors(kernel, arguments, torch.device("cuda", 0))
        self.kernels.append(kernel)

    def __enter__(self):
        self.values.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.values.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func._schema.name.split("::")
        if space != "instantgi":
            return func(*args, **(kwargs or {}))
        with self:
            return cuda_emulator.OPERATORS[name](*args, **(kwargs or {}))


def as_on_gpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("cuda")
    return [as_on_gpu(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("method", ["instantgi", "gaussianimage", "gaussianimage-rs", "lig"])
def test_a_captured_step_stays_on_its_device(method, monkeypatch):
    fitter, image = METHODS[method](), picture(21, 33)
    fitter.start(image, None if method == "lig" else random_gaussians(30, 21, 33), 60, 0)
    captured = []
    fitter.replay = lambda function: captured.append(function) or function()
    with Launches(monkeypatch) as launches:
        for name, value in vars(fitter).items():
            setattr(fitter, name, as_on_gpu(value))
        if method == "lig":
            parameters = [fitter.means, fitter.covariances, fitter.colors]
            fitter.optimizer = torch.optim.Adam(parameters, fused=True, capturable=True)
        else:
            fitter.schedule.now = as_on_gpu(fitter.schedule.now)
        assert fitter.step(0.05).device.type == "cuda"
    assert len(captured) == 1 and {"draw_error_3", "backward_3"} <= set(launches.kernels)


DRAWN: dict[str, Any] = {
    "sum": lambda scene, image: rasterize(scene, *image.shape[1:]),
    "residual": lambda scene, image: error_of(scene, image)[0],
    "mixture": lambda scene, image: rasterize_mixture(scene, *image.shape[1:]),
    "level": lambda scene, image: draw(Levels((Level(scene, *image.shape[1:]),)), 42, 66),
    "SSIM": lambda scene, image: mean_ssim(rasterize(scene, *image.shape[1:]), image),
    "start": lambda scene, image: gradient_map(image),
    "colors": lambda scene, image: solve_colors(scene, image, 2).colors,
}


@pytest.mark.parametrize("drawn", DRAWN)
def test_what_is_drawn_stays_on_its_device(drawn, monkeypatch):
    scene, image = random_gaussians(30, 21, 33), picture(21, 33)
    with Launches(monkeypatch) as launches, torch.no_grad():
        made = DRAWN[drawn](scene.map(as_on_gpu), as_on_gpu(image))
    assert made.device.type == "cuda"
    assert launches.kernels or drawn == "start"


# what only a GPU has


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch.cuda.is_available() is False")
    return torch.device("cuda", torch.cuda.current_device())


def error_of(gaussians: Gaussians, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = image.shape[1:]
    order = order_by_place(gaussians.means, height, width)
    return rasterize_error(*fields(gaussians), to_blocks(image), height, width, False, order)


@pytest.mark.gpu
def test_a_graph_draws_what_is_there_when_it_is_replayed(gpu):
    image, gaussians = picture(40, 50).to(gpu), random_gaussians(200, 40, 50).to(gpu)
    replayed = Replay(gpu)
    for _ in range(5):
        residual = replayed(lambda: error_of(gaussians, image)[0])
        assert torch.equal(residual, error_of(gaussians, image)[0])
        gaussians.colors.mul_(0.9)
    assert replayed.graph is not None


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["instantgi", "gaussianimage", "gaussianimage-rs", "lig"])
def test_a_fit_by_graph_gives_the_bytes_of_single_launches(gpu, method, monkeypatch):
    image = picture(40, 50).to(gpu)

    def fit() -> tuple[torch.Tensor, ...]:
        return fields(flat(fit_image(image, method=method, num_gaussians=200, iterations=40)))

    by_graph = fit()
    monkeypatch.setattr("instantgi.fit.replay.EAGER", 10**6)
    assert all(torch.equal(one, other) for one, other in zip(by_graph, fit(), strict=True))


@pytest.mark.gpu
def test_streams_do_not_disturb_each_other(gpu):
    scenes = [random_gaussians(5000, 300, 400, seed=seed).to(gpu) for seed in range(2)]
    expected = [rasterize(scene, 300, 400) for scene in scenes]
    streams = [torch.cuda.Stream() for _ in scenes]
    torch.cuda.synchronize()
    drawn: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for stream, scene, images in zip(streams, scenes, drawn, strict=True):
            with torch.cuda.stream(stream):
                images.append(rasterize(scene, 300, 400))
    torch.cuda.synchronize()
    for images, image in zip(drawn, expected, strict=True):
        assert all(torch.equal(one, image) for one in images)


@pytest.mark.gpu
def test_memory_is_given_back(gpu):
    gaussians = random_gaussians(2000, 100, 100).to(gpu)
    rasterize(gaussians, 100, 100)
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        leaves = gaussians.map(lambda field: field.clone().requires_grad_())
        rasterize(leaves, 100, 100).sum().backward()
    del leaves
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_kernels_run_on_the_gpu_of_the_tensors(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    gaussians = random_gaussians(100, 20, 30)
    pictures = [rasterize(gaussians.to(f"cuda:{i}"), 20, 30) for i in range(2)]
    assert [image.device.index for image in pictures] == [0, 1]
    assert_close(pictures[0].cpu(), pictures[1].cpu(), rtol=1e-6, atol=1e-6)
    image = picture(24, 40)
    fits = [fit_image(image.to(f"cuda:{i}"), num_gaussians=60, iterations=25) for i in range(2)]
    assert [fitted.means.device.index for fitted in fits] == [0, 1]
    assert all(torch.isfinite(part).all() for fitted in fits for part in fields(fitted))


# compilation, which needs no GPU


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles(op, arch, monkeypatch, tmp_path):
    pytest.importorskip("cuda.core")
    monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path))
    assert native.cubin(op, "float", arch).startswith(b"\x7fELF")


@pytest.mark.parametrize("op", [op for op in OPS if op.startswith(("rasterize", "prepare"))])
def test_the_rasterizer_compiles_in_double(op, monkeypatch, tmp_path):
    pytest.importorskip("cuda.core")
    monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path))
    assert native.cubin(op, "double", "sm_90").startswith(b"\x7fELF")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Calls of the compiler, which here gives numbered bytes; the cache is a new folder."""
    calls = []

    def compile_cuda(source, name, real, arch):
        calls.append((name, real, arch))
        return b"code %d" % len(calls)

    monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "compile_cuda", compile_cuda)
    monkeypatch.setattr(native, "nvrtc_version", lambda: (13, 2))
    return calls


def test_a_kernel_is_compiled_once(compiled, tmp_path, monkeypatch):
    for _ in range(2):
        assert native.cubin("adan", "float", "sm_90") == b"code 1"
    assert native.cubin("adan", "float", "sm_80") == b"code 2"
    monkeypatch.setattr(native, "nvrtc_version", lambda: (13, 3))
    assert native.cubin("adan", "float", "sm_90") == b"code 3"
    monkeypatch.setattr(native, "cuda_source", lambda op: "another source")
    assert native.cubin("adan", "float", "sm_90") == b"code 4"
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"short", hashlib.sha256(b"a").digest() + b"b"])
def test_a_damaged_cache_entry_is_compiled_again(compiled, tmp_path, damage):
    native.cubin("adan", "float", "sm_90")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(damage)
    assert native.cubin("adan", "float", "sm_90") == b"code 2"
    assert native.cubin("adan", "float", "sm_90") == b"code 2"


def test_a_cache_that_cannot_be_written_is_no_error(compiled, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert native.cubin("adan", "float", "sm_90") == b"code 1"


def test_processes_share_a_cache(tmp_path):
    pytest.importorskip("cuda.core")
    code = "from instantgi import native; print(len(native.cubin('adan', 'float', 'sm_90')))"
    environment = {"INSTANTGI_CACHE": str(tmp_path), "PATH": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    sizes = {process.communicate(timeout=120)[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(sizes) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".cubin"]


def test_a_source_that_does_not_compile_is_shown():
    pytest.importorskip("cuda.core")
    with pytest.raises(
        RuntimeError, match=r"(?s)cannot compile adan_cuda.cu for sm_90: .*nonsense"
    ):
        native.compile_cuda("nonsense", "adan", "float", "sm_90")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(RuntimeError, match=r'need cuda-core .* pip install "instantgi\[gpu\]"'):
        native.cubin("adan", "float", "sm_90")


def test_an_old_gpu_is_refused():
    with pytest.raises(RuntimeError, match=r"capability 6\.1, the CUDA kernels need 7\.5"):
        native._cuda_module("adan", "float", (6, 1))
