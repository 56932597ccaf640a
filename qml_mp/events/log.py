"""Every process: the first subscriber: one line of the log for each fact that has one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, assert_never

from qml_mp.core.answers import ReloadedCode
from qml_mp.core.cron import zone_trouble
from qml_mp.core.outcome import AttemptKind, ErrorInfo
from qml_mp.errors import QmlError
from qml_mp.events import facts
from qml_mp.events.facts import ClaimFacts, Event
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS: Final = 1000
_MAX_TRACEBACK_CHARS: Final = 4000


def log_event(event: Event) -> None:
    """Write the line. An attempt that failed is a WARNING when the job runs again, else an ERROR."""
    match event:
        case facts.JobEvent():
            _log_job(event)
        case facts.CancelStarted(claim=claim):
            logger.info("Cancelling job %s", claim.job_id, extra=claim.in_record())
        case facts.TemplateFired(template_id=template_id, job_id=job_id, method=method):
            told = "Recurring template %s has fired: job %s (%s) is enqueued"
            logger.info(told, template_id, job_id, method, extra={"job_id": job_id})
        case facts.TemplatesFollowed():
            _log_followed(event)
        case facts.TemplateDisabled(template_id=template_id, reason=reason):
            logger.error("Recurring template %s is disabled: %s", template_id, reason)
        case facts.WorkerStarted(number=number, pid=pid):
            logger.info("Worker %s started (pid %s)", number, pid)
        case facts.WorkerReady(number=number, pid=pid):
            logger.info("Worker %s is ready (pid %s)", number, pid)
        case facts.WorkerStopped(number=number, pid=pid, how=how, was_orderly=was_orderly):
            level = logging.INFO if was_orderly else logging.WARNING
            logger.log(level, "Worker %s stopped (pid %s): it %s", number, pid, how)
        case facts.WorkersCannotBoot(error=error, old_ones_stay=True):
            logger.error("A new worker cannot boot, so the old ones stay and work on:\n%s", error)
        case facts.WorkersCannotBoot(error=error):
            logger.error("Workers cannot boot; trying again, ever more slowly:\n%s", error)
        case facts.TryFailed():
            _log_failed_try(event)
        case facts.StorageBack(what=what, worker_id=str(worker_id)):
            logger.info("%s", what, extra={"worker_id": worker_id})
        case facts.TryWorked(what=what):
            logger.info("%s", what)
        case _:
            _log_server(event)


def what_is_served(queues: Sequence[str], methods: Sequence[str] | None) -> str:
    """The queues and methods of a server, for people."""
    return f"Queues: {', '.join(queues) or 'all'}. Methods: {', '.join(methods or ()) or 'none'}"


def _log_job(event: facts.JobFact) -> None:
    claim = event.claim
    match event:
        case facts.ClaimFound():
            _log_hand_out(logging.INFO, claim, "Found the claim of job %s, whose reply had been lost")
        case facts.AttemptFailed():
            _log_failed_attempt(event)
        case facts.JobCancelled(reason=reason):
            _log_end(logging.INFO, claim, f"cancelled: {reason}")
        case facts.JobReleased():
            _log_end(logging.INFO, claim, "given back, uncharged")
        case facts.ClaimLost(dead_worker=facts.WorkerStopped(number=number, pid=pid, how=how)):
            text = "Job %s of worker %s (pid %s), which %s, is somebody else's now"
            _log_hand_out(logging.WARNING, claim, text, number, pid, how)
        case facts.ClaimReclaimed(state=state):
            text = "Job %s of worker %s, which is gone, is %s"
            _log_hand_out(logging.WARNING, claim, text, claim.worker_id, state)
        case facts.ClaimLost():
            text = "The claim of job %s was lost; its outcome was not written"
            _log_hand_out(logging.WARNING, claim, text)
        case _:
            assert_never(event)


def _log_failed_attempt(event: facts.AttemptFailed) -> None:
    is_crash = event.kind is AttemptKind.CRASH
    count = f"{'crash' if is_crash else 'attempt'} {event.count}"
    count += "" if event.budget is None else f" of {event.budget}"
    error, trace = _described(event.error), _traceback_of(event.error)
    if event.runs_in is None:
        _log_end(logging.ERROR, event.claim, f"failed for good at {count}: {error}", trace)
        return
    how = " passed its time limit" if event.kind is AttemptKind.TIMEOUT else " failed"
    what_next = ", runs again" if is_crash else f"{how}, retry"
    when = f"in {format_duration(event.runs_in)}" if event.runs_in > timedelta() else "at once"
    _log_end(logging.WARNING, event.claim, f"{count}{what_next} {when}: {error}", trace)


def _log_server(event: facts.ServerFact) -> None:
    match event:
        case facts.ServerDeclaredDead(goes_on_as=new_id):
            logger.error("A peer declared this server dead; its jobs are others' now")
            logger.warning("This server goes on as %s", new_id)
        case facts.JobsReclaimed(server_id=None, jobs=jobs):
            logger.warning("Stranded jobs that are enqueued again, or ended as was asked: %s", jobs)
        case facts.JobsReclaimed(server_id=server_id, jobs=jobs, was_silent=was_silent):
            text = "Server %s is %s; jobs of it that are enqueued again, or ended as was asked: %s"
            logger.warning(text, server_id, "silent" if was_silent else "dead", jobs)
        case facts.ServerReloaded(code=ReloadedCode.OF_START as code):
            logger.info("Replacing the workers one by one%s", code.caveat)
        case facts.ServerReloaded(queues=queues, methods=methods, code=code):
            served = what_is_served(queues, methods)
            logger.info("Replacing the workers one by one%s. %s", code.caveat, served)
        case facts.ServerStopping(why=why, allowed=timedelta() as allowed):
            logger.info("Stopping (%s): running jobs have %s", why, format_duration(allowed))
        case facts.ServerStopping(why=why):
            logger.warning("Stopping now (%s)", why)
        case facts.ServerStopped():
            logger.info("Stopped")
        case _:
            assert_never(event)


def _log_failed_try(event: facts.TryFailed) -> None:
    level = logging.DEBUG if event.is_repeated else logging.WARNING
    if isinstance(event, facts.StorageLost) and event.worker_id is not None:
        extra = {"worker_id": event.worker_id}
        logger.log(level, "%s, will try again: %s", event.what, event.error, extra=extra)
        return
    unexpected = None if isinstance(event.error, QmlError) or event.is_repeated else event.error
    text, pause_s = "%s and is tried again in %.1f s: %s", event.retry_in.total_seconds()
    logger.log(level, text, event.what, pause_s, event.error, exc_info=unexpected)


def _log_end(level: int, claim: ClaimFacts, what: str, trace: str = "") -> None:
    """The traceback stands below the line, for handlers of whatever kind; those that have a field for it find
    it in the record, too."""
    extra = {**claim.in_record(), **({"traceback": trace} if trace else {})}
    told = f"{what}\n{trace}" if trace else what
    logger.log(level, "job %s (%s): %s", claim.job_id, claim.method, told, extra=extra)


def _log_hand_out(level: int, claim: ClaimFacts, text: str, *values: object) -> None:
    extra = {**claim.in_record(), "claim_seq": claim.claim_seq}
    logger.log(level, text, claim.job_id, *values, extra=extra)


def _described(error: ErrorInfo | None) -> str:
    """Type and message; of what is long, the part that tells most."""
    if error is None:
        return "no error is known"
    message = error.message
    if len(message) > _MAX_MESSAGE_CHARS:
        message = f"{message[:_MAX_MESSAGE_CHARS]}…"
    return f"{error.type}: {message}"


def _traceback_of(error: ErrorInfo | None) -> str:
    trace = ("" if error is None else error.traceback or "").rstrip()
    return trace if len(trace) <= _MAX_TRACEBACK_CHARS else f"…{trace[-_MAX_TRACEBACK_CHARS:]}"


def _log_followed(event: facts.TemplatesFollowed) -> None:
    """ "recurring: +two ~digest -old"."""
    signs = (("+", event.followed.added), ("~", event.followed.changed), ("-", event.followed.removed))
    changes = " ".join(f"{sign}{each}" for sign, ids in signs for each in ids)
    if changes:
        logger.info("recurring: %s", changes)
    for template_id, owner in event.kept.items():
        logger.info(
            "Recurring template %s stays, which %s has declared and this code does not. If that is an older "
            "release of this app, `qml-mp recurring remove` ends it, and QmlApp(name=...) spares you that; "
            "if it is another app, the template is in use: give each app a name",
            template_id,
            owner,
        )
    for template_id, former in event.followed.taken.items():
        logger.info(
            "Recurring template %s was declared by %s and is this app's now. If that is another app and no "
            "older release of this one, give each a QmlApp(name=...), or they take it from each other",
            template_id,
            former,
        )
    for template_id in event.followed.over:
        logger.info("Recurring template %s never fires again: its last firing has passed", template_id)
    for template_id, zone in event.followed.lacking.items():
        logger.warning("Recurring template %s: %s", template_id, zone_trouble(zone))
    for template_id, why in event.misfits.items():
        logger.warning("Recurring template %s does not fit its function: %s", template_id, why)
    for template_id, owner in event.followed.refused.items():
        logger.error(
            "Recurring template %s is left as %s has made it. Give that of the code another id=, or end the "
            "stored one with `qml-mp recurring remove`: that of the code is stored some seconds later",
            template_id,
            "a person" if owner is None else f"the app {owner}",
        )
