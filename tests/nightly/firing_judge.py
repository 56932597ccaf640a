"""Tests: what the firings of a rehearsal have come to, judged by their policies and another cron library."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim

from qml_mp.core.recurring import RecurringJob

_ON_TIME = timedelta(minutes=1)
_HOUR, _WEEK = timedelta(hours=1), timedelta(weeks=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the clock showed, and whether a server looked then."""

    wall: datetime
    is_watched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A job of a firing, all by the rehearsal's clock."""

    fire_at: datetime
    created_at: datetime
    finished_at: datetime | None


def firing_times(template: RecurringJob, begin: datetime, end: datetime) -> list[datetime]:
    """Those after the one and up to the other, by cronsim."""
    times: list[datetime] = []
    for found in CronSim(template.cron, begin.astimezone(ZoneInfo(template.tz))):
        at = found.astimezone(UTC)
        if at > end:
            break
        if at > begin:  # in the second pass of a repeated hour cronsim begins with times of the first
            times.append(at)
    return times


def judge_firings(template: RecurringJob, made: Sequence[Made], moments: Sequence[Moment]) -> list[str]:
    """What does not hold of the template, in words; the first moment is the beginning."""
    expected = firing_times(template, moments[0].wall, max(moment.wall for moment in moments))
    passes = _passes(expected, moments)
    labels = Counter(job.fire_at for job in made)
    problems = [f"fired for {at}, which is no firing time" for at in labels.keys() - set(expected)]
    may_repeat = _fires_each_hour(template, moments[0].wall)
    problems += [
        f"fired {count} times for {at}, which came {passes[at]} times"
        for at, count in labels.items()
        if count > (max(1, passes[at]) if may_repeat else 1)
    ]
    if template.overlap != "allow":
        problems += [*_overlapping(made), *_around_runs(template, made, moments, expected)]
    elif template.misfire == "skip":
        problems += _not_on_time(made, moments, expected, labels)
    elif template.misfire == "fire_once":
        covered = Counter(at for job in made for at in _within(expected, job))
        problems += [f"missed {at}" for at in expected if not covered[at]]
        problems += [f"made up for {at} more than once" for at, n in covered.items() if n > passes[at]]
    else:
        problems += [f"missed {at}" for at in expected if not labels[at]]
    return [f"{template.id}: {problem}" for problem in problems]


def _fires_each_hour(template: RecurringJob, begin: datetime) -> bool:
    """As far as a week shows."""
    end = begin + _WEEK
    times = [begin, *firing_times(template, begin, end), end]
    return all(after - before <= _HOUR for before, after in pairwise(times))


def _passes(expected: Sequence[datetime], moments: Sequence[Moment]) -> Counter[datetime]:
    """How often the clock went over each firing time."""
    passes: Counter[datetime] = Counter()
    for before, after in pairwise(moments):
        passes.update(expected[bisect_right(expected, before.wall) : bisect_right(expected, after.wall)])
    return passes


def _within(expected: Sequence[datetime], job: Made) -> Sequence[datetime]:
    """What the job stands for: its firing time and those up to its making."""
    first = bisect_right(expected, job.fire_at - timedelta(microseconds=1))
    return expected[first : bisect_right(expected, job.created_at)]


def _not_on_time(
    made: Sequence[Made], moments: Sequence[Moment], expected: Sequence[datetime], labels: Counter[datetime]
) -> Iterator[str]:
    for job in made:
        if not timedelta() <= job.created_at - job.fire_at <= _ON_TIME:
            yield f"fired for {job.fire_at} at {job.created_at}"
    for before, after in pairwise(moments):
        newest = expected[bisect_right(expected, before.wall) : bisect_right(expected, after.wall)][-1:]
        for at in newest:
            if after.is_watched and after.wall - at <= _ON_TIME and not labels[at]:
                yield f"missed {at}, which a server could have fired at {after.wall}"


def _overlapping(made: Sequence[Made]) -> list[str]:
    """The clock is not set back in such a rehearsal."""
    return [
        f"the job of {after.fire_at} was made before that of {before.fire_at} had ended"
        for before, after in pairwise(made)
        if before.finished_at is None or after.created_at < before.finished_at
    ]


def _around_runs(
    template: RecurringJob, made: Sequence[Made], moments: Sequence[Moment], expected: Sequence[datetime]
) -> Iterator[str]:
    """What comes first after a job was made waits or makes the next job; the skipped came during a run."""
    if expected[:1] != [job.fire_at for job in made[:1]]:
        yield f"began with {made[:1]}"
    looked_at = [moment.wall for moment in moments if moment.is_watched]
    for job, following in pairwise(made):
        skipped = expected[bisect_right(expected, job.created_at) : bisect_right(expected, following.fire_at)]
        if template.overlap == "queue":
            before = looked_at[bisect_left(looked_at, job.created_at) - 1]
            # One that came since the look before may wait behind a job that waited itself.
            since = [job.created_at, *([before] if job.fire_at <= before else [])]
            first = [expected[place : place + 1] for place in (bisect_right(expected, at) for at in since)]
            if [following.fire_at] not in first:
                yield f"after {job} came {following}"
        elif any(job.finished_at is None or at > job.finished_at for at in skipped[:-1]):
            yield f"skipped one of {skipped}, and the run ended at {job.finished_at}"
    last, newest = made[-1], expected[-1]
    if (
        last.finished_at is not None
        and last.created_at < newest
        and last.finished_at < newest <= looked_at[-1]
    ):
        yield f"missed {newest} at the end"
