"""``mesh up``: starts everything, says where it is and follows it until it is told to stop."""

from __future__ import annotations

from rich.console import Console

from mesh.board import Board, addresses
from mesh.ports import HOST
from mesh.running import RunningMesh, running
from mesh.state import StateDirectory
from mesh.topology import Options
from services.common.adapters.jetstream import without_secrets
from services.common.keys import KeyRing

USER = "dev"


async def up(options: Options, console: Console) -> None:
    """Runs until cancelled. Raises MeshError when something cannot start."""
    board = Board(console)

    def stopping() -> None:
        board.close()
        console.print("stopping …", style="dim")

    board.open()
    try:
        async with running(options, board.changed, stopping) as mesh:
            board.close()
            announce(console, options, mesh)
            await mesh.supervisor.wait()
    finally:
        board.close()


def announce(console: Console, options: Options, mesh: RunningMesh) -> None:
    """Says that all are healthy and how to reach them."""
    state, info = StateDirectory(options.state), mesh.topology.info({}, healthy=True)
    rows = {
        "gateway": "\n".join(info.gateway_urls),
        **info.grpc_targets,
        "nats": without_secrets(info.nats_url).replace(",", "\n"),
        **({"s3": f"http://{HOST}:{info.ports['s3']}"} if "s3" in info.ports else {}),
        "logs": str(state.logs),
    }
    console.print(f"\nall {len(mesh.topology.specs)} processes are healthy", style="bold green", highlight=False)
    console.print(addresses(rows), soft_wrap=True, highlight=False)
    console.print(
        f'  a token of player "{USER}", for a day (`mesh token --user NAME` makes others):', highlight=False
    )
    # Alone on its line and unwrapped: it is there to be copied.
    console.print(KeyRing(state.keys).player_token(USER), soft_wrap=True, highlight=False, markup=False)
    console.print("Ctrl-C stops everything", style="dim")
