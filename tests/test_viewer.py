"""The page in a real browser: it reads what Python reads, draws what Python draws, and behaves."""

import base64
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import random_gaussians

from instantgi.cli import main
from instantgi.codec import encode, open_file
from instantgi.codec.bitstream import frames
from instantgi.fit import fit_image
from instantgi.gaussians import Gaussians
from instantgi.images import read_image, to_8bit
from instantgi.render.draw import draw
from instantgi.representations import Levels, Mixture, flat
from instantgi.viewer.view import FOLDER, joined_scripts, page_of

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.gi"))
ROOT = Path(__file__).parents[1]
CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# drawn in software, and no connections of the browser's own
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 150  # seconds: a busy machine is slow, and nothing waits so long in vain
# Another answer of the graphics card.
CARD = """{
  const known = WebGL2RenderingContext.prototype.%s;
  WebGL2RenderingContext.prototype.%s = function (...given) { %s };
}"""
HELPERS = """
globalThis.bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
globalThis.textOf = (values) => {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
};
globalThis.drop = (files) => {
  const data = new DataTransfer();
  for (const [text, name, type] of files) data.items.add(new File([bytesOf(text)], name, { type }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install -e .[dev]"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=1000 * PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the golden file v1_compact.gi with an original, its Gaussians in other colors."""
    folder = tmp_path_factory.mktemp("viewer")
    picture = open_file(GOLDEN / "v1_compact.gi").render().flip(0)
    pixels = to_8bit(picture.clamp(0, 1)).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "original.png")
    (folder / "page.html").write_text(page_of(GOLDEN / "v1_compact.gi", folder / "original.png"))
    return folder


def open_page(browser: Any, home: Path, width: int, height: int, script: str = "", **options: Any):
    page = browser.new_context(
        viewport={"width": width, "height": height}, service_workers="block", **options
    ).new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.failures = []
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    # but for the page itself, and pictures and workers within it
    within = ("file:", "data:", "blob:")
    page.on(
        "request",
        lambda request: request.url.startswith(within) or page.failures.append(request.url),
    )
    page.add_init_script(HELPERS + script)
    page.goto((home / "page.html").as_uri())
    page.evaluate("instantgi.ready")
    return page


@pytest.fixture(scope="module")
def shared(browser: Any, home: Path) -> Iterator[Any]:
    page = open_page(browser, home, 900, 700)
    yield page
    assert page.failures == []
    page.context.close()


@pytest.fixture
def page(shared: Any, home: Path) -> Any:
    """The same page for all, as after it was opened."""
    show(shared, GOLDEN / "v1_compact.gi")
    data = base64.b64encode((home / "original.png").read_bytes()).decode()
    shared.evaluate("data => instantgi.openOriginal(bytesOf(data), 'original.png')", data)
    shared.evaluate(
        "const { state, view, redraw } = instantgi;"
        "Object.assign(state, { ellipses: false, centers: false, errors: false, split: 0.5 });"
        "view.fit(); redraw()"
    )
    return shared


def until(page: Any, expression: str, seconds: float = PATIENCE) -> None:
    """Not the browser's own way of waiting, which the page's policy on scripts forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def at_rest(page: Any) -> None:
    """Once the page is laid out, and all that was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    until(page, "instantgi.isAtRest()")


def show(page: Any, path: Path) -> bool:
    data = base64.b64encode(path.read_bytes()).decode()
    return page.evaluate("([data, name]) => instantgi.open(bytesOf(data), name)", [data, path.name])


def message(page: Any) -> str:
    line = page.locator("#message")
    return line.text_content() if line.is_visible() else ""


def pixels_of(page: Any, height: int, width: int, scale: float = 1) -> np.ndarray:
    """[H, W, 4] as the page draws them."""
    data = page.evaluate(f"textOf(instantgi.pixels(0, 0, {width}, {height}, {scale}))")
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


def expected_pixels(path: Path, scale: float = 1) -> np.ndarray:
    """[H, W, C] as `decode` draws them, before they are rounded to 8 bits, in 1/255."""
    file = open_file(path)
    height, width = round(file.height * scale), round(file.width * scale)
    samples = max(1, round(1 / scale))
    step = 1 / (samples * scale)
    image = draw(file.made(), height * samples, width * samples, step=(step, step))
    image = torch.nn.functional.avg_pool2d(image[None], samples)[0]
    return (255 * image.clamp(0, 1)).permute(1, 2, 0).numpy()


def distance(drawn: np.ndarray, expected: np.ndarray) -> float:
    channels = min(expected.shape[2], 4)
    return float(abs(drawn[..., :channels] - expected[..., :channels]).max())


# --- what the page is --------------------------------------------------------------------------


def test_modules_are_joined_in_an_order_in_which_each_finds_the_others():
    script = "\n".join(joined_scripts().values())
    names = re.findall(r"^const \$(\w+) = \(\(\) => \{$", script, re.M)
    assert sorted(names) == sorted(path.stem for path in FOLDER.glob("*.js"))
    assert names[-1] == "page"
    assert "document" not in joined_scripts()["/*DECODER*/"]  # of which a worker has none
    assert not re.search(r"^(import|export)\b", script, re.M) and "</script" not in script


def test_page_names_no_other_place(home):
    page = (home / "page.html").read_text()
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "default-src 'none'" in page


def test_name_of_a_file_cannot_be_markup(tmp_path):
    path = tmp_path / "</script><b>.gi"
    path = tmp_path / path.name.replace("/", "\u2215").replace("<b>", "<!--")
    path.write_bytes((GOLDEN / "v1_lossless.gi").read_bytes())
    page = page_of(path)
    assert "<!--" not in page
    given = re.search(r'<script id="given" type="application/json">(.*?)</script>', page, re.S)
    assert given and json.loads(given[1])["name"] == path.name


def test_view_writes_the_page(tmp_path, capsys):
    assert main(["view", str(GOLDEN / "v1_fast.gi"), "-o", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr() == ("", "")
    assert "<canvas" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    "file, output, original, text",
    [
        ("v1_fast.gi", "x.png", None, "x.png: is no name for the result; pages end in .html"),
        ("none.gi", "x.html", None, "none.gi: there is no such file"),
        (
            "v1.json",
            "x.html",
            None,
            "v1.json: is not a file of Gaussians: it begins otherwise; ",
        ),
        ("v1_fast.gi", "x.html", "6x4.png", "6x4.png: is 6x4, the Gaussians are of a picture of"),
        ("v1_fast.gi", "x.html", "v1.json", "v1.json"),
    ],
)
def test_view_refuses(tmp_path, monkeypatch, capsys, file, output, original, text):
    Image.new("RGB", (6, 4)).save(tmp_path / "6x4.png")
    for name in ("v1.json", "v1_fast.gi"):
        shutil.copy(GOLDEN / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["view", file, "-o", output, *(["--original", original] if original else [])]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and text in err and err.count("\n") == 1
    assert not (tmp_path / output).exists()


def test_view_refuses_a_damaged_file(tmp_path, capsys):
    data = bytearray((GOLDEN / "v1_fast.gi").read_bytes())
    data[-40] ^= 1
    (tmp_path / "x.gi").write_bytes(data)
    assert main(["view", str(tmp_path / "x.gi"), "-o", str(tmp_path / "x.html")]) == 1
    assert "x.gi: is damaged: the checksum" in capsys.readouterr().err


def test_view_shows_the_beginning_of_a_file_if_asked_to(browser, tmp_path, capsys):
    data, begin = (GOLDEN / "v1_compact.gi").read_bytes(), tmp_path / "begin.gi"
    begin.write_bytes(data[: len(data) * 3 // 4])
    arguments = ["view", str(begin), "-o", str(tmp_path / "page.html")]
    assert main(arguments) == 1
    assert "or draw what is there with decode or view --partial" in capsys.readouterr().err
    assert main([*arguments, "--partial"]) == 0
    page = open_page(browser, tmp_path, 800, 600)
    assert page.locator("#note").text_content().startswith("This file ends early")
    expected = 255 * open_file(begin, whole=False).render().clamp(0, 1).permute(1, 2, 0).numpy()
    assert distance(pixels_of(page, 37, 50), expected) <= 1
    page.context.close()
    begin.write_bytes(data[:120])
    assert main([*arguments, "--partial"]) == 1
    assert "begin.gi: is only the beginning of a file, and ends" in capsys.readouterr().err


# --- the same numbers, the same pixels ---------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_page_reads_the_same_gaussians(page, path):
    assert show(page, path), message(page)
    parts = page.evaluate(
        "instantgi.gaussians().map(({ geometry, colors }) => [textOf(geometry), textOf(colors)])"
    )
    made = open_file(path).made()
    is_levels = isinstance(made, Levels)
    wanted = [level.gaussians for level in made.levels] if is_levels else [flat(made)]
    found = [[np.frombuffer(base64.b64decode(text), "<f4") for text in part] for part in parts]
    geometry = np.concatenate([part[0].reshape(-1, 5) for part in found])
    colors = np.concatenate([part[1].reshape(-1, wanted[0].colors.shape[1]) for part in found])
    means, cholesky, expected = (
        np.concatenate([getattr(each, name).numpy() for each in wanted])
        for name in ("means", "cholesky", "colors")
    )
    if path.stem == "v1_seeds":  # by exponentials and networks, which machines round differently
        np.testing.assert_allclose(geometry, np.hstack([means, cholesky]), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(colors, expected, rtol=1e-4, atol=1e-4)
    else:
        assert np.array_equal(geometry, np.hstack([means, cholesky]))
        assert np.array_equal(colors, expected)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_page_draws_the_same_pixels(page, path):
    file = open_file(path)
    assert show(page, path)
    for scale in (1, 2, 0.5):
        size = round(file.height * scale), round(file.width * scale)
        drawn = pixels_of(page, *size, scale)
        # rounding is half a level; a weight at the cut-off may fall on either side
        assert distance(drawn, expected_pixels(path, scale)) <= 1


def test_thousands_of_gaussians_in_blocks(page, tmp_path):
    """Thin, wide, outside, tiny and huge ones, in a picture of an odd size."""
    scene = random_gaussians(3000, 67, 101, seed=3)
    scale = torch.logspace(-3, 1.5, 3000)[torch.randperm(3000)][:, None]
    scene = type(scene)(scene.means, scene.cholesky * scale, scene.colors / (1 + scale))
    path = tmp_path / "many.gi"
    path.write_bytes(encode(scene.map(lambda field: field.float()), 67, 101, profile="lossless"))
    assert show(page, path)
    assert distance(pixels_of(page, 67, 101), expected_pixels(path)) <= 1


def test_mixture_counts_equal_weights_together(page, tmp_path):
    scene = random_gaussians(20, 31, 33, seed=5).map(lambda field: field.float())
    twice = scene.map(lambda field: field.repeat_interleave(3, 0))
    colors = torch.linspace(0, 1, 180).view(60, 3)
    made = Mixture(type(twice)(twice.means, twice.cholesky, colors), top_k=2)
    path = tmp_path / "equal.gi"
    path.write_bytes(encode(made, 31, 33, profile="lossless"))
    assert show(page, path)
    assert distance(pixels_of(page, 31, 33), expected_pixels(path)) <= 1


def test_picture_of_real_size_has_the_pixels_of_decode(page, tmp_path):
    image = read_image(ROOT / "assets" / "kodim23.png")
    path = tmp_path / "kodim23.gi"
    height, width = image.shape[1:]
    made = fit_image(image, num_gaussians=2000, iterations=3)
    path.write_bytes(encode(made, height, width, profile="fast"))
    assert show(page, path)
    for scale in (1, 0.5):
        drawn = pixels_of(page, round(height * scale), round(width * scale), scale)
        # half a level, and a weight at the cut-off: 1/255 of a color
        assert distance(drawn, expected_pixels(path, scale)) <= 1.5


def test_page_refuses_what_python_refuses(page):
    def is_read(path: Path) -> bool:
        try:
            file = open_file(path, whole=False)
            return len(file.gaussians()) > 0 or file.is_whole
        except ValueError:
            return False

    data = [base64.b64encode(path.read_bytes()).decode() for path in CORPUS]
    is_opened = "(data) => { try { return Boolean(instantgi.decode(bytesOf(data))); }"
    is_opened += " catch { return false; } }"
    found = page.evaluate(f"all => all.map({is_opened})", data)
    assert found == [is_read(path) for path in CORPUS]


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    num = 60_000
    scene = Gaussians(
        torch.full((num, 2), 400.0), torch.tensor([[1e5, 0, 1e5]] * num), torch.zeros(num, 1)
    )
    path = tmp_path / "heavy.gi"
    path.write_bytes(encode(scene, 600, 800, profile="lossless"))
    return path


TOO_MUCH = "These Gaussians are too many and too large"


def test_what_would_hang_the_computer_is_refused(page, heavy):
    assert show(page, heavy)
    until(page, "!document.getElementById('message').hidden")
    assert message(page).startswith(TOO_MUCH)
    page.evaluate("instantgi.state.count = 20; instantgi.redraw()")
    until(page, "document.getElementById('message').hidden")


def test_why_there_is_no_picture_gives_way_to_what_is_said_later(page, heavy):
    assert show(page, heavy)
    until(page, "!document.getElementById('message').hidden")
    page.evaluate("file => drop([file])", ["AAAA", "bad.gi", ""])
    until(page, "document.getElementById('message').textContent.startsWith('bad.gi')")
    page.evaluate("instantgi.redraw()")
    at_rest(page)
    assert message(page).startswith("bad.gi")  # a frame that fails again is no news
    page.keyboard.press("Escape")
    assert message(page).startswith(TOO_MUCH)  # still so
    page.evaluate("file => drop([file])", ["AAAA", "bad.gi", ""])
    until(page, "document.getElementById('message').textContent.startsWith('bad.gi')")
    page.evaluate("instantgi.state.count = 20; instantgi.redraw()")
    at_rest(page)
    assert message(page).startswith("bad.gi")


def test_small_gaussians_are_not_counted_each_frame(page, tmp_path):
    scene = random_gaussians(9000, 600, 800, scales=(0.5, 2)).map(lambda field: field.float())
    (tmp_path / "many.gi").write_bytes(encode(scene, 600, 800, profile="lossless"))
    show(page, tmp_path / "many.gi")
    at_rest(page)
    page.evaluate(
        "globalThis.looks = 0; for (const gaussians of instantgi.gaussians()) {"
        "  const { geometry } = gaussians;"
        "  Object.defineProperty(gaussians, 'geometry', { get: () => (++looks, geometry) });"
        "} null"
    )
    page.evaluate("instantgi.view.zoom(2); instantgi.redraw()")
    at_rest(page)
    assert page.evaluate("looks") == 0
    page.evaluate("instantgi.view.zoom(1000); instantgi.redraw()")  # each may fill the window
    at_rest(page)
    assert page.evaluate("looks") > 0


def test_what_would_hang_the_computer_is_not_drawn_in_blocks_either(browser, home, heavy):
    """Not after a slow frame, of the file before or of fewer Gaussians."""
    wait = "return globalThis.isBusy ? this.TIMEOUT_EXPIRED : known.apply(this, given)"
    count = "if (given[3] < 60_000) known.apply(this, given); else globalThis.isDrawn = true"
    script = CARD % ("clientWaitSync", "clientWaitSync", wait)
    script += CARD % ("drawArraysInstanced", "drawArraysInstanced", count)
    page = open_page(browser, home, 900, 700, script)
    at_rest(page)
    page.evaluate(
        """async (data) => {
          let now = 0;
          performance.now = () => (now += 2000);
          const frame = () => new Promise(requestAnimationFrame);
          globalThis.isBusy = true; // with a frame of the file before
          instantgi.redraw();
          await frame();
          await instantgi.open(bytesOf(data), "heavy.gi");
          globalThis.isBusy = false;
        }""",
        base64.b64encode(heavy.read_bytes()).decode(),
    )
    until(page, "!document.getElementById('message').hidden")
    page.locator("#count").fill("20")
    until(page, "document.getElementById('message').hidden")
    page.locator("#count").fill("60000")
    at_rest(page)
    assert message(page).startswith(TOO_MUCH)
    assert not page.evaluate("Boolean(globalThis.isDrawn)")
    assert page.failures == []
    page.context.close()


def test_window_shows_the_pixels_of_decode(page):
    page.evaluate("instantgi.state.split = null; instantgi.view.zoom(1 / instantgi.view.scale)")
    page.evaluate("instantgi.redraw()")
    at_rest(page)
    assert page.locator("#scale").text_content() == "100%"
    corner = page.evaluate("instantgi.view.corner()")
    box = page.locator("canvas").bounding_box()
    clip = {"x": box["x"] + corner["x"], "y": box["y"] + corner["y"], "width": 50, "height": 37}
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))))
    assert distance(shot, expected_pixels(GOLDEN / "v1_compact.gi")) <= 1


# --- decoding ----------------------------------------------------------------------------------

WATCHED = """async (text) => {
  const bytes = bytesOf(text), shares = [], progress = document.getElementById("progress");
  const began = performance.now();
  let before = began, longest = 0, isOpen = false;
  const tick = () => {
    longest = Math.max(longest, performance.now() - before);
    before = performance.now();
    if (progress.checkVisibility()) shares.push(progress.querySelector("progress").value);
    if (!isOpen) setTimeout(tick); // frames wait for the graphics card too
  };
  tick();
  await instantgi.open(bytes, "large.gi");
  instantgi.state.count = 100; // to draw them all takes seconds here
  isOpen = true;
  const whole = performance.now() - began;
  const flat = (made) => made.flatMap(({ geometry, colors }) => [geometry, colors]);
  const [found, expected] = [instantgi.gaussians(), instantgi.decode(bytes)].map(flat);
  const isSame = expected.every((field, i) => field.every((value, n) => value === found[i][n]));
  return { longest, whole, shares, isSame, isHidden: progress.hidden };
}"""


@pytest.fixture(scope="module")
def large() -> str:
    scene = random_gaussians(300_000, 900, 1200, seed=1)
    return base64.b64encode(encode(scene, 900, 1200)).decode()


def test_page_stays_awake_while_it_decodes(page, large):
    found = page.evaluate(WATCHED, large)
    assert found["isSame"] and found["isHidden"]
    assert found["longest"] < found["whole"] / 3  # in which nothing could be pressed
    shares = found["shares"]
    assert shares == sorted(shares) and len(set(shares)) >= 3


def test_a_file_that_is_opened_meanwhile_takes_its_place(page, large):
    small = base64.b64encode((GOLDEN / "v1_fast.gi").read_bytes()).decode()
    found = page.evaluate(
        "texts => Promise.all(texts.map((text, i) => instantgi.open(bytesOf(text), `${i}.gi`)))",
        [large, small],
    )
    assert found == [False, True]
    assert page.locator("#name").text_content() == "1.gi" and message(page) == ""
    assert not page.locator("#progress").is_visible()


def test_progress_of_another_stage_is_shown(browser, home):
    """Once it takes long: here the answer waits until it has been seen."""
    held = """globalThis.Worker = class extends Worker {
      postMessage(question) {
        const send = () => super.postMessage(question);
        if (question.step) globalThis.release = send;
        else send();
      }
    }"""
    page = open_page(browser, home, 800, 600, held)
    progress = page.locator("#progress")
    assert not progress.is_visible()
    page.locator("#step").fill("2")
    until(page, "!document.getElementById('progress').hidden")
    assert progress.text_content().strip() == "Decoding v1_compact.gi"
    page.evaluate("release()")
    at_rest(page)
    assert not progress.is_visible() and page.failures == []
    page.context.close()


@pytest.mark.parametrize(
    "script",
    [
        "delete globalThis.Worker",
        "globalThis.Worker = class extends Worker { constructor() { super('data:,') } }",
    ],
    ids=["there are none", "the browser refuses it"],
)
def test_page_decodes_without_workers(browser, home, script):
    page = open_page(browser, home, 800, 600, script)
    assert distance(pixels_of(page, 37, 50), expected_pixels(GOLDEN / "v1_compact.gi")) <= 1
    page.locator("#step").fill("2")
    page.evaluate("instantgi.idle()")
    gray = pixels_of(page, 37, 50)[..., :3]
    assert (gray == gray[..., :1]).all() and message(page) == ""
    assert page.failures == []
    page.context.close()


def test_decoding_that_stops_says_so(browser, home):
    script = """globalThis.Worker = class extends Worker {
      postMessage(question) {
        if (!globalThis.isFull) return super.postMessage(question);
        this.dispatchEvent(new ErrorEvent("error", { message: "out of memory" }));
      }
    }"""
    page = open_page(browser, home, 800, 600, script)
    page.evaluate("globalThis.isFull = true")
    assert not show(page, GOLDEN / "v1_fast.gi")
    assert message(page) == "v1_fast.gi: cannot be shown (out of memory)"
    assert page.locator("#name").text_content() == "v1_compact.gi"
    page.evaluate("globalThis.isFull = false")
    assert show(page, GOLDEN / "v1_fast.gi") and message(page) == ""
    page.context.close()


def test_questions_to_a_decoding_that_has_stopped_have_an_end(browser, home):
    script = """globalThis.Worker = class extends Worker {
      postMessage(question) {
        if (!globalThis.isFull) return super.postMessage(question);
        if (!this.isDead) this.dispatchEvent(new ErrorEvent("error", { message: "is full" }));
        this.isDead = true;
      }
    }"""
    page = open_page(browser, home, 800, 600, script)
    page.evaluate("globalThis.isFull = true")
    page.locator("#step").fill("2")
    until(page, "!document.getElementById('message').hidden")
    page.locator("#step").fill("3")
    page.evaluate("instantgi.idle().then(() => (globalThis.isAnswered = true)), null")
    until(page, "globalThis.isAnswered")
    assert page.failures == []
    page.context.close()


# What a reader of files does is over when the test says so, for the first of them.
LATE = """{
  const [place, name] = [%s];
  const known = place[name];
  let num = 0;
  place[name] = function (...given) {
    const found = known.apply(this, given);
    if (num++) return found;
    return new Promise((done) => (globalThis.release = () => found.then(done)));
  };
} null"""


@pytest.mark.parametrize("kind", ["file", "picture"])
def test_of_two_files_the_last_one_is_shown(browser, home, kind):
    """Also if the browser takes longer to read the first."""
    page = open_page(browser, home, 800, 600)
    first, second = GOLDEN / "v1_compact.gi", GOLDEN / "v1_lossless.gi"
    media = ""
    if kind == "picture":
        media = "image/png"
        first, second = home / "original.png", home / "second.png"
        Image.new("RGB", (50, 37), "red").save(second)
    where = {"file": "Blob.prototype, 'arrayBuffer'", "picture": "globalThis, 'createImageBitmap'"}
    page.evaluate(LATE % where[kind])
    page.evaluate("globalThis.before = instantgi.state.original")
    for path in (first, second):
        data = base64.b64encode(path.read_bytes()).decode()
        page.evaluate("file => drop([file])", [data, path.name, media])
    if kind == "file":
        until(page, "document.getElementById('name').textContent === 'v1_lossless.gi'")
    else:
        until(page, "instantgi.state.original !== before")
    page.evaluate("globalThis.before = instantgi.state.original")
    page.evaluate("release()")
    at_rest(page)
    if kind == "file":
        assert page.locator("#name").text_content() == "v1_lossless.gi"
    assert page.evaluate("instantgi.state.original === before")
    assert page.failures == []
    page.context.close()


# --- controls ----------------------------------------------------------------------------------


def test_keys_wheel_and_drag_move_the_picture(page):
    canvas = page.locator("canvas")
    at_rest(page)  # a size of the window that comes late would fit the picture anew
    canvas.focus()
    page.keyboard.press("1")
    assert page.locator("#scale").text_content() == "100%"
    page.keyboard.press("+")
    assert page.locator("#scale").text_content() == "150%"
    page.keyboard.press("-")
    assert page.locator("#scale").text_content() == "100%"
    before = page.evaluate("instantgi.view.x")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("instantgi.view.x") > before
    page.keyboard.press("0")
    fitted = page.evaluate("instantgi.view.scale")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    at = "(() => { const { x, y, scale } = instantgi.view.corner();"
    at += " return [(200 - x) / scale, (150 - y) / scale]; })()"
    place = page.evaluate(at)
    page.mouse.wheel(0, -400)
    until(page, f"instantgi.view.scale > {1.5 * fitted}")
    assert np.allclose(page.evaluate(at), place, atol=0.2)  # stays under the pointer
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 130, steps=3)
    page.mouse.up()
    moved = np.array(place) - page.evaluate(at)
    assert np.allclose(moved * page.evaluate("instantgi.view.scale"), [60, -20], atol=2)


def test_split_is_dragged(page):
    split, box = page.locator("#split"), page.locator("canvas").bounding_box()
    y = box["y"] + 100
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, y, steps=3)
    page.mouse.up()
    assert split.get_attribute("aria-valuenow") == "25"
    page.mouse.move(box["x"] + box["width"] / 2, y)
    assert split.get_attribute("aria-valuenow") == "25"  # let go


def test_double_click_zooms(page):
    at_rest(page)
    page.evaluate("instantgi.view.zoom(4)")
    box = page.locator("canvas").bounding_box()
    before = page.evaluate("instantgi.view.scale")
    at = "(() => { const { x, y, scale } = instantgi.view.corner();"
    at += " return [(200 - x) / scale, (150 - y) / scale]; })()"
    place = page.evaluate(at)
    page.mouse.dblclick(box["x"] + 200, box["y"] + 150)
    assert page.evaluate("instantgi.view.scale") == pytest.approx(2 * before)
    assert np.allclose(page.evaluate(at), place, atol=0.05)
    page.keyboard.down("Shift")
    page.mouse.dblclick(box["x"] + 200, box["y"] + 150)
    page.keyboard.up("Shift")
    assert page.evaluate("instantgi.view.scale") == pytest.approx(before)
    page.keyboard.press("1")
    page.keyboard.press("=")  # the key of + without Shift
    assert page.locator("#scale").text_content() == "150%"


def test_picture_is_enlarged_a_thousand_times_without_steps(page):
    """Neighbors of a drawing at scale 4000 differ by almost nothing: it is not interpolated."""
    data = page.evaluate("textOf(instantgi.pixels(20.5, 12.25, 64, 64, 4000))")
    drawn = np.frombuffer(base64.b64decode(data), np.uint8).reshape(64, 64, 4).astype(int)
    made = open_file(GOLDEN / "v1_compact.gi").made()
    step = (1 / 4000, 1 / 4000)
    expected = draw(made, 64, 64, origin=(20.5, 12.25), step=step).clamp(0, 1).permute(1, 2, 0)
    assert abs(drawn[..., :3] - 255 * expected.numpy()).max() <= 1


def test_sliders_show_fewer_gaussians(page):
    count = page.locator("#count")
    count.fill("100")
    assert page.locator("#count-text").text_content() == "100"
    made = open_file(GOLDEN / "v1_compact.gi").gaussians()[:100]
    expected = 255 * draw(made, 37, 50).clamp(0, 1).permute(1, 2, 0).numpy()
    assert distance(pixels_of(page, 37, 50), expected) <= 1
    page.locator("#step").fill("2")
    page.evaluate("instantgi.idle()")
    gray = pixels_of(page, 37, 50)[..., :3]
    assert (gray == gray[..., :1]).all()


def test_slider_says_its_stage_before_it_is_decoded(page):
    said = page.evaluate(
        "['2', '3', '1'].map((value) => { const step = document.getElementById('step');"
        " step.value = value; step.dispatchEvent(new Event('input'));"
        " return [step.getAttribute('aria-valuetext'), step.nextSibling.textContent]; })"
    )
    assert said == [
        [f"{i} of 5, {text}", text] for i, text in ((2, "+ sizes"), (3, "+ luma"), (1, "positions"))
    ]
    page.evaluate("instantgi.idle()")
    made = page.evaluate("textOf(instantgi.gaussians()[0].colors)")
    assert show(page, GOLDEN / "v1_compact.gi")
    assert made != page.evaluate("textOf(instantgi.gaussians()[0].colors)")  # the last one won


@pytest.mark.parametrize("name", ["v1_compact_mixture", "v1_compact_levels", "v1_compact"])
def test_steps_are_what_the_beginning_of_a_file_is(page, tmp_path, name):
    path = GOLDEN / f"{name}.gi"
    show(page, path)
    page.locator("#step").fill("1")
    page.evaluate("instantgi.idle()")
    begin = tmp_path / "begin.gi"
    begin.write_bytes(beginning(path.read_bytes()))
    made = open_file(begin, whole=False).made()
    size = made.levels[0] if isinstance(made, Levels) else open_file(path)
    step = size.width / 50, size.height / 37  # a level is shown in the size of the picture
    expected = 255 * draw(made, 37, 50, step=step).clamp(0, 1).permute(1, 2, 0).numpy()
    assert distance(pixels_of(page, 37, 50), expected) <= 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_beginning_of_a_file_is_drawn_as_decode_does(page, tmp_path, path):
    """Cut in the middle of chunks, of some of them."""
    data, begin = path.read_bytes(), tmp_path / "begin.gi"
    cuts = [frame.begin + 1 for frame in frames(data)[0][1:]]
    for cut in cuts[:: -(-len(cuts) // 4)]:
        begin.write_bytes(data[:cut])
        file = open_file(begin, whole=False)
        num = len(file.gaussians())
        assert show(page, begin) == (num > 0)
        if not num:
            text = "is only the beginning of a file, and ends before any Gaussian can be drawn"
            assert message(page) == f"begin.gi: {text}"
            continue
        expected = 255 * file.render().clamp(0, 1).permute(1, 2, 0).numpy()
        assert distance(pixels_of(page, file.height, file.width), expected) <= 1
        note = page.locator("#note").text_content()
        assert note.startswith("This file ends early")
        assert f" {num} of " in note or num == file.num_gaussians


def test_what_is_missing_of_a_file_is_said(page, tmp_path):
    for name, kind, text in (
        ("v1_fast", b"LUMA", "lacks luma, chroma, and shapes"),
        ("v1_compact_blocks", b"POSI", "has 299 of 300 Gaussians and lacks sizes"),
        ("v1_compact_levels", b"HEAD", "has 1 of 2 levels."),
        ("v1_compact_levels", b"SHAP", "lacks shapes."),
        ("v1_seeds", b"OFFS", "lacks offsets"),
    ):
        data = (GOLDEN / f"{name}.gi").read_bytes()
        last = [frame for frame in frames(data)[0] if frame.type == kind][-1]
        (tmp_path / "begin.gi").write_bytes(data[: last.begin + 1])
        assert show(page, tmp_path / "begin.gi")
        note = page.locator("#note").text_content()
        assert note.startswith(f"This file ends early, so the picture is coarser: it {text}"), name
    (tmp_path / "begin.gi").write_bytes((GOLDEN / "v1_fast.gi").read_bytes()[:-1])
    show(page, tmp_path / "begin.gi")
    note = "This file ends early, but all of its Gaussians are there."
    assert page.locator("#note").text_content().startswith(note)
    show(page, GOLDEN / "v1_fast.gi")
    assert "ends early" not in page.locator("#note").text_content()


def beginning(data: bytes) -> bytes:
    """Up to the second header, or with no more than the first numbers."""
    at = 8
    heads = 0
    while True:
        length, kind = int.from_bytes(data[at : at + 4], "little"), data[at + 4 : at + 8]
        heads += kind == b"HEAD"
        if heads == 2 or kind == b"SIZE" and b"PART" not in data:
            return data[:at]
        at += length + 12


def test_toggles_draw_over_the_picture(page):
    canvas = page.locator("canvas")
    at_rest(page)
    before = canvas.screenshot()
    for name in ("Ellipses", "Centers", "Error"):
        button = page.get_by_role("button", name=name)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        at_rest(page)
        after = canvas.screenshot()
        assert after != before
        before = after
    assert page.locator("#legend").is_visible()


def shot_of(page: Any, height: int, width: int) -> np.ndarray:
    """[H, W, 3] as the window shows them, of so many pixels from the picture's corner on."""
    corner, box = page.evaluate("instantgi.view.corner()"), page.locator("canvas").bounding_box()
    clip = {
        "x": box["x"] + corner["x"],
        "y": box["y"] + corner["y"],
        "width": width,
        "height": height,
    }
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))


def test_marks_are_where_the_gaussian_is(page, tmp_path):
    mean, cholesky = np.array([13.3, 10.2]), np.array([[4, 0], [-2, 3]])
    scene = Gaussians(
        torch.from_numpy(mean[None]).float(),
        torch.tensor([[4.0, -2, 3]]),
        torch.zeros(1, 3),
    )
    (tmp_path / "one.gi").write_bytes(encode(scene, 20, 30, profile="lossless"))
    show(page, tmp_path / "one.gi")
    page.evaluate("instantgi.view.zoom(16 / instantgi.view.scale)")

    def lit(name: str) -> np.ndarray:
        """[N, 2], in pixels of the picture."""
        button = page.get_by_role("button", name=name)
        button.click()
        at_rest(page)
        y, x = np.nonzero(shot_of(page, 320, 480).max(2) > 40)
        button.click()
        return (np.stack([x, y], 1) + 0.5) / 16

    center = lit("Centers")
    assert np.allclose(center.mean(0), mean, atol=0.1)
    assert abs(center - mean).max() < 0.2  # a point of three pixels
    away = np.linalg.solve(cholesky, (lit("Ellipses") - mean).T)  # [2, N], of length 1
    # a line of one pixel, of 40 straight pieces; the least singular value is 2.4
    assert abs(np.hypot(*away) - 1).max() < 1.5 / 16 / 2.4
    turns = np.histogram(np.arctan2(away[1], away[0]), bins=24, range=(-np.pi, np.pi))[0]
    assert (turns > 0).all()  # all of it


def heat(t: np.ndarray) -> np.ndarray:
    """[..., 3] in 1/255: black, blue, red, orange and white, at quarters."""
    stops = [(0.02, 0.02, 0.06), (0.16, 0.20, 0.55), (0.78, 0.25, 0.42), (1, 0.66, 0.25)]
    stops = np.array([*stops, (1, 1, 0.92)])
    at = np.linspace(0, 1, 5)
    return 255 * np.stack([np.interp(t, at, stops[:, c]) for c in range(3)], -1)


def test_error_has_its_color(page, home):
    page.evaluate("instantgi.state.split = null")
    page.get_by_role("button", name="Error").click()
    page.locator("#scale").click()
    at_rest(page)
    original = np.asarray(Image.open(home / "original.png")).astype(float)
    apart = abs(pixels_of(page, 37, 50)[..., :3] - original).max(2)
    assert apart.min() < 8 and apart.max() > 32
    # the error is held in 1/255 of 64 levels: heat changes by at most 2.5 levels within half a step
    assert abs(shot_of(page, 37, 50) - heat(apart / 32)).max() < 4


def test_original_left_of_the_split(page, home):
    split = page.get_by_role("slider", name="Share of the window")
    assert split.get_attribute("aria-valuenow") == "50"
    split.press("ArrowLeft")
    assert split.get_attribute("aria-valuenow") == "48"
    split.press("Home")
    assert split.get_attribute("aria-valuenow") == "0"
    split.press("End")
    page.locator("#scale").click()
    at_rest(page)
    original = np.asarray(Image.open(home / "original.png"))
    assert np.array_equal(shot_of(page, 37, 50), original)
    page.get_by_role("button", name="Original").click()
    assert not split.is_visible()


def test_psnr_is_that_of_python(page, home):
    until(page, "document.getElementById('quality').textContent.endsWith('dB')")
    original = np.asarray(Image.open(home / "original.png")).astype(float)
    drawn = np.round(expected_pixels(GOLDEN / "v1_compact.gi"))
    expected = 10 * np.log10(255**2 / ((original - drawn) ** 2).mean())
    text = page.locator("#quality").text_content()
    assert abs(float(text.split()[0]) - expected) < 0.02


def test_psnr_is_not_that_of_the_file_before(page):
    until(page, "document.getElementById('quality').textContent.endsWith('dB')")
    data = base64.b64encode((GOLDEN / "v1_compact.gi").read_bytes()).decode()
    said = page.evaluate(
        "async (data) => { await instantgi.open(bytesOf(data), 'again.gi');"
        " return document.getElementById('quality').textContent; }",
        data,
    )
    assert said == "–"


# The fence that comparing waits for, not reached while it is held.
HELD = CARD % (
    "fenceSync",
    "fenceSync",
    "const made = known.apply(this, given);"
    "if (globalThis.isHolding && new Error().stack.includes('isDone')) globalThis.held = made;"
    "return made",
)
HELD += CARD % (
    "clientWaitSync",
    "clientWaitSync",
    "return given[0] === globalThis.held ? this.TIMEOUT_EXPIRED : known.apply(this, given)",
)
COUNTED = CARD % (
    "generateMipmap",
    "generateMipmap",
    "globalThis.mipmaps = (globalThis.mipmaps ?? 0) + 1; known.apply(this, given)",
)


def test_page_is_awake_while_it_compares(browser, home):
    read = "if (globalThis.held) throw new Error('too early'); known.apply(this, given)"
    page = open_page(browser, home, 900, 700, HELD + CARD % ("readPixels", "readPixels", read))
    at_rest(page)
    first = page.locator("#quality").text_content()
    page.evaluate(
        "globalThis.isHolding = true; instantgi.open(bytesOf(JSON.parse("
        "document.getElementById('given').textContent).file), 'again.gi')"
    )
    until(page, "Boolean(globalThis.held)")
    assert page.locator("#quality").text_content() == "–"
    page.locator("#count").fill("20")  # another picture: that one is given up
    page.evaluate("globalThis.isHolding = globalThis.held = null")
    at_rest(page)
    assert page.locator("#quality").text_content() not in ("–", first)
    assert message(page) == "" and page.failures == []
    page.context.close()


def test_error_is_of_what_is_seen_at_rest(browser, home):
    """Not of each frame while a slider moves: rests of these milliseconds come when they may."""
    late = """{
      const [known, late] = [setTimeout, []];
      globalThis.setTimeout = (done, wait, ...given) =>
        globalThis.isMoved && wait >= 100 ? late.push(done) : known(done, wait, ...given);
      globalThis.rest = () => { globalThis.isMoved = false; late.forEach((done) => done()); };
    }"""
    page = open_page(browser, home, 900, 700, COUNTED + late)
    page.get_by_role("button", name="Error").click()
    at_rest(page)
    before = page.locator("canvas").screenshot()
    found = page.evaluate(
        """async () => {
          globalThis.isMoved = true;
          globalThis.mipmaps = 0;
          const count = document.getElementById("count");
          for (const value of [90, 60, 30]) {
            count.value = value;
            count.dispatchEvent(new Event("input"));
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          }
          return globalThis.mipmaps;
        }"""
    )
    assert found == 0
    page.evaluate("rest()")
    at_rest(page)
    assert page.evaluate("globalThis.mipmaps") == 1
    assert page.locator("canvas").screenshot() != before
    page.context.close()


def test_many_gaussians_without_a_graphics_card_are_compared_when_errors_are_asked_for(page):
    at_rest(page)
    page.evaluate("instantgi.state.file.num = 1_000_000; instantgi.redraw()")
    at_rest(page)
    assert page.locator("#quality").text_content() == "–"
    page.get_by_role("button", name="Error").click()
    at_rest(page)
    assert page.locator("#quality").text_content().endswith("dB")


def test_dropped_files(page):
    good = base64.b64encode((GOLDEN / "v1_fast.gi").read_bytes()).decode()
    page.evaluate("file => drop([file])", [good, "other.gi", ""])
    until(page, "document.getElementById('name').textContent === 'other.gi'")
    assert "150 Gaussians" in page.locator("#facts").text_content()
    for data, text in (
        (b"\x89PNG", "bad.gi: is not a file of Gaussians: it begins otherwise"),
        (
            (GOLDEN / "v1_fast.gi").read_bytes()[:300],
            "bad.gi: is only the beginning of a file, and ends before any Gaussian can be drawn",
        ),
        (
            (GOLDEN / "v1_fast.gi").read_bytes()[:30],
            "bad.gi: is damaged: it ends before its first chunk does",
        ),
    ):
        page.evaluate("file => drop([file])", [base64.b64encode(data).decode(), "bad.gi", ""])
        until(page, "!document.getElementById('message').hidden")
        until(page, f"document.getElementById('message').textContent === {text!r}")
    assert page.locator("#name").text_content() == "other.gi"  # what was shown stays
    page.evaluate("file => drop([file])", [good, "again.gi", ""])
    until(page, "document.getElementById('message').hidden")


def test_dropped_picture_of_another_size_is_refused(page):
    written = io.BytesIO()
    Image.new("RGB", (6, 4)).save(written, "PNG")
    data = base64.b64encode(written.getvalue()).decode()
    page.evaluate("file => drop([file])", [data, "small.png", "image/png"])
    until(page, "!document.getElementById('message').hidden")
    assert message(page) == "small.png: has 6x4 pixels, the file of Gaussians 50x37"


def test_what_is_read_out(page):
    canvas = page.get_by_role("application")  # which takes keys
    assert canvas.get_attribute("aria-label").startswith("v1_compact.gi: a picture of 50 by 37")
    scale = page.locator("#scale").text_content()
    assert page.get_by_role("button", name=f"Pixel by pixel, now {scale}", exact=True).is_visible()
    assert page.get_by_role("slider", name="Stage").get_attribute("aria-valuetext") == (
        "5 of 5, + shapes"
    )
    facts = page.locator("#facts").text_content()
    assert facts.strip() == "50 × 37 · 400 Gaussians · 1.5 kB · 6.44 bpp · compact"
    at_rest(page)
    assert re.fullmatch(r"[\d.]+ ms", page.locator("#time").text_content())
    show(page, GOLDEN / "v1_lossless.gi")
    assert " · 790 bytes · " in page.locator("#facts").text_content()


def test_a_message_that_stays_the_same_is_said_once(page):
    page.evaluate(
        "globalThis.said = 0; new MutationObserver(() => said++).observe("
        "document.getElementById('message'), { childList: true, characterData: true })"
    )
    for text, num in (("AAAA", 1), ("AAAA", 1)):
        page.evaluate("file => drop([file])", [text, "bad.gi", ""])
        until(page, "document.getElementById('message').textContent.startsWith('bad.gi')")
        at_rest(page)
        assert page.evaluate("said") == num
    assert message(page).startswith("bad.gi")


def test_page_without_a_file(browser, tmp_path):
    given = r'(<script id="given" type="application/json">).*?(</script>)'
    written = re.sub(given, r"\1{}\2", page_of(GOLDEN / "v1_fast.gi"), flags=re.S)
    (tmp_path / "page.html").write_text(written)
    page = open_page(browser, tmp_path, 900, 700)
    at_rest(page)
    assert page.locator("#scale").text_content() == "–"
    lines = "(each) => each.getBoundingClientRect().height / parseFloat(getComputedStyle(each)"
    lines += ".lineHeight)"
    assert page.locator("#empty span").evaluate(lines) < 1.5
    shot = np.asarray(Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB"))
    assert (shot[5, 5] == [0x0D, 0x0E, 0x10]).all()  # as around a picture
    show(page, GOLDEN / "v1_fast.gi")
    assert not page.locator("#empty").is_visible() and page.failures == []
    page.context.close()


def test_everything_has_a_name(page):
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, [role], input:not([hidden]), canvas')]"
        ".filter((each) => !each.matches('[role=alert], [role=status]'))"
        ".filter((each) => !(each.ariaLabel || each.textContent.trim() || each.labels?.length))"
        ".map((each) => each.outerHTML)"
    )
    assert unnamed == []


CONTRASTS = """() => {
  const rgb = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { light: [r, g, b], a };
  };
  const over = ({ light, a }, below) => light.map((value, i) => a * value + (1 - a) * below[i]);
  const luminance = (light) => {
    const linear = light.map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  // Behind an element, where the picture shows through it `picture`.
  const ground = (element, picture) => {
    if (!element || element.id === "stage") return picture;
    const own = rgb(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own.light : over(own, ground(element.parentElement, picture));
  };
  const worst = (element, color) => Math.min(...[0, 255].map((gray) => {
    const below = ground(element, element.closest("#stage") ? [gray, gray, gray] : [13, 14, 16]);
    return contrast(over(color, below), below);
  }));
  document.querySelectorAll("[hidden]").forEach((each) => (each.hidden = false));
  for (const id of ["message", "note"]) document.getElementById(id).textContent = "x";
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const colorOf = (each) => rgb(getComputedStyle(each).color);
  return [...document.querySelectorAll("header *, main *, footer *")]
    .filter((each) => [...each.childNodes].some(isText) && !each.matches("#keys, #empty, #empty *"))
    .map((each) => [each.id || each.textContent.trim(), worst(each, colorOf(each))]);
}"""


def test_text_can_be_read(browser, home):
    """Against whatever picture shows through: 4.5 is what WCAG 2 asks for."""
    page = open_page(browser, home, 900, 700, reduced_motion="reduce")
    page.get_by_role("button", name="Centers").click()
    found = page.evaluate(CONTRASTS)
    assert {"name", "time", "message", "note", "centers", "count-text"} <= dict(found).keys()
    assert len(found) > 20
    assert [each for each in found if each[1] < 4.5] == []
    page.context.close()


def test_every_control_is_reached_by_tab_and_seen(browser, home):
    page = open_page(browser, home, 900, 700, reduced_motion="reduce")
    wanted = page.evaluate(
        "[...document.querySelectorAll('button, input, canvas, [role=slider]')]"
        ".filter((each) => each.checkVisibility()).map((each) => each.id)"
    )
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        name, style, width, color, transition = page.evaluate(
            "(() => { const each = document.activeElement, style = getComputedStyle(each);"
            " return [each.id, style.outlineStyle, parseFloat(style.outlineWidth),"
            " style.outlineColor, style.transitionDuration]; })()"
        )
        assert (style, width, color) == ("solid", 2, "rgb(142, 203, 255)"), name
        assert transition == "0s", name  # the reader prefers no motion
        reached.append(name)
    assert sorted(reached) == sorted(wanted) and len(wanted) >= 13
    page.context.close()


def test_escape_hides_what_is_written_over_the_picture(page):
    page.evaluate("file => drop([file])", ["AAAA", "bad.gi", ""])
    until(page, "!document.getElementById('message').hidden")
    page.keyboard.press("Escape")
    assert message(page) == ""


# --- other windows and machines ----------------------------------------------------------------


def test_phone(browser, home):
    page = open_page(browser, home, 360, 640, has_touch=True, device_scale_factor=2)
    at_rest(page)
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] == widths[1] == 360
    outside = page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), output, h1')].filter((each) =>"
        " { const { left, right, width } = each.getBoundingClientRect();"
        " return width && (left < 0 || right > innerWidth); }).map((each) => each.id)"
    )
    assert outside == []
    assert page.locator("canvas").bounding_box()["height"] > 250
    session = page.context.new_cdp_session(page)

    def drag(x: int, y: int, right: int) -> None:
        for kind, moved in (("touchStart", 0), ("touchMove", right / 2), ("touchMove", right)):
            points = [{"x": x + moved, "y": y, "id": 0}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    drag(180, 200, 90)
    until(page, "document.getElementById('split').getAttribute('aria-valuenow') === '75'")
    before = page.evaluate("instantgi.view.x")
    drag(100, 250, 60)
    moved = 60 * page.evaluate("document.getElementById('canvas').width / innerWidth")
    until(page, f"Math.abs(({before} - instantgi.view.x) * instantgi.view.scale - {moved}) < 1")
    page.evaluate("instantgi.view.fit()")
    # two fingers that part
    before = page.evaluate("instantgi.view.scale")
    for kind, spread in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60)):
        points = [{"x": 180 - spread, "y": 250, "id": 0}, {"x": 180 + spread, "y": 250, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    until(page, f"instantgi.view.scale > {2 * before}")
    assert page.failures == []
    page.context.close()


@pytest.mark.parametrize("width, height, least", [(640, 360, 200), (320, 568, 200)])
def test_small_window(browser, home, width, height, least):
    page = open_page(browser, home, width, height, has_touch=True)
    at_rest(page)
    assert page.locator("canvas").bounding_box()["height"] >= least
    outside = page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), output, h1, dd')]"
        ".filter((each) => { const { left, right, top, bottom, width } ="
        " each.getBoundingClientRect();"
        " return width && (left < 0 || right > innerWidth || top < 0 || bottom > innerHeight); })"
        ".map((each) => each.id)"
    )
    assert outside == []
    assert page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    ) == [width, height]
    for name in ("Ellipses", "Centers", "Original", "Error", "Fit"):
        page.get_by_role("button", name=name).tap()  # which another element may not cover
    if height < 400:
        rows = page.evaluate(
            "['#count', '#step'].map((id) => document.querySelector(id).getBoundingClientRect().y)"
        )
        assert rows[0] == rows[1]
    assert page.failures == []
    page.context.close()


def test_lines_over_the_picture_leave_its_labels_free(browser, home):
    page = open_page(browser, home, 360, 640)
    page.get_by_role("button", name="Error").click()
    page.evaluate("file => drop([file])", ["AAAA", "bad.gi", ""])
    until(page, "!document.getElementById('message').hidden")
    at_rest(page)
    boxes = [
        page.locator(each).bounding_box()
        for each in ("#message", "#legend", "#split .before", "#split .after")
    ]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = max(one["y"], other["y"]) >= min(
                one["y"] + one["height"], other["y"] + other["height"]
            ) or max(one["x"], other["x"]) >= min(
                one["x"] + one["width"], other["x"] + other["width"]
            )
            assert apart, (one, other)
    page.context.close()


@pytest.mark.parametrize(
    "script, text",
    [
        ("HTMLCanvasElement.prototype.getContext = () => null", "has no WebGL2"),
        (
            "WebGL2RenderingContext.prototype.getExtension = () => null",
            "cannot draw into floating point numbers",
        ),
    ],
)
def test_browser_that_cannot_draw_says_so(browser, home, script, text):
    page = open_page(browser, home, 800, 600, script)
    assert text in message(page)
    assert page.locator("#name").text_content() == "v1_compact.gi"  # what is in it is still said
    assert page.failures == []
    page.context.close()


def test_page_draws_again_after_the_graphics_card_has_dropped_it(browser, home):
    page = open_page(browser, home, 800, 600)
    page.evaluate(
        "globalThis.card = document.querySelector('canvas').getContext('webgl2')"
        ".getExtension('WEBGL_lose_context'); card.loseContext()"
    )
    until(page, "document.getElementById('message').textContent.includes('has dropped')")
    page.evaluate("card.restoreContext()")
    until(page, "document.getElementById('message').hidden")
    assert distance(pixels_of(page, 37, 50), expected_pixels(GOLDEN / "v1_compact.gi")) <= 1
    assert page.failures == []
    page.context.close()


def test_picture_that_the_graphics_card_gives_up_on_is_drawn_in_blocks(browser, home):
    page = open_page(browser, home, 800, 600)
    page.evaluate(
        "globalThis.card = document.querySelector('canvas').getContext('webgl2')"
        ".getExtension('WEBGL_lose_context')"
    )
    for _ in range(2):  # once may be anyone's fault
        at_rest(page)
        assert "in blocks" not in (page.locator("#note").text_content() or "")
        page.evaluate("instantgi.redraw(); requestAnimationFrame(() => card.loseContext())")
        until(page, "document.getElementById('message').textContent.includes('has dropped')")
        page.evaluate("card.restoreContext()")
        until(page, "document.getElementById('message').hidden")
    until(page, "document.getElementById('note').textContent.includes('it is drawn in blocks')")
    show(page, GOLDEN / "v1_fast.gi")
    assert "in blocks" not in page.locator("#note").text_content()
    assert page.failures == []
    page.context.close()


def test_more_than_the_graphics_card_can_hold_is_refused(browser, home, tmp_path):
    largest = "return given[0] === this.MAX_TEXTURE_SIZE ? 256 : known.apply(this, given)"
    full = "return globalThis.isFull ? this.OUT_OF_MEMORY : known.call(this)"
    script = CARD % ("getParameter", "getParameter", largest)
    script += CARD % ("getError", "getError", full)
    page = open_page(browser, home, 240, 320, script)
    num = 140_000
    gaussians = random_gaussians(num, 100, 100, scales=(0.1, 0.2)).map(lambda field: field.float())
    path = tmp_path / "many.gi"
    path.write_bytes(encode(Mixture(gaussians), 100, 100, profile="fast"))
    show(page, path)
    until(page, "!document.getElementById('message').hidden")
    assert message(page).startswith("This mixture is more than this graphics card can hold")
    page.locator("#count").fill("1000")
    until(page, "document.getElementById('message').hidden")
    written = io.BytesIO()
    Image.new("RGB", (300, 20)).save(written, "PNG")
    wide = random_gaussians(9, 20, 300).map(lambda field: field.float())
    path.write_bytes(encode(wide, 20, 300))
    show(page, path)
    original = base64.b64encode(written.getvalue()).decode()
    page.evaluate("file => drop([file])", [original, "wide.png", "image/png"])
    until(page, "!document.getElementById('message').hidden")
    assert message(page).startswith("wide.png: has 300x20 pixels, more than this graphics card")
    page.evaluate("globalThis.isFull = true")
    assert not show(page, GOLDEN / "v1_fast.gi")
    assert message(page).startswith("This graphics card has no memory left for 150 Gaussians")
    assert page.locator("#name").text_content() == "many.gi"  # and what was shown stays
    assert distance(pixels_of(page, 20, 200), expected_pixels(path)[:, :200]) <= 1
    page.context.close()


def test_slow_drawing_is_said(browser, home, tmp_path):
    page = open_page(browser, home, 900, 700)
    scene = Gaussians(
        torch.full((300, 2), 40.0), torch.tensor([[90.0, 0, 90]] * 300), torch.zeros(300, 1)
    )
    (tmp_path / "slow.gi").write_bytes(encode(scene, 80, 80, profile="fast"))
    # as if each frame took two seconds: the time of a frame is taken by this clock
    page.evaluate("() => { let now = 0; performance.now = () => (now += 2000); }")
    show(page, tmp_path / "slow.gi")
    until(page, "document.getElementById('note').textContent.includes('it is coarse')")
    text = "There is no graphics card to draw with: a whole picture takes about 2 s"
    assert page.locator("#note").text_content().startswith(text)
    page.context.close()


def test_many_gaussians_without_a_graphics_card_are_drawn_at_rest(browser, home):
    page = open_page(browser, home, 900, 700)
    page.evaluate("instantgi.state.split = null; instantgi.redraw()")
    at_rest(page)
    # pressed and looked at without a pause, which would be a rest
    moved, found = page.evaluate(
        """async () => {
          const [canvas, stage] = ["canvas", "stage"].map((id) => document.getElementById(id));
          const before = instantgi.view.corner().x;
          instantgi.state.file.num = 1_000_000;
          while (!canvas.style.transform) {
            const press = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
            canvas.dispatchEvent(press);
            await new Promise(requestAnimationFrame);
          }
          const [left, right] = [stage, canvas].map((each) => each.getBoundingClientRect().left);
          return [instantgi.view.corner().x - before, right - left];
        }"""
    )
    assert abs(found - moved) < 1 and moved < -50
    until(page, "document.getElementById('canvas').style.transform === ''")
    assert page.failures == []
    page.context.close()


def test_half_precision_where_there_is_no_other(browser, home):
    script = (
        "const known = WebGL2RenderingContext.prototype.getExtension;"
        "WebGL2RenderingContext.prototype.getExtension = function (name) {"
        " return name === 'EXT_float_blend' ? null : known.call(this, name); }"
    )
    page = open_page(browser, home, 800, 600, script)
    assert "half precision" in page.locator("#note").text_content()
    drawn = pixels_of(page, 37, 50)
    assert distance(drawn, expected_pixels(GOLDEN / "v1_compact.gi")) <= 3
    page.context.close()
