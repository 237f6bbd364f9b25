"""README.md, the pages of docs/ and examples/ are true: what they tell to run runs, links lead on.

The blocks of a page run in its order, in one folder and one Python namespace, with numbers that
take no time. What cannot run here is known by what it is, see `run_command`.
"""

import contextlib
import html.parser
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from instantgi.cli import BENCH_RD, build_parser, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.S | re.M)
SMALLER = {"--iterations": "2", "--num-gaussians": "200", "--psnr": "15", "--steps": "2"}
SMALLER_IN_PYTHON = {"iterations": "2", "num_gaussians": "200", "seconds": "0.2"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE = 390  # pixels


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of all that runs."""
    return BLOCK.findall(page.read_text("utf-8"))


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)


def commands(block: str) -> Iterator[list[str]]:
    for line in block.splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # of the environment
                words = words[1:]
            if words:
                yield words


# --- what runs -----------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all that commands of the repository need."""
    (tmp_path / "assets").mkdir()
    shutil.copy(ROOT / "assets" / "kodim23.png", tmp_path / "assets")
    (tmp_path / "quarter").mkdir()
    with Image.open(ROOT / "assets" / "kodim23.png") as picture:
        picture.reduce(2).save(tmp_path / "quarter" / "kodim23.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name, page in NAMES.items() if blocks(page)])
def test_code_and_commands_of_a_page_run(name: str, workplace: Path):
    namespace: dict[str, Any] = {}
    for language, block in blocks(NAMES[name]):
        if language == "python":
            exec(smaller_python(block), namespace)
        else:
            for words in commands(block):
                run_command(words)


def smaller_python(block: str) -> str:
    numbers = "|".join(SMALLER_IN_PYTHON)
    return re.sub(
        rf"\b({numbers})=[\d_.]+", lambda found: f"{found[1]}={SMALLER_IN_PYTHON[found[1]]}", block
    )


def smaller(words: list[str]) -> list[str]:
    """The same call with numbers that take no time, and one try where many would be made."""
    encodes = words[0] == "encode"
    found: list[str] = []
    for option, word in zip(["", *words], words, strict=False):
        if option in ("--bpp", "--bytes", "--psnr") and encodes:
            found[-1:] = ["--num-gaussians", "200"]
        elif option == "--seconds":  # what a busy machine does in a time is not known
            found[-1:] = ["--iterations", "2"]
        else:
            found.append(SMALLER.get(option, word))
    if words[0] == "bench":
        found = ["quarter" if word == "assets" else word for word in found]
    if words[0] in ("infer", "fit", "encode", "bench") and "--iterations" not in found:
        found += ["--iterations", "2"]
    if words[0] == BENCH_RD:
        found += ["--iterations", "2", "--codecs", "instantgi,jpeg", "--bpp", "0.3"]
    return found


def run_command(words: list[str]) -> None:
    """Runs a command, small. By rule not run but looked at:

    what installs (its extras exist), what trains for hours (the CLI understands it), what uses a
    network that such a training makes (under runs/), what measures for minutes (tests/bench, it
    exists and has these options), what needs a GPU that is not there, and this test itself.
    """
    if words[:2] == ["python", "infer.py"]:
        words = ["instantgi", "infer", *words[2:]]
    if words[0] == "instantgi":
        given = [BENCH_RD, *words[3:]] if words[1:3] == BENCH_RD.split() else words[1:]
        build_parser().parse_args(given)
        needs_gpu = "cuda" in words and not torch.cuda.is_available()
        if not needs_gpu and not any(word.startswith("runs/") for word in words):
            assert main(smaller(given)) == 0, words
    elif words[:4] == ["python", "-m", "pip", "install"]:
        installs(words[4:])
    elif words[:2] == ["python", "train.py"]:
        with called_as(words[1:]):
            OnlyParsed(save_config_callback=None)
    elif words[0] == "python" and words[1].startswith("tests/bench/"):
        source = (ROOT / words[1]).read_text("utf-8")
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), words
    elif words[0] == "python" and words[1].startswith(("examples/", "docs/")):
        run_script(smaller(words[1:]))
    else:
        ours = ["python", "-m", "pytest"], ["mkdocs", "build", "--strict"]
        assert words[:3] in ours, words


class OnlyParsed(LightningCLI):
    """Neither a network nor a logger is made, and nothing is trained."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def installs(arguments: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (found,) = (word for word in arguments if word.startswith("."))
    named = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", found)
    assert named, arguments
    for extra in (named[1] or "dev").split(","):
        assert f"\n{extra} = [" in project, arguments


def run_script(words: list[str]) -> None:
    with called_as(words):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@contextlib.contextmanager
def called_as(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@pytest.mark.parametrize("name", ["fit_and_zoom", "compress_folder"])
def test_examples_run(name: str, workplace: Path, capsys: pytest.CaptureFixture[str]):
    source = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    short = {"fit_and_zoom": ["--iterations", "2"], "compress_folder": ["--seconds", "0.2"]}
    run_script([f"examples/{name}.py", *short[name], "-o", "made"])
    assert source.startswith('"""') and capsys.readouterr().out
    assert list((workplace / "made").glob("*.gi")) and list((workplace / "made").glob("*.png"))


@pytest.mark.slow
def test_the_example_of_training_runs(workplace: Path, capsys: pytest.CaptureFixture[str]):
    short = ["--steps", "2", "--target-iterations", "2", "--crop", "64"]
    run_script(["examples/train_on_your_pictures.py", *short, "-o", "made"])
    assert re.search(r"dB before, \d+\.\d+ dB after", capsys.readouterr().out)
    assert main(["infer", "assets/kodim23.png", "--iterations", "1", "--checkpoint",
                 "made/network"]) == 0  # fmt: skip


def test_curves_of_a_run_are_drawn(tmp_path: Path):
    run_script = runpy.run_path(str(ROOT / "docs" / "run_curves.py"))
    rows = [
        {"step": "0", "train/loss": "2", "train/map": "1", "val/psnr": ""},
        {"step": "5", "train/loss": "", "train/map": "", "val/psnr": "30"},
    ]
    rows = [
        row | dict.fromkeys(("val/psnr_solved", "val/psnr_20"), row["val/psnr"]) for row in rows
    ]
    for name in ("first.svg", "second.svg"):
        run_script["draw_curves"](rows, tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.svg", "second.svg"))
    assert first == second and b"<svg" in first


# --- links and names -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    markdown = pytest.importorskip("markdown", reason="needs markdown: pip install -e .[docs]")
    text = page.read_text("utf-8")
    drawn = markdown.markdown(text, extensions=["attr_list", "fenced_code", "tables", "toc"])
    return {*re.findall(r'id="([^"]+)"', drawn), *re.findall(r"^::: (\S+)", text, re.M)}


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_page_lead_somewhere(name: str):
    page = NAMES[name]
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name: str):
    folders = "assets|configs|cuda|data|docs|examples|instantgi|tests"
    named = re.findall(
        rf"`((?:{folders})/[\w./-]+\.\w+|[\w-]+\.(?:py|yml|toml))`", prose(NAMES[name])
    )
    called = re.findall(r"`python ([\w./-]+\.py)", prose(NAMES[name]))
    for path in (*named, *called):
        bare = [*ROOT.rglob(path)] if "/" not in path else []
        assert (ROOT / path).exists() or bare, path


def test_kernels_that_never_ran_are_all_named():
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    bounds = r"(?:__launch_bounds__\(\w+\)[\s\\]*)?"
    kernel = re.compile(rf'extern "C" __global__ void\s+{bounds}(\w+?)(?:_##(\w)\w*)?\(')
    endings = {"": "", "C": "_C", "S": "_K"}  # by channels, by slots
    for source in (ROOT / "cuda").glob("*_cuda.cu"):
        names = [name + endings[of] for name, of in kernel.findall(source.read_text("utf-8"))]
        assert names and f"| `cuda/{source.name}` | {', '.join(names)} |" in page


def test_no_page_has_a_placeholder():
    assert not any(re.search(r"@[A-Z]+@", page.read_text("utf-8")) for page in PAGES)


# --- the site ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]  # with -q, --strict hears no warning
    return folder


class Loaded(html.parser.HTMLParser):
    """Addresses of what a browser fetches by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        names = ("href", "src", "srcset") if tag == "link" else ("src", "srcset", "data", "poster")
        self.found += [value for name in names if (value := given.get(name))]


def test_the_site_loads_nothing_from_elsewhere(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert {page.relative_to(site).as_posix() for page in pages} >= {
        "index.html",
        "methods/lig.html",
    }
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert len(loaded.found) > 3
        assert not [url for url in loaded.found if re.match(r"(https?:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text("utf-8")), (
            sheet
        )


def test_equations_are_drawn_by_the_browser(site: Path):
    page = (site / "methods" / "gaussianimage.html").read_text("utf-8")
    assert page.count("<math") > 8 and "arithmatex" not in page and "$$" not in page


@pytest.mark.slow
def test_pages_fit_a_phone_and_ask_for_nothing(site: Path):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": PHONE, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for path in sorted(site.rglob("*.html")):
            page.goto(path.as_uri())
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE, path
        assert asked and all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()
