"""Client: a FastAPI service that runs its own workers. Run it from the folder above, for example:
QML_MP_URL=sqlite:///jobs.db uvicorn examples.fastapi_service:service

    POST /words    with {"text": "…"}: enqueues; answers 202 with the job's id
    GET  /jobs/ID  where the job stands, and its result

The lifespan starts and stops the server. It supervises from a process of its own, so the event
loop, signal handlers, threads and children of the web service are left alone; it ends with the
service, also when that is killed. Workers import this module by name: in a larger service the jobs
have a module of their own, so that workers do not import the web framework.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from qml_mp import BackgroundJobServer, InvalidJob, JobNotFound, QmlApp, ServerConfig

jobs = QmlApp()


@jobs.job(timeout="1m")
def count_words(text: str) -> dict[str, int]:
    """The ten most frequent words, and how often each occurs."""
    return dict(Counter(text.lower().split()).most_common(10))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start the server before the first request and stop it after the last one."""
    server = BackgroundJobServer(ServerConfig(worker_count=2), jobs.storage, f"{__name__}:jobs")
    await asyncio.to_thread(server.start)
    try:
        yield
    finally:
        await asyncio.to_thread(server.stop)
        jobs.close()


class Text(BaseModel):
    """The body of POST /words."""

    text: str


service = FastAPI(lifespan=lifespan)


@service.post("/words", status_code=202)
async def post_words(body: Text) -> dict[str, str]:
    """Enqueue; the answer comes before the job has run."""
    try:
        handle = await count_words.aenqueue(body.text)
    except InvalidJob as error:  # too long, or with a character that cannot be stored
        raise HTTPException(422, str(error)) from error
    return {"id": handle.id}


@service.get("/jobs/{job_id}")
async def get_job(job_id: str) -> dict[str, object]:
    """Where the job stands, and its result when it has succeeded."""
    try:
        job = await asyncio.to_thread(jobs.handle(job_id).job)
    except JobNotFound as error:
        raise HTTPException(404, str(error)) from error
    return {"state": job.state_name, "result": job.result}
