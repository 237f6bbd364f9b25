"""The network in training: Lightning module and callbacks, alone in importing Lightning."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from instantgi.fit import LocalAdam, solve_colors
from instantgi.folders import replace_folder
from instantgi.images import to_8bit
from instantgi.losses import (
    decibel_loss,
    focal_map_loss,
    geometry_distance,
    relative_map_loss,
    scale_penalty,
    weighted_picture_loss,
)
from instantgi.metrics import psnr
from instantgi.models import InstantGI, Prediction
from instantgi.models.fields import LocalFields
from instantgi.models.instantgi import SIZES
from instantgi.models.unet import load_imagenet
from instantgi.models.widen import widen
from instantgi.render import rasterize
from instantgi.render.ops import mean_squared_error, to_blocks

NETWORK_FILES = ("config.json", "model.safetensors", "README.md")
MAP_SHARE = 0.1
OBJECTIVES = ("published", "refined")


class TrainInstantGI(lightning.LightningModule):
    """Trains `InstantGI` on crops with the position maps of `data.prepare`.

    The objective "published" is that of Instant-GI (2025, section 3.4): the focal loss of the map,
    the weighted picture loss of the network's own picture, the penalty on small scales.

    The objective "refined" is ours. The fields' Gaussians get their colors by the closed-form solve
    and then `refine_steps` steps of the recipe "instantgi"; what comes out of that is what the
    fields should have said (`geometry_distance`). To this comes, times `solved_share`, −PSNR with
    the solved colors, whose gradient needs no derivative of the solve since colors are at their
    optimum; −PSNR with the fields' own colors, which trains those; −PSNR after every look; and
    `relative_map_loss`.

    Args:
        size: "base", "small" or "tiny", see `instantgi.models`.
        options: arguments of `InstantGI` that differ from that size's.
        objective: "published" or "refined".
        learning_rate, least_learning_rate: of Adam, falling along a cosine over all steps, after a
            linear rise over `warm_up` of them.
        density: smallest and largest number of Gaussians per pixel, drawn for every picture anew;
            None leaves the number to the map.
        patch_size: of dithering.
        refine_steps, solve_iterations: of the objective "refined".
        solved_share, colors_share, looks_share: of the −PSNR in it.
        pretrained: a network to start from, see `InstantGI.from_pretrained`; of the same sizes, or
            one of ours with fewer units, whose fields are widened and whose looks are taken.
        imagenet: timm's name of the ConvNeXt whose weights the stages start from.
        checked_steps: of fine-tuning, after which validation looks at the PSNR.
    """

    def __init__(
        self,
        size: str = "tiny",
        options: dict[str, Any] | None = None,
        objective: str = "refined",
        learning_rate: float = 1e-3,
        least_learning_rate: float = 1e-5,
        warm_up: int = 0,
        density: tuple[float, float] | None = (0.06, 0.16),
        patch_size: int = 3,
        refine_steps: int = 20,
        solve_iterations: int = 8,
        solved_share: float = 0.02,
        colors_share: float = 0.05,
        looks_share: float = 0.05,
        pretrained: str | None = None,
        imagenet: str | None = None,
        checked_steps: int = 20,
    ):
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f'objective must be one of {", ".join(OBJECTIVES)}, got "{objective}"')
        if size not in SIZES:
            raise ValueError(f'size must be one of {", ".join(SIZES)}, got "{size}"')
        self.save_hyperparameters()
        self.network = InstantGI(**(SIZES[size] | (options or {})))
        if imagenet is not None:
            load_imagenet(self.network.unet, imagenet)
        if pretrained is not None:
            _start_from(self.network, InstantGI.from_pretrained(pretrained))
        self.objective, self.density, self.patch_size = objective, density, patch_size
        self.rates, self.warm_up = (learning_rate, least_learning_rate), warm_up
        self.refine_steps, self.solve_iterations = refine_steps, solve_iterations
        self.shares = (solved_share, colors_share, looks_share)
        self.checked_steps = checked_steps

    def configure_optimizers(self) -> Any:
        first, last = self.rates
        optimizer = torch.optim.Adam(self.parameters(), lr=first)
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError("the schedule of the learning rate needs trainer.max_steps")

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (self.warm_up + 1))
            fall = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
            return rise * (last + (first - last) * fall) / first

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        if self.trainer.strategy.root_device.type != "cpu":
            raise ValueError(
                "training on a GPU has never been run and is not supported in this version: "
                "train with trainer.accelerator cpu, on several processes with trainer.strategy ddp"
            )

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        images, counts = batch["image"], None
        if self.density is not None:
            low, high = self.density
            # the data module draws this number, so that a resumed run draws it again
            shares = low + (high - low) * batch["uniform"]
            counts = [int(share * images[0, 0].numel()) for share in shares.tolist()]
        predictions = self.network.predict(images, counts, self.patch_size)
        losses = [
            self._losses(prediction, image, target)
            for prediction, image, target in zip(
                predictions, images, self._maps(batch, predictions), strict=True
            )
        ]
        means = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        total = sum(means.values(), torch.zeros((), device=self.device))
        named = {f"train/{name}": value.detach() for name, value in means.items()}
        self.log_dict(named | {"train/loss": total.detach()}, batch_size=len(images))
        return total

    def _maps(self, batch: dict[str, Any], predictions: list[Prediction]) -> Any:
        if "position_map" not in batch:
            raise ValueError(
                "training needs position maps beside the pictures: make them with "
                "`python train.py predict --config configs/prepare.yaml` and give their folder"
            )
        return batch["position_map"]

    def _losses(self, prediction: Prediction, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        position_map = prediction.position_map
        if self.objective == "published":
            losses = {"map": focal_map_loss(position_map, target)}
            for number, made in enumerate(prediction.stages):  # one, and another after each look
                drawn = rasterize(made, *image.shape[1:])
                name = f"look_{number}" if number else "picture"
                losses[name] = weighted_picture_loss(drawn, image, position_map)
            losses["scales"] = scale_penalty(prediction.attributes.scales)
            return losses
        losses = {"map": MAP_SHARE * relative_map_loss(position_map, target)}
        return losses | self._refined_losses(prediction, image)

    def _refined_losses(self, prediction: Prediction, image: Tensor) -> dict[str, Tensor]:
        first, *looks = prediction.stages
        height, width = image.shape[1:]
        blocks = to_blocks(image)
        solved = solve_colors(first, image, self.solve_iterations)
        fitter = LocalAdam(relocations=())
        fitter.start(image, solved, len(first), 0)
        for step in range(self.refine_steps):
            fitter.step(step / self.refine_steps)

        def decibels(means: Tensor, cholesky: Tensor, colors: Tensor) -> Tensor:
            error = mean_squared_error(means, cholesky, colors, blocks, height, width, False)
            return decibel_loss(error)

        losses = {
            "geometry": geometry_distance(first.means, first.cholesky, fitter.gaussians()),
            "solved": self.shares[0] * decibels(first.means, first.cholesky, solved.colors),
            "colors": self.shares[1]
            * decibels(first.means.detach(), first.cholesky.detach(), first.colors),
        }
        for number, seen in enumerate(looks, 1):
            error = decibels(seen.means, seen.cholesky, seen.colors)
            losses[f"look_{number}"] = self.shares[2] * error
        return losses

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self._check(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self._check(batch, "test")

    def _check(self, batch: dict[str, Any], stage: str) -> None:
        """PSNR of the network alone, with solved colors, and after a few steps; whole pictures."""
        for image in batch["image"]:
            size = image.shape[1:]
            count = int(0.11 * image[0].numel()) if self.density is not None else None
            began = self.network(image, num_gaussians=count, patch_size=self.patch_size)
            solved = solve_colors(began, image, 10)
            fitter = LocalAdam(relocations=())
            fitter.start(image, solved, len(solved), 0)
            for step in range(self.checked_steps):
                fitter.step(step / self.checked_steps)
            scores = {
                "psnr": psnr(rasterize(began, *size), image),
                "psnr_solved": psnr(rasterize(solved, *size), image),
                f"psnr_{self.checked_steps}": psnr(rasterize(fitter.gaussians(), *size), image),
                "num_gaussians": float(len(began)),
            }
            named = {f"{stage}/{name}": value for name, value in scores.items()}
            self.log_dict(named, batch_size=1, on_epoch=True, on_step=False, sync_dist=True)


def _start_from(network: InstantGI, known: InstantGI) -> None:
    ours, theirs = network.fields, known.fields
    if isinstance(ours, LocalFields) and isinstance(theirs, LocalFields):
        if ours.message.in_features != theirs.message.in_features:
            widen(ours, theirs)
            network.looks.load_state_dict(known.looks.state_dict())
            return
    network.load_state_dict(known.state_dict())


class SavePretrained(Callback):
    """Writes the network to a folder, as `InstantGI.from_pretrained` reads it.

    At every validation that is the best so far by `monitor`, with the weights that were validated:
    averaged ones, if averaging is on.

    Args:
        monitor: a metric of validation, the higher the better.
        folder: by default `pretrained` in the folder of the logs.
    """

    def __init__(self, monitor: str = "val/psnr_solved", folder: str | None = None):
        self.monitor, self.folder, self.best = monitor, folder, float("-inf")
        self.validated: dict[str, Tensor] = {}

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        # now, because averaging swaps its weights out before the validation ends
        if not self.validated:
            state = module.network.state_dict()
            self.validated = {name: value.detach().cpu().clone() for name, value in state.items()}

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        state, self.validated = self.validated, {}
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not float(value) > self.best:
            return
        self.best = float(value)
        logs = trainer.log_dir  # of all processes: asking for it is a broadcast
        if trainer.is_global_zero:
            folder = Path(self.folder or Path(logs or ".") / "pretrained")
            network = copy.deepcopy(module.network)
            network.load_state_dict(state)
            with replace_folder(folder, NETWORK_FILES) as partial:
                network.save_pretrained(partial)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class SaveLast(Callback):
    """A checkpoint when training ends, by time as well, so that it can go on from its last step."""

    def __init__(self, path: str):
        self.path = path

    def on_train_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.path)


class LogPictures(Callback):
    """Sends a sheet per validation picture to the logger: picture, map, points, drawing, error.

    Works with Weights & Biases (offline too) and with TensorBoard; other loggers are left alone.
    """

    def __init__(self, count: int = 4):
        self.count = count

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.sanity_checking or batch_idx >= self.count or not trainer.is_global_zero:
            return
        sheet = draw_sheet(module.network, batch["image"][0], module.patch_size)
        for logger in trainer.loggers:
            name, step = f"val/picture_{batch_idx}", trainer.global_step
            if hasattr(logger, "log_image"):
                logger.log_image(name, [to_8bit(sheet).movedim(0, 2).cpu().numpy()], step=step)
            elif hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image(name, sheet, step)


@torch.no_grad()
def draw_sheet(network: InstantGI, image: Tensor, patch_size: int = 3) -> Tensor:
    """[3, H, 5 W]: picture, position map, points, the network's drawing, four times its error."""
    prediction = network.predict(image[None], patch_size=patch_size)[0]
    height, width = image.shape[1:]
    points = torch.zeros(height, width)
    columns, rows = prediction.mesh.points.cpu().long().unbind(1)
    points[rows.clamp(max=height - 1), columns.clamp(max=width - 1)] = 1
    points = F.max_pool2d(points[None], 2, 1, 1)[0, :height, :width]
    drawn = rasterize(prediction.gaussians(), height, width).clamp(0, 1)
    error = (4 * (drawn - image).abs()).clamp(0, 1)
    gray = (prediction.position_map, points.to(image))
    planes = [image, *(plane.expand(3, -1, -1) for plane in gray), drawn, error]
    return torch.cat(planes, 2).cpu()
