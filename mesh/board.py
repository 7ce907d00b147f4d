"""Shows what the processes of a mesh do: a live table in a terminal while it starts, lines otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mesh.supervisor import Change, Condition

_STYLES = {
    Condition.WAITING: "dim",
    Condition.STARTING: "yellow",
    Condition.HEALTHY: "green",
    Condition.RESTARTING: "bold red",
    Condition.STOPPED: "dim",
}


class Board:
    """The conditions of processes by name. The table lives from :meth:`open` to :meth:`close`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._changes: dict[str, Change] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def open(self) -> None:
        """Begins the table, in a terminal."""
        if self._live:
            self._live.start()

    def close(self) -> None:
        """Ends the table. Closing again changes nothing."""
        if self._live:
            self._live.stop()

    def changed(self, change: Change) -> None:
        """Shows a change."""
        self._changes[change.name] = change
        if change.note:
            self._console.print(change.note, style=_STYLES[change.condition], highlight=False, soft_wrap=True)
        elif self._live and self._live.is_started:
            self._live.update(self._table(), refresh=True)
        elif change.condition is Condition.HEALTHY:
            line = f"{change.name} is healthy (pid {change.pid})"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("process", "condition", "pid", title="mesh", title_justify="left")
        for change in self._changes.values():
            style = _STYLES[change.condition]
            table.add_row(change.name, f"[{style}]{change.condition}[/]", str(change.pid or ""))
        return table


def addresses(rows: Mapping[str, str]) -> Table:
    """Names and where they are reached."""
    table = Table.grid(padding=(0, 2))
    for name, address in rows.items():
        table.add_row(f"  {name}", address)
    return table
