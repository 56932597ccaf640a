"""Tests of the Python API: promises that no other test shows. Each kills a mutant (tests/mutants)."""

from __future__ import annotations

from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, StateName, WorkerContext


def test_nothing_follows_a_job_that_fails(tmp_path: Path) -> None:
    app = QmlApp(f"sqlite:///{tmp_path}/jobs.db", retry_policy=RetryPolicy.none())
    run: list[str] = []

    @app.job()
    def publish() -> None:
        run.append("publish")

    @app.job()
    def convert(ctx: WorkerContext, *, fails: bool) -> None:
        ctx.then(publish.job())
        run.append("convert")
        if fails:
            raise ValueError("no")

    with app.inline(raise_failures=False):
        failed = convert.enqueue(fails=True).job()
        assert run == ["convert"]
        convert.enqueue(fails=False)

    assert failed.state_name is StateName.FAILED
    assert run == ["convert", "convert", "publish"]
