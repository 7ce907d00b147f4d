"""Random lives of uploads on every part store and on a dict: no difference.

S3 has its share twice: ten thousand steps of its adapter on a bucket in memory, and a thousand on a real server;
with ``CHAOS=full`` ten thousand there too, in some five minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from contextlib import AbstractAsyncContextManager

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from services.common.adapters.s3_bucket import S3Bucket, open_bucket
from services.common.settings import CommonSettings
from tests.contract.ledger_machine import LedgerMachine, MemoryBackend, S3Backend

S3_STEPS = 10_000 if os.environ.get("CHAOS") == "full" else 1_000
"""Each is some requests to a server that is in no hurry, 25 ms in all."""


def live(machine: type[LedgerMachine], steps: int) -> None:
    """Random lives until so many things were done, the same in every run: what fails here fails everywhere."""
    machine.steps = 0
    for number in itertools.count():
        if machine.steps >= steps:
            break
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=5,
                stateful_step_count=60,
                deadline=None,
                phases=[
                    Phase.generate
                ],  # finding the shortest failing life takes minutes: add Phase.shrink for that
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_ten_thousand_random_steps_make_no_difference() -> None:
    live(LedgerMachine, 10_000)


@pytest.mark.xdist_group("s3")
def test_random_steps_make_no_difference_on_s3(s3_settings: dict[str, object]) -> None:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = open_bucket(CommonSettings.model_validate(s3_settings))
        server = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(_close(opened)))

        class Server(S3Backend):
            bucket = server

        class Machine(LedgerMachine):
            backends = (MemoryBackend, Server)

            def new_loop(self) -> asyncio.AbstractEventLoop:
                return runner.get_loop()

            def end_loop(self) -> None:
                """Its client stays open for the next life."""

        live(Machine, S3_STEPS)


async def _close(opened: AbstractAsyncContextManager[S3Bucket]) -> None:
    await opened.__aexit__(None, None, None)
    await asyncio.sleep(0)  # lets the transports' close callbacks run
