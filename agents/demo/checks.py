"""The demo's list of checks: what was shown, with the figure that shows it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    ok: bool
    shown: str
    """The measured figure, in plain words."""
    seconds: float
    """Since the demo began."""


@dataclass(slots=True)
class Checks:
    """Collects checks and tells them as they come."""

    started: float = field(default_factory=time.monotonic)
    rows: list[Check] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        click.secho(f"\n{title}", bold=True)

    def say(self, text: str) -> None:
        click.echo(f"  {self.elapsed():6.1f} s  {text}")

    def add(self, what: str, ok: bool, shown: str) -> None:
        self.rows.append(Check(what, ok, shown, round(self.elapsed(), 1)))
        mark = click.style("holds", fg="green") if ok else click.style("FAILS", fg="red", bold=True)
        click.echo(f"  {self.elapsed():6.1f} s  {mark}  {what}: {shown}")

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def table(self) -> str:
        width = max((len(row.what) for row in self.rows), default=0)
        lines = [f"{'CHECK':<{width}}  RESULT  SHOWN BY"]
        lines += [f"{row.what:<{width}}  {'holds' if row.ok else 'FAILS':<6}  {row.shown}" for row in self.rows]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        data = {"demo": "shop", "ok": self.ok, "seconds": round(self.elapsed(), 1)}
        path.write_text(json.dumps(data | {"checks": [asdict(row) for row in self.rows]}, indent=2) + "\n")
