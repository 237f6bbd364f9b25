"""3D splatting, with a stand-in for gsplat on the CPU: gsplat itself needs a GPU."""

import inspect
import sys

import pytest
import torch
from torch import Tensor

from instantgi.cli import main
from instantgi.codec import encode
from instantgi.fit import Splatting, fit_image
from instantgi.images import write_image
from instantgi.measure import profile_of
from instantgi.metrics import psnr
from instantgi.render import splats
from instantgi.render.draw import draw, pixels
from instantgi.representations import Splats

asked: list[dict] = []


def stand_in(**options) -> tuple[Tensor, None, None]:
    """`gsplat.rasterization` of one camera in plain torch: project, sort, blend."""
    asked.append(options)
    height, width = options["height"], options["width"]
    focal = options["Ks"][0, [0, 1], [0, 1]]
    center, view = options["Ks"][0, :2, 2], options["viewmats"][0]
    points = options["means"] @ view[:3, :3].T + view[:3, 3]
    x, y, z = points.unbind(1)
    means = torch.stack([x, y], 1) / z[:, None] * focal + center
    zero = torch.zeros_like(z)
    rows = [focal[0] / z, zero, -focal[0] * x / z**2, zero, focal[1] / z, -focal[1] * y / z**2]
    jacobian = torch.stack(rows, 1).reshape(-1, 2, 3)
    turned = rotations_of(options["quats"]) * options["scales"][:, None]
    spread = jacobian @ view[:3, :3] @ turned
    covariances = spread @ spread.mT + options["eps2d"] * torch.eye(2)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    away = torch.stack([columns, rows], -1)[:, :, None] + 0.5 - means  # [H, W, N, 2]
    sigma = 0.5 * torch.einsum("hwni,nij,hwnj->hwn", away, covariances.inverse(), away)
    alphas = options["opacities"] * torch.exp(-sigma)
    order = z.argsort()
    alphas, colors = alphas[..., order], (options["colors"][:, 0] * 0.2820948 + 0.5)[order]
    ahead = torch.cumprod(1 - alphas, -1)  # what passes the first so many
    passed = torch.cat([torch.ones_like(alphas[..., :1]), ahead[..., :-1]], -1)
    drawn = torch.einsum("hwn,nc->hwc", alphas * passed, colors.clamp_min(0))
    drawn = drawn + ahead[..., -1:] * options["backgrounds"][0]
    return drawn[None], None, None


def rotations_of(quaternions: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).reshape(-1, 3, 3)


@pytest.fixture
def gsplat(monkeypatch):
    monkeypatch.setattr(splats, "_rasterization", lambda device: stand_in)


def one_splat(x: float, y: float, height: int = 33, width: int = 41) -> Splats:
    """Opaque, black, and small, at a place in space."""
    harmonics = torch.zeros(1, 16, 3)
    harmonics[:, 0] = -0.5 / 0.2820948
    parts = torch.tensor([[x, y, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    size = torch.full((1, 3), 0.3).log()
    return Splats(*parts, size, torch.full((1,), 9.0), harmonics, height, width)


def test_a_splat_is_where_the_camera_sees_it(gsplat):
    drawn = draw(one_splat(0.0, 0.0), 33, 41)
    darkest = drawn.sum(0).argmin()
    assert divmod(int(darkest), 41) == (16, 20)  # in the middle, the rest is white
    assert drawn[:, 0, 0].tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    # 4 to the right at a depth of 8 is half the way to the border; y points down
    darkest = draw(one_splat(4.0, 2.0), 33, 41).sum(0).argmin()
    assert divmod(int(darkest), 41) == (16 + 5, 20 + 10)


def test_fit_improves_on_its_start_and_is_deterministic(gsplat):
    image = torch.ones(3, 20, 24)
    image[:, 8:12, 9:15] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    first, again = (
        fit_image(image, method=Splatting(rate=2e-2), num_gaussians=60, iterations=60)
        for _ in range(2)
    )
    assert isinstance(first, Splats) and len(first) == 60
    start = Splatting()
    start.start(image, None, 60, 0)
    levels = [psnr(draw(made, 20, 24).detach(), image) for made in (start.gaussians(), first)]
    assert levels[1] > levels[0] + 2
    for one, two in zip(first.fields(), again.fields(), strict=True):
        assert torch.equal(one, two) and not one.requires_grad


def test_start_is_as_in_the_comparison(gsplat):
    fitter = Splatting()
    fitter.start(torch.rand(3, 16, 16), None, 400, 3)
    made = fitter.gaussians()
    assert made.means.abs().max() <= 1 and made.means.std() > 0.5
    assert made.raw_opacities.sigmoid().tolist() == pytest.approx([0.1] * 400)
    away = torch.cdist(made.means, made.means).sort(1).values[:, 1:4].mean(1)
    torch.testing.assert_close(made.log_scales.exp(), away[:, None].repeat(1, 3))
    assert asked[-1]["eps2d"] == 0.3 and asked[-1]["sh_degree"] == 3
    assert asked[-1]["backgrounds"].tolist() == [[1, 1, 1]]


def test_rate_is_halved(gsplat):
    fitter = Splatting(halve_every=2)
    fitter.start(torch.rand(3, 8, 8), None, 5, 0)
    rates = []
    for _ in range(5):
        fitter.step(0.0)
        rates.append(fitter.optimiser.param_groups[0]["lr"])
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]


def test_without_a_gpu_or_gsplat_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "pictures").mkdir()
    write_image(tmp_path / "pictures" / "a.png", torch.rand(3, 16, 16))
    words = ["bench", "--images", str(tmp_path / "pictures"), "-o", str(tmp_path / "x.json")]
    assert main([*words, "--methods", "3dgs", "--device", "cpu", "--quiet"]) == 1
    line = "error: 3dgs needs an NVIDIA GPU, for gsplat; leave the method out\n"
    assert capsys.readouterr().err == line and not (tmp_path / "x.json").exists()
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(RuntimeError, match=r'needs gsplat: pip install "instantgi\[gsplat\]"'):
        splats._rasterization(torch.device("cuda"))


def test_bench_has_rows_of_it_without_a_file(gsplat, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    write_image(tmp_path / "pictures" / "a.png", torch.rand(3, 16, 16))
    words = ["bench", "--images", str(tmp_path / "pictures"), "-o", str(tmp_path / "x.json")]
    words += ["--methods", "gaussianimage,3dgs", "--iterations", "2", "--num-gaussians", "9"]
    assert main([*words, "--quiet"]) == 0
    assert "| 3dgs | 2 | 1 | 9 |" in capsys.readouterr().out
    assert main([*words[:-2], "--bytes", "500", "--quiet"]) == 1
    assert "no file can hold what 3dgs makes" in capsys.readouterr().err


def test_what_splats_cannot_is_said(gsplat):
    made = one_splat(0.0, 0.0)
    assert profile_of(made) == "none"
    with pytest.raises(ValueError, match="at their own size only, 41x33"):
        draw(made, 66, 82)
    with pytest.raises(ValueError, match="as whole pictures only"):
        pixels(made, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no file holds splats"):
        encode(made, 33, 41)
    with pytest.raises(ValueError, match="pictures in RGB, got 1 channels"):
        fit_image(torch.rand(1, 8, 8), method="3dgs", iterations=1)
    with pytest.raises(ValueError, match="from random Gaussians in space only"):
        Splatting().start(torch.rand(3, 8, 8), made, 4, 0)


@pytest.mark.filterwarnings("ignore")
def test_gsplat_takes_what_is_asked_of_it(gsplat):
    package = pytest.importorskip("gsplat")
    draw(one_splat(0.0, 0.0), 33, 41)
    inspect.signature(package.rasterization).bind(**asked[-1])
