"""Lightning's data modules: folders of pictures to prepare or score, targets to train on."""

import hashlib
import random
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from data.images import list_pictures, read_rgb
from data.prepare import Item, read_items

CACHE = 1_000_000_000  # bytes of decoded pictures that a reading process keeps
DIV2K_SETS = {"train": (1, 800), "valid": (801, 900)}


class Paths(Dataset):
    """Names of pictures, to be read where they are worked on."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return self.paths[index]


class Whole(Dataset):
    """Whole pictures [3, H, W], no larger than `largest` on a side (cut in the middle)."""

    def __init__(self, paths: Sequence[Path], largest: int | None = None):
        self.paths, self.largest = list(paths), largest

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_rgb(self.paths[index])
        if self.largest is not None:
            height, width = (min(side, self.largest) for side in image.shape[1:])
            top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
            image = image[:, top : top + height, left : left + width].contiguous()
        return {"image": image, "name": self.paths[index].name}


class Folder(lightning.LightningDataModule):
    """All pictures below one or several folders: to prepare (`predict`) or to score.

    Args:
        root: the folder, or several.
        count: only so many, evenly chosen.
        largest: pixels; when scoring, larger pictures are cut to their middle.
    """

    def __init__(self, root: str | list[str], count: int | None = None, largest: int | None = None):
        super().__init__()
        self.root, self.count, self.largest = root, count, largest

    def paths(self) -> list[Path]:
        roots = [self.root] if isinstance(self.root, str) else self.root
        return thin([path for root in roots for path in list_pictures(root)], self.count)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(Paths(self.paths()), batch_size=1, collate_fn=list)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Whole(self.paths(), self.largest), batch_size=1)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()


Kind = TypeVar("Kind")


def thin(paths: list[Kind], count: int | None) -> list[Kind]:
    """Evenly chosen ones, in their order."""
    if count is None or count >= len(paths):
        return paths
    return [paths[i * len(paths) // count] for i in range(count)]


class Kodak(Folder):
    """The 24 Kodak pictures, kodim01.png to kodim24.png: for tests alone.

    Raises:
        ValueError: if the folder is something else.
    """

    def paths(self) -> list[Path]:
        found = super().paths()
        expected = [f"kodim{number:02d}.png" for number in range(1, 25)]
        if [path.name for path in found] != thin(expected, self.count):
            raise ValueError(
                f"{self.root}: must hold kodim01.png to kodim24.png and no other pictures, "
                f"got {len(found)} files, the first {found[0].name}"
            )
        return found


class DIV2K(lightning.LightningDataModule):
    """DIV2K as unpacked from its archives: `predict` on the 800 training pictures of each scale,
    `validate` and `test` on the 100 for validation at the first of the scales.

    Args:
        root: holds DIV2K_train_HR/0001.png, DIV2K_train_LR_bicubic/X2/0001x2.png and so on, and the
            same with `valid` from 0801 on.
        scales: 1 for HR; 2, 3, 4 for the bicubic ones.
        largest: see `Folder`.
    """

    def __init__(self, root: str, scales: tuple[int, ...] = (2, 3, 4), largest: int | None = None):
        super().__init__()
        if not scales or not set(scales) <= {1, 2, 3, 4}:
            raise ValueError(f"scales must be some of 1, 2, 3, 4, got {list(scales)}")
        self.root, self.scales, self.largest = Path(root), scales, largest

    def paths(self, part: str, scale: int) -> list[Path]:
        """Checked: a download that stopped half-way is an error here, not in the tenth hour."""
        first, last = DIV2K_SETS[part]
        if scale == 1:
            folder, end = self.root / f"DIV2K_{part}_HR", ".png"
        else:
            folder = self.root / f"DIV2K_{part}_LR_bicubic" / f"X{scale}"
            end = f"x{scale}.png"
        paths = [folder / f"{number:04d}{end}" for number in range(first, last + 1)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {len(paths)} pictures are missing, the first is "
                f"{missing[0].name}; unpack the archive of DIV2K again, or choose other scales"
            )
        return paths

    def predict_dataloader(self) -> DataLoader:
        paths = [path for scale in self.scales for path in self.paths("train", scale)]
        return DataLoader(Paths(paths), batch_size=1, collate_fn=list)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Whole(self.paths("valid", self.scales[0]), self.largest), batch_size=1)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()


class Crops(Dataset):
    """An endless row of random crops: number i is a function of the seed and i alone.

    So a run that goes on at step n sees what it would have seen. Flips and quarter turns as well.
    """

    def __init__(self, items: Sequence[Item], crop: int | None, seed: int):
        least = crop or 1
        self.items = [
            item for item in items if min(item.record["height"], item.record["width"]) >= least
        ]
        if not self.items:
            raise ValueError(f"no picture has {crop}x{crop} pixels; choose a smaller crop")
        self.crop, self.seed = crop, seed
        self.known: OrderedDict[int, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        # larger pictures more often, so that every pixel is as likely
        self.weights = [item.record["height"] * item.record["width"] for item in self.items]

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {index}")
        for number in self._numbers(index, rng):
            try:
                picture, position_map = self._read(number)
                break
            except (OSError, ValueError) as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            raise ValueError("none of the pictures can be read; prepare the targets again")
        height, width = position_map.shape
        tall, wide = (self.crop, self.crop) if self.crop else (height, width)
        top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
        planes = torch.cat([picture, position_map[None]])
        planes = planes[:, top : top + tall, left : left + wide]
        planes = torch.rot90(planes, rng.randrange(4), (1, 2))
        if rng.random() < 0.5:
            planes = planes.flip(2)
        planes = planes.float() / 255
        return {
            "image": planes[:3].contiguous(),
            "position_map": planes[3].contiguous(),
            "uniform": rng.random(),
        }

    def _numbers(self, index: int, rng: random.Random) -> Iterator[int]:
        """The picture of a crop, and others for the case that it cannot be read."""
        if self.crop is None:  # each once in every round
            row = list(range(len(self.items)))
            random.Random(f"{self.seed} round {index // len(row)}").shuffle(row)
            start = index % len(row)
            yield from row[start:] + row[:start]
        for _ in range(100):
            yield rng.choices(range(len(self.items)), self.weights)[0]

    def _read(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number not in self.known:
            self.known[number] = self.items[number].read()
            sizes = [planes.numel() for planes, _ in self.known.values()]
            while sum(sizes) > CACHE and len(sizes) > 1:
                self.known.popitem(last=False)
                sizes.pop(0)
        self.known.move_to_end(number)
        return self.known[number]


class CropStream(IterableDataset):
    """The crops of so many batches from batch `first` on; each process takes its part.

    An iterable one, because Lightning leaves the order of those alone.
    """

    def __init__(self, crops: Crops, batch_size: int, num_batches: int, rank: int, world: int):
        self.crops, self.batch_size, self.num_batches = crops, batch_size, num_batches
        self.rank, self.world, self.first = rank, world, 0

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        # the loader takes a batch of each worker in turn
        start, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(self.first + start, self.first + self.num_batches, stride):
            number = (batch * self.world + self.rank) * self.batch_size
            yield from (self.crops[number + j] for j in range(self.batch_size))


class ResumableLoader(DataLoader):
    """Starts every pass where the trainer is: a resumed run goes on with the batches it missed."""

    def __init__(self, stream: CropStream, trainer: lightning.Trainer | None, **options: Any):
        super().__init__(stream, batch_size=stream.batch_size, **options)
        self.stream, self.trainer = stream, trainer

    def __iter__(self):
        if self.trainer is not None:
            steps = self.trainer.global_step * self.trainer.accumulate_grad_batches
            self.stream.first = steps
        return super().__iter__()


class Targets(lightning.LightningDataModule):
    """Crops of prepared pictures to train on, whole ones to validate, set aside by their names.

    What cannot be read is reported and left out.

    Args:
        root: a folder of targets, or several.
        crop: side of a crop, pixels; None for whole pictures, one at a time.
        batch_size: crops per step and process.
        steps_per_epoch: batches between two validations; an epoch means nothing else.
        workers: processes that read; 0 reads in the training process.
        validation_share: of the pictures; none of them is trained on.
        validation_count: so many of these are looked at.
        largest: pixels; larger validation pictures are cut to their middle.
        test_root: a folder of pictures for `test`.
        seed: of crops, turns and densities.
    """

    def __init__(
        self,
        root: str | list[str],
        crop: int | None = 256,
        batch_size: int = 4,
        steps_per_epoch: int = 500,
        workers: int = 0,
        validation_share: float = 0.05,
        validation_count: int = 12,
        largest: int = 512,
        test_root: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if crop is None and batch_size != 1:
            raise ValueError(f"whole pictures come one at a time: batch_size 1, got {batch_size}")
        self.roots = [root] if isinstance(root, str) else root
        self.crop, self.batch_size, self.steps_per_epoch = crop, batch_size, steps_per_epoch
        self.workers, self.seed, self.largest = workers, seed, largest
        self.validation_share, self.validation_count = validation_share, validation_count
        self.test_root = test_root

    def setup(self, stage: str) -> None:
        items = [item for root in self.roots for item in read_items(root)]
        if len(items) < 2:
            raise ValueError("one picture is not enough: one to train on, one to validate on")
        items = sorted(items, key=self._draw)
        aside = sum(self._draw(item) < self.validation_share for item in items)
        aside = min(max(aside, 1), len(items) - 1)
        self.validation, self.items = items[:aside], items[aside:]

    @staticmethod
    def _draw(item: Item) -> float:
        """A number in [0, 1) that 0001x2.png and 0001x4.png share, since they show the same."""
        scene = re.sub(r"(x\d)?\.\w+$", "", item.record["source"])
        digest = hashlib.sha256(scene.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        crops = Crops(self.items, self.crop, self.seed)
        stream = CropStream(crops, self.batch_size, self.steps_per_epoch, rank, world)
        return ResumableLoader(stream, trainer, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        whole = [item for item in self.validation if item.is_whole()][: self.validation_count]
        paths = [item.folder / f"{item.name}.webp" for item in whole]
        return DataLoader(Whole(paths, self.largest), batch_size=1)

    def test_dataloader(self) -> DataLoader:
        if self.test_root is None:
            raise ValueError("test needs data.test_root, a folder of pictures")
        return DataLoader(Whole(list_pictures(self.test_root)), batch_size=1)
