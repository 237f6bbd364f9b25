"""Writes the tables of docs/results.md and other pages anew, from the JSON files in docs/results.

python tests/bench/report.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; with it come the command that
measured it, the commit, the date and the device. What stands between tables stays as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.published import published_tables
from bench.tables import Table, load_tables

from instantgi.bench import load_rows
from instantgi.files import replace_on_success
from instantgi.rate_distortion import table as rate_table
from instantgi.summaries import mean_curve, summarise
from instantgi.summaries import table as bench_lines

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
RESULTS = DOCUMENT.parent / "results"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->\n)", re.S)


def pages() -> list[Path]:
    """Those with tables."""
    found = [*DOCUMENT.parents[1].glob("README.md"), *sorted(DOCUMENT.parent.rglob("*.md"))]
    return [page for page in found if "<!-- table: " in page.read_text(encoding="utf-8")]


def rewritten(text: str) -> str:
    """A page with all tables as their files say.

    Raises:
        ValueError: if a table has no name in TABLES, or an end is missing.
    """
    ends = text.count("<!-- table: "), text.count("<!-- end -->"), len(MARKED.findall(text))
    if len(set(ends)) > 1:
        raise ValueError(f"every table has a begin and an end, got {ends[0]} and {ends[1]}")

    def made(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"no table is called {found[2]}; there are {', '.join(TABLES)}")
        return found[1] + "\n" + "\n".join(TABLES[found[2]]()) + "\n\n" + found[3]

    return MARKED.sub(made, text)


# --- how a table was measured ------------------------------------------------------------------


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def origin(command: str, conditions: dict[str, Any], commits: list[str], note: str = "") -> list:
    """Lines above a table."""
    facts = [f"{conditions['device']} ({conditions['instruction set']})"]
    facts += [f"threads: {conditions['threads']}", f"torch {conditions['torch']}", *commits]
    facts += [note] if note else []
    return [f"`{command}`", "", "; ".join(facts), ""]


def commit_of(conditions: dict[str, Any]) -> list[str]:
    return commits_of([conditions])


def commits_of(rows: list[dict[str, Any]]) -> list[str]:
    """The days, each with its commits."""
    days: dict[str, set[str]] = {}
    for row in rows:
        days.setdefault(row["date"], set()).add(row["commit"])
    return [f"{day} at commit {', '.join(sorted(days[day]))}" for day in sorted(days)]


# --- kinds of tables ---------------------------------------------------------------------------


def of_script(name: str) -> list[str]:
    """What `save_tables` wrote."""
    found = read(name)
    lines = origin(found["command"], found["conditions"], commit_of(found["conditions"]))
    if found["note"]:
        lines[-2] += f"; {found['note']}"
    for i, each in enumerate(load_tables(found)):
        lines += ([""] if i else []) + each.lines()
    return lines


def bench_origin(arguments: str, *names: str) -> list[str]:
    rows = [row for name in names for row in load_rows(RESULTS / f"{name}.json")]
    output = f"docs/results/{names[0] if len(names) == 1 else 'NAME'}.json"
    command = f"instantgi bench --images DIR {arguments} -o {output}"
    count = len({row["image"] for row in rows})
    conditions = read(names[0])["conditions"]
    return origin(command, conditions, commits_of(rows), f"{count} pictures")


def of_bench(name: str, arguments: str, metrics: tuple[str, ...] = ()) -> list[str]:
    rows = load_rows(RESULTS / f"{name}.json")
    arguments += f" --metrics {','.join(metrics)}" if metrics else ""
    return bench_origin(arguments, name) + bench_lines(summarise(rows, metrics))


def network_and_heuristic() -> list[str]:
    """Both starts at equal steps; "alone" is what the network draws before colors are solved."""
    by_start = {
        name: load_rows(RESULTS / f"kodak_{name}.json") for name in ("network", "heuristic")
    }
    # 100 steps from the image gradient are in another file
    by_start["heuristic"] += [
        row for row in load_rows(RESULTS / "kodak_43k.json") if row["iterations"] == 100
    ]
    lines = bench_origin(
        "--start NAME --iterations 0,20,50,100,300 --num-gaussians 43000",
        "kodak_network",
        "kodak_heuristic",
        "kodak_43k",
    )
    lines[0] = lines[0].replace("NAME.json", "kodak_NAME.json")
    columns = {"": "{}", "network": "{:.2f}", "heuristic": "{:.2f}", "ahead by": "{:+.2f}"}
    first = {name: of_steps(rows, 0) for name, rows in by_start.items()}
    alone = mean(row["psnr_network"] for row in first["network"])
    rows: list[list] = [["the network's Gaussians with its own colors, dB", alone, None, None]]
    for steps in (0, 20, 50, 100, 300):
        levels = [mean(row["psnr"] for row in of_steps(each, steps)) for each in by_start.values()]
        name = f"after {steps} steps, dB" if steps else "with 10 iterations of the color solve, dB"
        rows.append([name, *levels, levels[0] - levels[1]])
    before = [
        median(row["seconds_start"] + row["seconds_colors"] for row in each)
        for each in first.values()
    ]
    rows.append(["seconds before a fit of no steps, median", *before, before[0] - before[1]])
    return lines + Table(columns, rows=rows).lines()


def of_steps(rows: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["iterations"] == steps]


def race() -> list[str]:
    found = read("network_race")
    command = "python tests/bench/network.py --race DIR --limit 6 -o docs/results/network_race.json"
    note = "6 pictures, 43000 Gaussians, mean PSNR in dB"
    lines = origin(command, found["conditions"], commit_of(found["conditions"]), note)
    columns = {"seconds": "{}"} | {f"{budget:g}": "{:.2f}" for budget in found["budgets"]}
    rows = [
        [name, *map(mean, zip(*(row[name] for row in found["rows"].values()), strict=True))]
        for name in ("network", "heuristic")
    ]
    (second,) = read("network_race_second")["tables"]
    rows += [[f"{name}, second run", *levels] for name, *levels in second["rows"]]
    return lines + Table(columns, rows=rows).lines()


def network_counts() -> list[str]:
    """The number of Gaussians that the network chooses by itself, and one for all."""
    found = read("network_counts")
    command = "python tests/bench/network.py --counts DIR -o docs/results/network_counts.json"
    count, r = len(found["rows"]), found["r"]
    note = f"{count} pictures; correlation of its own number with the bytes of the picture as "
    note += f"lossless WebP: r = {r:.3f}"
    lines = origin(command, found["conditions"], commit_of(found["conditions"]), note)
    columns = {"": "{}", "fewest": "{:,}", "mean": "{:,.0f}", "most": "{:,}"}
    made = Table(columns | {"standard deviation of PSNR after 50 steps, dB": "{:.2f}"})
    names = ("its own number", "the mean for every picture")
    for name, at, deviation in zip(names, (2, 3), found["deviation"], strict=True):
        counts = [row[at] for row in found["rows"]]
        made.rows.append([name, min(counts), mean(counts), max(counts), deviation])
    return lines + made.lines()


def rates() -> list[str]:
    found = read("kodak_rd/results")
    rows = sorted(found["rows"], key=lambda row: row["codec"] != "instantgi")  # ours first
    command = "instantgi bench rd --images DIR -o docs/results/kodak_rd"
    count = len({row["image"] for row in rows})
    lines = origin(command, found["conditions"], commits_of(rows), f"{count} pictures")
    return lines + rate_table(rows, [0.15, 0.3, 0.6, 1.0])


GAUSSIANIMAGE = (
    "--methods gaussianimage,gaussianimage-rs --iterations 50000 --num-gaussians 30000 --limit 3 "
    "--curve"
)


def gaussianimage_curve() -> list[str]:
    rows = load_rows(RESULTS / "kodak_gaussianimage.json")
    methods = {"gaussianimage": "Cholesky", "gaussianimage-rs": "RS"}
    curves = [mean_curve([row for row in rows if row["method"] == method]) for method in methods]
    made = Table({"steps": "{:.0f}"} | dict.fromkeys(methods.values(), "{:.2f}"))
    made.rows = [
        [points[0]["iterations"], *(point["psnr"] for point in points)]
        for points in zip(*curves, strict=True)
    ]
    return bench_origin(GAUSSIANIMAGE, "kodak_gaussianimage") + made.lines()


def gaussianimage_pictures() -> list[str]:
    rows = load_rows(RESULTS / "kodak_gaussianimage.json")
    columns = {"picture": "{}", "method": "{}", "PSNR dB": "{:.2f}", "MS-SSIM": "{:.4f}"}
    names = ("image", "method", "psnr", "ms_ssim", "seconds_fit")
    made = Table(
        columns | {"fit s": "{:.0f}"}, rows=[[row[name] for name in names] for row in rows]
    )
    return made.lines()


def lig() -> list[str]:
    found = read("lig_crop")
    command = (
        "python tests/bench/lig.py 0829x2.png --crop 380 200 192 192 --per-pixel 0.33,0.18,0.25 "
        "--iterations 6000 -o docs/results/lig_crop.json"
    )
    levels = {(row["method"], row["num"]): row["psnr"] for row in found["rows"]}
    counts = sorted({num for _, num in levels})
    pixels = found["settings"]["crop"][2] * found["settings"]["crop"][3]
    heads = {num: f"{num / pixels:.2f} a pixel ({num:,}), dB" for num in counts}
    methods = list(dict.fromkeys(method for method, _ in levels))
    rows = [[method, *(levels.get((method, num)) for num in counts)] for method in methods]
    made = Table({"": "{}"} | {heads[num]: "{:.2f}" for num in counts}, rows=rows)
    return origin(command, found["conditions"], commits_of(found["rows"])) + made.lines()


def imagegs(stem: str, counts: tuple[int, ...], arguments: str) -> list[str]:
    """A file for each number of Gaussians."""
    names = [f"{stem}_{num}" for num in counts]
    lines = bench_origin(
        "--methods imagegs,imagegs-paper,instantgi --num-gaussians N --metrics ssim,flip "
        + arguments,
        *names,
    )
    lines[0] = lines[0].replace("NAME.json", f"{stem}_N.json")
    metrics = ("ssim", "flip")
    found = [summarise(load_rows(RESULTS / f"{name}.json"), metrics) for name in names]
    made = Table({"dB, SSIM, FLIP": "{}"} | {f"{num:,}": "{}" for num in counts})
    for same in zip(*found, strict=True):
        cells = [f"{row['psnr']:.2f}, {row['ssim']:.3f}, {row['flip']:.3f}" for row in same]
        made.rows.append([f"`{same[0]['method']}`", *cells])
    return lines + made.lines()


NUMBERS = ("FEAT", "SCAL", "OFFS")  # chunks of the numbers of seeds
ALL_METHODS = "instantgi,gaussianimage,gaussianimage-rs,lig,imagegs,sgi"
PUBLISHED = {  # number of Gaussians and steps: what to compare with
    (43, 300): "Instant-GI, 50,000 steps: 42.92 dB",
    (70, 1500): "GaussianImage, 50,000 steps: 44.08 dB",
}


def kodak() -> list[str]:
    """The first two tables in short; their commands stand there."""
    made = Table(
        {"Gaussians": "{}", "steps": "{}", "seconds of the fit": "{:.1f}", "PSNR, dB": "{:.2f}"}
        | {"published": "{}"}
    )
    for name in ("kodak_43k", "kodak_70k"):
        for row in summarise(load_rows(RESULTS / f"{name}.json")):
            steps, thousands = round(row["iterations"]), round(row["num_gaussians"] / 1000)
            known = PUBLISHED.get((thousands, steps), "")
            made.rows.append([f"{thousands}k", steps, row["seconds_fit"], row["psnr"], known])
    return made.lines()


SEEDS = {
    "sgi": "`sgi`: λ = 0.001, L = 3, K = 7, F = 12",
    "paper": "`sgi-paper`, a lossless file",
    "lambda 0": "λ = 0, a lossless file of its Gaussians",
    "lambda 0.0005": "λ = 0.0005",
    "lambda 0.003": "λ = 0.003",
    "L 1": "one level",
    "L 2": "two levels",
    "L 4": "four levels",
    "F 24 lambda 0.002": "F = 24, λ = 0.002",
    "no log sizes": "sizes rounded in pixels, a lossless file",
    "noise to the end": "noise until the end",
    "context from 0.8": "context in the last fifth",
    "smaller pictures": "first levels see smaller pictures",
    "absolute difference": "mean absolute difference",
    "betas 0.9 and 0.999": "β = 0.9, 0.999",
    "offsets at 0": "offsets 0 at the start",
    "compact": "`encode`, compact, as many bytes",
    "compact as lambda 0.0005": "compact, as many as λ = 0.0005",
    "compact as lambda 0.003": "compact, as many as λ = 0.003",
    "compact as F 24": "compact, as many as F = 24",
    "compact as F 50": "compact, as many as F = 50",
    "GaussianImage": "GaussianImage, lossless",
    "LIG": "LIG, lossless",
    "GaussianImage x10": "GaussianImage, lossless, 10 times the steps",
    "LIG x10": "LIG, lossless, 10 times the steps",
}


SGI_CHOICES = ("sgi", "paper", "smaller pictures", "betas 0.9 and 0.999", "context from 0.8")
SGI_CHOICES += ("noise to the end", "absolute difference", "offsets at 0", "no log sizes")


def seeds(name: str, arguments: str) -> list[str]:
    found = read(name)
    command = f"python tests/bench/sgi.py {arguments} -o docs/results/{name}.json"
    size = "x".join(str(side) for side in found["settings"]["size"])
    columns = {"": "{}", "Gaussians": "{:,}", "bytes": "{:,}", "PSNR dB": "{:.2f}"}
    columns |= {"SSIM": "{:.4f}", "MS-SSIM": "{:.4f}", "bytes of numbers": "{:,.0f}"}
    columns |= {"shorter than float32": "{:.1f}x", "fit s": "{:.0f}"}
    made = Table(columns)
    for row in found["rows"]:
        coded = sum(row["chunks"].get(kind, 0) for kind in NUMBERS) or row.get("estimate")
        shorter = row["float32_numbers"] / coded if coded else None
        label = SEEDS.get(row["row"], row["row"].replace(" ", " = "))
        names = ("num", "bytes", "psnr", "ssim", "ms_ssim")
        made.rows.append([label, *(row[each] for each in names), coded, shorter, row["seconds"]])
    conditions = found["conditions"]
    commits = commits_of([conditions | row for row in found["rows"]])
    return origin(command, conditions, commits, f"{size} pixels") + made.lines()


# MiB of the paper's files of four pictures of some 51 megapixels, 3.5 million Gaussians
PUBLISHED_PARTS = {"positions": 0.9995, "features": 7.8689, "sizes": 1.5427, "offsets": 5.7646}
PUBLISHED_PARTS |= {"hash grid": 0.0293, "networks": 0.1273}


def seeds_parts(name: str) -> list[str]:
    """What takes the bytes of a file of seeds."""
    found = read(name)
    row = next(row for row in found["rows"] if row["row"] == "sgi")
    chunks, grid, seeds = row["chunks"], row["grid_bytes"], row["num"] / 7  # K
    parts = {"positions": 0, "features": chunks["FEAT"], "sizes": chunks["SCAL"]}
    parts |= {"offsets": chunks["OFFS"], "hash grid": grid, "networks": chunks["NETS"] - grid}
    parts["headers, checksums"] = row["bytes"] - sum(parts.values())
    columns = {"": "{}", "bytes": "{:,}", "of the file": "{:.1%}", "bits a seed": "{:.1f}"}
    made = Table(columns | {"of the paper's": "{:.1%}", "its bits a seed": "{:.1f}"})
    whole = sum(PUBLISHED_PARTS.values())
    for part, count in parts.items():
        size = PUBLISHED_PARTS.get(part)
        theirs = (None, None) if size is None else (size / whole, size * 2**23 / 350_000)
        made.rows.append([part, count, count / row["bytes"], 8 * count / seeds, *theirs])
    commits = commits_of([found["conditions"] | row])
    return [f"Of the first row of `{name}`; {'; '.join(commits)}", "", *made.lines()]


RASTER = {
    "forward ms": "forward",
    "backward ms": "backward",
    "sum ms": "sum",
    "its IQR": "sum iqr",
    "exp ms": "exp",
    "IQR of exp": "exp iqr",
    "ratio": "ratio",
    "ns/pair": "ns per pair",
    "error ms": "error",
    "local ms": "local",
    "their ratio": "fit ratio",
    "mixture ms": "mixture",
    "its backward ms": "its backward",
}


def rasterizer() -> list[str]:
    found = read("rasterize")
    command = "python tests/bench/rasterize.py --json docs/results/rasterize.json"
    lines = origin(command, found["conditions"], commit_of(found["conditions"]))
    columns = {"picture": "{}", "N": "{:.0f}", "M pairs": "{:.2f}"}
    columns |= dict.fromkeys(RASTER, "{:.2f}")
    titles = {"typical": "A picture of 768x512", "sweep": "Constant density, from 64x64 to 8K"}
    for kind, title in titles.items():
        made = Table(columns, title)
        for row in found[kind]:
            size = f"{row['width']}x{row['height']}", row["num"], row["pairs"] / 1e6
            made.rows.append([*size, *(row[name] for name in RASTER.values())])
        lines += [*made.lines(), ""]
    columns = {"N": "{:.0f}", "sum ms": "{:.2f}", "mixture ms": "{:.2f}"}
    made = Table(columns, "10,000 scattered points of 1024x1024 pixels")
    made.rows = [[row["num"], row["sum"], row["mixture"]] for row in found["points"]]
    lines += [*made.lines(), "", *blocks(found.get("blocks", []))]
    peak, plain = found["peak"], found["reference"]
    return lines + [
        f"Peak memory of forward and backward with {peak['num']} Gaussians on {peak['width']}x"
        f"{peak['height']}, their pictures included: {peak['MB']:.0f} MB. Forward and backward of "
        f"{plain['num']} Gaussians on {plain['width']}x{plain['height']}, {plain['runs']} runs: "
        f"kernel {plain['kernel']:.2f} ms, plain torch {plain['reference']:.0f} ms, "
        f"{plain['times faster']:.0f} times faster.",
    ]


def blocks(rows: list[dict[str, float]]) -> list[str]:
    """Random access; nothing of a file from before it was measured."""
    sizes = (64, 1024)
    columns = {"N": "{:.0f}", "points": "{:.0f}", "`pixels` ms": "{:.2f}"}
    columns |= {f"blocks of {most} ms": "{:.2f}" for most in sizes}
    columns |= {f"shells of {most}, largest error": "{:.4f}" for most in sizes}
    names = ["num", "points", "pixels", *(f"blocks {most}" for most in sizes)]
    names += [f"error {most}" for most in sizes]
    title = "Scattered points of 1024x1024 pixels from blocks of a mixture"
    made = Table(columns, title, [[row[name] for name in names] for row in rows])
    return [*made.lines(), ""] if rows else []


def large() -> list[str]:
    found = read("large_50")
    note = f"{found['width']}x{found['height']} pixels, {found['num_gaussians']:,} Gaussians, "
    note += f"method {found['method']}; {found['psnr']:.2f} dB, MS-SSIM {found['ms_ssim']:.4f}"
    command = "python tests/bench/large.py DIR --json docs/results/large_50.json"
    lines = origin(command, found["conditions"], commit_of(found["conditions"]), note)
    columns = {"stage": "{}", "s": "{:.2f}", "MiB after": "{:.0f}", "MiB at most": "{:.0f}"}
    names = ("stage", "seconds", "after", "peak")
    rows = [[row[name] for name in names] for row in found["stages"]]
    return lines + Table(columns, rows=rows).lines()


TABLES: dict[str, Callable[[], list[str]]] = {
    "kodak_43k": lambda: of_bench(
        "kodak_43k",
        "--methods instantgi --start heuristic --iterations 50,100,300,1500 --num-gaussians 43000",
    ),
    "kodak_70k": lambda: of_bench(
        "kodak_70k",
        "--methods instantgi --start heuristic --iterations 1500 --num-gaussians 70000",
    ),
    "kodak_30k": lambda: of_bench(
        "kodak_30k",
        "--methods instantgi --start heuristic --iterations 300 --num-gaussians 30000 --limit 3",
    ),
    "methods_count": lambda: of_bench(
        "methods_count",
        f"--limit 3 --methods {ALL_METHODS} --num-gaussians 10000 --iterations 1000",
        ("ssim", "flip"),
    ),
    "methods_seconds": lambda: of_bench(
        "methods_seconds",
        f"--limit 2 --methods {ALL_METHODS} --num-gaussians 10000 --seconds 10",
        ("ssim", "flip"),
    ),
    "methods_bytes": lambda: of_bench(
        "methods_bytes",
        f"--limit 2 --methods {ALL_METHODS} --bpp 0.3 --iterations 600",
        ("ssim", "flip"),
    ),
    "kodak": kodak,
    "network": network_and_heuristic,
    "network_race": race,
    "network_counts": network_counts,
    "kodak_rd": rates,
    "gaussianimage_curve": gaussianimage_curve,
    "gaussianimage_pictures": gaussianimage_pictures,
    "lig": lig,
    "imagegs_2k": lambda: imagegs("imagegs_2k", (1000, 2000, 4000, 8000), "--iterations 500"),
    "imagegs": lambda: imagegs("imagegs", (100, 200, 400, 800), "--limit 4 --iterations 1000"),
    "sgi_2k": lambda: seeds(
        "sgi_2k", "tomasz-smal.jpg --side 2040 --num-gaussians 50000 --iterations 5000"
    ),
    "sgi_div2k": lambda: seeds("sgi_div2k", "0829x2.png --num-gaussians 20000 --iterations 1000"),
    "sgi_parts": lambda: seeds_parts("sgi_2k"),
    "sgi_choices": lambda: seeds(
        "sgi_choices",
        f'0829x2.png --num-gaussians 20000 --iterations 1000 --rows "{",".join(SGI_CHOICES)}"',
    ),
    "sgi_speed": lambda: seeds(
        "sgi_speed",
        "tomasz-smal.jpg --side 2040 --num-gaussians 50000 --iterations 1000 "
        '--rows "sgi,L 1" --repeats 3',
    ),
    "sgi_large": lambda: seeds(
        "sgi_large",
        "earth-blue-marble.jpg --num-gaussians 300000 --iterations 600 "
        '--rows "sgi,GaussianImage,LIG,compact,LIG x10,GaussianImage x10"',
    ),
    "rasterize": rasterizer,
    "large": large,
    "published": lambda: published_tables(RESULTS),
}
SCRIPTS = ("network_stages", "ablation", "train_ablations", "targets", "kodak_rd_gaussianimage")
SCRIPTS += ("codec", "fit", "points", "prefixes", "recipes", "recipes_lm")
TABLES |= {name: lambda name=name: of_script(name) for name in SCRIPTS}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if it would")
    options = parser.parse_args()
    changed = False
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = rewritten(before)
        if before != after and not options.check:
            with replace_on_success(page) as partial:
                partial.write_text(after, encoding="utf-8")
        changed |= before != after
    return int(options.check and changed)


if __name__ == "__main__":
    sys.exit(main())
