"""Benchmark, limits: the same work without any job system, in forked loops."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tests.bench.forked import fork_loops, wait_for_all
from tests.bench.place import Place
from tests.bench.system import Backend, Command, Kind, Producer, System
from tests.bench.work import Work, perform

_TICKET_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Loops(System):
    """Forked processes that take the next number from a pipe: nothing is stored, nothing is waited for."""

    kind: ClassVar[Kind] = Kind.LIMIT

    def workers(self, place: Place) -> Sequence[Command]:
        return (self.program("loops"),)


SYSTEMS = (
    Loops(
        name="loops", backend=Backend.NONE, settings="bare forked loops", durability="nothing is stored",
        usual_jobs_per_s=100_000,
    ),
)  # fmt: skip


def loops() -> None:
    """Fork, hand out the numbers of the jobs, wait."""
    place = Place.current()
    works = list(_planned(place))
    tickets, handed_out = os.pipe()
    pids = fork_loops(place.workers, lambda _place: _loop(tickets, handed_out, works))
    os.close(tickets)
    for number in range(len(works)):
        os.write(handed_out, number.to_bytes(_TICKET_BYTES))
    os.close(handed_out)
    wait_for_all(pids)


def _loop(tickets: int, handed_out: int, works: Sequence[Work]) -> None:
    os.close(handed_out)  # or the end of the numbers would never be seen
    while ticket := os.read(tickets, _TICKET_BYTES):
        work = works[int.from_bytes(ticket)]
        perform(work.seq, work.ms, work.how)


class PlanProducer(Producer):
    """Writes the list."""

    def bulk(self, works: Sequence[Work]) -> None:
        plan = Place.current().folder / "plan"
        plan.write_text("\n".join(json.dumps(work.arguments()) for work in works))

    def single(self, work: Work) -> None:
        raise NotImplementedError


def producer() -> Producer:
    return PlanProducer()


def _planned(place: Place) -> Iterator[Work]:
    for line in (place.folder / "plan").read_text().splitlines():
        yield Work(**json.loads(line))
