"""Draws the pictures of docs/pipeline.md: what each step of the pipeline makes of one picture.

python docs/pipeline.py [IMAGE] [-o FOLDER]

Writes a small WebP for each step, of the whole picture or of a part of it, magnified.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from instantgi import Gaussians, InstantGI, fit_image, rasterize, read_image
from instantgi.fit import heuristic_start, solve_colors
from instantgi.gaussians import cholesky_from_covariances
from instantgi.images import to_8bit
from instantgi.metrics import psnr
from instantgi.models.fields import LocalFields
from instantgi.points import Mesh, make_mesh
from instantgi.points.gradient import gradient_map

LEFT, TOP, WIDTH, HEIGHT = 472, 132, 96, 64  # the part, pixels: an eye
SCALE = 8
NUM_GAUSSIANS = 20_000
SMOOTH = 2  # lines are drawn so many times larger, since Pillow draws them without antialiasing
LINE, POINT, MARK = (255, 255, 255), (255, 230, 60), (255, 90, 30)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("image", nargs="?", default="assets/kodim23.png")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pipeline"))
    parser.add_argument("--iterations", type=int, default=300, help="steps of the fit")
    options = parser.parse_args()
    image = read_image(options.image)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(image, options.iterations):
        picture.convert("RGB").save(options.output / f"{name}.webp", quality=80, method=6)


def pictures(image: Tensor, iterations: int) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each step."""
    num = NUM_GAUSSIANS
    density = gradient_map(image)
    mesh = make_mesh(density, 3, num)
    yield "image", with_frame(image)
    yield "map", as_picture((density / density.max()).expand(3, -1, -1))
    part = magnified(image)
    yield "points", with_points(part, mesh)
    yield "triangles", with_triangles(part, mesh)
    ellipses = Gaussians.from_covariances(
        mesh.centers, mesh.covariances + mesh.covariances.new_tensor([0.01, 0, 0.01]), mesh.centers
    )
    yield "ellipses", with_ellipses(part, ellipses)
    network = InstantGI.from_pretrained("tiny")
    yield "features", with_features(image, mesh, network)

    start = solve_colors(heuristic_start(image, num), image)
    predicted = network(image, num_gaussians=num)
    fitted = fit_image(image, init=start, iterations=iterations)
    print(f"{len(start)} Gaussians, {iterations} steps; PSNR of the float pictures:")
    for name, gaussians in (("start", start), ("network", predicted), ("fit", fitted)):
        print(f"{name} {psnr(drawn(gaussians, image), image):.2f} dB")
        yield name, as_picture(drawn_part(gaussians))
    yield "gaussians", with_ellipses(Image.new("RGB", part.size), fitted, filled=True)
    errors = [error_of(drawn(each, image), image) for each in (start, predicted, fitted)]
    yield "errors", side_by_side(errors)


# --- the whole picture ---------------------------------------------------------------------------


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(to_8bit(image.clamp(0, 1)).permute(1, 2, 0).numpy())


def with_frame(image: Tensor) -> Image.Image:
    picture = as_picture(image)
    frame = (LEFT, TOP, LEFT + WIDTH, TOP + HEIGHT)
    ImageDraw.Draw(picture).rectangle(frame, outline=LINE, width=2)
    return picture


def drawn(gaussians: Gaussians, image: Tensor) -> Tensor:
    return rasterize(gaussians, *image.shape[1:]).clamp(0, 1)


def error_of(picture: Tensor, image: Tensor) -> Image.Image:
    """Mean absolute error of the channels, sixteen times as bright."""
    error = 16 * (picture - image).abs().mean(0, keepdim=True)
    return as_picture(error.expand(3, -1, -1)).resize((384, 256), Image.Resampling.BOX)


def side_by_side(each: list[Image.Image], gap: int = 6) -> Image.Image:
    width, height = each[0].size
    sheet = Image.new("RGB", (len(each) * (width + gap) - gap, height), LINE)
    for index, picture in enumerate(each):
        sheet.paste(picture, (index * (width + gap), 0))
    return sheet


# --- the part, magnified -------------------------------------------------------------------------


def magnified(image: Tensor) -> Image.Image:
    """The pixels of the part as squares, large enough to draw smooth lines on, and darker."""
    part = as_picture(0.55 * image[:, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH])
    size = (WIDTH * SCALE * SMOOTH, HEIGHT * SCALE * SMOOTH)
    return part.resize(size, Image.Resampling.NEAREST)


def drawn_part(gaussians: Gaussians) -> Tensor:
    """The part drawn anew at the larger size: nothing is interpolated."""
    size, step = (HEIGHT * SCALE, WIDTH * SCALE), (1 / SCALE, 1 / SCALE)
    return rasterize(gaussians, *size, origin=(LEFT, TOP), step=step)


def on_sheet(places: Tensor) -> Tensor:
    """Pixels of the picture in pixels of the magnified part."""
    return (places.double() - torch.tensor([LEFT, TOP])) * SCALE * SMOOTH


def smooth(sheet: Image.Image) -> Image.Image:
    return sheet.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.LANCZOS)


def with_points(part: Image.Image, mesh: Mesh) -> Image.Image:
    sheet = part.copy()
    pen = ImageDraw.Draw(sheet)
    for x, y in on_sheet(mesh.points).tolist():
        pen.circle((x, y), 2.2 * SMOOTH, fill=POINT)
    return smooth(sheet)


def with_triangles(part: Image.Image, mesh: Mesh) -> Image.Image:
    sheet = part.copy()
    pen = ImageDraw.Draw(sheet)
    for triangle in on_sheet(mesh.points)[mesh.triangles].flatten(1).tolist():
        pen.polygon(triangle, outline=POINT, width=SMOOTH)
    return smooth(sheet)


def with_ellipses(part: Image.Image, gaussians: Gaussians, filled: bool = False) -> Image.Image:
    """Those of one standard deviation: outlines, or in the colors of the Gaussians."""
    sheet = part.copy()
    pen = ImageDraw.Draw(sheet)
    seen = gaussians.cropped(LEFT, TOP, HEIGHT, WIDTH).translated(LEFT, TOP)
    angles = torch.linspace(0, 2 * torch.pi, 33)[:-1]
    l11, l21, l22 = (number[:, None] for number in seen.cholesky.unbind(1))
    circle = torch.stack([l11 * angles.cos(), l21 * angles.cos() + l22 * angles.sin()], -1)
    outlines = on_sheet(seen.means[:, None] + circle).flatten(1).tolist()
    colors = to_8bit(seen.colors.clamp(0, 1).T[:, :, None])[:, :, 0].T.tolist()
    for outline, color in zip(outlines, colors, strict=True):
        if filled:
            pen.polygon(outline, fill=tuple(color))
        else:
            pen.polygon(outline, outline=POINT, width=SMOOTH)
    return smooth(sheet)


def with_features(image: Tensor, mesh: Mesh, network: InstantGI) -> Image.Image:
    """One triangle, where the network samples the picture for it, and what it sees there."""
    fields = network.fields
    assert isinstance(fields, LocalFields)
    middle = mesh.centers.new_tensor([LEFT + 0.31 * WIDTH, TOP + 0.5 * HEIGHT])
    area = mesh.covariances[:, 0] * mesh.covariances[:, 2] - mesh.covariances[:, 1] ** 2
    near = (mesh.centers - middle).norm(dim=1) < 12
    chosen = int(torch.where(near, area, 0).argmax())
    thickened = mesh.covariances + mesh.covariances.new_tensor([0.05, 0, 0.05])
    l11, l21, l22 = cholesky_from_covariances(thickened)[chosen].tolist()
    grid = fields.grid  # in units in which the triangle is round
    places = torch.stack([l11 * grid[:, 0], l21 * grid[:, 0] + l22 * grid[:, 1]], 1)
    places = mesh.centers[chosen] + places

    sheet = magnified(image)
    pen = ImageDraw.Draw(sheet)
    for x, y in on_sheet(places).tolist():
        pen.circle((x, y), 2 * SMOOTH, fill=POINT)
    corners = on_sheet(mesh.points)[mesh.triangles].flatten(1)
    for neighbor in mesh.neighbors[chosen]:
        pen.polygon(corners[neighbor].tolist(), outline=LINE, width=SMOOTH)
    pen.polygon(corners[chosen].tolist(), outline=MARK, width=3 * SMOOTH)

    rows, columns = (places[:, i].long() for i in (1, 0))
    side = round(len(grid) ** 0.5)
    samples = as_picture(image[:, rows, columns].view(-1, side, side))
    inset = 192 * SMOOTH
    pen.rectangle((sheet.width - inset - 28, 12, sheet.width - 12, inset + 28), fill=LINE)
    enlarged = samples.resize((inset, inset), Image.Resampling.NEAREST)
    sheet.paste(enlarged, (sheet.width - inset - 20, 20))
    return smooth(sheet)


if __name__ == "__main__":
    main()
