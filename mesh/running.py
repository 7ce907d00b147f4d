"""A mesh of this process: locked, planned, started, written down; and stopped on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mesh.errors import MeshError
from mesh.health import any_http, jetstream, until_healthy
from mesh.state import MeshInfo, StateDirectory
from mesh.supervisor import Change, Condition, Supervisor
from mesh.topology import Options, Topology, plan

_BROKER_SECONDS = 10.0

OnChange = Callable[[Change], None]


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A healthy mesh that this process runs."""

    topology: Topology
    supervisor: Supervisor


@asynccontextmanager
async def running(
    options: Options, on_change: OnChange, on_stop: Callable[[], None]
) -> AsyncIterator[RunningMesh]:
    """A mesh that is healthy within the block and stopped after it. Raises MeshError when it cannot start.

    ``on_stop`` is called when the stopping begins. A cancelled stop kills what is left.
    """
    state = StateDirectory(options.state)
    with state.locked():
        topology = plan(options, state)
        if not topology.own_broker:
            await _check_broker(topology.nats_url)
        processes: dict[str, int] = {}
        healthy = False

        def changed(change: Change) -> None:
            if change.pid is None:
                processes.pop(change.name, None)
            else:
                processes[change.name] = change.pid
            if change.condition is not Condition.WAITING:
                state.write(topology.info(processes, healthy=healthy))
            on_change(change)

        supervisor = Supervisor(topology.specs, logs=state.logs, on_change=changed)
        try:
            await supervisor.start()
            healthy = True
            state.write(topology.info(processes, healthy=True))
            yield RunningMesh(topology, supervisor)
        finally:
            on_stop()
            await _stop(supervisor)
            state.forget()


async def _check_broker(url: str) -> None:
    try:
        async with asyncio.timeout(_BROKER_SECONDS):
            await until_healthy(jetstream(url))
    except TimeoutError as error:
        raise MeshError("no NATS server with JetStream answers at NATS_URL") from error


async def _stop(supervisor: Supervisor) -> None:
    try:
        await supervisor.stop()
    except asyncio.CancelledError:
        supervisor.kill()
        raise


async def find_running(state: StateDirectory, patience: float = 60.0) -> MeshInfo | None:
    """The healthy mesh that runs on ``state``, or None. One that is starting is waited for."""
    try:
        async with asyncio.timeout(patience):
            while (info := state.read()) and info.alive():
                if not info.healthy:
                    await asyncio.sleep(0.2)
                    continue
                async with asyncio.timeout(5):
                    await until_healthy(any_http([f"{url}/api/v1/health" for url in info.gateway_urls]))
                return info
    except TimeoutError:
        return None
    return None
