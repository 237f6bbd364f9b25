"""Prints how long the page takes to decode a file and to draw it, by number of Gaussians.

python tests/bench/viewer.py [--gpu] [--quick] [--screenshot docs/viewer.webp]

Without --gpu the browser draws in software, on this processor, and a million Gaussians only as
far as they are decoded. The screenshot is of assets/kodim23.png at 0.3 bpp.
"""

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Page, sync_playwright
from test_viewer import CHROMIUM, FLAGS, HELPERS, until
from timing import conditions

from instantgi import Gaussians, encode, read_image
from instantgi.codec.target import Target, encode_image
from instantgi.viewer.view import page_of

ROOT = Path(__file__).parents[2]
COUNTS = [(10_000, 512, 768), (40_000, 512, 768), (1_000_000, 3000, 4000)]
SOFTWARE = [flag for flag in FLAGS if "swiftshader" in flag or "use-gl" in flag]


def scene(num: int, height: int, width: int) -> Gaussians:
    """As dense, by their size, as those of a fit."""
    generator = torch.Generator().manual_seed(0)
    size = 0.6 * (height * width / num) ** 0.5
    means = torch.rand(num, 2, generator=generator) * torch.tensor([width, height])
    scales = size * torch.exp(0.5 * torch.randn(num, 2, generator=generator))
    turns = 3.14 * torch.rand(num, generator=generator)
    colors = 0.4 * torch.rand(num, 3, generator=generator)
    return Gaussians.from_scales_rotations(means, scales, turns, colors)


def decoding(page: Page, data: bytes) -> float:
    """Milliseconds from the bytes to the Gaussians; the best of three."""
    text = base64.b64encode(data).decode()
    decode = "(data) => { const at = performance.now(); instantgi.decode(data); "
    decode += "return performance.now() - at; }"
    return min(page.evaluate(f"text => ({decode})(bytesOf(text))", text) for _ in range(3))


def drawing(page: Page, data: bytes) -> float:
    """Milliseconds to draw the whole picture into the window; the best of three."""
    page.evaluate("text => instantgi.open(bytesOf(text))", base64.b64encode(data).decode())
    frames = []
    for _ in range(3):
        page.wait_for_timeout(500)
        page.evaluate("document.getElementById('time').textContent = '–'; instantgi.redraw()")
        until(page, "document.getElementById('time').textContent !== '–'", 300)
        frames.append(float((page.locator("#time").text_content() or "").split()[0]))
    return min(frames)


def empty_page(folder: Path) -> Path:
    (folder / "x.gi").write_bytes(encode(scene(2, 8, 8), 8, 8))
    (folder / "x.html").write_text(page_of(folder / "x.gi"), "utf-8")
    return folder / "x.html"


def take_screenshot(page: Page, folder: Path, output: Path) -> None:
    picture = ROOT / "assets" / "kodim23.png"
    (folder / "kodim23.gi").write_bytes(encode_image(read_image(picture), Target(bpp=0.3)))
    (folder / "kodim23.html").write_text(page_of(folder / "kodim23.gi", picture), "utf-8")
    page.goto((folder / "kodim23.html").as_uri())
    page.evaluate("instantgi.ready")
    page.evaluate("instantgi.view.zoom(3.2, 740, 240)")
    page.get_by_role("button", name="Ellipses").click()
    until(page, "document.getElementById('quality').textContent.endsWith('dB')")
    page.mouse.move(0, 0)
    page.evaluate("document.getElementById('time').parentElement.remove()")  # of no known machine
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(output, quality=76, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="do not draw in software")
    parser.add_argument("--quick", action="store_true", help="without the largest")
    parser.add_argument("--screenshot", type=Path, help="write one of the page, and do not measure")
    options = parser.parse_args()
    flags = [flag for flag in FLAGS if flag not in SOFTWARE] if options.gpu else FLAGS
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as name:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script(HELPERS)
        if options.screenshot:
            take_screenshot(page, Path(name), options.screenshot)
            return
        found = conditions() | {"browser": browser.version}
        print("  ".join(f"{name}: {value}" for name, value in found.items()))
        page.goto(empty_page(Path(name)).as_uri())
        for num, height, width in COUNTS[: 2 if options.quick else None]:
            made = scene(num, height, width)
            for profile in ("compact", "fast", "lossless"):
                data = encode(made, height, width, profile=profile)
                print(f"{num:9,} {profile:9} decode {decoding(page, data):6.0f} ms", end="  ")
                is_drawn = options.gpu or num < 1e6
                print(f"frame {drawing(page, data):7.1f} ms" if is_drawn else "", flush=True)


if __name__ == "__main__":
    main()
