"""`queues`: paused, resumed and limited, and what is shown of it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.cli.command import Ended, Qml, on_a_terminal
from tests.processes.harness import ROOT
from tests.statement_trace import TRACE, statements
from tests.storage.helpers import set_limit

_FETCH = Fetch(worker_id="w", server_id="s", queues=())
# The command beside a database that has too many jobs to count them all.
_SLOW = """
from qml_mp.cli.main import main
from qml_mp.storage.store import Storage
from qml_mp.views import snapshot
from tests.storage.helpers import too_long
count = Storage.queue_stats
def in_time(storage, *, among=None):
    if among is None:
        raise too_long()
    return count(storage, among=among)
Storage.queue_stats, snapshot.MOST_COUNTED = in_time, 2
main()
"""


def test_a_paused_queue_is_shown_and_gives_no_job_until_it_is_resumed(qml: Qml, storage: Storage) -> None:
    storage.enqueue(Job.new("work", queue="images"))

    qml("queues", "pause", "images")

    assert storage.fetch_and_lock_job(_FETCH) is None
    [shown] = qml("queues", "list", "--json").lines
    assert (shown["name"], shown["enqueued"], shown["paused"]) == ("images", 1, True)
    assert qml("status", "--json").value["queues"] == [shown | {"oldest_s": pytest.approx(0, abs=3600)}]
    assert "paused" in qml("status").out
    qml("queues", "resume", "images")
    assert "was not paused" in qml("queues", "resume", "images").out
    assert storage.fetch_and_lock_job(_FETCH) is not None


def test_however_many_jobs_wait_in_a_queue_its_pause_does_not_count_them(
    qml: Qml, storage: Storage, tmp_path: Path
) -> None:
    def counts_all(command: str) -> bool:
        traces = tmp_path / command
        traces.mkdir()
        subprocess.run(
            [sys.executable, "-m", "tests.statement_trace", "queues", *command.split()], cwd=qml.folder,
            env=qml.environment({TRACE: str(traces), "PYTHONPATH": str(ROOT)}), check=True,
        )  # fmt: skip
        [sent] = statements(traces).values()
        return any("count(*) AS enqueued" in statement for statement in sent)

    storage.enqueue(Job.new("work", queue="images"))

    assert counts_all("list")
    assert not counts_all("pause images")
    assert not counts_all("limit images 3")
    assert [each.limit.max_running for each in storage.standings() if each.limit.paused] == [3]


def test_where_there_are_more_jobs_than_are_counted_in_time_queues_are_counted_up_to_a_number(
    qml: Qml, storage: Storage
) -> None:
    (qml.folder / "slow.py").write_text(_SLOW)
    storage.enqueue_many(Job.new("work", queue="images") for _ in range(3))

    def slow(*command: str) -> Ended:
        return qml("queues", *command, module="slow", env={"PYTHONPATH": str(ROOT)})

    [shown] = slow("list", "--json").lines
    table = slow("list")
    paused, unknown, strange = slow("pause", "images"), slow("pause", "image"), slow("pause", "no queue")

    assert (shown["name"], shown["enqueued"], shown["counted_up_to"]) == ("images", 3, 2)
    assert " 2+ " in table.out.splitlines()[1]
    assert (table.code, paused.code, unknown.code, strange.code) == (0, 0, 2, 2)
    assert "Did you mean 'images'?" in unknown.err
    assert "counted_up_to" not in qml("queues", "list", "--json").out


def test_a_queue_whose_jobs_are_all_for_later_is_known(qml: Qml, storage: Storage) -> None:
    storage.enqueue_many(
        Job.new("work", queue=f"of-{hours}", delay=timedelta(hours=hours)) for hours in range(1, 9)
    )

    assert qml("queues", "pause", "of-8").code == 0


def test_a_queue_that_only_another_program_can_have_named_so_is_paused_limited_and_resumed(
    qml: Qml, storage: Storage
) -> None:
    storage.enqueue(Job.new("work"))
    with closing(sqlite3.connect(qml.database)) as connection, connection:
        connection.execute("UPDATE qml_jobs SET queue = 'my queue'")

    paused = qml("queues", "pause", "my queue")
    limited = qml("queues", "limit", "my queue", "3")

    assert (paused.code, limited.code) == (0, 0)
    assert "`qml-mp queues resume 'my queue'`" in paused.out
    [shown] = qml("queues", "list", "--json").lines
    assert (shown["name"], shown["paused"], shown["max_running"]) == ("my queue", True, 3)
    qml("queues", "resume", "my queue")
    assert storage.fetch_and_lock_job(_FETCH) is not None


def test_limits_of_a_queue_are_set_shown_and_ended(qml: Qml, storage: Storage) -> None:
    set_limit(storage, LimitKind.METHOD, "resize", max_running=2)

    told = qml("queues", "limit", "default", "3", "--rate", "100/m").out

    assert told == "default: 3 running, 100/m\n"
    [method, queue] = qml("queues", "limits", "--json").lines
    assert method == {
        "kind": "method", "name": "resize", "paused": False, "max_running": 2, "rate": None, "processing": 0,
        "next_in_s": None,
    }  # fmt: skip
    assert (queue["name"], queue["max_running"], queue["rate"]) == ("default", 3, "100/m")
    assert all(len(line) <= 80 for line in qml("queues", "limits").out.splitlines())
    qml("queues", "limit", "default", "none")
    assert [each.limit.rate for each in storage.standings()] == [None, Rate.parse("100/m")]
    assert qml("queues", "limit", "default", "--rate", "none").out == "default: no limit\n"


def test_who_ends_the_limit_that_a_queue_has_not_is_told_which_it_has(qml: Qml, storage: Storage) -> None:
    qml("queues", "limit", "default", "--rate", "50/s")

    told = qml("queues", "limit", "default", "none")

    assert (told.code, told.out) == (
        0, "default has no limit of jobs at a time; `--rate none` ends that of 50/s\n",
    )  # fmt: skip
    assert [each.limit.rate for each in storage.standings()] == [Rate.parse("50/s")]
    assert len(qml("audit", "--json").lines) == 1  # that it was set


def test_both_limits_of_a_queue_are_set_together_or_not_at_all(qml: Qml, storage: Storage) -> None:
    with closing(sqlite3.connect(qml.database)) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON qml_limits WHEN NEW.rate IS NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )

    refused = qml("queues", "limit", "default", "3", "--rate", "100/m")

    assert refused.code != 0
    assert storage.standings() == []


def test_limits_fit_the_terminal_with_names_of_any_length(qml: Qml, storage: Storage) -> None:
    name = "thumbnails." + "of_all_pictures_" * 6
    storage.limit(Limit(kind=LimitKind.METHOD, name=name, max_running=12, rate=Rate.parse("100/m")))

    lines = on_a_terminal(qml, "queues", "limits", no_color="1").decode().splitlines()

    assert max(map(len, lines)) <= 80
    assert "12 running, 100/m" in lines[1]
    assert name in qml("queues", "limits").out


def test_limits_of_a_method_that_no_server_knows_are_ended(qml: Qml, storage: Storage) -> None:
    for method in ("gone", "stays"):
        storage.limit(Limit(kind=LimitKind.METHOD, name=method, max_running=1, rate=Rate.parse("5/s")))
    set_limit(storage, LimitKind.QUEUE, "gone", max_running=3)

    told = qml("queues", "limit", "gone", "none", "--method").out

    assert told == "gone: no limit\n"
    left = [(each.limit.kind, each.limit.name) for each in storage.standings()]
    assert left == [(LimitKind.METHOD, "stays"), (LimitKind.QUEUE, "gone")]


def test_limits_of_a_method_that_a_server_knows_are_its_codes_to_say(qml: Qml, storage: Storage) -> None:
    now = storage.now()
    storage.register_server(
        ServerInfo(
            id="server#1", name="server", hostname="h", process=host.identity(), worker_count=1, queues=(),
            started_at=now, last_heartbeat=now, methods=("work",),
        )
    )  # fmt: skip
    set_limit(storage, LimitKind.METHOD, "work", max_running=2)

    refused = qml("queues", "limit", "work", "none", "--method")

    assert refused.code == 2
    assert "server on h (pid" in refused.err
    assert "knows the method 'work'" in refused.err
    assert [each.limit.max_running for each in storage.standings()] == [2]
    qml("queues", "limit", "work", "none", "--method", "--force")
    assert storage.standings() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("limit", "nosuch", "none", "--method"), "No method 'nosuch' is limited. None is."),
        (("limit", "work", "3", "--method"), "the code's to say"),
        (("limit", "work", "none", "--rate", "none", "--method"), "the code's to say"),
        (("pause", "nosuch"), "--force"),
        (("limit", "defualt", "3"), "Did you mean 'default'?"),
        (("resume", "nosuch"), "Known are default"),
        (("pause", "no such", "--force"), "queue name"),
        (("pause", "no such"), "queue name"),
        (("limit", "no such", "3"), "queue name"),
        (("limit", "default"), "--rate"),
        (("limit", "default", "0"), "max_running is 0"),
        (("limit", "default", "many"), "whole number"),
        (("limit", "default", "9" * 5000), "whole number"),
        (("limit", "default", "--rate", "100/fortnight"), "100/m"),
    ],
)
def test_what_no_queue_can_have_is_refused_with_what_to_do(
    qml: Qml, storage: Storage, arguments: tuple[str, ...], told: str
) -> None:
    refused = qml("queues", *arguments)

    assert refused.code == 2
    assert told in refused.err
    assert storage.standings() == []


@pytest.mark.parametrize("app", ["tasks:app", "broken:app"])
def test_resume_points_to_no_option_that_it_has_not(qml: Qml, storage: Storage, app: str) -> None:
    (qml.folder / "broken.py").write_text("import no_such_library\n")

    refused = qml("-A", app, "queues", "resume", "nosuch", "--url", storage.url)

    assert refused.code in (2, 3)
    assert "'nosuch'" in refused.err
    assert "--force" not in refused.err


def test_a_queue_that_is_to_come_is_paused_by_force(qml: Qml, storage: Storage) -> None:
    qml("queues", "pause", "later", "--force")

    assert [shown["name"] for shown in qml("queues", "list", "--json").lines] == ["later"]
