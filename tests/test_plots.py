import re
from typing import Any

import pytest

from instantgi.plots import Point, draw_lines, plot_means


def row(method: str, budget: dict, x: float, psnr: float) -> dict[str, Any]:
    names = ("seconds_start", "seconds_colors", "seconds_fit", "num_gaussians", "bpp")
    found = dict.fromkeys(names, x) | {"psnr": psnr, "psnr_file": psnr - 1, "interval": 0.5}
    return {"method": method, "budget": budget} | found


def curve(method: str) -> dict[str, Any]:
    points = [{"iterations": n, "seconds": n / 9, "psnr": 20.0 + n, "interval": 1} for n in (1, 2)]
    return row(method, {"iterations": 2}, 5.0, 25.0) | {"curve": points}


@pytest.mark.parametrize(
    "budgets, kinds",
    [
        ([{"iterations": 5}, {"iterations": 9}], {"seconds"}),
        ([{"seconds": 0.5}, {"seconds": 1.5}], {"seconds"}),
        ([{"num_gaussians": 5}, {"num_gaussians": 9}], {"rate", "gaussians"}),
        ([{"bpp": 0.5}, {"bpp": 1.5}], {"rate"}),
    ],
)
def test_what_varies_is_plotted(tmp_path, budgets, kinds):
    means = [row("ours", budget, 5.0 + i, 30.0 + i) for i, budget in enumerate(budgets)]
    written = plot_means(means, tmp_path / "results.json")
    assert {path.name for path in written} == {f"results-{kind}.svg" for kind in kinds}
    assert all(path.read_text().startswith("<?xml") for path in written)


def test_curve_is_plotted_over_seconds(tmp_path):
    (path,) = plot_means([curve("ours"), curve("theirs")], tmp_path / "x.json")
    text = path.read_text()
    assert path.name == "x-seconds.svg" and "<!-- ours -->" in text and "<!-- theirs -->" in text


def test_curves_of_several_budgets_are_not_mixed(tmp_path):
    means = [curve("ours"), curve("ours") | {"budget": {"iterations": 5}, "seconds_fit": 9.0}]
    (path,) = plot_means(means, tmp_path / "x.json")
    only_ends = plot_means(
        [{name: row[name] for name in row if name != "curve"} for row in means],
        tmp_path / "y.json",
    )
    assert path.read_text() == only_ends[0].read_text()


def test_lines_over_bits_are_named_with_profiles_that_differ(tmp_path):
    means = [
        row(method, {"num_gaussians": n}, n, 30.0) | {"profile": profile}
        for method, profile in (("ours", "lossless"), ("sgi", "seeds"))
        for n in (5, 9)
    ]
    plot_means(means, tmp_path / "x.json")
    text = (tmp_path / "x-rate.svg").read_text()
    assert "<!-- ours, lossless -->" in text and "<!-- sgi, seeds -->" in text
    assert "<!-- ours -->" in (tmp_path / "x-gaussians.svg").read_text()
    plot_means(means[:2], tmp_path / "x.json")
    assert "<!-- ours -->" in (tmp_path / "x-rate.svg").read_text()


def test_one_point_is_no_plot(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot: give several values of a budget"):
        plot_means([row("ours", {"iterations": 5}, 1.0, 30.0)], tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_same_numbers_are_the_same_file(tmp_path):
    lines = {"a": [Point(1, 2, 0.5), Point(2, 3, 0.5)], "b": [Point(1, 1), Point(3, 2)]}
    for name in ("one.svg", "two.svg"):
        draw_lines(tmp_path / name, lines, "x", strong="b")
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert one == two and "date" not in one.lower()


def test_names_at_the_same_place_are_apart(tmp_path):
    lines = {name: [Point(1, 2), Point(2, 3)] for name in ("first", "second", "third")}
    draw_lines(tmp_path / "x.svg", lines, "x")
    text = (tmp_path / "x.svg").read_text()
    heights = [
        float(re.findall(rf"<!-- {name} -->\n *<g[^>]*translate\(\S+ (\S+)\)", text)[-1])
        for name in lines
    ]
    gaps = [abs(a - b) for i, a in enumerate(heights) for b in heights[:i]]
    assert min(gaps) > 10
