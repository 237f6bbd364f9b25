import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instantgi import bench, cli, measure
from instantgi.bench import Budget, markdown, pictures_in, run_bench
from instantgi.cli import main
from instantgi.codec import encode, entropy, open_file
from instantgi.files import held
from instantgi.fit import fit_image
from instantgi.images import read_image
from instantgi.summaries import half_width, mean_curve, summarise


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
    assert found["rows"][0]["budget"] == {"iterations": 2, "num_gaussians": 60}
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| method | steps | pictures |")
    assert table[3].startswith("| gaussianimage | 2 | 2 | 60 |")
    for row in found["rows"]:
        assert row["psnr"] > 0 and row["ms_ssim"] is None and row["seconds_fit"] > 0
        assert (row["seconds_colors"] > 0) == (row["method"] == "instantgi")


def test_bench_fits_on_the_cpu_what_only_the_cpu_draws(pictures, monkeypatch):
    asked = []

    def measured(path, recipe, *_):
        asked.append((recipe.method, recipe.device))
        raise ValueError if len(asked) == 1 else KeyboardInterrupt

    monkeypatch.setattr("instantgi.native.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(bench, "_warm_up", lambda *_: None)
    monkeypatch.setattr(bench, "measure", measured)
    options: dict = {"budgets": [Budget(num_bytes=1000, iterations=1)]}
    options["methods"] = ["instantgi", "imagegs-paper"]
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning):
        run_bench(pictures_in(pictures)[:1], pictures.parent / "x.json", **options)
    assert asked == [("instantgi", "cuda"), ("imagegs-paper", "cpu")]


def test_bench_keeps_rows_and_adds_the_missing_ones(pictures, monkeypatch):
    assert run(pictures, "--iterations", "2", "--limit", "1") == 0
    before = results(pictures)["rows"]
    assert len(before) == 1
    made = []
    whole = bench.measure

    def counted(path, recipe, *more):
        made.append((path.name, recipe.iterations))
        return whole(path, recipe, *more)

    monkeypatch.setattr(bench, "measure", counted)
    assert run(pictures, "--iterations", "2,3") == 0
    assert made == [("a.png", 3), ("b.png", 2), ("b.png", 3)]
    assert results(pictures)["rows"][0] == before[0]


def test_interrupted_bench_has_its_finished_rows(pictures, monkeypatch, capsys):
    whole = bench.measure

    def interrupted(path, *more):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return whole(path, *more)

    monkeypatch.setattr(bench, "measure", interrupted)
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
    marks = [step for step in range(1, 6001) if measure.is_mark(step)]
    assert marks == [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def test_means_leave_out_what_is_not_known(pictures):
    row = {
        "image": "a",
        "method": "m",
        "budget": {"iterations": 1},
        "iterations": 1,
        "num_gaussians": 4,
        "psnr_start": 1.0,
        "psnr": 30.0,
    }
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
    budgets = [Budget(iterations=steps, num_gaussians=20) for steps in (1, 2)]
    output = tmp_path / "results.json"
    run_bench(pictures_in(pictures), output, methods=["instantgi"], budgets=budgets)
    found = run_bench(pictures_in(pictures)[:1], output, methods=["instantgi"], budgets=budgets[1:])
    assert len(found["rows"]) == 4
    assert [(row["iterations"], row["images"]) for row in found["means"]] == [(2, 1)]
    assert markdown(found).count("| instantgi |") == 1


# --- metrics


@pytest.fixture
def no_fits(monkeypatch):
    """Fails where a fit starts."""

    def refuse(*_):
        raise AssertionError("a fit started")

    monkeypatch.setattr(measure, "run_stages", refuse)


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
    monkeypatch.setitem(measure.METRICS, "flip", lambda *pair: seen.append(pair) or 0.25)
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
    monkeypatch.setattr(bench, "measure", None)
    assert run(pictures, *common) == run(pictures, *common, "--metrics", "flip") == 0
    assert results(pictures)["rows"] == [again, other]


@pytest.mark.parametrize("names", ["psnr", "flip,", "FLIP"])
def test_unknown_metric_is_wrong_usage(pictures, capsys, names):
    with pytest.raises(SystemExit) as exit:
        run(pictures, "--metrics", names)
    assert exit.value.code == 2
    assert "argument --metrics: must be of ssim, lpips, flip, got" in capsys.readouterr().err
    assert cli.METRICS == tuple(measure.METRICS)


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


# --- budgets

ROOT = Path(__file__).parents[1]


def levels(rows: list[dict], column: str = "psnr") -> list[float]:
    return [row[column] for row in rows if row["image"] == "a.png"]


def test_more_gaussians_and_more_steps_are_rows_of_their_own(pictures):
    assert run(pictures, "--num-gaussians", "10,80", "--iterations", "20") == 0
    rows = results(pictures)["rows"]
    asked = [row["budget"] for row in rows]
    assert asked == [{"iterations": 20, "num_gaussians": n} for n in (10, 80)] * 2
    few, many = levels(rows)
    assert many > few + 3
    assert [row["budget"] for row in results(pictures)["means"]] == asked[:2]


def test_equal_seconds_are_of_the_fit(pictures, capsys):
    methods = ("--methods", "instantgi,gaussianimage", "--num-gaussians", "40")
    assert run(pictures, *methods, "--seconds", "0.05,0.3", "--limit", "1") == 0
    for row in results(pictures)["rows"]:
        wanted = row["budget"]["seconds"]
        # a step of this picture takes about a millisecond; a busy machine may stop one for long
        assert wanted <= row["seconds_fit"] < wanted + 0.5
        assert row["iterations"] > 0
    assert "| instantgi | 0.05 s | " in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--bytes", "700,1000"), ("--bpp", "4,5")])
def test_equal_bytes_are_of_real_files(pictures, option, capsys):
    more = ("--methods", "instantgi,gaussianimage,imagegs,sgi", "--iterations", "10")
    output = capsys.readouterr
    assert run(pictures, *more, *option, "--limit", "1") == 0
    rows = results(pictures)["rows"]
    pixels = 48 * 32
    for row in rows:
        wanted = row["budget"].get("num_bytes") or row["budget"]["bpp"] * pixels / 8
        assert row["bpp"] == 8 * row["bytes"] / pixels
        if row["method"] == "instantgi":
            assert abs(row["bytes"] / wanted - 1) <= 0.02
        else:
            assert row["bytes"] <= wanted and row["fits"] >= 1
        assert row["profile"] == ("seeds" if row["method"] == "sgi" else "compact")
        assert row["seconds_start"] == 0 and min(row[name] for name in measure.FILE) > 0
    assert {row["method"] for row in rows} >= {"instantgi", "gaussianimage", "imagegs"}
    assert "above instantgi |" in output().out


def test_number_of_gaussians_is_the_one_whose_file_is_just_below(pictures):
    image = read_image(pictures / "a.png")
    recipe = Budget(iterations=5, bpp=8).recipe("gaussianimage", {"seed": 0})
    wanted = Budget(bpp=8).bytes_of(32, 48)
    fitted = measure._fit_below(image, recipe, wanted, None)
    assert fitted.coded is not None and 0.97 * wanted < len(fitted.coded.data) <= wanted
    assert open_file(fitted.coded.data).num_gaussians == len(fitted.made)


def test_bytes_that_cannot_be_reached_are_a_warning(pictures, capsys):
    more = ("--iterations", "2", "--limit", "1")
    assert run(pictures, *more, "--methods", "sgi,gaussianimage", "--bytes", "500") == 0
    shown = capsys.readouterr()
    assert "warning: a.png, sgi: 500 bytes cannot be reached, the smallest file has" in shown.err
    assert "| gaussianimage | 500 bytes |" in shown.out and "| sgi |" not in shown.out
    assert run(pictures, *more, "--methods", "sgi", "--bytes", "500") == 1
    assert "no method could meet its budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (("--iterations", "1,2", "--num-gaussians", "10,20"), "only one of the lists"),
        (("--seconds", "1", "--iterations", "2"), "not allowed with argument --seconds"),
        (("--bytes", "300", "--num-gaussians", "9"), "not allowed with argument --bytes"),
        (("--bytes", "300", "--seconds", "1"), "--seconds: not allowed with --bytes"),
        (("--bpp", "3", "--curve"), "--curve: not allowed with --bytes and --bpp"),
        (("--profile", "seeds"), "argument --profile: invalid choice"),
    ],
)
def test_budgets_that_contradict_are_wrong_usage(pictures, capsys, no_fits, more, said):
    with pytest.raises(SystemExit) as exit:
        run(pictures, *more)
    assert exit.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (("--methods", "lig-paper", "--bytes", "300"), "no file can hold what lig-paper makes"),
        (("--methods", "lig-paper", "--profile", "fast"), "no file can hold what lig-paper makes"),
        (("--profile", "none", "--bpp", "3"), "a budget of bytes is of files"),
    ],
)
def test_files_that_cannot_be_are_said_before_any_fit(pictures, capsys, no_fits, more, said):
    assert run(pictures, *more) == 1
    assert said in capsys.readouterr().err


def test_budget_says_one_thing_of_each_kind():
    with pytest.raises(ValueError, match="one of iterations, seconds, got iterations and seconds"):
        Budget(iterations=1, seconds=1.0)
    with pytest.raises(ValueError, match="got num_gaussians and bpp"):
        Budget(num_gaussians=4, bpp=1.0)
    assert Budget(bpp=0.5).bytes_of(16, 16) == 16


# --- files and clocks


def test_rows_have_a_real_file_and_four_clocks(pictures, capsys):
    more = ("--methods", "instantgi,sgi,lig-paper", "--iterations", "5", "--limit", "1")
    assert run(pictures, *more, "--num-gaussians", "40") == 0
    ours, seeds, published = results(pictures)["rows"]
    assert (ours["profile"], seeds["profile"]) == ("lossless", "seeds")
    assert ours["psnr_file"] == ours["psnr"] and ours["bytes"] > 32 * ours["num_gaussians"]
    for name in ("seconds_fit", "seconds_encode", "seconds_decode", "seconds_render"):
        assert ours[name] > 0 and seeds[name] > 0
    assert not published.keys() & {"profile", *measure.FILE}
    assert "| fit s | profile | bytes | bpp | file dB | encode s |" in capsys.readouterr().out


def test_profile_of_the_file_is_chosen_and_rows_of_another_are_measured_again(pictures):
    common = ("--iterations", "5", "--limit", "1", "--num-gaussians", "60")
    assert run(pictures, *common, "--profile", "none") == 0
    (without,) = results(pictures)["rows"]
    assert "bytes" not in without
    assert run(pictures, *common) == 0
    assert results(pictures)["rows"] == [without]
    assert run(pictures, *common, "--profile", "compact") == 0
    (compact,) = results(pictures)["rows"]
    assert compact["bytes"] < 60 * 16 and compact["psnr"] == without["psnr"]
    assert abs(compact["psnr_file"] - compact["psnr"]) > 1e-3


def test_file_is_what_the_decoded_picture_is_scored_of(pictures):
    image = read_image(pictures / "a.png")
    made = fit_image(image, num_gaussians=40, iterations=10)
    coded = measure.code(made, image, "compact")
    columns = measure.measure_file(coded, image, torch.device("cpu"))
    assert columns["bytes"] == len(coded.data) and coded.seconds == columns["seconds_encode"]
    drawn = open_file(coded.data).render()
    assert columns["psnr_file"] == measure.psnr(drawn, image)


@pytest.mark.parametrize("method", sorted({*cli.BENCH_METHODS} - {"3dgs"}))
def test_only_what_is_named_so_has_no_file(method):
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = fit_image(image, method=method, num_gaussians=20, iterations=1)
    assert (measure.profile_of(made) == "none") == (method in measure.WITHOUT_FILE)


def test_our_file_of_so_many_bytes_is_coded_again_for_its_clock(pictures):
    image = read_image(pictures / "a.png")
    recipe = Budget(iterations=5, num_bytes=800).recipe("instantgi", {"seed": 0})
    fitted = measure._file_of(image, recipe, 800, None)
    assert fitted.coded is not None
    file = open_file(fitted.coded.data)
    again = encode(file.made(), file.height, file.width, profile="compact", steps=file.steps)
    assert again == fitted.coded.data and fitted.coded.seconds < fitted.columns["seconds_fit"]


def test_cold_decoding_makes_its_tables_anew(pictures, monkeypatch):
    image = read_image(pictures / "a.png")
    made = fit_image(image, num_gaussians=40, iterations=2)
    coded = measure.code(made, image, "compact")
    kept = []
    monkeypatch.setattr(
        measure,
        "open_file",
        lambda data: kept.append(entropy.signed_table.cache_info().currsize) or open_file(data),
    )
    assert entropy.signed_table.cache_info().currsize > 0
    measure.measure_file(coded, image, torch.device("cpu"))
    assert kept[0] == 0 and kept[1] > 0


def test_plot_is_beside_the_results_and_the_table_there_without_one(pictures, capsys):
    assert run(pictures, "--iterations", "1,2", "--num-gaussians", "20", "--plot") == 0
    assert (pictures.parent / "results-seconds.svg").exists()
    text = (pictures.parent / "results.md").read_text()
    assert text == f"{bench.MARK}\n{capsys.readouterr().out}"
    assert run(pictures, "--iterations", "1,2", "--num-gaussians", "20", "--plot") == 0


@pytest.mark.parametrize(
    "more", [("--iterations", "5"), ("--iterations", "19", "--curve"), ("--iterations", "5,5")]
)
def test_nothing_to_plot_is_said_before_any_fit(pictures, capsys, no_fits, more):
    assert run(pictures, *more, "--plot") == 1
    assert "error: nothing to plot" in capsys.readouterr().err


def test_missing_matplotlib_is_said_before_any_fit(pictures, capsys, no_fits, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(pictures, "--iterations", "1,2", "--plot") == 1
    line = 'error: plots need matplotlib: pip install "instantgi[bench]"\n'
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", ["results.md", "results-seconds.svg"])
def test_files_of_others_are_not_replaced(pictures, capsys, no_fits, name):
    (pictures.parent / name).write_text("mine")
    assert run(pictures, "--iterations", "1,2", "--plot") == 1
    assert f"{name}: is not ours to replace" in capsys.readouterr().err
    assert (pictures.parent / name).read_text() == "mine"


# --- what stops, and what does not


def test_another_picture_of_the_same_name_has_rows_of_its_own(pictures):
    more = ("--iterations", "1", "--limit", "1")
    assert run(pictures, *more) == 0
    (pictures / "a.png").write_bytes((pictures / "b.png").read_bytes())
    assert run(pictures, *more) == run(pictures, *more) == 0
    first, second = results(pictures)["rows"]
    assert first["picture"] != second["picture"] and first["psnr"] != second["psnr"]
    assert results(pictures)["means"][0]["psnr"] == second["psnr"]


def test_rows_without_a_digest_are_of_any_picture_of_the_name(pictures, monkeypatch):
    more = ("--iterations", "1", "--limit", "1")
    assert run(pictures, *more) == 0
    found = results(pictures)
    del found["rows"][0]["picture"]
    (pictures.parent / "results.json").write_text(json.dumps(found))
    with monkeypatch.context() as patch:
        patch.setattr(bench, "measure", None)
        assert run(pictures, *more) == 0
    assert run(pictures, *more, "--metrics", "ssim") == 0
    (row,) = results(pictures)["rows"]
    assert {"picture", "ssim"} <= row.keys()


def test_the_second_of_two_calls_on_one_file_is_refused(pictures, capsys, no_fits):
    output = pictures.parent / "results.json"
    with held(output):
        assert run(pictures) == 1
    expected = f"error: {output}: process {os.getpid()} is writing to it; wait for it, or choose "
    assert capsys.readouterr().err == expected + "another name\n"
    with held(output):  # as often as one likes, one after the other
        pass
    assert [path.name for path in pictures.parent.iterdir()] == ["pictures"]


def test_conditions_of_all_rows_are_listed(pictures, capsys):
    assert run(pictures, "--iterations", "1") == 0
    found = results(pictures)
    assert found["rows"][0].keys() >= {"threads", "device", "torch", "commit", "date"}
    found["rows"][0]["threads"] = 77
    del found["rows"][1]["torch"]
    (pictures.parent / "results.json").write_text(json.dumps(found))
    capsys.readouterr()
    assert run(pictures, "--iterations", "1") == 0
    footer = capsys.readouterr().out.splitlines()[-1]
    assert f"threads {torch.get_num_threads()} and 77; " in footer
    assert f"torch {torch.__version__} and unknown; " in footer


def test_pictures_that_cannot_be_read_are_left_out(pictures, capsys):
    whole = (pictures / "a.png").read_bytes()
    (pictures / "bad.png").write_bytes(whole[:200])
    (pictures / "._a.png").write_bytes(b"macOS")
    (pictures / "folder.png").mkdir()
    Image.open(pictures / "a.png").save(pictures / "c.JP2")
    names = [path.name for path in pictures_in(pictures)]
    assert names == ["a.png", "b.png", "bad.png", "c.JP2"]
    assert run(pictures, "--iterations", "1") == 1
    shown = capsys.readouterr()
    line = f"warning: {pictures / 'bad.png'}: the file is truncated; copy or download it again"
    assert shown.err == f"{line}; left out\n"
    assert [row["image"] for row in results(pictures)["rows"]] == ["a.png", "b.png", "c.JP2"]
    assert "| instantgi |" in shown.out


def test_folder_without_a_picture_that_can_be_read(tmp_path, capsys):
    (tmp_path / "x.png").write_text("")
    output = str(tmp_path / "results.json")
    assert main(["bench", "--images", str(tmp_path), "-o", output]) == 1
    assert capsys.readouterr().err.endswith("error: none of these pictures can be read\n")


@pytest.mark.parametrize(
    "command, arguments, said",
    [
        ("bench", ("--images", "", "-o", "x.json"), "--images: must be the name of a file or"),
        ("bench", ("--images", "x", "-o", ""), "-o/--output: must be the name of a file or"),
        ("bench", ("--images", "x", "-o", "."), ". is a folder; name a file .json in it"),
        ("bench", ("--images", "x", "-o", "y.md"), "must end in .json, got y.md; try y.md.json"),
        ("bench rd", ("--images", "", "-o", "x"), "--images: must be the name of a file or"),
        ("bench rd", ("--images", "x", "-o", ""), "-o/--output: must be the name of a file or"),
        ("bench rd", ("--images", "x", "-o", __file__), "is a file; results go to a folder"),
        ("bench rd", ("--images", "x", "-o", "y.json"), "must be a folder, not a file like y.json"),
    ],
)
def test_names_that_cannot_be_are_wrong_usage(capsys, command, arguments, said):
    with pytest.raises(SystemExit) as exit:
        main([*command.split(), *arguments])
    assert exit.value.code == 2 and said in capsys.readouterr().err


def test_network_is_chosen_as_in_infer(pictures, capsys):
    more = ("--iterations", "1", "--limit", "1", "--checkpoint")
    assert run(pictures, *more, "tiny") == 0
    settings = results(pictures)["settings"]
    assert (settings["start"], settings["checkpoint"]) == ("network", "tiny")
    assert run(pictures, *more, "none") == 1
    assert "choose another file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        run(pictures, *more, "tiny", "--start", "heuristic")
    assert exit.value.code == 2


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("date", None, "row 2: date must be text, got none"),
        ("psnr", "high", 'row 2: psnr must be a number, got "high"'),
        ("bpp", math.nan, "row 2: bpp must be a number, got NaN"),
        ("seconds_fit", True, "row 2: seconds_fit must be a number, got true"),
    ],
)
def test_rows_of_wrong_kinds_are_one_line(pictures, tmp_path, name, value, said):
    row = row_of("a.png", "instantgi", 30.0) | {"date": "2026-01-01", "commit": "1"}
    other = row | {name: value}
    if value is None:
        del other[name]
    output = tmp_path / "results.json"
    output.write_text(json.dumps({"settings": {}, "rows": [row, other]}))
    with pytest.raises(ValueError, match=f"^{output}: {said}$"):
        bench.load_rows(output)


# --- results from before


def test_files_from_before_other_budgets_go_on(pictures, monkeypatch):
    common = ("--iterations", "2,3", "--num-gaussians", "30", "--profile", "none")
    assert run(pictures, *common, "--start", "heuristic") == 0
    path = pictures.parent / "results.json"
    old = json.loads(path.read_text())
    settings = {"num_gaussians": 30, "background": None, "seed": 0}
    for row in old["rows"]:
        del row["budget"]
    path.write_text(json.dumps(old | {"settings": settings}))
    monkeypatch.setattr(bench, "measure", None)
    assert run(pictures, *common[:4], "--start", "heuristic") == 0
    assert [row["budget"]["num_gaussians"] for row in results(pictures)["rows"]] == [30] * 4


@pytest.mark.parametrize("name, num", [("kodak_43k", 43000), ("imagegs_100", 100)])
def test_committed_results_still_load(name, num):
    rows = bench.load_rows(ROOT / "docs" / "results" / f"{name}.json")
    assert len(rows) >= 12
    assert all(row["budget"]["num_gaussians"] == num for row in rows)
    assert all(row["budget"]["iterations"] == row["iterations"] for row in rows)


# --- intervals and differences


def test_half_width_is_of_the_t_distribution():
    # t(0.975, 2) = 4.302653, s = 1, n = 3
    assert half_width([30.0, 31.0, 32.0]) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert half_width([30.0]) is None and half_width([]) is None
    assert half_width([5.0, 5.0]) == 0


def row_of(image: str, method: str, psnr: float | None) -> dict:
    row = {"image": image, "method": method, "budget": {"iterations": 1}, "iterations": 1}
    row |= {"num_gaussians": 4, "psnr_start": 1.0, "psnr": psnr, "ms_ssim": None}
    return row | {"seconds_start": 1.0, "seconds_colors": 2.0, "seconds_fit": 3.0}


def test_differences_are_of_the_same_pictures():
    levels: dict[str, dict[str, float]] = {"first": {"a": 20, "b": 30, "c": 40, "d": 50}}
    levels["second"] = {"b": 31, "c": 41.5, "d": 51, "e": 90}
    rows = [row_of(a, method, db) for method, each in levels.items() for a, db in each.items()]
    first, second = summarise(rows)
    assert first["ahead"] is None and second["ahead"] == pytest.approx((1 + 1.5 + 1) / 3)
    assert second["ahead_interval"] == pytest.approx(half_width([1, 1.5, 1]))
    assert second["interval"] > 10 * second["ahead_interval"]
    text = markdown({"means": [first, second], "rows": [], "conditions": {}})
    assert text.splitlines()[0].endswith("| dB above first |")
    assert "| 35.00 ± 20.54 |" in text and "| +1.17 ± 0.72 |" in text


def test_differences_at_equal_bytes_are_of_the_files():
    budget = {"bpp": 0.5, "iterations": 1}
    rows = [
        row_of("a", method, 30.0) | {"budget": budget, "psnr_file": level}
        for method, level in (("first", 25.0), ("second", 24.0))
    ]
    assert summarise(rows)[1]["ahead"] == -1


def test_mean_curve_counts_the_start_and_what_all_have():
    rows = [row_of(image, "m", 30.0) for image in "ab"]
    rows[0]["curve"] = [{"iterations": n, "seconds": n / 10, "psnr": 20 + n} for n in (1, 2, 3)]
    rows[1]["curve"] = [{"iterations": n, "seconds": n / 5, "psnr": 30 + n} for n in (1, 2)]
    points = mean_curve(rows)
    assert [point["iterations"] for point in points] == [1, 2]
    assert points[0]["seconds"] == pytest.approx(3 + 0.15) and points[0]["psnr"] == 26
    assert points[0]["interval"] == pytest.approx(half_width([21, 31]))
