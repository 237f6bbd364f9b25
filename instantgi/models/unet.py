"""The image encoder: a ConvNeXt inside a U-Net, from a picture to a feature at every pixel.

The blocks carry timm's names for their parameters, so that its ImageNet weights load into them
(`load_imagenet`); timm itself takes seconds to import and is only needed for that.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.backends import cudnn

NORMS = ("batch", "group", "layer")


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    """x + γ · MLP(LayerNorm(depthwise 7x7 (x))) (Liu et al., 2022, figure 4)."""

    conv_dw: nn.Conv2d
    norm: nn.LayerNorm
    mlp: Mlp
    gamma: nn.Parameter

    def __init__(self, channels: int, layer_scale: float = 1e-6):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        ahead = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))) * self.gamma
        return x + ahead.permute(0, 3, 1, 2)


def normalization(kind: str, channels: int) -> nn.Module:
    """Normalisation of the convolutions.

    "batch" as published: with statistics of the batch in training. "group": of groups of 8 channels
    of a picture. "layer": of the channels of a pixel, so that a picture can be cut into tiles.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    if kind == "layer":
        return ChannelNorm(channels)
    raise ValueError(f'norm must be one of {", ".join(NORMS)}, got "{kind}"')


class ConvNormReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, norm: str):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        super().__init__(convolution, normalization(norm, outputs), nn.ReLU())


class UpStep(nn.Module):
    """Doubles the size, joins the features of that size, and mixes both."""

    up: nn.ConvTranspose2d
    mix: nn.Sequential

    def __init__(self, inputs: int, skip: int, norm: str):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, skip, 2, stride=2)
        self.mix = nn.Sequential(ConvNormReLU(2 * skip, skip, norm), ConvNormReLU(skip, skip, norm))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        down, across = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        left, top = across // 2, down // 2
        x = F.pad(x, (left, across - left, top, down - top))
        return self.mix(torch.cat([skip, x], dim=1))


class ConvNeXtUNet(nn.Module):
    """Features [B, width, H, W] of pictures [B, 3, H, W] in [0, 1] (Instant-GI, 2025, section 3.2).

    A 3x3 convolution to `width` channels; stages, each halving the size and then running
    `depths[i]` ConvNeXt blocks of `dims[i]` channels; as many steps back up that join what went
    into the halvings; a 1x1 convolution. The defaults are ConvNeXt-B as published.

    Args:
        width: channels of the first convolution and of the result.
        dims, depths: channels and blocks of the stages.
        norm: of the convolutions outside the ConvNeXt stages, see `normalization`.
        stride: 1 as published. Otherwise stride x stride pixels come in as one with the channels
            of all, and the features are of 1 / stride of the size, rounded up.
    """

    input: ConvNormReLU
    halvings: nn.ModuleList
    stages: nn.ModuleList
    up_steps: nn.ModuleList
    output: nn.Conv2d
    stride: int

    def __init__(
        self,
        width: int = 64,
        dims: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (3, 3, 27, 3),
        norm: str = "batch",
        stride: int = 1,
    ):
        super().__init__()
        if not len(dims) == len(depths) > 0 or stride < 1:
            raise ValueError(
                "dims and depths must be of one length and stride at least 1, "
                f"got {list(dims)}, {list(depths)}, {stride}"
            )
        self.input = ConvNormReLU(3 * stride**2, width, norm)
        inputs = [width, *dims[:-1]]
        self.halvings, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, (before, after, depth) in enumerate(zip(inputs, dims, depths, strict=True)):
            halve = nn.Conv2d(before, after, 2, stride=2)
            # the stem normalises after its convolution, the others before
            parts = [halve, ChannelNorm(after)] if i == 0 else [ChannelNorm(before), halve]
            self.halvings.append(nn.Sequential(*parts))
            self.stages.append(nn.Sequential(*(ConvNeXtBlock(after) for _ in range(depth))))
        self.up_steps = nn.ModuleList()
        for before, skip in reversed(list(zip(dims, inputs, strict=True))):
            self.up_steps.append(UpStep(before, skip, norm))
        self.output = nn.Conv2d(width, width, 1)
        self.stride = stride

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        if not image.is_cuda:
            return self._forward(image)
        # else cuDNN may choose a convolution that adds in any order, and the points differ
        tf32 = cudnn.allow_tf32
        with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=tf32):
            return self._forward(image)

    def _forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        stride, least = self.stride, self.stride * 2 ** len(self.stages)
        # to whole results, and to the smallest picture whose last stage has a pixel
        right, bottom = (max(least, -(-side // stride) * stride) - side for side in (width, height))
        if right or bottom:
            image = F.pad(image, (0, right, 0, bottom), mode="replicate")
        x = self.input(F.pixel_unshuffle(image, stride))
        skips = []
        for halve, stage in zip(self.halvings, self.stages, strict=True):
            skips.append(x)
            x = stage(halve(x))
        for up, skip in zip(self.up_steps, reversed(skips), strict=True):
            x = up(x, skip)
        x = self.output(x)
        return x[:, :, : -(-height // stride), : -(-width // stride)]


def load_imagenet(unet: ConvNeXtUNet, name: str) -> list[str]:
    """Put the stages of a timm ConvNeXt of the same sizes in place; the names of what was taken.

    The stem stays as it is: its shape differs. Call it after the weights are initialised: the
    published code initialises again afterwards and so loses nearly all of them.

    Raises:
        RuntimeError: if timm is missing or cannot get the weights.
        ValueError: if the model's sizes differ.
    """
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(
            'ImageNet weights come from timm: pip install "instantgi[train]"'
        ) from error
    try:
        source = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's errors have no common base
        raise RuntimeError(f"timm cannot get the weights of {name}: {error}") from error
    return copy_stages(unet, source)


def copy_stages(unet: ConvNeXtUNet, source: dict[str, Tensor]) -> list[str]:
    """Copy blocks and halvings from the state of a timm ConvNeXt; the names of what was taken."""
    target = unet.state_dict()
    taken = []
    for name, value in source.items():
        ours = _our_name(name)
        if ours is None or ours not in target:
            continue
        if target[ours].shape != value.shape:
            raise ValueError(
                f"{name} is {list(value.shape)} in timm's model, {list(target[ours].shape)} here"
            )
        target[ours].copy_(value)
        taken.append(ours)
    missing = [name for name in target if name.startswith("stages.") and name not in taken]
    if missing:
        raise ValueError(f"timm's model has other stages: it has no {missing[0]}")
    return taken


def _our_name(name: str) -> str | None:
    """stages.1.downsample.0.weight → halvings.1.0.weight, stages.1.blocks.2.x → stages.1.2.x"""
    parts = name.split(".")
    if parts[0] != "stages":
        return None
    if parts[2] == "downsample":
        return ".".join(["halvings", parts[1], *parts[3:]])
    return ".".join(["stages", parts[1], *parts[3:]])
