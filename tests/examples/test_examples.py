"""Tests: each example does what it says, run as its reader would run it."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import lzma
import os
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from examples import transactional, web_service
from qml_mp import JobNotFound, StateName
from qml_mp.core.job import Job
from qml_mp.storage.values import JobFilter
from tests.examples.asgi import lifespan, request
from tests.processes.harness import wait_until
from tests.storage.helpers import in_schema, patient_url

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 120


def test_the_digest_example_prints_the_right_digest_of_every_file(tmp_path: Path) -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    lines = run_example("digest_stdlib", folder=tmp_path)

    assert lines == [f"{file.name} {_digest(file)}" for file in files]
    assert list(tmp_path.iterdir()) == []


def test_the_reference_example_ends_one_job_well_and_one_badly(tmp_path: Path) -> None:
    checksum = hashlib.sha256((ROOT / "examples" / "reference_level.py").read_bytes()).hexdigest()

    lines = run_example("reference_level", folder=tmp_path)

    assert lines == [f"succeeded {checksum}", "failed /no/such/file is not there"]


def test_the_transactional_example_prints_one_invoice(tmp_path: Path) -> None:
    lines = run_example("transactional", folder=tmp_path)

    assert lines == ["out of stock", "invoice for one lamp"]


def test_an_order_that_sqlite_refuses_leaves_no_job(sqlite_shop: sqlite3.Connection) -> None:
    transactional.order(sqlite_shop, "lamp")

    with pytest.raises(sqlite3.IntegrityError):
        transactional.order(sqlite_shop, "lamp")

    assert sqlite_shop.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    assert [job.state_name for job in stored_jobs()] == [StateName.ENQUEUED]


def test_an_order_that_postgres_refuses_leaves_no_job(postgres_shop: psycopg.Connection) -> None:
    transactional.order_in_postgres(postgres_shop, "lamp")

    with pytest.raises(psycopg.errors.CheckViolation):
        transactional.order_in_postgres(postgres_shop, "lamp")

    assert postgres_shop.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    assert [job.state_name for job in stored_jobs()] == [StateName.ENQUEUED]


def test_an_order_in_a_transaction_that_is_open_is_seen_with_its_commit(
    postgres_shop: psycopg.Connection,
) -> None:
    with postgres_shop.transaction():
        handle = transactional.order_in_postgres(postgres_shop, "lamp")
        with pytest.raises(JobNotFound):
            handle.job()

    assert handle.state is StateName.ENQUEUED


def test_the_report_is_written_at_every_firing_until_the_server_is_stopped(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    command = [sys.executable, "-m", "qml_mp", "-A", "examples.recurring_report:app", "start", "-w", "1"]
    one_by_one = {**environment(), "QML_MP_FETCH_BATCH_SIZE": "1"}  # also when several firings wait
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=one_by_one, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: report.exists() and report.read_text().count("\n") >= 3, what="3 reports")
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    finally:
        server.kill()
        server.wait()

    assert code == 0, (tmp_path / "log").read_text()
    assert all("1 processing" in line for line in report.read_text().splitlines())


def test_the_web_service_runs_a_job_between_its_startup_and_its_shutdown(tmp_path: Path) -> None:
    web_service.jobs.attach(f"sqlite:///{tmp_path}/jobs.db")
    threads = threading.active_count()

    async def serve() -> tuple[object, ...]:
        async with lifespan(web_service.service) as started:
            status, accepted = await request(web_service.service, "POST", "/primes/1000000")
            ended = await asyncio.wait_for(_ended(accepted["id"]), _PATIENCE_S)
        return started["type"], status, ended

    told = asyncio.run(serve())

    assert told == ("lifespan.startup.complete", 202, {"state": "succeeded", "result": 78498})
    assert threading.active_count() == threads
    assert web_service.jobs.storage.list_servers() == []
    web_service.jobs.close()


def test_the_web_service_answers_what_it_cannot_do(tmp_path: Path) -> None:
    web_service.jobs.attach(f"sqlite:///{tmp_path}/jobs.db")
    unknown = Job.new("count_primes").id

    async def ask() -> list[int]:
        asked = (
            f"GET /jobs/{unknown}",
            "GET /jobs/x",
            "POST /primes/many",
            "POST /primes/999999999",
            "GET /",
        )
        return [(await request(web_service.service, *line.split(" ")))[0] for line in asked]

    assert asyncio.run(ask()) == [404] * 5
    web_service.jobs.close()


@pytest.mark.parametrize("url", ["sqlite:///{}/no/such/folder/jobs.db", "no/such/folder"])
def test_the_web_service_says_why_it_cannot_start(tmp_path: Path, url: str) -> None:
    web_service.jobs.attach(url.format(tmp_path))

    async def serve() -> tuple[str, str]:
        async with lifespan(web_service.service) as started:
            return started["type"], started["message"]

    kind, message = asyncio.run(serve())

    assert kind == "lifespan.startup.failed"
    assert "no/such/folder" in message


@pytest.fixture
def sqlite_shop(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the example's tables, in the file that its app stores jobs in."""
    transactional.app.attach(f"sqlite:///{tmp_path}/shop.db")
    transactional.app.storage.migrate()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(transactional.TABLES)
        yield connection
    transactional.app.close()


@pytest.fixture
def postgres_shop(postgres_url: str) -> Iterator[psycopg.Connection]:
    """The same in a PostgreSQL database; the tables are in the schema of the jobs."""
    schema = f"shop_{uuid.uuid4().hex[:12]}"
    transactional.app.attach(patient_url(in_schema(postgres_url, schema)))
    transactional.app.storage.migrate()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        for statement in transactional.TABLES.split(";"):
            connection.execute(statement.encode())
        yield connection
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    transactional.app.close()


def stored_jobs() -> tuple[Job, ...]:
    """The jobs in the storage of the transactional example."""
    return transactional.app.storage.list_jobs(JobFilter()).jobs


def run_example(name: str, *, folder: Path) -> list[str]:
    """Run it as a program; the lines it prints."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def environment() -> dict[str, str]:
    """This process's environment without settings of qml-mp, and with the examples importable."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    return {**own, "PYTHONPATH": str(ROOT)}


async def _ended(job_id: str) -> object:
    """Ask the service for the job until it has ended."""
    while True:
        status, body = await request(web_service.service, "GET", f"/jobs/{job_id}")
        assert status == 200
        if body["state"] in ("succeeded", "failed", "deleted"):
            return body
        await asyncio.sleep(0.01)


def _digest(file: Path) -> dict[str, int | str]:
    packed = lzma.compress(file.read_bytes())
    nodes = sum(1 for _ in ast.walk(ast.parse(file.read_bytes())))
    return {"nodes": nodes, "packed": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
