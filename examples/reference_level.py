"""Client: the level below `QmlApp`, with the names of the reference system.

Run it: python examples/reference_level.py
"""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from pathlib import Path

from qml_mp import (
    BackgroundJobServer,
    Job,
    ServerConfig,
    Storage,
    Worker,
    WorkerContext,
    WorkerRegistry,
    WorkerResult,
    open_storage,
)


class Checksum(Worker):
    """Hashes a file. One that is not there is no reason to try again."""

    method_name = "checksum"

    def execute(self, job: Job, context: WorkerContext) -> WorkerResult:  # noqa: ARG002
        path = Path(str(job.payload))
        if not path.exists():
            return WorkerResult.failure(f"{path} is not there")
        return WorkerResult.success(hashlib.sha256(path.read_bytes()).hexdigest())


def main() -> None:
    storage = open_storage("memory://")
    config = ServerConfig(server_name="checksums", worker_count=2, job_timeout=timedelta(seconds=30))
    server = BackgroundJobServer(config, storage, WorkerRegistry().register(Checksum()))
    server.schedule_recurring("nightly", "0 0 3 * * *", "checksum", __file__)

    ids = storage.enqueue_many(Job.new("checksum", path) for path in (__file__, "/no/such/file"))
    server.start()
    try:
        for job in (wait_for_end(storage, job_id) for job_id in ids):
            print(job.state_name, job.result or (job.error and job.error.message))
    finally:
        server.stop()
        storage.close()


def wait_for_end(storage: Storage, job_id: str) -> Job:
    """Poll the job until it has ended; the handles of `QmlApp` do the same in `wait()`."""
    while True:
        job = storage.get(job_id)
        if job is not None and job.state_name.is_final:
            return job
        time.sleep(0.05)


if __name__ == "__main__":
    main()
