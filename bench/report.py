"""What a measurement found, as a JSON line and as a row of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One line of the results. ``peer`` is None for what has only a bound; ``target`` is what the ratio (or else
    ours) should reach: at least, or at most when ``at_most``; None for what is only reported."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    target: float | None
    at_most: bool

    @property
    def bound(self) -> str:
        """The target as people write it."""
        return "" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:g}"

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target is None:
            return "reported"
        figure = self.ours if self.ratio is None else self.ratio
        return "met" if (figure <= self.target if self.at_most else figure >= self.target) else "missed"


def against(name: str, ours: float, peer: float, unit: str, target: float, *, at_most: bool) -> Result:
    """A result that is a ratio."""
    return Result(name, ours, peer, ours / peer, unit, target, at_most)


def publish(results: Iterable[Result], file: str) -> None:
    """Writes each result to ``results/<file>`` as it comes, and shows all at the end."""
    RESULTS.mkdir(exist_ok=True)
    table = Table(Column("name", min_width=36), "ours", "peer", "ratio", "unit", "target", "")
    with (RESULTS / file).open("w") as lines:
        for result in results:
            lines.write(json.dumps(asdict(result)) + "\n")
            lines.flush()
            numbers = [
                "" if value is None else f"{value:.2f}" for value in (result.ours, result.peer, result.ratio)
            ]
            table.add_row(result.name, *numbers, result.unit, result.bound, result.verdict)
    console = Console()
    console.print(table, width=max(console.width, 110), no_wrap=True, crop=False)
