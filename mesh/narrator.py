"""Tells how a demo goes: bars in a terminal, a line at each step otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from mesh.http import Json


class Narrator:
    """Says what happens and keeps how many seconds each stage took."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        """A line."""
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """A stage of the demo: announced, and timed."""
        self.say(f"▸ {title}", style="bold")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)

    @contextmanager
    def uploads(self, sizes: dict[str, int]) -> Iterator[Callable[[str, int], None]]:
        """Bars of files by name; the block calls what it gets with a name and the bytes stored."""
        with self._progress(DownloadColumn()) as bars:
            tasks = {name: bars.add_task(name, total=size) for name, size in sizes.items()}
            yield lambda name, stored: bars.update(tasks[name], completed=stored)

    @contextmanager
    def percentage(self, title: str) -> Iterator[Callable[[str, float], None]]:
        """A bar of percent; the block calls what it gets with a status and a percentage."""
        with self._progress(TaskProgressColumn()) as bars:
            task = bars.add_task(title, total=100)
            told = [""]

            def update(status: str, percent: float) -> None:
                bars.update(task, completed=percent, description=f"{title}: {status}")
                if status != told[0] and not self._console.is_terminal:
                    self.say(f"  {title}: {status} ({percent:.0f} %)")
                told[0] = status

            yield update

    def segments(self, segments: Sequence[Json]) -> None:
        """The table of the statements' places."""
        table = Table("statement", "start", "end", "first frame", "frames", title="segments", title_justify="left")
        for segment in segments:
            table.add_row(
                str(segment["statement_index"]),
                f"{segment['start_time']:.3f} s",
                f"{segment['end_time']:.3f} s",
                str(segment["start_frame"]),
                str(segment["frame_count"]),
            )
        self._console.print(table)

    def _progress(self, column: TaskProgressColumn | DownloadColumn) -> Progress:
        return Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            column,
            console=self._console,
            disable=not self._console.is_terminal,
        )
