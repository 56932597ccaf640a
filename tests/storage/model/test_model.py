"""Tests of the storage: random histories of many processes, on each backend, against the model.

Short and the same each time. The long run, with histories that nobody has seen:

    pytest tests/storage/model --hypothesis-profile=soak
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.storage.conftest import Raw
from tests.storage.model.machine import StorageMachine
from tests.storage.model.world import World

_EXAMPLES = 50
_EXAMPLES_POSTGRES = 20  # each takes the time of several of SQLite's


@pytest.mark.parametrize("many", [1, pytest.param(20, marks=pytest.mark.nightly)], ids=["few", "many"])
@pytest.mark.fault(36)
@pytest.mark.fault(72)
@pytest.mark.fault(73)
def test_any_history_of_supervisors_and_workers_leaves_what_the_model_says(
    url: str, raw: Raw, request: pytest.FixtureRequest, many: int
) -> None:
    # Ten seconds on a busy machine: fewer histories would not reach the rules that need several others.
    examples = _EXAMPLES if raw.is_sqlite else _EXAMPLES_POSTGRES
    chosen = settings(max_examples=examples * many, derandomize=True, deadline=None)
    if request.config.getoption("--hypothesis-profile") == "soak":
        chosen = settings.get_profile("soak")
    with ExitStack() as stack:
        world = World(url, raw, stack)

        class Machine(StorageMachine):
            def __init__(self) -> None:
                super().__init__(world)

        run_state_machine_as_test(Machine, settings=chosen)
