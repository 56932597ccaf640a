"""Client: a web service that runs its own workers, as plain ASGI. Run it with any ASGI server, for
example: QML_MP_URL=sqlite:///jobs.db uvicorn examples.web_service:service

    POST /primes/2000000    enqueue; answers 202 with the job's id
    GET  /jobs/ID           where the job stands, and its result

The server is started and stopped by the lifespan messages. It supervises from a process of its own,
so the event loop, signal handlers and threads of the web service are left alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from qml_mp import BackgroundJobServer, JobNotFound, QmlApp, QmlError, ServerConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

jobs = QmlApp()


@jobs.job()
def count_primes(below: int) -> int:
    """How many primes there are below a number: a job that would block an event loop."""
    sieve = bytearray([1]) * below
    sieve[:2] = bytes(min(below, 2))
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, below, n)))
    return sum(sieve)


async def service(scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    match scope["type"]:
        case "lifespan":
            await _live(receive, send)
        case "http":
            status, body = await _answer(scope["method"], scope["path"])
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": head})
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _live(receive: Receive, send: Send) -> None:
    await receive()  # lifespan.startup
    try:
        # By name: this process has threads, so the server gets a fresh interpreter that imports the app.
        server = BackgroundJobServer(ServerConfig(worker_count=2), jobs.storage, f"{__name__}:jobs")
        await asyncio.to_thread(server.start)
    except QmlError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown
    await asyncio.to_thread(server.stop)
    jobs.close()
    await send({"type": "lifespan.shutdown.complete"})


async def _answer(method: str, path: str) -> tuple[int, dict[str, object]]:
    try:
        match method, path.strip("/").split("/"):
            case "POST", ["primes", below] if below.isdecimal() and len(below) <= 8:
                handle = await count_primes.aenqueue(int(below))
                return 202, {"id": handle.id}
            case "GET", ["jobs", job_id]:
                job = await asyncio.to_thread(jobs.handle(job_id).job)
                return 200, {"state": job.state_name, "result": job.result}
    except JobNotFound as error:
        return 404, {"error": str(error)}
    return 404, {"error": "There is POST /primes/NUMBER (of up to 8 digits) and GET /jobs/ID."}
