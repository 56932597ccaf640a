"""Tests: a storage as a shop has it on a working day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice

from qml_mp import host
from qml_mp.core.acts import ALL_ACTS, ActKind, ActRequest, ActState, Asker
from qml_mp.core.answers import WorkerStack
from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.outcome import AttemptKind, Crash, ErrorInfo, Failure, ProcessFacts, Retry, Success
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo, WorkerInfo, new_server_id, new_worker_id
from qml_mp.storage.history import MINUTE, STEPS, Period, floor_to
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.storage.helpers import set_limit

METHODS = {
    "resize": "images",
    "transcode": "video",
    "invoice": "default",
    "welcome": "mail",
    "report": "default",
}
WAITING = {"images": 24, "video": 3, "mail": 11, "archive": 5}
_PAYLOAD: JsonValue = {
    "path": "uploads/2024/köln.png",
    "width": 1200,
    "password": "hunter2",
    "tags": ["a", "b"],
}
_TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/tasks.py", line 41, in resize
    image = decode(path)
            ^^^^^^^^^^^^
  File "/srv/shop/images.py", line 112, in decode
    raise DecodeError(f"{path}: chunk {number} ends too soon")
shop.images.DecodeError: uploads/2024/köln.png: chunk 17 ends too soon
"""
_CUT_SHORT = ErrorInfo(
    type="shop.images.DecodeError",
    message="uploads/2024/köln.png: chunk 17 ends too soon",
    traceback=_TRACEBACK,
)
_REFUSED = ErrorInfo(type="smtplib.SMTPServerDisconnected", message="Connection unexpectedly closed")
_KILLED = ErrorInfo(
    type="WorkerCrashed", message="The kernel's OOM killer ended the process (signal 9, SIGKILL)"
)
_LATE = ErrorInfo(type="JobTimeout", message="The attempt took longer than its limit of 2m")
_DIED = ProcessFacts(pid=4711, signal=9, peak_rss_bytes=1_932_735_283, cpu_s=48.2)


def fill(storage: Storage) -> list[str]:
    """Jobs in every state, failures of every kind, limits, templates, two servers that run jobs. The ids
    of a job that has failed, of one that runs, and of one that succeeded."""
    succeeded = [_ended(storage, method) for method in islice(cycle(METHODS), 40)]
    failed = [_failed(storage) for _ in range(6)]
    _wait_for_a_retry(storage)
    for queue, count in WAITING.items():
        method = next((name for name, of in METHODS.items() if of == queue), "pack")
        storage.enqueue_many(Job.new(method, _PAYLOAD, queue=queue) for _ in range(count))
    storage.enqueue(Job.new("report", delay=timedelta(hours=3)))
    storage.delete(storage.enqueue(Job.new("report")), reason="not wanted any more", retention=BY_DEFAULT)
    storage.set_paused("mail", True)
    set_limit(storage, LimitKind.QUEUE, "video", max_running=2)
    set_limit(storage, LimitKind.QUEUE, "images", rate=Rate.parse("100/m"))
    storage.limit(Limit(kind=LimitKind.METHOD, name="invoice", max_running=1, rate=Rate.parse("10/s")))
    _add_templates(storage)
    running = [_add_server(storage, name, first=number * 2) for number, name in enumerate(("api-1", "api-2"))]
    _ask_servers(storage)
    note_history(storage, {method: (method, queue) for method, queue in METHODS.items()})
    return [failed[0], running[0], succeeded[0]]


def note_history(storage: Storage, named: Mapping[str, tuple[str, str]]) -> None:
    """The last hour, whose minutes differ, and longer periods with the same."""
    now = storage.now()
    for step in STEPS:
        for ago in range(60 if step == MINUTE else 6):
            numbers = {
                SeriesKey(method=method, queue=queue, ending=ending): [
                    (ago * place % 7 + 1 if ending is Ending.SUCCEEDED else 1) * number
                    for number in numbers_of_one(waited_us=40_000 * place, ran_us=900_000 * place)
                ]
                for place, (method, queue) in enumerate(named.values(), 1)
                for ending in (Ending.SUCCEEDED, Ending.RETRIED, Ending.FAILED)
                if ending is Ending.SUCCEEDED or ago % 9 == place
            }
            begins_at = floor_to(step, now) - ago * step
            storage.note_history([Period(step=step, begins_at=begins_at, writer="a#1", numbers=numbers)])


def _ask_servers(storage: Storage) -> None:
    """The first has answered, the second not yet; and a queue was paused."""
    by = Asker(who="anna", where="web 10.1.2.3")
    for number, info in enumerate(storage.list_servers()):
        request = ActRequest(kind=ActKind.STACKS, server_id=info.id, by=by)
        storage.ask(request)
        if number == 0:
            storage.take_acts(info.id)
            stack = WorkerStack(number=1, pid=4711, method="resize", stack=_TRACEBACK)
            storage.answer_act(
                request.id, server_id=info.id, state=ActState.DONE, said="1 worker told", stacks=(stack,)
            )
    storage.audit(by, "pause queue", "mail")


def _ended(storage: Storage, method: str) -> str:
    claim = _claim_new(storage, method)
    success = Success(result={"bytes": 48_211, "took": [1, 2]}, duration=timedelta(seconds=0.4))
    storage.finish(claim, success, retention=BY_DEFAULT)
    return claim.job.id


def _failed(storage: Storage) -> str:
    """Crashed, then run again, then too slow, then failed for good."""
    claim = _claim_new(storage, "resize")
    job_id = claim.job.id
    for outcome in (
        Crash(error=_KILLED, rerun_after=timedelta(), process=_DIED),
        Retry(error=_LATE, delay=timedelta(), kind=AttemptKind.TIMEOUT),
        Failure(error=_CUT_SHORT),
    ):
        storage.finish(claim, outcome, retention=BY_DEFAULT)
        storage.promote_due(limit=10)
        claim = storage.fetch_and_lock_job(_fetch("images")) or claim  # there is none after the last
    return job_id


def _wait_for_a_retry(storage: Storage) -> None:
    for _ in range(2):
        claim = _claim_new(storage, "welcome")
        storage.finish(claim, Retry(error=_REFUSED, delay=timedelta(minutes=4)), retention=BY_DEFAULT)


def _add_templates(storage: Storage) -> None:
    for template in (
        RecurringJob.new("nightly-report", "30 2 * * *", "report", {"days": 1}, tz="Europe/Berlin"),
        RecurringJob.new("poll-mail", "*/5 * * * * *", "welcome", None, "mail"),
        RecurringJob.new("month-end", "0 9 1 * *", "invoice", tz="America/New_York", misfire="skip"),
    ):
        storage.upsert_recurring_job(template)
    storage.run_recurring_now("nightly-report")
    storage.set_recurring_enabled("month-end", False, next_run_at=None)


def _add_server(storage: Storage, name: str, *, first: int) -> str:
    """It is this very process, as far as anybody can see. The id of a job that runs there."""
    server_id, now, process = new_server_id(name), datetime.now(UTC), host.identity()
    storage.register_server(
        ServerInfo(
            id=server_id, name=name, hostname=f"{name}.shop.example", process=process, worker_count=3,
            queues=("images", "video", "mail", "default"), started_at=now, last_heartbeat=now,
            heartbeat_enabled=True, methods=tuple(METHODS), acts=ALL_ACTS,
        )
    )  # fmt: skip
    ids = [new_worker_id(server_id, number=number, nth=number) for number in (1, 2, 3)]
    for number, worker_id in enumerate(ids, start=1):
        storage.register_worker(
            WorkerInfo(
                id=worker_id, server_id=server_id, number=number, process=process, started_at=now,
                rss_bytes=180_000_000,
            )
        )  # fmt: skip
    claims = [
        storage.fetch_and_lock_job(_fetch(queue, worker_id=worker_id, server_id=server_id))
        for queue, worker_id in zip(("images", "video"), ids, strict=False)
    ]
    running = [claim for claim in claims if claim is not None]
    storage.note_progress({running[0].key: Progress(done=312, total=900, note="frames")})
    return running[0].job.id


def _claim_new(storage: Storage, method: str) -> Claim:
    """Of a job whose queue holds no other that could be claimed."""
    storage.enqueue(Job.new(method, _PAYLOAD, queue=METHODS[method]))
    claim = storage.fetch_and_lock_job(_fetch(METHODS[method]))
    assert claim is not None
    return claim


def _fetch(queue: str, *, worker_id: str = "worker", server_id: str = "server") -> Fetch:
    return Fetch(worker_id=worker_id, server_id=server_id, queues=(queue,))
