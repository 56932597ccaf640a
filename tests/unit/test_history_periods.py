"""The periods of the history: nothing that is counted while storage is waited for is taken for written."""

from __future__ import annotations

from contextlib import closing

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.history import Ending
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.loops.history import Periods
from qml_mp.supervisor.run import Run
from tests.unit.processor_case import SteppingClock


def test_what_is_counted_while_a_period_is_written_is_written_the_next_time() -> None:
    clock = SteppingClock()  # no minute ends meanwhile
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url="memory://", facts=AppFacts(), clock=clock)
    with closing(run.pool):
        periods, totals = Periods(run), run.pool.totals
        totals.add(method="resize", queue="images", ending=Ending.SUCCEEDED, waited_us=10, ran_us=20)
        periods.note()
        sent = [(period, period.changes) for period in periods.unwritten()]

        totals.add(method="resize", queue="images", ending=Ending.SUCCEEDED, waited_us=10, ran_us=20)
        periods.note()
        periods.note_written(sent)

        assert periods.unwritten() == [period for period, _ in sent]
        periods.note_written([(period, period.changes) for period in periods.unwritten()])
        assert periods.unwritten() == []
