import io
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import random_gaussians
from torch.testing import assert_close

from instantgi.npz import load_npz, save_npz
from instantgi.render import rasterize, rasterize_reference


def written(num: int = 20, height: int = 30, width: int = 50) -> dict[str, np.ndarray]:
    file = io.BytesIO()
    save = random_gaussians(num, height, width)
    scales, rotations = save.scales_rotations
    np.savez(
        file,
        xyz=(save.means / torch.tensor([width, height]) * 2 - 1).half().numpy(),
        scaling=scales.half().numpy(),
        rotation=-rotations[:, None].half().numpy(),
        color=save.colors.half().numpy(),
        resolution=np.array([width, height], dtype=np.uint32),
    )
    return dict(np.load(io.BytesIO(file.getvalue())))


def test_round_trip_keeps_half_precision(tmp_path):
    gaussians = random_gaussians(500, 301, 402)
    save_npz(tmp_path / "a.npz", gaussians, 301, 402)
    loaded, height, width = load_npz(tmp_path / "a.npz")
    assert (height, width) == (301, 402)
    # 11 bits: half an ulp below 1 is 2**-12, and a mean that may lie a pixel outside has one bit
    # less
    assert (loaded.means - gaussians.means).abs().max() <= 402 / 2 * 2**-11
    assert_close(loaded.colors, gaussians.colors, rtol=2**-11, atol=0)
    scales, rotations = gaussians.scales_rotations
    loaded_scales, loaded_rotations = loaded.scales_rotations
    # 2**-11 for the half float, some 2**-22 for the way through Σ in float32
    assert_close(loaded_scales, scales, rtol=1.01 * 2**-11, atol=0)
    turn = (loaded_rotations - rotations + torch.pi / 2) % torch.pi - torch.pi / 2
    round_ones = scales[:, 0] / scales[:, 1] < 1.01  # the direction of a circle is rounding error
    assert turn[~round_ones].abs().max() <= 1.1 * 2**-11


def test_round_trip_in_floats_draws_the_same_picture(tmp_path):
    gaussians = random_gaussians(100, 31, 42)
    save_npz(tmp_path / "a.npz", gaussians, 31, 42, dtype=torch.float32)
    loaded, *size = load_npz(tmp_path / "a.npz")
    # slope of a Gaussian at most 0.61 / 0.85 px, some 2**-23 of 42 px, 100 of them
    assert_close(rasterize(loaded, *size), rasterize(gaussians, 31, 42), atol=1e-3, rtol=0)


def test_layout_is_that_of_the_viewer(tmp_path):
    gaussians = random_gaussians(7, 30, 50)
    save_npz(tmp_path / "a.npz", gaussians, 30, 50)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert {name: (a.shape, a.dtype.str) for name, a in arrays.items()} == {
        "xyz": ((7, 2), "<f2"),
        "scaling": ((7, 2), "<f2"),
        "rotation": ((7, 1), "<f2"),
        "color": ((7, 3), "<f2"),
        "resolution": ((2,), "<u4"),
    }
    assert arrays["resolution"].tolist() == [50, 30]


def test_a_file_is_drawn_as_the_viewer_draws_it(tmp_path):
    # one Gaussian, drawn with the viewer's formulas: Σ = R diag(s²) Rᵀ with R = [[cos, sin], [−sin,
    # cos]]
    x, y, s1, s2, angle = 0.25, -0.5, 4.0, 1.5, 0.7
    np.savez(
        tmp_path / "a.npz",
        xyz=np.array([[x, y]], dtype=np.float32),
        scaling=np.array([[s1, s2]], dtype=np.float32),
        rotation=np.array([angle], dtype=np.float32),
        color=np.array([[1, 0.5, 0.25]], dtype=np.float32),
        resolution=np.array([40, 20], dtype=np.uint32),
    )
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    conic = np.linalg.inv(rotation @ np.diag([s1**2, s2**2]) @ rotation.T)
    rows, cols = np.mgrid[:20, :40]
    d = np.stack([cols + 0.5 - (x + 1) / 2 * 40, rows + 0.5 - (y + 1) / 2 * 20], -1)
    weights = np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", d, conic, d))
    expected = np.where(weights < 1 / 255, 0, weights) * np.array([1, 0.5, 0.25])[:, None, None]
    gaussians, height, width = load_npz(tmp_path / "a.npz")
    image = rasterize_reference(gaussians, height, width)
    # a picture in float32 whose weights change by at most 8 · 2**-22 of themselves
    assert_close(image.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num", [0, 1])
def test_few_gaussians(tmp_path, num):
    save_npz(tmp_path / "a.npz", random_gaussians(num, 5, 6), 5, 6)
    assert len(load_npz(tmp_path / "a.npz")[0]) == num


def test_save_refuses_what_does_not_fit(tmp_path):
    gaussians = random_gaussians(5, 30, 50, channels=4)
    with pytest.raises(ValueError, match="this format has 3 color channels, got 4"):
        save_npz(tmp_path / "a.npz", gaussians, 30, 50)
    gaussians = random_gaussians(5, 30, 50)
    gaussians.colors[3, 1] = 1e5
    with pytest.raises(ValueError, match="color of Gaussian 3 is not finite as torch.float16"):
        save_npz(tmp_path / "a.npz", gaussians, 30, 50)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_npz(path, random_gaussians(5, 30, 50), 30, 50)
    before = path.read_bytes()
    monkeypatch.setattr(
        np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_npz(path, random_gaussians(6, 30, 50), 30, 50)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_load_reports_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.npz: there is no such file"):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"xyz": None}, "xyz is missing"),
        ({"xyz": np.zeros((20, 3), np.float16)}, r"xyz must be [N, 2], got [20, 3]"),
        ({"xyz": np.zeros(40, np.float16)}, r"xyz must be [N, 2], got [40]"),
        ({"xyz": np.float16(3)}, r"xyz must be [N, 2], got []"),
        ({"xyz": np.zeros((20, 2), np.int32)}, "xyz has the wrong kind of numbers, int32"),
        ({"xyz": np.zeros((20, 2), object)}, "xyz has the wrong kind of numbers, object"),
        ({"color": np.zeros((19, 3), np.float16)}, "color is of 19 Gaussians, xyz of 20"),
        ({"color": np.full((20, 3), np.nan, np.float16)}, "color has values that are not finite"),
        (
            {"scaling": np.zeros((20, 2), np.float16)},
            "scales must be > 0 pixels, got [0.0, 0.0] at 0",
        ),
        ({"resolution": np.array([3.0, 4.0])}, "resolution has the wrong kind of numbers, float64"),
        ({"resolution": np.array([3], np.uint32)}, "resolution must be two numbers, got 1"),
        ({"resolution": np.array([3, 0], np.uint32)}, "a picture has at least 1x1 pixels"),
        ({"resolution": np.array([3, 2**31], np.uint32)}, "a picture of 3x2147483648"),
    ],
)
def test_load_refuses_malformed_arrays(tmp_path, changed, message):
    arrays = {name: array for name, array in (written() | changed).items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(
        ValueError, match="a.npz: not an .npz of Gaussians, or damaged: " + re.escape(message)
    ):
        load_npz(tmp_path / "a.npz")


def test_load_believes_no_header(tmp_path):
    # a header that states 2**24 Gaussians, and one with far more, before a handful of bytes
    for shape, message in ((2**24, "has not the 67108864 bytes"), (2**60, "more than 16777216")):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f2", "fortran_order": False, "shape": (shape, 2)}
        )
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("xyz.npy", header.getvalue() + b"\0" * 40)
        with pytest.raises(ValueError, match=message):
            load_npz(tmp_path / "a.npz")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save_npz(path, random_gaussians(20, 30, 50), 30, 50)
    return path, path.read_bytes()


def test_truncated_files_are_refused(saved):
    path, whole = saved
    for length in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="a.npz: not an .npz of Gaussians, or damaged"):
            load_npz(path)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(saved, data):
    path, whole = saved
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, on odd headers
        try:
            load_npz(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not an .npz of Gaussians, or damaged")
