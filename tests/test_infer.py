import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instantgi import infer, overview
from instantgi.cli import main
from instantgi.codec import open_file
from instantgi.fit import Progress, default_count, fit_image, make_fitter
from instantgi.folders import prepare_folder, replace_folder, vanishing
from instantgi.gaussians import Gaussians
from instantgi.images import read_image, to_8bit, write_image
from instantgi.infer import RESULTS, Curve, Recipe, infer_image, run_stages, to_json
from instantgi.render import rasterize
from instantgi.render.draw import draw_part
from instantgi.representations import flat

ROOT = Path(__file__).parents[1]
FILES = sorted(set(RESULTS) - {"snapshot.gi"})


def scene(height: int, width: int, bands: int = 3) -> np.ndarray:
    """A disc on a gradient, [H, W, bands], in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((x - width / 2) / width, (y - height / 2) / height) < 0.3
    planes = [x / width, y / height, 0.2 + 0.6 * disc, 0.3 + 0.7 * disc]
    return np.stack(planes, -1)[:, :, :bands]


def write(path: Path, height: int = 32, width: int = 48, bands: int = 3) -> Path:
    array = (255 * scene(height, width, bands)).astype(np.uint8)
    Image.fromarray(array[:, :, 0] if bands == 1 else array).save(path)
    return path


def quick(path: Path, folder: Path, **recipe) -> dict:
    return infer_image(path, folder, Recipe(**{"iterations": 5, **recipe}))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write(tmp_path / "scene.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "scene"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_result_is_whole_and_its_report_is_true(picture, folder):
    report = quick(picture, folder, iterations=20)
    assert names(folder) == FILES
    assert names(folder.parent) == ["scene"]
    assert json.loads((folder / "report.json").read_text()) == json.loads(to_json(report))
    assert (report["height"], report["width"], report["channels"]) == (32, 48, "rgb")
    assert [stage["name"] for stage in report["stages"]] == ["network", "colors", "fit"]
    assert (report["iterations"], report["seed"], report["device"]) == (20, 0, "cpu")
    num_bytes = (folder / "gaussians.gi").stat().st_size
    assert (report["bytes"], report["bpp"]) == (num_bytes, 8 * num_bytes / (32 * 48))
    assert report["ms_ssim"] is None  # below 161 pixels
    assert 0 < sum(stage["seconds"] for stage in report["stages"]) < report["seconds_total"]


def test_psnr_is_of_the_pictures_on_disk(picture, folder):
    report = quick(picture, folder, iterations=40)
    original = np.asarray(Image.open(picture), np.float64)
    for name, stage in (("init", report["stages"][1]), ("render", report["stages"][2])):
        written = np.asarray(Image.open(folder / f"{name}.png"), np.float64)
        mse = ((written - original) ** 2).mean()
        assert stage["psnr"] == pytest.approx(10 * math.log10(255**2 / mse))
    assert report["psnr"] == report["stages"][2]["psnr"] > report["stages"][1]["psnr"]


def test_saved_gaussians_draw_the_picture_that_was_written(picture, folder):
    quick(picture, folder)
    file = open_file(folder / "gaussians.gi")
    written = to_8bit(read_image(folder / "render.png"))
    assert file.profile == "lossless"
    assert file.metadata.recipe == {"method": "instantgi", "iterations": 5, "seed": 0}
    assert torch.equal(to_8bit(rasterize(file.gaussians(), file.height, file.width)), written)


def test_large_enough_pictures_have_ms_ssim_at_start_and_end(tmp_path, folder):
    report = quick(write(tmp_path / "scene.png", 161, 170), folder, iterations=40)
    _, colors, fit = report["stages"]
    assert 0 < colors["ms_ssim"] < fit["ms_ssim"] == report["ms_ssim"] <= 1


@pytest.mark.parametrize("method", ["instantgi", "gaussianimage", "gaussianimage-rs"])
def test_same_seed_gives_the_same_bytes(picture, tmp_path, method):
    for name in ("a", "b"):
        quick(picture, tmp_path / name, method=method, seed=3)
    for name in ("gaussians.gi", "render.png", "init.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_random_start_is_that_of_the_published_method(picture):
    image = read_image(picture)
    recipe = Recipe(method="gaussianimage", iterations=4, num_gaussians=50, seed=2)
    random, fit = run_stages(image, recipe)
    expected = fit_image(image, method="gaussianimage", iterations=4, num_gaussians=50, seed=2)
    assert random.name == "random"
    assert torch.equal(flat(fit.gaussians).cholesky, expected.cholesky)
    fitter = make_fitter("gaussianimage")
    fitter.start(image, None, 50, 2)
    assert torch.equal(flat(random.gaussians).means, fitter.gaussians().means)


@pytest.mark.parametrize(
    "height, width, bands, kind",
    [
        (1, 1, 3, "rgb"),
        (1, 1, 1, "gray"),
        (1, 700, 3, "rgb"),
        (700, 1, 1, "gray"),
        (2, 3, 4, "rgba"),
    ]
    + [(40, 30, 1, "gray"), (40, 30, 4, "rgba"), (300, 4, 4, "rgba"), (17, 13, 3, "rgb")],
)
def test_pictures_of_any_size_and_kind_work(tmp_path, folder, height, width, bands, kind):
    path = write(tmp_path / "scene.png", height, width, bands)
    report = quick(path, folder)
    assert report["channels"] == kind
    rendered, sheet = Image.open(folder / "render.png"), Image.open(folder / "overview.png")
    assert rendered.size == (width, height)
    assert sheet.mode == "RGB" and min(sheet.size) > 800


def test_background_flattens_opacity(tmp_path, folder):
    report = quick(write(tmp_path / "scene.png", bands=4), folder, background="white")
    assert report["channels"] == "rgb"
    assert report["recipe"]["background"] == "white"


def test_sixteen_bits_work(tmp_path, folder):
    array = (65535 * scene(20, 30, 1)[:, :, 0]).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "deep.png")
    assert quick(tmp_path / "deep.png", folder)["channels"] == "gray"


def test_lossless_results_are_valid_json(tmp_path, folder):
    Image.new("L", (20, 20)).save(tmp_path / "black.png")
    report = quick(tmp_path / "black.png", folder)
    assert (report["psnr"], report["lossless"]) == (None, True)

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    json.loads((folder / "report.json").read_text(), parse_constant=refuse)


def test_no_iterations_keep_the_start(picture, folder):
    report = quick(picture, folder, iterations=0)
    assert report["iterations"] == 0
    assert (folder / "init.png").read_bytes() == (folder / "render.png").read_bytes()


def test_seconds_end_the_fit(picture, folder):
    report = quick(picture, folder, iterations=None, seconds=0.2)
    assert report["iterations"] > 0
    assert 0.2 <= report["stages"][-1]["seconds"] < 5


def test_psnr_ends_the_fit(picture, folder):
    report = quick(picture, folder, iterations=1000, psnr=30.0)
    assert report["iterations"] < 1000
    assert report["curve"][-1][2] >= 30


def test_snapshot_is_a_start_and_gives_way_to_the_result(picture, folder, tmp_path):
    kept = tmp_path / "kept.gi"

    def look(progress: Progress) -> None:
        if progress.iteration == 4:
            kept.write_bytes((folder / "snapshot.gi").read_bytes())

    infer_image(picture, folder, Recipe(iterations=6), snapshot_every=4, on_progress=look)
    assert names(folder) == FILES
    report = quick(picture, tmp_path / "again", init=str(kept), iterations=0)
    assert [stage["name"] for stage in report["stages"]] == ["init", "fit"]
    ours = open_file(tmp_path / "again" / "gaussians.gi").gaussians()
    assert torch.equal(ours.means, open_file(kept).gaussians().means)


def test_start_of_another_size_is_refused(picture, folder, tmp_path):
    quick(picture, folder)
    other = write(tmp_path / "other.png", 30, 48)
    with pytest.raises(ValueError, match=r"48x32 pixels in 3 channels, the picture is 48x30 in 3"):
        quick(other, tmp_path / "b", init=str(folder / "gaussians.gi"))
    assert not (tmp_path / "b").exists()


def test_older_result_is_replaced_but_no_foreign_file(picture, folder):
    quick(picture, folder)
    (folder / "render.png").write_bytes(b"old")
    quick(picture, folder)
    assert (folder / "render.png").read_bytes() != b"old"
    (folder / "notes.txt").write_text("mine")
    before = (folder / "report.json").read_bytes()
    with pytest.raises(FileExistsError, match="notes.txt, which is not ours"):
        quick(picture, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "report.json").read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_failure_while_writing_leaves_nothing(picture, folder, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(overview, "draw_overview", fail)
    with pytest.raises((KeyboardInterrupt, OSError)):
        quick(picture, folder)
    assert not folder.parent.exists()


def test_failure_keeps_the_older_result(picture, folder, monkeypatch):
    quick(picture, folder)
    before = (folder / "report.json").read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(infer, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        quick(picture, folder)
    assert names(folder) == FILES
    assert (folder / "report.json").read_bytes() == before


def test_folder_comes_back_if_the_exchange_fails(tmp_path, monkeypatch):
    target, rename = tmp_path / "x", Path.rename
    target.mkdir()
    (target / "render.png").write_text("old")

    def fail_second(path: Path, to: Path) -> Path:
        if to == target and (path / "render.png").read_text() == "new":
            raise OSError("no space")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="no space"), replace_folder(target, RESULTS) as partial:
        (partial / "render.png").write_text("new")
    assert names(tmp_path) == ["x"]
    assert (target / "render.png").read_text() == "old"


@pytest.mark.parametrize("is_old", [False, True])
def test_result_that_comes_in_between_is_replaced(tmp_path, monkeypatch, is_old):
    target, rename, others = tmp_path / "x", Path.rename, ["theirs"]
    if is_old:
        target.mkdir()
        (target / "render.png").write_text("old")

    def race(path: Path, to: Path) -> Path:
        if to == target and others:
            target.mkdir()
            (target / "render.png").write_text(others.pop())
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", race)
    with replace_folder(target, RESULTS) as partial:
        (partial / "render.png").write_text("new")
    assert names(tmp_path) == ["x"] and (target / "render.png").read_text() == "new"


def test_folders_of_a_failed_call_vanish_unless_they_hold_something(tmp_path):
    with pytest.raises(OSError), vanishing(tmp_path / "a" / "b" / "x"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        raise OSError
    assert names(tmp_path) == []
    with pytest.raises(OSError), vanishing(tmp_path / "a" / "b" / "x"):
        (tmp_path / "a" / "b" / "x").mkdir(parents=True)
        raise OSError
    assert names(tmp_path / "a" / "b") == ["x"]


def test_folder_that_cannot_be_is_refused_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        prepare_folder(tmp_path / "file", RESULTS)
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        prepare_folder(tmp_path / "file" / "x", RESULTS)


def test_interrupt_during_a_fit_is_one_line_and_code_130(picture, tmp_path):
    command = [sys.executable, "infer.py", picture, "-o", tmp_path / "out", "--seconds", "100"]
    process = subprocess.Popen(
        [*command, "--snapshot-every", "3"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job would ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    snapshot = tmp_path / "out" / "scene" / "snapshot.gi"
    deadline = time.monotonic() + 50
    while not snapshot.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
    assert names(snapshot.parent) == ["snapshot.gi"]
    assert names(tmp_path / "out") == ["scene"]
    kept = open_file(snapshot)
    assert (kept.height, kept.width) == (32, 48)


def test_curve_is_thinned_and_keeps_its_end():
    curve = Curve()
    for step in range(1, 5002):
        curve.add(Progress(step, step / 10, 20 + step / 1000, make_fitter("instantgi")))
    points = curve.whole()
    assert 100 < len(points) <= 402
    assert points[-1][0] == 5001
    assert [step for step, *_ in points] == sorted({step for step, *_ in points})


def test_part_at_another_size_is_that_of_the_whole():
    gaussians = Gaussians.from_scales_rotations(
        torch.tensor([[10.0, 12.0], [22.0, 9.0]]),
        torch.tensor([[4.0, 2.0], [3.0, 3.0]]),
        torch.tensor([0.4, 0.0]),
        torch.rand(2, 3, generator=torch.Generator().manual_seed(0)),
    )
    whole = rasterize(gaussians, 24, 32)
    part = draw_part(gaussians, (4, 6, 20, 10), 10, 20)
    torch.testing.assert_close(part, whole[:, 6:16, 4:24], atol=1e-5, rtol=0)
    half = draw_part(gaussians, (0, 0, 32, 24), 12, 16)
    # a mean of four samples each; the drop at the cut-off of 1/255 is the same in both
    torch.testing.assert_close(
        half, torch.nn.functional.avg_pool2d(whole[None], 2)[0], atol=1e-5, rtol=0
    )
    assert draw_part(gaussians, (0, 0, 32, 24), 48, 64).shape == (3, 48, 64)
    with pytest.raises(ValueError, match="choose a smaller size"):
        draw_part(gaussians, (0, 0, 32, 24), 10**6, 10**6)


@pytest.mark.parametrize("low, high", [(0, 1), (22.5, 36.9), (5.6, 5.86), (40, 40), (0, 3e4)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    ticks = overview._ticks(low, high, 5)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= low and high <= ticks[-1]
    assert ticks == sorted(ticks)


def test_overview_takes_any_name(tmp_path, folder):
    path = write(tmp_path / ("été_日本" + "x" * 200 + ".png"))
    quick(path, folder)
    assert (folder / "overview.png").exists()


def test_infer_loads_no_drawing_or_science_package():
    forbidden = "matplotlib scipy lightning torchvision cv2"
    code = f"""
import sys, instantgi.cli, instantgi.infer, instantgi.overview
print(*set({forbidden.split()!r}) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_main_survives_its_own_output_folder_being_a_link(picture, tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    arguments = ["infer", str(picture), "-o", str(tmp_path / "link"), "--iterations", "1"]
    assert main([*arguments, "--quiet"]) == 0
    assert names(tmp_path / "real" / "scene") == FILES


@pytest.fixture
def checkpoint(tmp_path) -> str:
    from instantgi.models import InstantGI

    torch.manual_seed(0)
    options = {"width": 8, "dims": (8, 16), "depths": (1, 1), "norm": "layer", "stride": 2}
    network = InstantGI(**options, fields="local", hidden=16, looks=2)
    network.save_pretrained(tmp_path / "net")
    return str(tmp_path / "net")


def test_a_network_starts_the_fit(tmp_path, checkpoint):
    write_image(tmp_path / "scene.png", torch.rand(3, 24, 30))
    recipe = Recipe(start="network", checkpoint=checkpoint, iterations=2)
    report = infer_image(tmp_path / "scene.png", tmp_path / "out", recipe)
    assert [stage["name"] for stage in report["stages"]] == ["network", "colors", "fit"]
    assert all(stage["psnr"] is not None for stage in report["stages"])
    assert (tmp_path / "out" / "overview.png").exists()


def test_a_short_fit_never_loses(tmp_path):
    path = write(tmp_path / "scene.png", 96, 128)
    for iterations in (1, 3):
        report = quick(path, tmp_path / "out", start="network", iterations=iterations)
        levels = [stage["psnr"] for stage in report["stages"]]
        assert levels[2] >= levels[1] and report["psnr"] == levels[2]


def test_a_start_is_chosen_for_the_length_of_the_fit(checkpoint):
    def first(height: int = 24, width: int = 30, **limits) -> str:
        recipe = Recipe(checkpoint=checkpoint, **limits)
        stage = next(run_stages(torch.rand(3, height, width), recipe))
        assert len(stage.gaussians) <= default_count(height, width)
        return stage.name

    assert first(iterations=0) == first(iterations=300) == "network"
    assert first(iterations=301) == "heuristic"
    # a second is 400 steps of 100,000 pixels; of small pictures always too many
    assert first(iterations=None, seconds=1.0) == "heuristic"
    assert first(250, 400, iterations=None, seconds=0.5) == "network"
    assert first(250, 400, iterations=20, seconds=0.5) == "network"
    assert first(250, 400, iterations=None, seconds=0.1) == "heuristic"
    assert first(iterations=None, psnr=20.0) == "heuristic"


def test_an_unknown_start_is_named():
    with pytest.raises(
        ValueError, match='start must be one of auto, network, heuristic, got "magic"'
    ):
        Recipe(start="magic")


@pytest.mark.parametrize("method", ["lig", "imagegs"])
def test_methods_that_grow_get_all_gaussians_asked_for(picture, method):
    image = read_image(picture)
    recipe = Recipe(method=method, iterations=40, num_gaussians=96)
    start, fit = run_stages(image, recipe)
    assert len(start.gaussians) < 96 and len(fit.gaussians) == 96
    expected = fit_image(image, method=method, iterations=40, num_gaussians=96)
    assert torch.equal(flat(fit.gaussians).means, flat(expected).means)


def test_what_only_the_cpu_draws_is_fitted_there(picture, folder, monkeypatch):
    with_gpu = {"auto": "meta", "cuda": "meta", "cpu": "cpu"}
    monkeypatch.setattr("instantgi.infer.choose_device", lambda name: torch.device(with_gpu[name]))
    assert Recipe(method="lig").choose_device().type == "meta"
    for method in ("lig-paper", "imagegs-paper"):
        assert Recipe(method=method).choose_device().type == "cpu"
        assert Recipe(method=method, device="cuda").choose_device().type == "meta"
    assert quick(picture, folder, method="imagegs-paper", num_gaussians=20)["device"] == "cpu"
