"""What a benchmark measured, as tables: printed as it comes, and kept as the JSON that
`report.py` makes docs/results.md of.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.timing import conditions

from instantgi.files import replace_on_success


class Table:
    """Rows of cells under named columns.

    Args:
        columns: the format of a cell for each name, such as "{:.2f}"; "{}" takes text as well.
        title: a line above it.
    """

    def __init__(self, columns: dict[str, str], title: str = "", rows: list[list] | None = None):
        self.columns, self.title, self.rows = columns, title, rows or []

    def add(self, *cells: Any) -> None:
        """Appends a row and prints it, below the head if it is the first."""
        self.rows.append(list(cells))
        lines = self.lines()
        print("\n".join(lines if len(self.rows) == 1 else lines[-1:]), flush=True)

    def lines(self) -> list[str]:
        """As Markdown; None is a dash."""
        head = [self.title, ""] if self.title else []
        sides = ["---" if form == "{}" else "---:" for form in self.columns.values()]
        head += [line_of(self.columns), f"|{'|'.join(sides)}|"]
        return head + [
            line_of(
                "–" if cell is None else form.format(cell)
                for form, cell in zip(self.columns.values(), row, strict=True)
            )
            for row in self.rows
        ]


def line_of(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def save_tables(path: Path | None, tables: list[Table], note: str = "") -> None:
    """Nothing without a path."""
    if path is None:
        return
    kept = [
        {"title": each.title, "columns": each.columns, "rows": each.rows}
        for each in tables
        if each.rows
    ]
    found = {"command": command(sys.argv, path), "conditions": conditions()}
    text = json.dumps(found | {"note": note, "tables": kept}, indent=1, ensure_ascii=False)
    with replace_on_success(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def load_tables(found: dict[str, Any]) -> list[Table]:
    return [Table(each["columns"], each["title"], each["rows"]) for each in found["tables"]]


def command(words: list[str], output: Path) -> str:
    """The command of this process, without where things lie on this machine."""
    said = ["python", f"tests/bench/{Path(words[0]).name}"]
    for before, word in zip(words, words[1:], strict=False):
        if before in ("-o", "--output"):
            word = f"docs/results/{output.name}"
        elif Path(word).is_dir():
            word = "DIR"
        elif Path(word).is_file():
            word = Path(word).name
        said.append(word)
    return shlex.join(said)
