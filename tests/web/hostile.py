"""Tests: texts that try to be something else, and a storage that has them wherever it has text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from qml_mp import host
from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.core.outcome import ErrorInfo, Failure, ProcessFacts, Retry
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo, WorkerInfo, new_server_id, new_worker_id
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.storage.helpers import set_limit
from tests.web.everyday import note_history

OWNED = "owned"
"""What every script of these sets in the window, should it ever run."""

TEXTS = (
    # Markup and scripts, for text, attributes, comments and elements that hold text alone.
    "<script>window.owned=1</script>",
    "</script><script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "<svg onload=window.owned=1><title>t</title></svg>",
    '"><svg/onload=window.owned=1>',
    "' onmouseover='window.owned=1' autofocus onfocus='window.owned=1",
    '" style="position:fixed;inset:0;background:red" x="',
    "--><script>window.owned=1</script><!--",
    "</title></textarea></style><script>window.owned=1</script>",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    "<form action=/x method=post><button>click</button></form>",
    "<base href=https://evil.example/><meta http-equiv=refresh content=0>",
    "<details open ontoggle=window.owned=1><summary>s</summary></details>",
    "]]><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    # What htmx, templates and formats read.
    '<b hx-get="/" hx-trigger="load" hx-on:load="window.owned=1">x</b>',
    "{{ 7*7 }}{% include 'x' %}{{ self.__init__.__globals__ }}",
    "${window.owned=1}`#{7*7}<%= 7*7 %>",
    "%s %(id)s {0} {id!r} {jobs}",
    "data: x\n\nevent: changed\ndata: <script>window.owned=1</script>",
    # Addresses and paths, which links are made of.
    "javascript:window.owned=1",
    "data:text/html,<script>window.owned=1</script>",
    "//evil.example/x",
    "../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd%00.html",
    "a/b?c=d&e=f#g;h=i+j%20k",
    "?state=failed&method=x",
    ".",
    "&lt;script&gt; &amp;amp; &#60;b&#62; &nbsp;",
    # Databases and shells.
    "'; DROP TABLE qml_jobs; --",
    "%_%\\' OR '1'='1",
    "$(touch /tmp/owned) `id` | cat; rm -rf ~",
    # Characters that are not what they look like, or are not seen at all.
    "\u202etxt.exe\u202c \u2066isolated",
    "ze\u200bro\u200dwi\ufeffdth\u00ad",
    "\x1b[31mred\x1b[0m\x07\x08\x9b2J",
    "line one\nline two\r\nline three\u2028four\ttab",
    "   spaces   before  and   after   ",
    "\U0001f469\u200d\U0001f4bb\U0001d518\U00020000 four bytes each",
    "Z\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309algo \u05e9\u05dc\u05d5\u05dd \u0645\u0631",
    "x" * 200,
    "\u0416" * 100 + "<b>" + "\u754c" * 90,
)
REFUSED = ("a\0b", "\ud800 alone", "alone \udfff")
"""What no storage takes: NUL, and halves of characters."""


def fill(storage: Storage) -> None:
    """One of everything for each text: a job in each state but the final ones without an error, a queue with
    limits, a template, and a server with a worker."""
    for number, text in enumerate(TEXTS):
        _fill_queue(storage, text)
        _fill_server(storage, text, number)
        storage.enqueue(in_foreign_queue(Job.new(text, {text: text}), text))
        _fill_template(storage, text)
    note_history(storage, {text: (text, text) for text in TEXTS})


def _fill_queue(storage: Storage, text: str) -> None:
    payload: JsonValue = {text: text, "password": text, "deep": [[text]]}
    error = ErrorInfo(
        type=text, message=text, traceback=f'  File "{text}", line 1, in {text}\n{text}: {text}'
    )
    facts = ProcessFacts(pid=1, signal=9, peak_rss_bytes=10**7, cpu_s=0.1)
    for outcome in (Failure(error=error, process=facts), Retry(error=error, delay=timedelta(hours=1)), None):
        job = in_foreign_queue(Job.new(text, payload, metadata={"text": text}), text)
        storage.enqueue(job)
        if outcome is not None:
            storage.finish(_claim(storage, text, "worker"), outcome, retention=BY_DEFAULT)
    storage.enqueue(in_foreign_queue(Job.new(text, payload, delay=timedelta(hours=2)), text))
    set_limit(storage, LimitKind.QUEUE, text, max_running=3)
    set_limit(storage, LimitKind.QUEUE, text, rate=Rate.parse("100/m"))
    set_limit(storage, LimitKind.METHOD, text, max_running=2)


def _fill_server(storage: Storage, text: str, number: int) -> None:
    server_id, now, process = new_server_id(text), datetime.now(UTC), host.identity()
    storage.register_server(
        ServerInfo(
            id=server_id, name=text, hostname=text, process=process, worker_count=1, queues=(text,),
            started_at=now, last_heartbeat=now, heartbeat_enabled=True, methods=(text,), trouble=text,
            paused=number % 2 == 0,
        )
    )  # fmt: skip
    worker_id = new_worker_id(server_id, number=1, nth=1)
    storage.register_worker(
        WorkerInfo(
            id=worker_id, server_id=server_id, number=1, process=process, started_at=now, rss_bytes=10**7
        )
    )
    claim = _claim(storage, text, worker_id, server_id)
    storage.note_progress({claim.key: Progress(done=1, total=3, note=text[:100])})


def _fill_template(storage: Storage, text: str) -> None:
    template = RecurringJob.new(text, "*/5 * * * *", text, {"text": text}, tz="Europe/Warsaw")
    storage.upsert_recurring_job(replace(template, queue=text))


def _claim(storage: Storage, queue: str, worker_id: str, server_id: str = "server") -> Claim:
    claim = storage.fetch_and_lock_job(Fetch(worker_id=worker_id, server_id=server_id, queues=(queue,)))
    assert claim is not None
    return claim


def in_foreign_queue(job: Job, queue: str) -> Job:
    """The job in a queue that only a program which is not qml-mp would name so. Its row is made by the
    storage's own operation all the same, because a job is checked once, when it is made."""
    object.__setattr__(job, "queue", queue)
    return job
