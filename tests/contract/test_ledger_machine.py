"""Random lives of uploads on every part store and on a dict: no difference."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.ledger_machine import LedgerMachine, MemoryBackend, S3Backend


def live(machine: type[LedgerMachine], lives: int, steps: int = 60) -> None:
    machine.steps = 0
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,  # the same steps in every run: what fails here fails everywhere
            phases=[Phase.generate],  # finding the shortest failing life takes minutes: add Phase.shrink for that
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_ten_thousand_random_steps_make_no_difference() -> None:
    live(LedgerMachine, lives=215)
    assert LedgerMachine.steps >= 10_000


@pytest.mark.xdist_group("s3")
def test_random_steps_make_no_difference_on_s3(s3_settings: dict[str, object]) -> None:
    class Bucket(S3Backend):
        settings = s3_settings

    class Machine(LedgerMachine):
        backends = (MemoryBackend, Bucket)

    live(Machine, lives=2, steps=16)  # each takes some requests to a server that is in no hurry
    assert Machine.steps >= 16
