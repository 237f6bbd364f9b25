"""The script that measures on a GPU, run on the CPU with tiny pictures."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench import gpu

OPTIONS = gpu.Options(torch.device("cpu"), quick=True, pictures=(gpu.PICTURE,))
ONCE = [name for name in gpu.PARTS if not name.endswith(("4096x4096", "9216x9216"))]


@pytest.mark.parametrize("name", ONCE)
def test_a_part_gives_numbers(name, monkeypatch, tmp_path):
    if name == "compile":
        pytest.importorskip("cuda.core")
        monkeypatch.setenv("INSTANTGI_CACHE", str(tmp_path))
    made = gpu.PARTS[name](OPTIONS)
    rows = made if isinstance(made, list) else [made]
    assert rows and all(row and isinstance(row, dict) for row in rows)
    json.dumps(made)


def test_the_script_writes_its_results(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, gpu.__file__, "--device", "cpu", "--quick", "--commit", "abc"]
    command += ["--only", "ceilings", "racecheck", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    assert list(results) == ["conditions", "ceilings", "racecheck"]
    assert results["conditions"]["commit"] == "abc"
    assert results["ceilings"]["GB/s"] > 0
    assert "| GB/s | TFLOP/s |" in done.stdout


def test_a_part_that_ends_early_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "no such device"])
    found = gpu.run_part("ceilings", 60, str(tmp_path))
    assert found["error"].startswith("exit code 2: ") and "no such device" in found["error"]
    assert gpu.run_part("ceilings", 1, str(tmp_path)) == {"error": "no time was left"}


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path):
    begun, late = tmp_path / "begun", tmp_path / "late"
    line = f"touch {begun}; (sleep 2; touch {late}) & wait"
    code, text = gpu.run(["sh", "-c", line], 0.5, {"PATH": "/usr/bin:/bin"})
    assert code is None and text.startswith("took more than 0 s")
    time.sleep(2)
    assert begun.exists() and not late.exists()


def test_a_machine_without_git_has_an_unknown_commit(monkeypatch):
    from bench import timing

    monkeypatch.setenv("PATH", "")
    assert timing.commit() == "unknown"


def test_tests_that_fail_are_named():
    text = "..F\nFAILED tests/test_a.py::test_b - AssertionError\n1 failed, 2 passed in 3 s\n"
    found = gpu.said(1, text)
    assert found["said"] == (
        "FAILED tests/test_a.py::test_b - AssertionError; 1 failed, 2 passed in 3 s"
    )
    assert found["error"] == text
    assert gpu.said(0, "3 passed in 1 s") == {"exit code": 0, "said": "3 passed in 1 s"}


def test_the_named_tests_are_there():
    for name in gpu.TESTS:
        assert (Path(__file__).parent / f"test_{name}.py").is_file()
