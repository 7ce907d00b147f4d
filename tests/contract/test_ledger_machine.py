"""Random lives of uploads on every part store and on a dict: no difference."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.ledger_machine import LedgerMachine

STEPS = 10_000


def test_ten_thousand_random_steps_make_no_difference() -> None:
    LedgerMachine.steps = 0
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=215,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,  # the same steps in every run: what fails here fails everywhere
            phases=[Phase.generate],  # finding the shortest failing life takes minutes: add Phase.shrink for that
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert LedgerMachine.steps >= STEPS
