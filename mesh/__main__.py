"""The command line: ``mesh up``, ``mesh demo``, ``mesh token``, ``mesh migrate``, ``mesh jobs``."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from mesh.errors import MeshError
from services.common.keys import ALL_SCOPES, KeyRing

if TYPE_CHECKING:
    from mesh import topology

app = typer.Typer(
    name="mesh",
    help="Runs the whole mesh on this machine: a broker, four services, workers and a gateway for phones.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

jobs = typer.Typer(
    help="Jobs that failed for good: list them, have one tried again, or drop it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(jobs, name="jobs")

State = Annotated[Path, typer.Option(help="Where data, keys and logs of this mesh are kept.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The gateway's port.", show_default="8080")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="How many merge workers; short for `--scale merge-worker=N`.",
        show_default="one a CPU, at most 4",
    ),
]
FreePorts = Annotated[
    bool, typer.Option("--free-ports", help="Pick free ports for everything, to run several meshes.")
]

S3 = Annotated[bool, typer.Option("--s3", help="Keep bytes in an S3 server (started too), not in a directory.")]

Scale = Annotated[
    str,
    typer.Option(
        "--scale",
        metavar="NAME=N,…",
        help="How many of each: `upload=2,merge=2,merge-worker=3,challenge=2,gateway=2`; else one. "
        "Several uploads need --s3, several challenges PostgreSQL.",
    ),
]
Nats = Annotated[int, typer.Option("--nats", help="NATS servers: 1, or 3 as a cluster that outlives one of them.")]

NatsUrl = Annotated[
    str,
    typer.Option(
        "--nats-url",
        help="The NATS servers of a mesh elsewhere, comma-separated, instead of --state's.",
        metavar="URL",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or enough of its beginning.")]

DEFAULT_STATE = Path(".mesh")


@app.command()
def up(
    state: State = DEFAULT_STATE,
    port: Port = None,
    workers: Workers = None,
    free_ports: FreePorts = False,
    s3: S3 = False,
    scale: Scale = "",
    nats: Nats = 1,
) -> None:
    """Start everything and keep it running until Ctrl-C.

    Services come up in health order and are restarted when they die. A second Ctrl-C kills at once.

    NATS_URL uses a NATS server that runs already (2.11 or newer, with JetStream); TWOTRUTHS_… settings in
    the environment reach all services.
    """
    from mesh.up import up as run_up

    options = _options(state, port, workers, free_ports, s3, scale, nats)
    _run(run_up(options, Console()))


@app.command()
def demo(
    clips: Annotated[
        list[Path] | None,
        # readable=False: typer would say so itself, in a box and with another exit status.
        typer.Argument(help="Three videos of your own; without them, three are made.", readable=False),
    ] = None,
    state: State = DEFAULT_STATE,
    port: Port = None,
    workers: Workers = None,
    free_ports: FreePorts = False,
    s3: S3 = False,
    scale: Scale = "",
    nats: Nats = 1,
) -> None:
    """Play the whole game once through the gateway, as two phones would.

    Uses the mesh that runs on --state, or starts one and stops it afterwards (--port, --workers,
    --free-ports, --s3, --scale and --nats are for that). Ends with one line `DEMO OK {json}`.
    """
    from mesh.demo import demo as run_demo

    if clips and len(clips) != 3:
        _fail(MeshError(f"the demo takes three clips or none, not {len(clips)}"))
    for clip in clips or []:
        if not clip.is_file():
            _fail(MeshError(f"{clip} is not a file"))
        if not os.access(clip, os.R_OK):
            _fail(MeshError(f"{clip} cannot be read"))
    options = _options(state, port, workers, free_ports, s3, scale, nats)
    if not _run(run_demo(options, clips or [], Console())):
        _fail(MeshError("the demo was interrupted"), status=130)


@app.command()
def token(
    user: Annotated[str, typer.Option(help="The player: the token's subject.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope; may be given again.", show_default=" ".join(ALL_SCOPES))
    ] = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Print a development token of a player, valid for a day, and nothing else."""
    if not user:
        _fail(MeshError("a player has a name: --user NAME"))
    try:
        ring = KeyRing.create(state / "keys")
    except OSError as error:
        _fail(MeshError(f"no keys in {state / 'keys'}: {error.strerror}"))
    typer.echo(ring.player_token(user, scopes=scope or ALL_SCOPES))


@app.command()
def migrate(state: State = DEFAULT_STATE) -> None:
    """Bring the challenge service's database up to date; say what was done; again, do nothing.

    Which database is a setting of that service: TWOTRUTHS_CHALLENGE_DATABASE_URL, or without it the file in
    TWOTRUTHS_DATA_DIR, or else of the mesh on --state. On PostgreSQL run it before a new version is rolled out;
    any number at once take turns. On SQLite the service does it itself.
    """
    command = [sys.executable, "-m", "services.challenge", "migrate"]
    # In this one's place: signals and the exit status are its own.
    os.execve(command[0], command, {"TWOTRUTHS_DATA_DIR": str(state / "data"), **os.environ})  # noqa: S606


@jobs.command("dead")
def jobs_dead(state: State = DEFAULT_STATE, nats_url: NatsUrl = "") -> None:
    """List the dead jobs, the latest last: id, kind, owner, session, when and why.

    A job is dead when its input was refused or all its attempts failed; it is kept for 30 days. Asks the broker of
    the mesh that runs on --state, or that of --nats-url.
    """
    from mesh import jobs as commands

    _run(commands.dead(state, nats_url))


@jobs.command("retry")
def jobs_retry(id: JobId, state: State = DEFAULT_STATE, nats_url: NatsUrl = "") -> None:
    """Have the session of a dead job tried again: what failed gets its next attempt, what is done is kept.

    Also for input that was refused for good, which a player cannot retry: after a fix it may be taken. The session
    must still be failed and its clips be there (7 days by default).
    """
    from mesh import jobs as commands

    _run(commands.retry(state, id, nats_url))


@jobs.command("drop")
def jobs_drop(id: JobId, state: State = DEFAULT_STATE, nats_url: NatsUrl = "") -> None:
    """Remove a dead job from the list. Its session stays as it is: failed, and open to a retry by its player."""
    from mesh import jobs as commands

    _run(commands.drop(state, id, nats_url))


def _options(
    state: Path, port: int | None, workers: int | None, free_ports: bool, s3: bool, scale: str, nats: int
) -> topology.Options:
    from mesh import scale as scales
    from mesh import topology

    try:
        replicas = scales.parse(scale)
    except MeshError as error:
        _fail(error)
    if nats not in scales.SERVERS:
        _fail(MeshError(f"--nats takes {' or '.join(map(str, scales.SERVERS))}, not {nats}"))
    of_scale = replicas.pop(scales.WORKER, None)
    if workers and of_scale:
        _fail(MeshError(f"--workers {workers} is short for --scale {scales.WORKER}={workers}: give one of them"))
    number = workers or of_scale or topology.default_workers()
    return topology.Options(state, number, port, free_ports, s3, replicas, nats)


def _run(main: Coroutine[Any, Any, None]) -> bool:
    from mesh import interrupt

    try:
        return interrupt.run(main)
    except MeshError as error:
        _fail(error)


def _fail(error: MeshError, status: int = 1) -> NoReturn:
    if error.detail:
        print(error.detail, file=sys.stderr)
    print(f"mesh: {error}", file=sys.stderr)
    raise typer.Exit(status)


def main() -> None:
    """The entry point ``mesh``."""
    app()


if __name__ == "__main__":
    main()
