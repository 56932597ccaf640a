"""What the code declares is followed by storage once for each code, however often storage is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qml_mp import host
from qml_mp.app import QmlApp
from qml_mp.child.source import AppFacts, LoadedProgram, NamedProgram, facts_of, probe, read_facts
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.declarations import DeclarationsLoop, Hooked
from qml_mp.supervisor.loops.loop import NEVER
from qml_mp.supervisor.run import Run
from tests.storage_rows import hooks_of
from tests.unit.hand_clock import HandClock

LIMITED = Limit(kind=LimitKind.METHOD, name="work", max_running=1)
FACTS = AppFacts(name="shop", methods=("work",), limits=(LIMITED,), wants_failures=True)


@pytest.fixture
def loop(storage: Storage, clock: HandClock) -> Iterator[DeclarationsLoop]:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=FACTS, clock=clock)
    with closing(run.pool):
        yield DeclarationsLoop(run)


def test_what_a_storage_that_is_away_delays_is_declared_later_and_what_was_declared_is_not_again(
    storage: Storage, loop: DeclarationsLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> bool:
        raise StorageUnavailable("no")

    loop.declare(FACTS)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "declare_hooks", away)
        with pytest.raises(StorageUnavailable):
            loop.tick(storage)
    newer = Limit(kind=LimitKind.METHOD, name="work", max_running=7)
    storage.declare_limits(["work"], {"work": newer})  # by a server that was started meanwhile

    assert loop.due_at() == 0
    loop.tick(storage)

    assert loop.due_at() == float("inf")
    assert [each.limit for each in storage.standings()] == [newer]
    assert not storage.declare_hooks(["work"], calls=True, traces=False)


def test_code_that_comes_while_storage_takes_its_time_is_declared_after_the_code_before(
    storage: Storage, loop: DeclarationsLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare, newer = storage.declare_limits, AppFacts(name="shop", methods=("work",))

    def slowly(*arguments: object) -> bool:
        loop.declare(newer)
        return declare(*arguments)  # type: ignore[arg-type]

    loop.declare(FACTS)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "declare_limits", slowly)
        loop.tick(storage)
    assert [each.limit for each in storage.standings()] == [LIMITED]

    assert loop.due_at() == 0
    loop.tick(storage)

    assert loop.due_at() == float("inf")
    assert storage.standings() == []
    assert not storage.declare_hooks(["work"], calls=False, traces=False)


def hooks(storage: Storage) -> dict[str, tuple[bool, bool]]:
    """Of each method whether failures of it are told, and lost attempts."""
    return hooks_of(storage, "work", "new", "gone")


def test_what_code_before_wants_to_be_told_stays_until_none_of_it_works(
    storage: Storage, loop: DeclarationsLoop
) -> None:
    seen = []
    newer = AppFacts(name="shop", methods=("work", "new"), traces=True)

    def look() -> None:
        loop.tick(storage)
        seen.append(hooks(storage))

    loop.declare(newer, older=Hooked(calls=frozenset({"work", "gone"}), traces=frozenset({"work"})))
    look()
    storage.declare_hooks(["work"], calls=False, traces=True)  # by a server that was started meanwhile
    loop.hook_both()
    look()
    loop.hook_newest_alone()
    look()

    both = {"work": (True, True), "new": (False, True)}
    assert seen == [both, both, {"work": (False, True), "new": (False, True)}]
    assert loop.due_at() == NEVER


def test_where_newer_code_wants_to_be_told_of_as_much_nothing_is_declared_later(
    storage: Storage, loop: DeclarationsLoop
) -> None:
    """Another server may have declared newer code by then."""
    loop.declare(FACTS, older=Hooked.of(replace(FACTS, methods=("work", "gone"))))
    loop.tick(storage)

    loop.hook_both()
    loop.hook_newest_alone()

    assert loop.due_at() == NEVER


def test_what_is_told_of_workers_while_storage_takes_its_time_is_followed_in_the_same_tick(
    storage: Storage, loop: DeclarationsLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare = storage.declare_hooks

    def slowly(*arguments: Any, **options: Any) -> bool:
        loop.hook_newest_alone()
        return declare(*arguments, **options)

    loop.declare(replace(FACTS, wants_failures=False), older=Hooked.of(FACTS))
    with monkeypatch.context() as patched:
        patched.setattr(storage, "declare_hooks", slowly)
        loop.tick(storage)

    assert (hooks(storage), loop.due_at()) == ({}, NEVER)


def older_server() -> ServerInfo:
    """One that still knows what this code does not."""
    now = datetime.now(UTC)
    return ServerInfo(
        id="older#1", name="older", hostname="here", process=host.identity(), worker_count=1, queues=(),
        started_at=now, last_heartbeat=now, methods=("work", "old"),
    )  # fmt: skip


def template_ids(storage: Storage) -> list[str]:
    return [template.id for template in storage.list_recurring_jobs()]


def test_a_template_that_an_older_server_knows_is_deleted_once_that_is_gone(
    storage: Storage, loop: DeclarationsLoop, clock: HandClock
) -> None:
    storage.register_server(older_server())
    storage.follow_code("shop", [RecurringJob.new("digest", "0 9 * * *", "old")])
    loop.declare(FACTS)
    for _ in range(2):
        loop.run(storage)
    assert template_ids(storage) == ["digest"]
    assert loop.due_at() == 10

    storage.deregister_server("older#1")
    clock.seconds = loop.due_at()
    loop.run(storage)

    assert template_ids(storage) == []
    assert loop.due_at() == float("inf")


def test_what_newer_code_has_declared_since_is_not_deleted_with_it(
    storage: Storage, loop: DeclarationsLoop
) -> None:
    storage.register_server(older_server())
    storage.follow_code("shop", [RecurringJob.new(each, "0 9 * * *", "old") for each in ("digest", "report")])
    loop.declare(FACTS)
    loop.run(storage)
    newer = {"digest": "work", "report": "old", "another": "new"}
    storage.follow_code(
        "shop", [RecurringJob.new(each, "0 9 * * *", method) for each, method in newer.items()]
    )

    storage.deregister_server("older#1")
    loop.run(storage)

    assert template_ids(storage) == ["another", "digest"]
    assert loop.due_at() == float("inf")


def test_what_newer_code_declares_between_the_look_and_the_deletion_stays(
    storage: Storage, loop: DeclarationsLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start at once. Neither would declare it again."""
    storage.follow_code("shop", [RecurringJob.new("digest", "0 9 * * *", "old")])
    list_servers = storage.list_servers

    def while_newer_code_is_followed() -> list[ServerInfo]:
        found = list_servers()
        storage.follow_code("shop", [RecurringJob.new("another", "0 9 * * *", "new")])
        return found

    monkeypatch.setattr(storage, "list_servers", while_newer_code_is_followed)
    loop.declare(FACTS)
    loop.run(storage)

    assert template_ids(storage) == ["another"]


NIGHTLY = RecurringJob.new("nightly", "0 3 * * *", "work")
OF_SHOP = replace(FACTS, recurring=(NIGHTLY, RecurringJob.new("hourly", "0 * * * *", "work")))


def owners(storage: Storage) -> dict[str, str | None]:
    return {template.id: template.app for template in storage.list_recurring_jobs()}


def test_a_template_that_another_app_gives_up_is_declared_soon_after(
    storage: Storage, loop: DeclarationsLoop, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    """This app was deployed before the one that had it."""
    caplog.set_level("INFO")
    storage.follow_code("blog", [NIGHTLY])
    loop.declare(OF_SHOP)
    for _ in range(3):
        loop.run(storage)
    assert owners(storage) == {"hourly": "shop", "nightly": "blog"}
    assert loop.due_at() == 10

    storage.follow_code("blog", [], removing=[NIGHTLY])
    clock.seconds = loop.due_at()
    loop.run(storage)

    assert owners(storage) == {"hourly": "shop", "nightly": "shop"}
    assert loop.due_at() == float("inf")
    assert caplog.text.count("nightly is left as the app blog has made it") == 1
    assert [each for each in caplog.messages if each.startswith("recurring:")] == [
        "recurring: +hourly",
        "recurring: +nightly",
    ]


def test_while_another_app_has_a_template_nothing_is_written(
    storage: Storage, loop: DeclarationsLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write would wake every server."""
    storage.follow_code("blog", [NIGHTLY])
    loop.declare(OF_SHOP)
    loop.run(storage)

    def follow(*_: object, **__: object) -> None:
        raise AssertionError("it is followed again")

    monkeypatch.setattr(storage, "follow_code", follow)
    loop.run(storage)

    assert loop.due_at() == 10


def test_a_template_that_goes_from_a_person_to_another_app_is_told_anew(
    storage: Storage, loop: DeclarationsLoop, caplog: pytest.LogCaptureFixture
) -> None:
    storage.upsert_recurring_job(NIGHTLY)
    loop.declare(OF_SHOP)
    loop.run(storage)
    storage.remove_recurring_job("nightly")
    storage.follow_code("blog", [NIGHTLY])

    for _ in range(2):
        loop.run(storage)

    refusals = [each for each in caplog.messages if "nightly is left as" in each]
    assert [each.split(" has made it")[0].split(" as ")[1] for each in refusals] == [
        "a person",
        "the app blog",
    ]
    assert owners(storage)["nightly"] == "blog"
    assert loop.due_at() == 10


def test_a_template_that_is_taken_from_an_app_of_another_folder_is_told_with_whose_it_was(
    storage: Storage, loop: DeclarationsLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cleanup = RecurringJob.new("cleanup", "0 3 * * *", "clean")
    storage.follow_code("tasks:app in /srv/shop", [cleanup], spec="tasks:app")

    loop.declare(AppFacts(name="tasks:app in /srv/blog", spec="tasks:app", recurring=(cleanup,)))
    loop.tick(storage)
    loop.declare_again()
    loop.tick(storage)

    (stored,) = storage.list_recurring_jobs()
    assert stored.app == "tasks:app in /srv/blog"
    assert caplog.text.count("cleanup was declared by tasks:app in /srv/shop and is this app's now") == 1


def test_what_is_no_longer_declared_is_not_waited_for(storage: Storage, loop: DeclarationsLoop) -> None:
    storage.follow_code("blog", [NIGHTLY])
    loop.declare(OF_SHOP)
    loop.run(storage)

    loop.declare(FACTS)
    loop.run(storage)
    storage.follow_code("blog", [], removing=[NIGHTLY])
    loop.run(storage)

    assert loop.due_at() == float("inf")
    assert owners(storage) == {}


def test_limits_reach_the_supervisor_as_the_code_says_them() -> None:
    app = QmlApp()
    app.job(name="few", max_running=2)(lambda: None)
    app.job(name="slow", rate="7/30s")(lambda: None)
    app.job(name="free")(lambda: None)

    facts = read_facts(probe(LoadedProgram(program=app.program)))

    assert facts.limits == facts_of(app.program).limits
    assert facts.limits == (
        Limit(kind=LimitKind.METHOD, name="few", max_running=2),
        Limit(kind=LimitKind.METHOD, name="slow", rate=Rate(7, timedelta(seconds=30))),
    )
