"""Where one more Gaussian would take most of the error away."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from instantgi.filters import bands, blur_reach, gaussian_blur, is_peak
from instantgi.render.ops import GROUP, from_blocks


def best_places(
    residual: Float[Tensor, " values"], height: int, width: int, count: int, deviation: float
) -> tuple[Int64[Tensor, " K"], Float[Tensor, "K C"]]:
    """At most `count` pixels, best first, as row · width + column; and the colors to put there.

    A round Gaussian w with color c changes Σ residual² by |c|² Σ w² + 2 c · Σ w residual, so the
    best one at a pixel takes |Σ w residual|² / Σ w² away, with c = −Σ w residual / Σ w². Only local
    maxima of that gain are taken, and half of the color: the neighbors will do their part.

    Args:
        residual: picture − target in blocks, see `to_blocks`. Worked on in bands.
        deviation: of the Gaussians, pixels.
    """
    halo = -(-(blur_reach(deviation) + 1) // 4) * 4  # whole blocks
    kept: list[Tensor] = []  # gains [K], places [K], colors [K, C]
    for band in bands(height, width, halo):
        part = _rows(residual, height, width, band.first, band.last)
        blurred = gaussian_blur(-part, deviation)  # Σ w (−residual) / Σ w, and Σ w = 2 Σ w²
        gain = blurred.square().sum(0)
        best = (gain * is_peak(gain))[band.inner].flatten()
        gains, places = best.topk(min(count, int((best > 0).sum())))
        colors = blurred[:, band.inner].flatten(1)[:, places].T
        found = [gains, places + band.begin * width, colors]
        kept = [torch.cat(pair) for pair in zip(kept, found, strict=True)] if kept else found
        if len(kept[0]) > count:
            chosen = kept[0].topk(count).indices
            kept = [values[chosen] for values in kept]
    order = kept[0].argsort(descending=True, stable=True)
    return kept[1][order], kept[2][order]


def _rows(blocks: Tensor, height: int, width: int, first: int, last: int) -> Tensor:
    """Rows [first, last) of a picture in blocks; `first` begins a block."""
    rows, row = -(-height // 4), -(-width // 4) * 16
    parts, channels = [], blocks.numel() // (rows * row)
    for group in range(0, channels, GROUP):
        length = row * min(GROUP, channels - group)
        begin = rows * row * group
        parts.append(blocks[begin + first // 4 * length : begin + -(-last // 4) * length])
    return from_blocks(torch.cat(parts), last - first, width)
