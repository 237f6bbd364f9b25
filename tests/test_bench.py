import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instantgi import bench, cli
from instantgi.bench import markdown, pictures_in, run_bench, summarise
from instantgi.cli import main
from instantgi.images import read_image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(("b.png", "a.png")):
        levels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((48, 32), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "README.md").write_text("not a picture")
    return folder


def run(pictures: Path, *more: str) -> int:
    output = str(pictures.parent / "results.json")
    return main(["bench", "--images", str(pictures), "-o", output, "--quiet", *more])


def results(pictures: Path) -> dict:
    return json.loads((pictures.parent / "results.json").read_text())


def test_bench_fits_each_picture_by_each_method_and_budget(pictures, capsys):
    more = ("--methods", "instantgi,gaussianimage", "--iterations", "2,5", "--num-gaussians", "60")
    assert run(pictures, *more) == 0
    found = results(pictures)
    keys = [(row["image"], row["iterations"], row["method"]) for row in found["rows"]]
    methods = ("instantgi", "gaussianimage")
    assert keys == [(i, n, m) for i in ("a.png", "b.png") for n in (2, 5) for m in methods]
    assert {"device", "cores", "threads", "torch", "commit", "date"} <= set(found["conditions"])
    assert found["settings"]["num_gaussians"] == 60
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| method | steps | pictures |")
    assert table[3].startswith("| gaussianimage | 2 | 2 | 60 |")
    for row in found["rows"]:
        assert row["psnr"] > 0 and row["ms_ssim"] is None and row["seconds_fit"] > 0
        assert (row["seconds_colors"] > 0) == (row["method"] == "instantgi")


def test_bench_keeps_rows_and_adds_the_missing_ones(pictures, monkeypatch):
    assert run(pictures, "--iterations", "2", "--limit", "1") == 0
    before = results(pictures)["rows"]
    assert len(before) == 1
    made = []
    measure = bench._measure

    def counted(path, recipe, columns):
        made.append((path.name, recipe.iterations))
        return measure(path, recipe, columns)

    monkeypatch.setattr(bench, "_measure", counted)
    assert run(pictures, "--iterations", "2,3") == 0
    assert made == [("a.png", 3), ("b.png", 2), ("b.png", 3)]
    assert results(pictures)["rows"][0] == before[0]


def test_interrupted_bench_has_its_finished_rows(pictures, monkeypatch, capsys):
    measure = bench._measure

    def interrupted(path, recipe, columns):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return measure(path, recipe, columns)

    monkeypatch.setattr(bench, "_measure", interrupted)
    assert run(pictures, "--iterations", "2") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert [row["image"] for row in results(pictures)["rows"]] == ["a.png"]


def test_other_settings_do_not_mix(pictures, capsys):
    assert run(pictures, "--iterations", "1") == 0
    assert run(pictures, "--iterations", "1", "--seed", "1") == 1
    assert "choose another file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 1}', '{"settings": {}, "rows": [1]}'])
def test_foreign_file_is_not_overwritten(pictures, capsys, text):
    output = pictures.parent / "results.json"
    output.write_text(text)
    assert run(pictures) == 1
    assert "not results of a bench" in capsys.readouterr().err
    assert output.read_text() == text


def test_curve_has_the_psnr_after_round_numbers_of_steps(pictures):
    assert run(pictures, "--iterations", "20", "--limit", "1") == 0
    assert run(pictures, "--iterations", "20", "--limit", "1", "--curve") == 0
    (row,) = results(pictures)["rows"]
    assert [point["iterations"] for point in row["curve"]] == [10, 20]
    assert row["curve"][-1]["psnr"] == row["psnr"]


def test_marks_of_the_curve():
    marks = [step for step in range(1, 6001) if bench._is_mark(step)]
    assert marks == [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def test_means_leave_out_what_is_not_known(pictures):
    row = {"method": "m", "iterations": 1, "num_gaussians": 4, "psnr_start": 1.0, "psnr": 30.0}
    row |= {"ms_ssim": None, "seconds_start": 1.0, "seconds_colors": 2.0, "seconds_fit": 3.0}
    (means,) = summarise([row, row | {"psnr": None, "seconds_fit": 5.0}])
    assert (means["psnr"], means["ms_ssim"], means["seconds_fit"]) == (30, None, 4)


def test_pictures_are_found_by_suffix_and_in_order(pictures, tmp_path):
    assert [path.name for path in pictures_in(pictures)] == ["a.png", "b.png"]
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        pictures_in(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        pictures_in(tmp_path / "empty")


def test_table_is_of_this_call_only(pictures, tmp_path):
    settings = {"methods": ["instantgi"], "num_gaussians": 20}
    output = tmp_path / "results.json"
    run_bench(pictures_in(pictures), output, iterations=[1, 2], **settings)
    found = run_bench(pictures_in(pictures)[:1], output, iterations=[2], **settings)
    assert len(found["rows"]) == 4
    assert [(row["iterations"], row["images"]) for row in found["means"]] == [(2, 1)]
    assert markdown(found).count("| instantgi |") == 1


# --- metrics


@pytest.fixture
def no_fits(monkeypatch):
    """Fails where a fit starts."""

    def refuse(*_):
        raise AssertionError("a fit started")

    monkeypatch.setattr(bench, "run_stages", refuse)


def test_metrics_are_columns_of_rows_means_and_table(pictures, capsys):
    assert run(pictures, "--iterations", "2", "--metrics", "flip,ssim") == 0
    found = results(pictures)
    means = {name: sum(row[name] for row in found["rows"]) / 2 for name in ("ssim", "flip")}
    assert all(0 < mean < 1 for mean in means.values())
    assert found["means"][0].items() >= means.items() and "lpips" not in found["means"][0]
    table = capsys.readouterr().out.splitlines()
    assert "| MS-SSIM | SSIM | FLIP | start s |" in table[0]
    assert f"| - | {means['ssim']:.4f} | {means['flip']:.4f} | 0." in table[2]
    assert len({line.count("|") for line in table[:3]}) == 1


def test_metrics_are_of_the_pictures_of_8_bits(pictures, monkeypatch):
    seen = []
    monkeypatch.setitem(bench.METRICS, "flip", lambda *pair: seen.append(pair) or 0.25)
    assert run(pictures, "--iterations", "2", "--limit", "1", "--metrics", "flip") == 0
    image, target = seen[-1]
    assert torch.equal(target, read_image(pictures / "a.png"))
    assert torch.equal(image, (image * 255).round() / 255)
    assert results(pictures)["rows"][0]["flip"] == 0.25


def test_rows_that_lack_a_metric_are_measured_again_and_keep_their_columns(pictures, monkeypatch):
    common = ("--iterations", "10")
    assert run(pictures, *common) == 0
    assert run(pictures, *common, "--limit", "1", "--metrics", "ssim", "--curve") == 0
    first, second = results(pictures)["rows"]
    assert {"ssim", "curve"} <= first.keys() and not {"ssim", "curve"} & second.keys()
    assert run(pictures, *common, "--metrics", "flip") == 0
    again, other = results(pictures)["rows"]
    assert again.keys() == first.keys() | {"flip"} and other.keys() == second.keys() | {"flip"}
    assert (again["ssim"], again["psnr"]) == (first["ssim"], first["psnr"])
    monkeypatch.setattr(bench, "_measure", None)
    assert run(pictures, *common) == run(pictures, *common, "--metrics", "flip") == 0
    assert results(pictures)["rows"] == [again, other]


@pytest.mark.parametrize("names", ["psnr", "flip,", "FLIP"])
def test_unknown_metric_is_wrong_usage(pictures, capsys, names):
    with pytest.raises(SystemExit) as exit:
        run(pictures, "--metrics", names)
    assert exit.value.code == 2
    assert "argument --metrics: must be of ssim, lpips, flip, got" in capsys.readouterr().err
    assert cli.METRICS == tuple(bench.METRICS)


@pytest.mark.parametrize("name, module", [("flip", "flip_evaluator"), ("lpips", "lpips")])
def test_missing_package_is_said_before_any_fit(
    pictures, monkeypatch, capsys, no_fits, name, module
):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(pictures, "--metrics", f"ssim,{name}") == 1
    line = f'error: {name.upper()} needs a package: pip install "instantgi[metrics]"\n'
    assert capsys.readouterr().err == line
    assert not (pictures.parent / "results.json").exists()


def test_metric_that_a_picture_cannot_have_is_said_before_any_fit(pictures, capsys, no_fits):
    Image.new("RGBA", (40, 40), (255, 0, 0, 100)).save(pictures / "c.png")
    assert run(pictures, "--metrics", "flip") == 1
    expected = f"error: {pictures / 'c.png'}: FLIP compares gray or RGB, got C = 4; "
    assert capsys.readouterr().err == expected + "use flatten_alpha or --background\n"


def test_background_gives_transparent_pictures_their_metrics(pictures):
    Image.new("RGBA", (40, 40), (255, 0, 0, 100)).save(pictures / "0.png")
    more = ("--iterations", "1", "--limit", "1", "--background", "white")
    assert run(pictures, *more, "--metrics", "flip") == 0
    assert 0 <= results(pictures)["rows"][0]["flip"] <= 1
