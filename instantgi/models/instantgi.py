"""`InstantGI`: picture → position map → points → triangles → ellipses → features → Gaussians."""

import contextlib
import dataclasses
import inspect
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub import utils as hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from instantgi.fit.start import thin_out
from instantgi.gaussians import Gaussians, kind_of
from instantgi.models.fields import (
    Attributes,
    FittedEllipses,
    LocalFields,
    PublishedFields,
    three_channels,
)
from instantgi.models.look import Look, look_target
from instantgi.models.unet import ConvNeXtUNet
from instantgi.points import Mesh, make_mesh
from instantgi.points.gradient import gradient_map

WEIGHTS = Path(__file__).parent.parent / "weights"
TILE, HALO = 1024, 128  # pixels; larger pictures are encoded in tiles that see so far beyond
OURS = {"norm": "layer", "position": "gradient", "fields": "local", "looks": 3}
SIZES = {
    "base": {},  # as published
    "small": OURS
    | {"stride": 2, "width": 32, "dims": (64, 128, 256), "depths": (2, 2, 4), "hidden": 256},
    "tiny": OURS
    | {"stride": 4, "width": 32, "dims": (48, 64, 96), "depths": (1, 2, 2), "hidden": 128},
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """All that the network makes of one picture; differentiable but for the mesh.

    Attributes:
        position_map: expected points per cell, in (0, 1).
        mesh: of the points that were dithered from it.
        attributes: what the fields say of each triangle.
        stages: Gaussians as the fields made them, and after each look.
    """

    position_map: Float[Tensor, "H W"]
    mesh: Mesh
    attributes: Attributes
    stages: tuple[Gaussians, ...]

    def gaussians(self) -> Gaussians:
        """After the last look."""
        return self.stages[-1]


class InstantGI(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="instantgi",
    tags=["2d-gaussians", "image-representation"],
    license="apache-2.0",
):
    """Gaussians of a picture in one pass (Instant-GI, ICCV 2025), and our smaller networks.

    The defaults are the published network, 99,954,238 parameters. See `ConvNeXtUNet` for `width`,
    `dims`, `depths`, `norm` and `stride`, `PublishedFields` and `LocalFields` for the fields.

    Args:
        position: "field" as published: the map is what a small MLP per pixel says; "gradient": what
            it says is added to a multiple of the logarithm of `gradient_map`.
        fields: "published", "local" (ours), or "ellipse": none, the fitted ellipses as they are.
        padding, rotation, triangle, centers, color: choices of the published fields; of the local
            ones only `color="field"`.
        hidden, grid, reach: sizes of the local fields.
        looks: how often the network draws what it has and moves it again, after local fields; see
            `Look`.
    """

    unet: ConvNeXtUNet
    position_field: nn.Sequential
    position: str
    fields: PublishedFields | LocalFields | FittedEllipses
    looks: nn.ModuleList
    gradient_logit: nn.Parameter  # where the position is "gradient"

    def __init__(
        self,
        *,
        width: int = 64,
        dims: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (3, 3, 27, 3),
        norm: str = "batch",
        stride: int = 1,
        position: str = "field",
        fields: str = "published",
        padding: str = "zeros",
        rotation: str = "logit",
        triangle: str = "normalized",
        centers: str = "corner",
        color: str = "opacity",
        hidden: int = 128,
        grid: int = 8,
        reach: float = 6.0,
        looks: int = 0,
    ):
        super().__init__()
        self.unet = ConvNeXtUNet(width, dims, depths, norm, stride)
        self.position_field = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 1),
        )
        if position not in ("field", "gradient"):
            raise ValueError(f'position must be field or gradient, got "{position}"')
        self.position = position
        if fields == "published":
            choices = (padding, rotation, triangle, centers, color)
            self.fields = PublishedFields(width, *choices, stride=stride)
            self.apply(_initialise_as_published)
        elif fields == "local":
            said = "field" if color == "field" else "samples"
            self.fields = LocalFields(width, hidden, grid, reach, stride, said)
        elif fields == "ellipse":
            self.fields = FittedEllipses()
        else:
            raise ValueError(f'fields must be published, local or ellipse, got "{fields}"')
        if looks and fields != "local":
            raise ValueError(f'looks need fields "local", got "{fields}"')
        self.looks = nn.ModuleList(Look() for _ in range(looks))
        if position == "gradient":
            # the least-squares line through the targets of 60 training pictures
            self.gradient_logit = nn.Parameter(torch.tensor([1.35, 1.43]))
            for parameter in self.position_field[-1].parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def of_size(cls, size: str) -> "InstantGI":
        """An untrained network: "base" as published, or our "small" and "tiny"."""
        if size not in SIZES:
            raise ValueError(f'size must be one of {", ".join(SIZES)}, got "{size}"')
        return cls(**SIZES[size])

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "InstantGI":
        """A trained network, ready to use: the name of one that ships ("tiny"), a folder written by
        `save_pretrained`, or "organisation/name" on the Hugging Face Hub.

        Raises:
            OSError: if there is no such network; says which ship.
        """
        name = str(pretrained_model_name_or_path)
        known = shipped()
        folder = WEIGHTS / name if name in known else Path(name)
        is_elsewhere = name.count("/") == 1 and not name.startswith((".", "~", "/"))
        if folder.is_file():
            raise OSError(f"{name}: is a file; give the folder that holds it and its config.json")
        if not folder.is_dir() and not is_elsewhere:
            raise OSError(
                f'there is no network "{name}": give one that comes with this version '
                f"({', '.join(known) or 'none'}), a folder that save_pretrained wrote, or "
                '"organisation/name" for one on the Hugging Face Hub'
            )
        if folder.is_dir():
            _check_folder(folder, cls)
            name = str(folder)
        try:
            with _quiet_hub():
                if not folder.is_dir():
                    _check_hub(name, options)
                options.setdefault("strict", True)
                return super().from_pretrained(name, **options).eval()
        except (SafetensorError, RuntimeError, HFValidationError) as error:
            raise OSError(f"{name}: is not a network of this kind ({error})") from error
        except OSError as error:
            if folder.is_dir():
                raise
            raise OSError(
                f"{name}: is no folder here, and did not come from the Hugging Face Hub ({error})"
            ) from error

    def forward(
        self,
        image: Float[Tensor, "C H W"],
        *,
        num_gaussians: int | None = None,
        patch_size: int = 3,
        looks: int | None = None,
    ) -> Gaussians:
        """Gaussians of a picture in [0, 1] of any number of channels.

        Without gradients in mixed precision where that is faster, see `mixed_precision`.

        Args:
            image: gray pictures are seen as three equal channels, opacity is not looked at.
            num_gaussians: an upper limit that is nearly reached; None leaves the number to the
                position map: more for pictures that need more.
            patch_size: side of a dithering cell; the number goes with its square.
            looks: only so many of the network's looks at its error.

        Raises:
            ValueError: if the image is of another kind, or not finite.
        """
        if image.ndim != 3 or image.dtype != torch.float32:
            raise ValueError(f"image must be a float32 tensor [C, H, W], got {kind_of(image)}")
        if not image.isfinite().all():
            raise ValueError("image has values that are not finite")
        faster = contextlib.nullcontext() if torch.is_grad_enabled() else mixed_precision(image)
        with faster:
            prediction = self.predict(image[None], num_gaussians, patch_size, looks)[0]
        gaussians = prediction.gaussians()
        return gaussians if num_gaussians is None else thin_out(gaussians, num_gaussians)

    def predict(
        self,
        images: Float[Tensor, "B C H W"],
        num_gaussians: int | Sequence[int | None] | None = None,
        patch_size: int = 3,
        looks: int | None = None,
    ) -> list[Prediction]:
        """What the network makes of each picture of a batch; every one has a mesh of its own.

        Args:
            num_gaussians: one number for all, or one for each.
        """
        counts = (
            list(num_gaussians)
            if isinstance(num_gaussians, Sequence)
            else [num_gaussians] * len(images)
        )
        features, maps = self.encode(images)
        predictions = []
        for image, planes, position_map, count in zip(images, features, maps, counts, strict=True):
            mesh = make_mesh(position_map.detach().float(), patch_size, count)
            attributes = self.fields(planes, image, mesh)
            stages = self.look(attributes, image, mesh, looks)
            predictions.append(Prediction(position_map, mesh, attributes, stages))
        return predictions

    def look(
        self,
        attributes: Attributes,
        image: Float[Tensor, "C H W"],
        mesh: Mesh,
        looks: int | None = None,
    ) -> tuple[Gaussians, ...]:
        """The Gaussians as the fields made them, and after each of so many looks (None: all)."""
        stages = [Gaussians(*attributes[:3])]
        target = look_target(image)
        for look in self.looks[:looks]:
            assert attributes.memory is not None
            size = image.shape[1:]
            stages.append(look(stages[-1], attributes.memory, mesh.neighbors, target, *size))
        return tuple(stages)

    def encode(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B F h w"], Float[Tensor, "B H W"]]:
        """Features at 1 / stride of the size, and position maps in (0, 1) of the pictures' size.

        Without gradients, pictures above 1024x1024 are encoded in tiles that overlap by 128 pixels,
        so that memory stays bounded.
        """
        height, width = images.shape[2:]
        looked_at = torch.stack([three_channels(image) for image in images])
        if not torch.is_grad_enabled() and height * width > TILE * TILE:
            features = self._encode_tiles(looked_at)
        else:
            features = self.unet(looked_at)
        logits = self.position_field(features.movedim(1, -1)).movedim(-1, 1).float()
        if (stride := self.unet.stride) > 1:
            logits = F.interpolate(logits, scale_factor=stride, mode="bilinear")
        logits = logits[:, 0, :height, :width]
        if self.position == "gradient":
            steepness = torch.stack([gradient_map(image) for image in images.detach().float()])
            factor, shift = self.gradient_logit
            logits = logits + factor * steepness.log() + shift
        return features.float(), logits.sigmoid()

    def _encode_tiles(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        stride = self.unet.stride
        channels = self.unet.output.out_channels
        size = (len(images), channels, -(-height // stride), -(-width // stride))
        features = images.new_empty(size)
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                top, left = max(0, y - HALO), max(0, x - HALO)
                tile = images[:, :, top : y + TILE + HALO, left : x + TILE + HALO]
                made = self.unet(tile)
                rows = slice(y // stride, -(-min(y + TILE, height) // stride))
                cols = slice(x // stride, -(-min(x + TILE, width) // stride))
                dy, dx = rows.start - top // stride, cols.start - left // stride
                part = made[
                    :, :, dy : dy + rows.stop - rows.start, dx : dx + cols.stop - cols.start
                ]
                features[:, :, rows, cols] = part
        return features


def mixed_precision(image: Tensor) -> contextlib.AbstractContextManager:
    """bfloat16 in the network's products, on a device that multiplies it faster than float32."""
    if image.device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.11 and later
        is_faster = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    else:
        is_faster = image.device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    if not is_faster:
        return contextlib.nullcontext()
    return torch.autocast(image.device.type, torch.bfloat16)


def _initialise_as_published(layer: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases 0; not of transposed convolutions."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_folder(folder: Path, kind: type) -> None:
    """A folder that was not written by `save_pretrained` is named, not half used."""
    try:
        options = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(f"{folder}: holds no network: config.json is missing or damaged") from error
    known = inspect.signature(kind.__init__).parameters
    foreign = sorted(set(options) - set(known)) if isinstance(options, dict) else ["no mapping"]
    if foreign:
        raise OSError(
            f"{folder}: config.json has {foreign[0]}, which this version does not know; upgrade"
        )


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's loader prints, logs and draws bars."""
    logger, with_bars = logging.getLogger("huggingface_hub"), not hub.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    hub.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if with_bars:
            hub.enable_progress_bars()


def _check_hub(name: str, options: dict[str, Any]) -> None:
    """Without a connection the hub's loader would try for half a minute: it gets what is cached."""
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, "config.json"))
    except (HfHubHTTPError, HFValidationError):
        return  # which the loader says
    except Exception as error:  # of whatever library the hub makes its connections by
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            raise OSError(f"it cannot be reached: {error}") from error
        options["local_files_only"] = True


def shipped() -> list[str]:
    """Names of the networks that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))
