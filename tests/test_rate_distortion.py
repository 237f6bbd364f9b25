import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from instantgi import cli, rate_distortion
from instantgi.cli import main
from instantgi.codec import FormatError, gaussianimage
from instantgi.codec.gaussianimage import Coded, QuantisedGaussianImage, _Continued, fit_coded
from instantgi.fit import GaussianImage, fit_image
from instantgi.metrics import psnr
from instantgi.rate_distortion import bd_rate, codecs, compressai, markdown, quality_at
from instantgi.render import rasterize

SCHEMA = {"psnr-rgb", "ms-ssim-rgb", "bpp", "encoding_time", "decoding_time"}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, mode in enumerate(("RGB", "RGBA", "L")):
        levels = np.random.default_rng(seed).integers(0, 256, (4, 5, len(mode)), dtype=np.uint8)
        picture = Image.fromarray(levels.squeeze()).resize((60, 40), Image.Resampling.BICUBIC)
        picture.save(folder / f"{mode}.png")
    return folder


def run(pictures, *more: str) -> int:
    output = str(pictures.parent / "rd")
    return main(["bench", "rd", "--images", str(pictures), "-o", output, "--quiet", *more])


def test_rows_files_and_table_are_of_the_same_numbers(pictures, capsys):
    more = ("--codecs", "instantgi,jpeg", "--bpp", "3,6", "--iterations", "20")
    assert run(pictures, *more) == 0
    table = capsys.readouterr().out
    folder = pictures.parent / "rd"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    settings = codecs()["jpeg"].settings
    assert len(rows) == 3 * (2 + len(settings))
    for row in rows:
        assert row["bpp"] == 8 * row["bytes"] / (60 * 40) and row["psnr"] > 5
    for name, count in (("instantgi", 2), ("jpeg", len(settings))):
        found = json.loads((folder / f"{name}.json").read_text())
        assert found["name"] == name and set(found["results"]) == SCHEMA
        assert all(len(values) == count for values in found["results"].values())
        assert found["results"]["bpp"] == sorted(found["results"]["bpp"])
    ours = json.loads((folder / "instantgi.json").read_text())["results"]
    assert ours["bpp"] == pytest.approx([3, 6], rel=0.02)
    with (folder / "results.csv").open() as file:
        assert [float(row["psnr"]) for row in csv.DictReader(file)] == [r["psnr"] for r in rows]
    assert (folder / "results.svg").read_text().startswith("<?xml")
    assert table == (folder / "results.md").read_text()
    assert table.splitlines()[0].startswith("| codec | dB at 3 bpp | dB at 6 bpp | BD-rate")
    assert "| jpeg |" in table and "+0.0 %" in table and "3 pictures" in table


def test_a_second_call_adds_what_is_missing(pictures, monkeypatch):
    more = ("--codecs", "jpeg,webp", "--bpp", "1")
    assert run(pictures, *more[2:], "--codecs", "jpeg") == 0
    made, measure = [], rate_distortion._measure

    def counted(path, codec, setting, target):
        made.append(codec.description)
        return measure(path, codec, setting, target)

    monkeypatch.setattr(rate_distortion, "_measure", counted)
    assert run(pictures, *more) == 0
    assert set(made) == {codecs()["webp"].description}
    rows = json.loads((pictures.parent / "rd" / "results.json").read_text())["rows"]
    assert {row["codec"] for row in rows} == {"jpeg", "webp"}


@pytest.mark.parametrize("name", sorted(set(codecs()) - {"gaussianimage"}))
@pytest.mark.parametrize("channels", [1, 3])
def test_other_codecs_give_more_for_more(name, channels):
    pytest.importorskip(codecs()[name].needs)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    image = torch.stack([0.5 + 0.5 * torch.sin(x * y / 150 + c) for c in range(channels)])
    codec = codecs()[name]
    sizes, levels = [], []
    for setting in (codec.settings[0], codec.settings[-1]):
        data = codec.encode(image, setting)
        drawn = codec.decode(data)
        drawn = drawn[:channels] if channels == 1 else drawn  # WebP and AVIF have no gray
        assert drawn.shape == image.shape
        sizes.append(len(data))
        levels.append(psnr(drawn, image))
    assert sizes[0] < sizes[1] and levels[1] > levels[0] + 5 and levels[1] > 30


def test_bd_rate_is_the_share_of_bytes_saved():
    curve = [(0.1 * 2**i, 25.0 + 3 * i) for i in range(6)]
    halved = [(rate / 2, level) for rate, level in curve]
    assert bd_rate(curve, curve) == pytest.approx(0, abs=1e-12)
    assert bd_rate(curve, halved) == pytest.approx(-0.5)
    assert bd_rate(halved, curve) == pytest.approx(1.0)
    assert bd_rate(curve, [(0.1, 60.0), (0.2, 70.0)]) is None
    assert bd_rate(curve, [(0.1, 30.0)]) is None
    dented = sorted([*halved, (0.3, 20.0)])  # more bytes for less is left out
    assert bd_rate(curve, dented) == pytest.approx(-0.5)


def test_quality_is_interpolated_over_the_logarithm():
    points = [(0.1, 20.0), (0.4, 30.0)]
    assert quality_at(points, 0.2) == pytest.approx(25)
    assert quality_at(points, 0.098) == 20 and quality_at(points, 0.41) == 30
    assert math.isnan(quality_at(points, 0.05)) and math.isnan(quality_at(points, 1))


def test_missing_scores_do_not_count():
    row = {
        "image": "a",
        "picture": "1",
        "codec": "jpeg",
        "setting": 1.0,
        "bpp": 1.0,
        "ms_ssim": None,
    }
    row |= {"bytes": 5, "encoding_time": 1.0, "decoding_time": 1.0}
    rows = [row | {"psnr": 30.0}, row | {"image": "b", "psnr": None}]
    assert compressai(rows, "jpeg", "")["results"]["psnr-rgb"] == [30.0]
    assert "30.00" in markdown(rows, [1.0])
    assert math.isfinite(quality_at([(1.0, 30.0)], 1.0))


def test_wrong_codecs_and_folders_are_one_line(pictures, capsys, monkeypatch):
    with pytest.raises(SystemExit) as exit:
        run(pictures, "--codecs", "jpeg,bpg")
    assert exit.value.code == 2
    assert "--codecs: must be of instantgi, jpeg, " in capsys.readouterr().err
    assert {*cli.CODECS} == {"instantgi", *codecs()}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(pictures, "--codecs", "jpegxl") == 1
    assert "jpegxl needs imagecodecs: pip install -U" in capsys.readouterr().err
    monkeypatch.undo()
    folder = pictures.parent / "rd"
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text("[]")
    assert run(pictures, "--codecs", "jpeg") == 1
    assert "not results of this; choose another folder" in capsys.readouterr().err


# GaussianImage's own codec


def scene(height: int = 40, width: int = 60) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 9, indexing="ij")
    return torch.stack([0.5 + 0.4 * torch.sin(x + c) * torch.cos(y) for c in range(3)])


def test_published_codec_comes_back_as_it_was_trained():
    coded = fit_coded(scene(), 120, 300)
    data = coded.pack(40, 60)
    again, height, width = Coded.unpack(data)
    assert (height, width) == (40, 60)
    for field in dataclasses.fields(Coded):
        one, other = getattr(again, field.name), getattr(coded, field.name)
        assert torch.equal(one.float(), other.float()), field.name
    fixed, entropy = coded.counted_bits()
    assert fixed == 56 * 120 + 1728 and 32 * 120 + 1728 < entropy
    assert 8 * len(data) == 8 * 12 + fixed
    drawn = rasterize(again.gaussians(40, 60), 40, 60)
    assert psnr(drawn, scene()) > 15
    for cut in (data[:-1], data + b"0", data[:11], b""):
        with pytest.raises(FormatError, match="not as long as its Gaussians need"):
            Coded.unpack(cut)


def test_published_training_makes_up_for_rounding():
    image = scene()
    first = GaussianImage()
    fit_image(image, method=first, num_gaussians=120, iterations=600)
    rounded, trained = (
        fit_image(image, method=_Continued(first), num_gaussians=120, iterations=n)
        for n in (0, 600)
    )
    levels = [psnr(rasterize(g, 40, 60), image) for g in (rounded, trained)]
    assert levels[1] > levels[0] + 1


def test_published_quantiser_has_the_gradient_of_its_definition():
    """LSQ+ by autograd: clamp is differentiated, rounding is straight through."""
    fitter = QuantisedGaussianImage()
    fitter.start(scene(), None, 50, 0)
    fitter.offsets += 0.05  # some are outside
    fitter.scales *= 0.9
    slope = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    raw, scales, offsets = (
        t.clone().requires_grad_() for t in (fitter.geometry[2:], fitter.scales, fitter.offsets)
    )
    place = ((raw - offsets) / scales).clamp(0, 63)
    value = (place + (place.round() - place).detach()) * scales + offsets
    (value * slope[2:]).sum().backward()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gaussianimage, "_step", lambda parameter, gradient, *_: seen.append(gradient.clone())
        )
        coded = fitter.code()
        fitter._update(slope, torch.zeros(50, 3), coded)
    geometry, colors, of_scales, of_offsets = seen
    assert torch.equal(geometry[:2], slope[:2])
    for ours, theirs in ((geometry[2:], raw), (of_scales, scales), (of_offsets, offsets)):
        torch.testing.assert_close(ours, theirs.grad)
    leaf = fitter.colors.clone().requires_grad_()
    left, loss = leaf, torch.zeros(())
    for words, chosen in zip(coded.codewords, coded.indices, strict=True):
        nearest = words[chosen]
        loss = loss + torch.nn.functional.mse_loss(left, nearest)
        left = left - nearest
    loss.backward()
    torch.testing.assert_close(colors, leaf.grad)


def test_rates_that_cannot_be_reached_are_left_out(pictures, capsys):
    more = ("--codecs", "instantgi,jpeg", "--bpp", "0.02,4", "--iterations", "5", "--limit", "1")
    assert run(pictures, *more) == 0
    shown = capsys.readouterr()
    assert "warning: L.png, instantgi: 6 bytes cannot be reached" in shown.err
    assert "| instantgi | - | " in shown.out


def test_another_picture_of_the_same_name_is_measured_again(pictures):
    more = ("--codecs", "jpeg", "--bpp", "1", "--limit", "1")
    assert run(pictures, *more) == 0
    (pictures / "L.png").write_bytes((pictures / "RGB.png").read_bytes())
    rate_distortion._read.cache_clear()
    assert run(pictures, *more) == 0
    rows = json.loads((pictures.parent / "rd" / "results.json").read_text())["rows"]
    assert len(rows) == 2 * len(codecs()["jpeg"].settings)
    assert len({row["picture"] for row in rows}) == 2


def test_a_picture_that_cannot_be_read_is_one_warning(pictures, capsys):
    (pictures / "bad.png").write_bytes((pictures / "L.png").read_bytes()[:200])
    assert run(pictures, "--codecs", "jpeg", "--bpp", "1") == 1
    shown = capsys.readouterr()
    line = f"warning: {pictures / 'bad.png'}: the file is truncated; copy or download it again"
    assert shown.err == f"{line}; left out\n" and "3 pictures" in shown.out


def test_files_of_others_are_not_replaced(pictures, capsys):
    table = pictures.parent / "rd" / "results.md"
    table.parent.mkdir()
    table.write_text("mine")
    assert run(pictures, "--codecs", "jpeg", "--bpp", "1") == 1
    assert "holds results.md, which is not ours to replace" in capsys.readouterr().err
    assert table.read_text() == "mine" and len(list(table.parent.iterdir())) == 1


def test_counted_rates_of_the_published_codec_are_lines_of_their_own():
    row = {"image": "a", "picture": "1", "codec": "gaussianimage", "ms_ssim": None, "bytes": 5}
    row |= {"encoding_time": 1.0, "decoding_time": 1.0}
    rates = {"bpp": 0.5, "bpp_counted": 0.4, "bpp_counted_entropy": 0.3}
    rows = [
        row | {"setting": s, "psnr": 20.0 + s} | {k: s * v for k, v in rates.items()}
        for s in (1, 2)
    ]
    table = markdown(rows, [0.45, 0.6, 0.75])
    assert "| gaussianimage | - | 21.26 | 21.58 |" in table
    assert "| gaussianimage, bpp counted | 21.17 | 21.58 | 21.91 |" in table
    assert "| gaussianimage, bpp counted entropy | 21.58 | 22.00 | - |" in table
