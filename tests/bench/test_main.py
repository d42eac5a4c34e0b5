"""A measurement that goes wrong is made again, and one that never goes right is an error."""

from __future__ import annotations

import pytest
from bench.processes import BenchError
from bench.runs import ATTEMPTS, retried


def test_a_measurement_under_which_the_leader_changed_is_made_again() -> None:
    failures = [BenchError("the leader changed")] * (ATTEMPTS - 1)

    def measure() -> str:
        if failures:
            raise failures.pop()
        return "figures"

    assert retried(measure) == "figures"


def test_a_measurement_that_always_fails_is_an_error_in_the_end() -> None:
    attempts: list[int] = []

    def measure() -> None:
        attempts.append(1)
        raise BenchError("no leader")

    with pytest.raises(BenchError, match="no leader"):
        retried(measure)
    assert len(attempts) == ATTEMPTS
