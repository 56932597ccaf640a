"""The keys of all that a command prints with --json: programs that people have written read them."""

from __future__ import annotations

from typing import Any

from tests.cli.command import TASKS, Qml

_GATED = """
import pathlib
from qml_mp import WorkerContext

@app.job()
def gated(ctx: WorkerContext) -> None:
    ctx.progress(1, 2, "half")
    while not pathlib.Path("gate").exists():
        time.sleep(0.01)  # until the test opens the gate
"""
_WORKER = "number pid state job_id method running_s rss_bytes progress"
_SERVER = "id name host pid alive standing silent_s paused trouble workers"
_QUEUE = "name enqueued processing held oldest_s servers paused max_running rate"
_JOB = (
    "id method queue priority state payload result failures crashes claim_seq created_at run_at started_at "
    "finished_at expires_at unique_key timeout_s max_retries max_crashes metadata server_id worker_id "
    "cancel_reason reason last_error attempts"
)
_ATTEMPT = "kind claim_seq worker pid started_at ended_at error signal exit_code peak_rss_bytes cpu_s"
_ERROR = "type message traceback"
_PROGRESS = "done total note"
_TEMPLATE = (
    "id cron tz method payload queue priority misfire overlap jitter_s source app enabled next_run_at "
    "waiting_for last_run_at last_job_id last_job_state disabled_reason words method_known"
)
# By command. A path of names behind it leads to objects within what it prints.
KEYS = {
    ("status", ""): "states queues servers waiting_methods",
    ("status", "states"): "enqueued scheduled processing awaiting_retry succeeded failed deleted",
    ("status", "queues"): _QUEUE,
    ("status", "servers"): _SERVER,
    ("status", "servers workers"): _WORKER,
    ("status", "waiting_methods"): "method queue jobs",
    ("servers list", ""): f"{_SERVER} queues methods started_at last_heartbeat",
    ("servers list", "workers"): _WORKER,
    ("workers list", ""): f"{_WORKER} id server_id",
    ("workers list", "progress"): _PROGRESS,
    ("stacks", ""): "server_id number pid method stack",
    ("health", ""): "healthy text",
    ("check", ""): "check result text",
    ("migrate", ""): "applied version",
    ("audit", ""): "id what subject server_id by from asked_at until state taken_at ended_at said",
    ("queues list", ""): _QUEUE,
    ("queues limits", ""): "kind name paused max_running rate processing next_in_s",
    ("recurring list", ""): _TEMPLATE,
    ("recurring show digest", ""): _TEMPLATE,
    ("recurring preview digest", ""): "at local marks",
    ("jobs list", ""): _JOB,
    ("jobs list --state failed", "last_error"): _ERROR,
    ("jobs list --state failed", "attempts"): _ATTEMPT,
    ("jobs list --state failed", "attempts error"): _ERROR,
    ("jobs show {failed}", ""): _JOB,
    ("jobs show {running}", ""): f"{_JOB} progress",
    ("jobs show {running}", "progress"): _PROGRESS,
    ("jobs watch {failed}", ""): f"{_JOB} progress",
    ("jobs errors", ""): "count method type message frame last_at example kind",
    ("jobs retry --state failed --dry-run", ""): "matched states examples dry_run",
    ("jobs cancel --queue spare --yes", ""): "matched changed left",
    ("jobs cancel {waiting}", ""): "id done",
    ("bench --only storage --seconds 1", ""): (
        "storage version workers cores load_before seconds read_ms commit_ms flush_ms "
        "bulk_enqueue_jobs_per_s throughput latency_ms efficiency verdicts"
    ),
}


# Takes about 6 s: some thirty commands, for which one server is started.
def test_each_json_form_has_exactly_these_keys_in_this_order(qml: Qml) -> None:
    (qml.folder / "tasks.py").write_text(TASKS + _GATED)
    ids: dict[str, str] = {}
    with qml.started("-w", "1", "--server-name", "blue") as server:
        for name, command in (
            ("failed", "-A tasks:app enqueue boom"),
            ("running", "-A tasks:app enqueue gated"),
            ("waiting", "enqueue unknown"),
            ("spare", "enqueue unknown --queue spare"),
        ):
            ids[name] = qml(*command.split()).out.strip()
        qml("recurring", "add", "digest", "0 9 * * *", "resize")
        qml("queues", "limit", "default", "3")
        qml.until(
            "status", shows=lambda status: bool(within([status], "servers workers progress")), server=server
        )

        printed = {
            command: qml("-A", "tasks:app", *command.format(**ids).split(), "--json").lines
            for command in dict.fromkeys(command for command, _ in KEYS)
        }
        (qml.folder / "gate").touch()

    assert {(command, path): keys_of(within(printed[command], path)) for command, path in KEYS} == {
        form: {keys} for form, keys in KEYS.items()
    }


def within(values: list[Any], path: str) -> list[Any]:
    """The objects to which the path leads, in all of the values; lists on the way are gone through."""
    for name in path.split():
        found = [value[name] for value in values if value[name] is not None]
        values = [each for value in found for each in (value if isinstance(value, list) else [value])]
    return values


def keys_of(objects: list[dict[str, Any]]) -> set[str]:
    """The keys of each, in order; objects with the same keys are told once."""
    return {" ".join(each) for each in objects}
