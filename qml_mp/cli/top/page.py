"""Client: one page of `top`, as lines of a terminal of some size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.text import Text

from qml_mp.cli.fitting import GAP, fitted
from qml_mp.cli.output import age, short
from qml_mp.cli.text_width import padded, width_of
from qml_mp.cli.top.choice import Action, Choice, Key, Pane, Row, Rows
from qml_mp.cli.top.sample import Rates, Sample
from qml_mp.core.failure_kinds import user_frame
from qml_mp.core.state import StateName
from qml_mp.printable import printable
from qml_mp.storage.values import FailureKind
from qml_mp.units import format_size
from qml_mp.views.queues import QueueView, limit_in_words, oldest_in_words, up_to
from qml_mp.views.servers import WorkerView
from qml_mp.views.waiting import waiting_in_words, without_a_server

_ANSWERS = " y: yes, any other key: no"
_KEYS = "Tab list  ↑↓ choose  c cancel job  r retry job  p pause queue  q leave"
_STYLES = {"busy": "cyan", "failed": "red", "awaiting_retry": "yellow", "paused": "yellow", "none": "red"}
_STATES = (
    StateName.PROCESSING, StateName.ENQUEUED, StateName.FAILED, StateName.AWAITING_RETRY, StateName.SCHEDULED,
    StateName.SUCCEEDED, StateName.DELETED,
)  # fmt: skip
"""What one looks for stands first, where a narrow terminal has room."""
_FIXED_LINES = 3  # two at the top, one at the bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A pane before it is made to fit."""

    columns: Mapping[str, Sequence[object]]
    drop: Sequence[str]
    shrink: Mapping[str, int]


def rows_of(sample: Sample) -> Rows:
    """What can be chosen, and what the keys then do."""
    return {
        Pane.WORKERS: [Row(id=worker.info.id, action=_cancel(worker)) for _, worker in sample.workers],
        Pane.QUEUES: [Row(id=queue.stats.name, action=_pause(queue)) for queue in sample.seen.queues],
        Pane.FAILURES: [Row(id=kind.key or kind.newest.id, action=_retry(kind)) for kind in sample.failures],
    }


def page(
    sample: Sample,
    rates: Rates,
    choice: Choice,
    *,
    url: str,
    clock: str,
    width: int,
    height: int,
    why_old: str | None = None,
) -> list[Text]:
    """At most so many lines, none wider. `why_old` says of a sample that it is not of now, and why."""
    rows = rows_of(sample)
    tables = {Pane.WORKERS: _workers(sample, rates), Pane.QUEUES: _queues(sample, rates),
              Pane.FAILURES: _failures(sample)}  # fmt: skip
    warnings = [*filter(None, [why_old]), *_warnings(sample)]
    room = height - _FIXED_LINES - len(warnings) - len(tables) * 2
    shares = _shares({pane: len(rows[pane]) for pane in tables}, room)
    lines = [*_head(sample, url=url, clock=clock), *(Text(line, style="yellow") for line in warnings)]
    for pane, table in tables.items():
        lines.append(Text(""))
        lines += _pane(table, choice, pane, rows, width=width, height=shares[pane])
    del lines[max(0, height - 1) :]
    lines += [Text("")] * (height - 1 - len(lines))
    lines.append(_foot(choice, width=width))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _head(sample: Sample, *, url: str, clock: str) -> list[Text]:
    counts, most = sample.seen.counts, sample.seen.most
    states = Text("  ").join(
        Text(f"{state} {up_to(counts[state], most)}", style=_STYLES.get(state, ""))
        for state in _STATES
        if counts[state]
    )
    ended = sample.ended_per_minute
    speed = "" if ended is None else f"{ended} ended/min  "
    return [Text(f"{clock}  {speed}{printable(url)}", style="bold"), states]


def _warnings(sample: Sample) -> Sequence[str]:
    seen = sample.seen
    waiting = without_a_server(seen.methods, seen.servers)
    troubles = [
        f"{server.info.name}: {server.info.trouble or server.state}"
        for server in seen.servers
        if server.info.trouble or server.info.paused or not server.alive
    ]
    waits = waiting_in_words(seen.methods, waiting, seen.servers, most=seen.most)
    return [printable(line) for line in (*waits, *troubles)][:3]


def _foot(choice: Choice, *, width: int) -> Text:
    if choice.asked is not None:
        question = Text(choice.asked.question, style="bold reverse")
        question.truncate(max(0, width - len(_ANSWERS)), overflow="ellipsis")
        return question.append(_ANSWERS)
    return Text(printable(choice.said), style="bold") if choice.said else Text(_KEYS, style="dim")


def _shares(wanted: Mapping[Pane, int], room: int) -> dict[Pane, int]:
    """Rows for each: a third, and what the others leave."""
    shares = dict.fromkeys(wanted, 0)
    for _ in range(max(0, room)):
        short_of = [pane for pane in wanted if shares[pane] < wanted[pane]]
        if not short_of:
            break
        shares[min(short_of, key=lambda pane: shares[pane])] += 1
    return shares


def _pane(table: _Table, choice: Choice, pane: Pane, rows: Rows, *, width: int, height: int) -> list[Text]:
    """The heading, and as many rows as there is room for, the chosen one among them."""
    headers, cells = fitted(table.columns, width=width, drop=table.drop, shrink=table.shrink)
    widths = [max(map(width_of, column)) for column in zip(headers, *cells, strict=True)]
    place = choice.place(pane, rows)
    first = max(0, min(place - height + 1, len(cells) - height))
    is_here = pane is choice.pane
    lines = [_line(headers, widths, style="bold underline" if is_here else "bold")]
    for number in range(first, min(first + height, len(cells))):
        style = "reverse" if is_here and number == place else ""
        lines.append(_line(cells[number], widths, style=style))
    return lines


def _line(cells: Sequence[str], widths: Sequence[int], *, style: str) -> Text:
    line = Text(style=style)
    for cell, width in zip(cells, widths, strict=True):
        line.append(padded(cell, width), style=_STYLES.get(cell, ""))
        line.append(" " * GAP)
    line.rstrip()
    return line


def _workers(sample: Sample, rates: Rates) -> _Table:
    workers = [worker for _, worker in sample.workers]
    percents = [rates.cpu_percent.get(worker.info.id) for worker in workers]
    return _Table(
        columns={
            "WORKER": [f"{server} {worker.info.number}" for server, worker in sample.workers],
            "STATE": [worker.state for worker in workers],
            "CPU": [None if percent is None else f"{percent:.0f}%" for percent in percents],
            "MEMORY": [None if each.rss_bytes is None else format_size(each.rss_bytes) for each in workers],
            "FOR": [age(worker.running) for worker in workers],
            "METHOD": [worker.method for worker in workers],
            "PROGRESS": [worker.progress and str(worker.progress) for worker in workers],
            "JOB": [None if worker.claim is None else worker.claim.job.id for worker in workers],
        },
        drop=("JOB", "STATE", "MEMORY"),
        shrink={"PROGRESS": 8, "METHOD": 12, "WORKER": 10},
    )


def _queues(sample: Sample, rates: Rates) -> _Table:
    views = sample.seen.queues
    growth = [rates.growth_per_s.get(view.stats.name) for view in views]
    return _Table(
        columns={
            "QUEUE": [view.stats.name for view in views],
            "WAITS": [up_to(view.stats.enqueued, sample.seen.most) for view in views],
            "GROWS": [None if each is None else f"{each:+.1f}/s" for each in growth],
            "OLDEST": [oldest_in_words(view.stats) for view in views],
            "RUNS": [view.stats.processing - view.stats.held for view in views],
            "HELD": [view.stats.held for view in views],
            "SERVERS": [view.servers or "none" for view in views],
            "LIMIT": [limit_in_words(view.limit) for view in views],
        },
        drop=("HELD", "OLDEST"),
        shrink={"LIMIT": 6, "QUEUE": 8},
    )


def _failures(sample: Sample) -> _Table:
    kinds = sample.failures
    errors = [kind.newest.last_error for kind in kinds]
    return _Table(
        columns={
            "LAST": [f"{age(max(sample.now - kind.last_at, timedelta()))} ago" for kind in kinds],
            "JOBS": [up_to(kind.count, sample.most_of_kind) for kind in kinds],
            "METHOD": [kind.newest.method for kind in kinds],
            "FAILURE": [short(f"{each.type}: {each.message}", 200) if each else None for each in errors],
            "WHERE": [user_frame(each.traceback) if each else None for each in errors],
        },
        drop=("WHERE",),
        shrink={"FAILURE": 20, "WHERE": 16, "METHOD": 12},
    )


def _cancel(worker: WorkerView) -> Action | None:
    if worker.claim is None:
        return None
    job = worker.claim.job
    return Action(
        key=Key.CANCEL, job_id=job.id, question=f"Cancel {short(printable(job.method), 20)} {job.id}?"
    )


def _pause(queue: QueueView) -> Action:
    verb = "Resume" if queue.limit.paused else "Pause"
    return Action(
        key=Key.PAUSE, queue=queue.stats.name, pause=not queue.limit.paused,
        question=f"{verb} queue {short(printable(queue.stats.name), 30)}?",
    )  # fmt: skip


def _retry(kind: FailureKind) -> Action | None:
    job = kind.newest
    if job.state_name is not StateName.FAILED:  # it runs again by itself
        return None
    failed = "" if job.last_error is None else f" ({short(printable(job.last_error.type), 30)})"
    return Action(
        key=Key.RETRY, job_id=job.id, question=f"Retry {short(printable(job.method), 20)}{failed} {job.id}?"
    )
