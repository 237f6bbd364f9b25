"""What a type checker knows of the package in a program that uses it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import NAMES, blocks

import instantgi

ROOT = Path(__file__).parents[1]
RECORDS = ("Mixture", "Levels", "Level", "Seeds", "File", "Index", "Metadata", "Steps", "Recipe")


def test_the_package_says_that_it_is_typed():
    assert (Path(instantgi.__file__).parent / "py.typed").is_file()


def pyright(*arguments: str, cwd: Path = ROOT) -> str:
    """What it prints."""
    program = shutil.which("pyright", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("needs pyright, of the extra dev")
    # --pythonpath is not heard here, nor is every editable install seen
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)}
    command = [program, *arguments, "--outputjson"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True).stdout


def test_code_of_the_pages_is_well_typed(tmp_path):
    for name, page in NAMES.items():
        code = "\n".join(text for language, text in blocks(page) if language == "python")
        (tmp_path / f"{name.replace('/', '_')}.py").write_text(code, encoding="utf-8")
    found = json.loads(pyright(".", cwd=tmp_path))
    assert found["summary"]["filesAnalyzed"] == len(NAMES)
    assert [each["message"] for each in found["generalDiagnostics"]] == []


def test_every_public_name_has_a_known_type():
    stdout = pyright("--verifytypes", "instantgi", "--ignoreexternal")
    symbols = json.loads(stdout)["typeCompleteness"]["symbols"]
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
