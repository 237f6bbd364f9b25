"""Every command and every line of Python in the README runs, with smaller numbers."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from instantgi.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALLER = {"--iterations": "2", "--seconds": "0.2", "--num-gaussians": "200", "--psnr": "15"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands() -> list[str]:
    parts = [
        part for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")
    ]
    return [part.split("#")[0].strip() for part in parts]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "quarter").mkdir()
    shutil.copy(ROOT / "assets" / "kodim23.png", tmp_path / "assets")
    with Image.open(ROOT / "assets" / "kodim23.png") as picture:
        picture.reduce(2).save(tmp_path / "quarter" / "kodim23.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(words: list[str]) -> list[str]:
    """The same call with numbers that take no time."""
    replaced = [
        SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)
    ]
    if words[0] in ("infer", "fit") and "--iterations" not in words and "--seconds" not in words:
        replaced += ["--iterations", "2"]
    if words[0] == "bench":
        replaced = ["quarter" if word == "assets" else word for word in replaced]
    if words[:2] == ["bench", "rd"]:
        replaced += ["--iterations", "2", "--codecs", "instantgi,jpeg", "--bpp", "0.3"]
    return replaced


def test_commands_of_the_readme_run(workplace):
    ran = 0
    for command in commands():
        words = shlex.split(command)
        if words[:2] == ["python", "infer.py"]:
            words = ["instantgi", "infer", *words[2:]]
        if words[0] != "instantgi":
            known = (["python", "-m", "pip"], ["python", "-m", "pytest"], ["python", "train.py"])
            assert words[:3] in known or words[:2] in known, command
            continue
        if "--checkpoint" in words:  # of a training of hours; test_training has a short one
            continue
        assert main(small(words[1:])) == 0, command
        ran += 1
    assert ran >= 7
    assert {p.name for p in workplace.iterdir()} >= {
        "out",
        "big.png",
        "kodim23.npz",
        "results.json",
        "bytes-rate.svg",
    }


def test_python_of_the_readme_runs(workplace, capsys):
    code = "".join(blocks("python"))
    exec(code.replace("iterations=100", "iterations=2"), {})
    assert (workplace / "twice.png").exists() and "torch.Size" in capsys.readouterr().out


def test_readme_has_no_placeholders():
    assert not re.search(r"@[A-Z]+@", README)


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target
