import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch.testing import assert_close

from data import Targets
from data.prepare import TargetRecipe, prepare_picture
from instantgi.models import InstantGI
from instantgi.training import SavePretrained, TrainInstantGI, draw_sheet

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL = {"width": 8, "dims": [8, 16], "depths": [1, 1], "hidden": 16}


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("training")
    for number in range(6):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        path = root / f"{number}.png"
        Image.fromarray(pixels).resize((64, 48)).save(path)
        prepare_picture(path, root / "targets", TargetRecipe(iterations=3))
    return root / "targets"


def module(**options) -> TrainInstantGI:
    torch.manual_seed(0)
    settings: dict = {
        "options": SMALL,
        "refine_steps": 2,
        "solve_iterations": 2,
        "checked_steps": 2,
    }
    return TrainInstantGI(**settings | options)


def crops(targets: Path, **options) -> Targets:
    settings: dict = {"crop": 32, "batch_size": 2, "steps_per_epoch": 4, "validation_share": 0.5}
    settings |= {"validation_count": 1} | options
    return Targets(str(targets), **settings)


def trainer(folder: Path, **options) -> "lightning.Trainer":
    settings: dict = {
        "max_steps": 6,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(**settings | options)


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class OnlyParsed(LightningCLI):
    """Neither a network of 100 M parameters nor a logger is made."""

    def instantiate_classes(self) -> None:
        pass


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(path):
    options = OnlyParsed(run=False, args=["--config", str(path)]).config["model"]["init_args"]
    assert "folder" in options or options["size"] in ("base", "small", "tiny")
    head = path.read_text().splitlines()
    assert head[0].startswith("# ") and "train.py" in "".join(head[:4])


@pytest.mark.parametrize("objective", ["published", "refined"])
def test_a_step_trains_every_parameter(targets, objective):
    model, stream = module(objective=objective), crops(targets)
    stream.setup("fit")
    model.log_dict = lambda *_, **__: None  # pyright: ignore
    model.training_step(next(iter(stream.train_dataloader())), 0).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_published_fields_train_on_the_published_objective(targets):
    options = {"width": 8, "dims": [8, 16], "depths": [1, 1], "fields": "published", "stride": 1}
    model = module(size="base", options=options, objective="published", density=None)
    trainer(targets.parent / "published", max_steps=2).fit(model, crops(targets))
    assert all(p.isfinite().all() for p in model.parameters())


def test_training_lowers_the_loss(targets):
    model = module(learning_rate=3e-3)
    stream = crops(targets)
    stream.setup("fit")
    seen = []
    model.log_dict = lambda values, **_: seen.append(float(values["train/loss"]))  # pyright: ignore
    batch = next(iter(stream.train_dataloader()))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    assert sum(seen[-3:]) / 3 < seen[0]


class Killed(RuntimeError):
    pass


class KillAfter(lightning.Callback):
    def __init__(self, step: int, path: Path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise Killed


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_weights(targets, tmp_path, step):
    whole = module()
    trainer(tmp_path).fit(whole, crops(targets))
    path = tmp_path / "killed.ckpt"
    with pytest.raises(Killed):
        trainer(tmp_path, callbacks=[KillAfter(step, path)]).fit(module(), crops(targets))
    resumed = module()
    trainer(tmp_path).fit(resumed, crops(targets), ckpt_path=path, weights_only=False)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_averaged_weights_are_those_that_are_saved(targets, tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    seen, raw = {}, {}

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            raw.update({k: v.clone() for k, v in module.network.state_dict().items()})

        def on_validation_batch_end(self, trainer, module, *_):
            seen.update({k: v.clone() for k, v in module.network.state_dict().items()})

    keep = SavePretrained(folder=str(tmp_path / "network"))
    callbacks = [Look(), EMAWeightAveraging(decay=0.5), keep]
    trainer(tmp_path, callbacks=callbacks, max_steps=4).fit(module(), crops(targets))
    saved = InstantGI.from_pretrained(tmp_path / "network").state_dict()
    assert all(torch.equal(saved[name], seen[name]) for name in saved)
    assert not torch.equal(saved["unet.input.0.weight"], raw["unet.input.0.weight"])


def test_the_best_network_is_saved(targets, tmp_path):
    keep = SavePretrained()
    model = module()
    trainer(tmp_path, callbacks=[keep], max_steps=4).fit(model, crops(targets))
    saved = InstantGI.from_pretrained(tmp_path / "pretrained")
    for a, b in zip(saved.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert keep.best > 0


def test_sheet_shows_five_pictures():
    network = InstantGI(**SMALL, fields="local", stride=2, norm="layer")
    sheet = draw_sheet(network, torch.rand(3, 20, 30))
    assert sheet.shape == (3, 20, 150) and 0 <= sheet.min() and sheet.max() <= 1


def test_a_network_starts_from_one_that_is_trained(tmp_path):
    known = module().network.eval()
    torch.nn.init.normal_(known.get_parameter("fields.out.weight"), std=0.3)
    known.save_pretrained(tmp_path)
    same = module(pretrained=str(tmp_path)).network
    for a, b in zip(same.parameters(), known.parameters(), strict=True):
        assert torch.equal(a, b)
    wider = module(pretrained=str(tmp_path), options=SMALL | {"hidden": 32}).network.eval()
    known.get_parameter("fields.alone.0.weight").data[:, -8:] = (
        0  # nor does the wider one look at features yet
    )
    image = torch.rand(3, 40, 50)
    with torch.no_grad():
        a, b = (network(image, num_gaussians=100) for network in (known, wider))
    assert_close(a.means, b.means, rtol=0, atol=0.05)  # in mixed precision


def test_missing_maps_are_said(targets):
    with pytest.raises(ValueError, match="training needs position maps"):
        module()._maps({"image": torch.rand(1, 3, 8, 8)}, [])


@pytest.mark.parametrize(
    "options, text",
    [
        ({"objective": "fame"}, "objective must be one of"),
        ({"size": "huge"}, "size must be one of"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        module(**options)


def test_two_processes_prepare_and_train(targets, tmp_path):
    pictures, made = str(targets.parent), tmp_path / "targets"
    pair = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    config = ("--config", "configs/prepare.yaml", "--data.init_args.root", pictures)
    quick = ("--model.init_args.folder", str(made), "--model.init_args.iterations", "3")
    where = ("--trainer.default_root_dir", str(tmp_path / "runs"))
    (targets.parent / "broken.png").write_bytes(b"no picture")
    said = run("predict", *config, *quick, *where, *pair)
    (targets.parent / "broken.png").unlink()
    # the six pictures and what the first preparation left beside them
    assert re.search(r"targets: \d+ pictures", said) and "broken.png" in said
    assert len(list(made.glob("*.webp"))) >= 6
    smoke = ("--config", "configs/smoke.yaml", "--data.init_args.root", str(made))
    tiny = ("--model.init_args.options", str(SMALL), "--model.init_args.refine_steps", "2")
    short = ("--data.init_args.crop", "32", "--data.init_args.steps_per_epoch", "2")
    log = ("--trainer.logger.init_args.save_dir", str(tmp_path / "log"))
    run("fit", *smoke, *tiny, *short, *log, *where, *pair, "--trainer.max_steps", "4")
    assert "val/psnr_solved" in (tmp_path / "log" / "metrics.csv").read_text()
    assert (tmp_path / "log" / "pretrained" / "model.safetensors").exists()


def test_the_smoke_config_learns(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 192), Image.Resampling.BICUBIC).save(
            pictures / f"{number}.png"
        )
    made, log = str(tmp_path / "targets"), tmp_path / "log"
    where = ("--trainer.default_root_dir", str(tmp_path / "runs"))
    prepare = ("--config", "configs/prepare.yaml", "--model.init_args.folder", made)
    run("predict", *prepare, "--data.init_args.root", str(pictures), *where)
    smoke = ("--config", "configs/smoke.yaml", "--data.init_args.root", made)
    run("fit", *smoke, *where, "--trainer.logger.init_args.save_dir", str(log))
    rows = list(csv.DictReader((log / "metrics.csv").open()))
    scores = [float(row["val/psnr_solved"]) for row in rows if row["val/psnr_solved"]]
    assert len(scores) == 3 and scores[-1] > scores[0]
    assert (log / "pretrained" / "model.safetensors").exists()


@pytest.mark.slow
def test_pictures_reach_weights_and_biases_offline(targets, tmp_path):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    from instantgi.training import LogPictures

    loggers = [
        WandbLogger(save_dir=tmp_path, offline=True, project="test"),
        TensorBoardLogger(tmp_path),
    ]
    keep = [LogPictures(1)]
    trainer(tmp_path, logger=loggers, callbacks=keep, max_steps=4).fit(module(), crops(targets))
    assert list(tmp_path.rglob("*.wandb")) and list(tmp_path.rglob("picture_0*.png"))
