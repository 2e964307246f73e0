"""The documentation says of every engine what the suite asks of it."""

from __future__ import annotations

import re
from pathlib import Path

from .offers import ENGINES, ROWS

_PAGE = Path(__file__).parents[3] / "docs" / "services.md"


def documented() -> dict[str, dict[str, str]]:
    """The page's first table as `ROWS` has it."""
    page = _PAGE.read_text().split("\n## ", 1)[0]
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    (_, *engines), _, *rows = lines
    assert tuple(engines) == ENGINES
    found: dict[str, dict[str, str]] = {}
    for name, *cells in rows:
        found[name] = {}
        for engine, cell in zip(engines, cells, strict=True):
            if cell != "yes":
                found[name][engine] = reasons[cell.removeprefix("no [").removesuffix("]")]
    return found


def test_the_documented_table_is_the_suites() -> None:
    assert documented() == ROWS


def test_every_row_is_tested() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in ROWS if f'"{name}"' not in sources] == []
