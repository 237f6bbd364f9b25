"""What a type checker knows of the package in a program that uses it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import instantgi

ROOT = Path(__file__).parents[1]
RECORDS = ("Mixture", "Levels", "Level", "Seeds", "File", "Index", "Metadata", "Steps", "Recipe")


def test_the_package_says_that_it_is_typed():
    assert (Path(instantgi.__file__).parent / "py.typed").is_file()


def test_every_public_name_has_a_known_type():
    pyright = shutil.which("pyright", path=Path(sys.executable).parent)
    if pyright is None:
        pytest.skip("needs pyright, of the extra dev")
    # --pythonpath is not heard here, nor is every editable install seen
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [pyright, "--verifytypes", "instantgi", "--ignoreexternal", "--outputjson"],
        cwd=ROOT,
        env=os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    unknown = {
        symbol["name"]
        for symbol in symbols
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    names = (*instantgi.__all__, *RECORDS)
    assert {f"instantgi.{name}" for name in instantgi.__all__} <= {s["name"] for s in symbols}
    public = {name for name in unknown if name.split(".")[-1] in names}
    members = {name for name in unknown if set(name.split(".")[1:-1]) & set(names)}
    assert not public | members
