"""docs/results.md is made of docs/results by tests/bench/report.py."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from bench import published, report
from bench.tables import Table, load_tables, save_tables

from instantgi.cli import BENCH_RD, build_parser

TEXT = report.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.stem)
def test_tables_of_a_page_are_those_of_the_files(page):
    text = page.read_text(encoding="utf-8")
    assert report.rewritten(text) == text, "run python tests/bench/report.py, and change no table"


def test_every_table_is_on_a_page_and_every_file_in_a_table(monkeypatch):
    pages = [page.read_text(encoding="utf-8") for page in report.pages()]
    names = [name for page in pages for name in re.findall(r"<!-- table: (\S+) -->", page)]
    assert {*names} == {*report.TABLES}
    read, read_text = set(), Path.read_text

    def recorded(path, *more, **options):
        read.add(path)
        return read_text(path, *more, **options)

    monkeypatch.setattr(Path, "read_text", recorded)
    for page in pages:
        report.rewritten(page)
    assert {*report.RESULTS.glob("*.json")} <= read


def test_what_is_written_into_a_table_by_hand_is_gone_and_prose_stays():
    changed = TEXT.replace("| instantgi | 300 | 24 |", "| instantgi | 300 | 99 |")
    assert changed != TEXT
    assert report.rewritten(changed) == TEXT
    assert report.rewritten(changed + "\nMore of it.\n") == TEXT + "\nMore of it.\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("<!-- table: none -->\n<!-- end -->\n", "no table is called none; there are kodak_43k"),
        ("<!-- table: ablation -->\n\nText\n", "every table has a begin and an end, got 1 and 0"),
        ("<!-- end -->\n", "every table has a begin and an end, got 0 and 1"),
    ],
)
def test_wrong_marks_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        report.rewritten(text)


def test_check_changes_nothing(tmp_path, monkeypatch):
    document = tmp_path / "results.md"
    document.write_text("<!-- table: ablation -->\n<!-- end -->\n")
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 1 and "variant" not in document.read_text()
    monkeypatch.setattr(sys, "argv", ["report.py"])
    assert report.main() == 0 and "| variant | Gaussians |" in document.read_text()
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0


def test_tables_come_back_from_their_file(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").touch()
    output = tmp_path / "made.json"
    words = ["--images", str(folder), "--one", str(folder / "a.png"), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["/x/tests/bench/some.py", *words, "--steps", "2"])
    table = Table({"name": "{}", "dB": "{:.2f}"}, "A title")
    table.add("first", 30.126)
    table.add("second", None)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "A title",
        "",
        "| name | dB |",
        "|---|---:|",
        "| first | 30.13 |",
        "| second | – |",
    ]
    save_tables(output, [table, Table({"unused": "{}"})], "a note")
    found = json.loads(output.read_text())
    (again,) = load_tables(found)
    assert again.lines() == printed and again.rows[0][1] == 30.126
    said = "python tests/bench/some.py --images DIR --one a.png -o docs/results/made.json --steps 2"
    assert (found["command"], found["note"]) == (said, "a note")
    assert {"device", "threads", "commit", "date"} <= found["conditions"].keys()
    save_tables(None, [table])


def test_published_rows_that_point_nowhere_are_refused(tmp_path):
    (tmp_path / "made.json").write_text(
        json.dumps({"rows": [{"method": "a", "psnr": 30.0}, {"method": "a", "psnr": 31.0}]})
    )
    where = {"file": "made", "column": "psnr", "conditions": "{count} pictures"}
    said = published.measured(tmp_path, where | {"match": {"method": "a"}})
    assert said == "30.50 dB, 2 pictures"
    with pytest.raises(ValueError, match="made.json: has no row with {'method': 'b'}"):
        published.measured(tmp_path, where | {"match": {"method": "b"}})


def test_published_commands_are_commands():
    """Those of bench are parsed, those of scripts exist."""
    found = json.loads((report.RESULTS / "published.json").read_text(encoding="utf-8"))
    commands = {row["command"] for table in found["tables"] for row in table["rows"]}
    assert len(commands) > 30
    for command in commands:
        program, *words = shlex.split(command)
        if program == "python":
            assert (report.DOCUMENT.parents[1] / words[0]).exists(), command
            continue
        if words[:2] == BENCH_RD.split():
            words[:2] = [BENCH_RD]
        build_parser().parse_args(words)


def test_kept_tables_are_of_known_scripts():
    for name in report.SCRIPTS:
        words = report.read(name)["command"].split()
        script = Path(__file__).parents[1] / words[1]
        assert words[0] == "instantgi" or script.exists(), name
