"""The published tables row by row: the number, the command that measures it, and what it gave here.

The numbers of the papers are in docs/results/published.json. `here` of a row says where ours is: a
file of results, what its rows must match, which columns to show beside the dB, and under which
conditions they differ. Rows without it were not measured here.
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from bench.tables import line_of

HEAD = ("row", "published", "command", "here")


def published_tables(results: Path) -> list[str]:
    """Lines of Markdown: a table for each published one."""
    found = json.loads((results / "published.json").read_text(encoding="utf-8"))
    lines: list[str] = []
    for table in found["tables"]:
        lines += [f"### {table['paper']}", "", table["conditions"], ""]
        lines += [line_of(HEAD), "|---|---|---|---|"]
        for row in table["rows"]:
            here = measured(results, row["here"]) if "here" in row else "not measured here"
            lines.append(line_of((row["row"], row["published"], f"`{row['command']}`", here)))
        lines.append("")
    return lines[:-1]


def measured(results: Path, where: dict[str, Any]) -> str:
    """A mean over the rows that match.

    Raises:
        ValueError: if none does.
    """
    rows = rows_of(json.loads((results / f"{where['file']}.json").read_text(encoding="utf-8")))
    matching = [row for row in rows if where["match"].items() <= row.items()]
    if not matching:
        raise ValueError(f"{where['file']}.json: has no row with {where['match']}")
    values = [f"{mean(row[where['column']] for row in matching):.2f} dB"]
    for column, shown in where.get("also", {}).items():
        values.append(shown.format(mean(row[column] for row in matching)))
    return f"{', '.join(values)}, {where['conditions'].format(count=len(matching))}"


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """As dictionaries, also those of `save_tables`."""
    if "rows" in found:
        return found["rows"]
    return [
        dict(zip(table["columns"], row, strict=True))
        for table in found["tables"]
        for row in table["rows"]
    ]
