"""The Jobs, Job and Errors screens as a browser asks for them: what is found, and what a count changes."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from qml_mp.core.acts import ActState
from qml_mp.core.job import PARENT_ID, Claim, Job
from qml_mp.core.outcome import ErrorInfo, Failure, Release, Success
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.job_selection import BulkChange
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from qml_mp.web import dashboard
from qml_mp.web.filters import Filters
from qml_mp.web.pages import job as job_screen
from qml_mp.web.pages import jobs, jobs_change
from tests.storage.helpers import HOUR, KEEP, claim_new, fetch, in_an_hour, present
from tests.until import wait_until
from tests.web.asgi import Visitor
from tests.web.serving import Served, served, token_of

ERROR = ErrorInfo(
    type="shop.Broken",
    message="no <b>such</b> thing",
    traceback='Traceback (most recent call last):\n  File "/srv/shop/tasks.py", line 12, in thumb\n'
    '    open(path)\n  File "/usr/lib/python3.12/codecs.py", line 3, in decode\n    deep()\nshop.Broken: no',
)


@pytest.fixture
def client(page: Served, storage: Storage) -> Iterator[httpx.Client]:
    """A visitor of a storage from which the jobs of earlier tests are gone, as far as listings go."""
    for job in storage.list_jobs(JobFilter(), limit=1000).jobs:
        if job.state_name is not StateName.PROCESSING:
            storage.delete_many(
                [job.id], states=list(StateName), until=storage.now(), reason="", retention=KEEP
            )
    with page.visitor() as client:
        yield client


def remove(storage: Storage, ids: list[str]) -> None:
    """Make them Deleted, save those that run."""
    at_rest = [state for state in StateName if state is not StateName.PROCESSING]
    storage.delete_many(ids, states=at_rest, until=storage.now(), reason="", retention=KEEP)


def fail(storage: Storage, number: int = 1, *, method: str = "thumb") -> list[str]:
    """So many jobs that have failed, newest first."""
    ids = []
    for _ in range(number):
        queue = f"only-{method}"
        storage.enqueue(Job.new(method, {"password": "hunter2"}, queue=queue))
        claim = claim_of(storage, queue)
        storage.finish(claim, Failure(error=ERROR), retention=KEEP)
        ids.append(claim.job.id)
    return ids[::-1]


def claim_of(storage: Storage, queue: str) -> Claim:
    claim = storage.fetch_and_lock_job(fetch(queue))
    assert claim is not None
    return claim


def let_a_second_pass(storage: Storage) -> None:
    """By its own clock, and by that of the page, which goes on by itself between two looks at the other."""
    over_at = storage.now() + timedelta(seconds=1.1)
    wait_until(lambda: storage.now() > over_at, what="a second")


def listed(response: httpx.Response) -> list[str]:
    """Ids of the jobs in the table."""
    assert response.status_code == 200, response.text
    return re.findall(r'name="job" value="([0-9a-f-]{36})"', response.text)


def link(response: httpx.Response, text: str) -> str:
    """Where the link leads."""
    found = re.search(rf'<a href="([^"]*)"[^>]*>{text}</a>', response.text)
    assert found is not None, response.text
    return unescape(found[1])


def text_of(response: httpx.Response) -> str:
    """What a person reads."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", response.text)).split())


def answer(client: httpx.Client | Visitor, question: httpx.Response, typed: str) -> httpx.Response:
    """Send the form of the question with what is typed."""
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', question.text)
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(unescape(name), []).append(unescape(value))
    return client.post("/jobs/change", data={**data, "typed": [typed]})


def states(storage: Storage, ids: list[str]) -> set[StateName]:
    return {present(storage, job_id).state_name for job_id in ids}


def test_filters_stand_in_the_url(client: httpx.Client, storage: Storage) -> None:
    failed = fail(storage, 2, method="filtered")
    waiting = storage.enqueue(Job.new("filtered", queue="x:y@z"))

    found = {
        query: listed(client.get(f"/jobs?method=filtered&{query}"))
        for query in (
            "state=failed",
            "queue=x%3Ay%40z",
            "error=BROKEN",
            "error=nothing",
            "since=1h",
            "until=1h",
        )
    }

    assert found == {
        "state=failed": failed, "queue=x%3Ay%40z": [waiting], "error=BROKEN": failed, "error=nothing": [],
        "since=1h": [waiting, *failed], "until=1h": [],
    }  # fmt: skip


@pytest.mark.parametrize("query", ["state=odd", "since=yesterday", "until=20301130", "after=nonsense"])
def test_what_the_url_cannot_mean_is_refused_in_a_sentence(client: httpx.Client, query: str) -> None:
    response = client.get(f"/jobs?{query}")

    assert response.status_code == 400
    assert query.partition("=")[2] in text_of(response)


def test_pages_go_to_older_ones_and_back(client: httpx.Client, storage: Storage) -> None:
    ids = storage.enqueue_many(Job.new("paged") for _ in range(120))[::-1]

    first = client.get("/jobs?method=paged")
    second = client.get(link(first, "Older"))
    third = client.get(link(second, "Older"))
    back = client.get(link(third, "Newer"))

    assert [*listed(first), *listed(second), *listed(third)] == ids
    assert listed(back) == listed(second)
    assert listed(client.get(link(third, "Newest"))) == listed(first)
    assert "Older</a>" not in third.text
    remove(storage, ids)


def test_a_look_for_newer_jobs_that_has_not_come_to_the_end_goes_on_to_newer_ones(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_AMONG", 100)
    ids = storage.enqueue_many(
        Job.new(
            "rare" if number in (50, 170, 290) else "often",
            now=datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
            at=in_an_hour(),
        )
        for number in range(300)
    )
    client = Visitor(dashboard(storage))

    oldest = client.get("/jobs?state=scheduled&method=rare")
    while listed(oldest) != [ids[50]]:
        oldest = client.get(link(oldest, "Look further"))
    newer = client.get(link(oldest, "Newer"))
    further = client.get(link(newer, "Look further"))
    older = client.get(link(further, "Older"))

    assert (listed(newer), listed(further)) == ([], [ids[170]])
    assert "Looked at the jobs that were created until 2030-01-01 00:02:30 UTC ." in text_of(newer)
    assert "Newer</a>" not in newer.text
    assert "Looked at the jobs that were created since 2030-01-01 00:01:10 UTC ." in text_of(older)
    remove(storage, ids)


def test_how_long_a_job_has_run_is_told_without_javascript_too(
    client: httpx.Client, storage: Storage
) -> None:
    """Also of one that has begun since the page has read the storage's clock."""
    for queue in ("runs-first", "runs-second"):
        storage.enqueue(Job.new("thumb", queue=queue))
        claim = claim_of(storage, queue)
        let_a_second_pass(storage)

        [ran] = re.findall(r"data-since>([^<]*)<", client.get(f"/jobs?queue={queue}").text)

        assert re.fullmatch(r"[\d.]+ s|\d+ min.*", ran), f"{queue}: {ran}"
        storage.finish(claim, Success(result=None, duration=HOUR), retention=KEEP)


def test_a_job_is_found_by_the_beginning_of_its_id(client: httpx.Client, storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("wanted"))

    assert listed(client.get(f"/jobs?id={job_id.replace('-', '').upper()[:31]}")) == [job_id]
    assert "No job is like that." in client.get("/jobs?id=nothing").text


def test_when_more_jobs_have_such_an_id_than_are_shown_it_is_said(
    client: httpx.Client, storage: Storage
) -> None:
    ids = storage.enqueue_many(Job.new("alike") for _ in range(52))
    storage.delete_many(ids[1:], states=list(StateName), until=storage.now(), reason="", retention=KEEP)
    of_all, of_one = (client.get(f"/jobs?id={start}") for start in (ids[0][:4], ids[0]))

    assert len(listed(of_all)) == 50
    assert "Only the newest 50 are shown: type more of the id." in text_of(of_all)
    assert "are shown" not in text_of(of_one)


def test_ticked_jobs_are_not_held_in_memory_together(storage: Storage) -> None:
    payload: JsonValue = {"numbers": [*range(10_000, 110_000)]}  # parsed, more than three megabytes
    ids = [storage.enqueue(Job.new("large", payload)) for _ in range(10)]
    visitor = Visitor(dashboard(storage))
    visitor.get("/jobs/change", params={"change": "delete", "which": "chosen", "job": ids[:1]})
    tracemalloc.start()
    try:
        question = visitor.get("/jobs/change", params={"change": "delete", "which": "chosen", "job": ids})
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    remove(storage, ids)

    assert "Type how many (10)" in text_of(question)
    assert most_bytes < 16 * 2**20


def test_all_that_a_filter_means_are_retried_once_their_number_is_typed(
    client: httpx.Client, storage: Storage
) -> None:
    ids = fail(storage, 3, method="bulk")
    other = fail(storage)
    question = client.get("/jobs/change?change=retry&which=all&method=bulk&state=failed")
    late = fail(storage, method="bulk")  # after the question, and so not meant

    refused = [answer(client, question, typed) for typed in ("", "2", "4", "three", "-3", "3.5")]
    before = states(storage, ids)
    done = answer(client, question, " 3 ")
    told = text_of(client.get(done.headers["location"]))
    again = answer(client, question, "3")

    assert "Type how many (3)" in text_of(question)
    assert [response.status_code for response in refused] == [409] * 6
    assert "You typed 2, and 3 are meant now. This request has changed nothing" in text_of(refused[1])
    assert before == {StateName.FAILED}
    assert done.status_code == 303
    assert "3 jobs are enqueued again." in told
    assert states(storage, ids) == {StateName.ENQUEUED}
    assert states(storage, other + late) == {StateName.FAILED}
    assert again.status_code == 409  # none of them is Failed any more
    assert "what an earlier one has changed stands in the audit." in text_of(again)


def test_a_change_that_runs_out_of_time_says_how_many_are_left(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_change, "_WITHIN_S", 0)  # as if its first batch, of 500, took all of it
    storage.enqueue_many([Job.new("thumb", queue="very-many") for _ in range(502)])
    visitor = Visitor(dashboard(storage))
    query = "change=delete&which=all&queue=very-many"

    first = answer(visitor, visitor.get(f"/jobs/change?{query}"), "502")
    told_first = text_of(visitor.get(first.headers["location"]))
    second = answer(visitor, visitor.get(f"/jobs/change?{query}"), "2")
    told_second = text_of(visitor.get(second.headers["location"]))

    says = "500 jobs are deleted. That took all the time there is: 2 jobs are left, do the same again."
    assert says in told_first
    assert "as before" not in told_first
    assert storage.list_acts().acts[1].said == says
    assert "2 jobs are deleted. " in told_second
    assert "all the time" not in told_second


def test_what_is_told_of_a_change_adds_up() -> None:
    wanted = jobs_change.Wanted(
        change=BulkChange.CANCEL, ids=(), filters=Filters.of(lambda _: ()), until=datetime.now(UTC), back=""
    )

    told = jobs_change._told(wanted, jobs_change._Done(changed=7, refused=2), 10)

    assert re.findall(r"(\d+) jobs? (?:is|are)", told) == ["7", "2", "1"]


def test_what_is_changed_is_in_the_audit(client: httpx.Client, storage: Storage) -> None:
    fail(storage, 1, method="audited")

    answer(client, client.get("/jobs/change?change=retry&which=all&method=audited"), "1")

    act = storage.list_acts(limit=1).acts[0]
    assert (act.what, act.subject) == ("retry jobs", "all jobs of the method audited")
    assert act.said == "1 job is enqueued again."
    assert act.by.where.startswith("web from 127.0.0.1")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("2030-01-31 09:00", "until 2030-01-31 09:00 UTC?"),
        ("2030-01-31T09:00+01:00", "until 2030-01-31T09:00+01:00?"),
        ("1h", "until 1h?"),
    ],
)
def test_a_question_names_the_zone_in_which_a_time_is_meant(
    client: httpx.Client, typed: str, told: str
) -> None:
    question = client.get("/jobs/change", params={"change": "delete", "which": "all", "until": typed})

    assert told in text_of(question)


def test_ticked_jobs_are_changed_and_no_others(client: httpx.Client, storage: Storage) -> None:
    ids = storage.enqueue_many(Job.new("ticked") for _ in range(3))
    ticked = {"job": ids[:2], "which": "chosen", "method": "ticked"}

    cancelled = client.get("/jobs/change", params={"change": "cancel", **ticked})
    wrong = answer(client, cancelled, "3")
    done = answer(client, cancelled, "2")

    assert wrong.status_code == 409
    assert done.status_code == 303
    assert parse_qs(urlsplit(done.headers["location"]).query) == {"method": ["ticked"]}
    assert states(storage, ids[:2]) == {StateName.DELETED}
    assert states(storage, ids[2:]) == {StateName.ENQUEUED}
    act = storage.list_acts(limit=1).acts[0]
    assert act.said == "\n".join(["2 jobs are deleted or asked to end.", *ids[:2]])
    assert act.state is ActState.DONE


def test_deleting_takes_those_that_do_not_run(client: httpx.Client, storage: Storage) -> None:
    waiting = [storage.enqueue(Job.new("gone")), storage.enqueue(Job.new("gone", at=in_an_hour()))]

    question = client.get("/jobs/change?change=delete&which=all&method=gone")
    answer(client, question, "2")

    assert states(storage, waiting) == {StateName.DELETED}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("change=retry&which=chosen", "No job is chosen."),
        ("change=explode&which=all", "is no change"),
        ("change=retry&which=chosen&job=odd", "is not a job id"),
        ("change=retry&which=all&at=noon", "is no instant"),
        ("change=retry&which=all&at=2026-01-01", "names no time zone"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(client: httpx.Client, query: str, told: str) -> None:
    response = client.get(f"/jobs/change?{query}")

    assert response.status_code == 400
    assert told in text_of(response)


def test_a_state_that_cannot_be_changed_so_means_no_job(client: httpx.Client, storage: Storage) -> None:
    question = client.get("/jobs/change?change=retry&which=all&state=succeeded")

    assert "No job is meant that could be changed so." in text_of(question)
    assert 'name="typed"' not in question.text


def test_a_failed_job_shows_the_users_frames_first_and_masks_what_is_hidden(
    client: httpx.Client, storage: Storage
) -> None:
    job_id = fail(storage)[0]

    response = client.get(f"/jobs/{job_id}")

    text = text_of(response)
    frames = re.search(r'<ol class="frames">(.*?)</ol>', response.text, re.DOTALL)
    assert frames is not None
    assert "shop/tasks.py:12 in thumb" in frames[1]
    assert "/srv" not in frames[1]
    assert "codecs.py" not in frames[1]
    assert "shop.Broken : no <b>such</b> thing" in text
    assert "hunter2" not in response.text
    assert "hunter2" not in client.get(f"/jobs/{job_id}/value?what=payload").text
    assert "hunter2" not in client.get("/jobs").text


def test_what_was_given_back_unbegun_is_a_hand_out_and_no_attempt(
    client: httpx.Client, storage: Storage
) -> None:
    storage.enqueue(Job.new("thumb", queue="given-back"))
    storage.finish(claim_of(storage, "given-back"), Release(reason="stopped", not_begun=True), retention=KEEP)
    claim = claim_of(storage, "given-back")
    storage.finish(claim, Failure(error=ERROR), retention=KEEP)

    shown = text_of(client.get(f"/jobs/{claim.job.id}"))

    assert shown.count("hand-out 2: failure") == 2  # among what has happened, and with its error
    assert "attempt 2" not in shown


def test_of_a_job_of_many_attempts_the_newest_are_shown(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_screen, "_MOST_ATTEMPTS", 2)
    wanted = Job.new("thumb", queue="often")
    storage.enqueue(wanted)

    def shown_after_a_failure() -> str:
        storage.finish(claim_of(storage, "often"), Failure(error=ERROR), retention=KEEP)
        storage.retry(wanted.id)
        return text_of(Visitor(dashboard(storage)).get(f"/jobs/{wanted.id}"))

    _, of_two, of_three = (shown_after_a_failure() for _ in range(3))

    assert [number for number in "123" if f"hand-out {number}" in of_three] == ["2", "3"]
    assert "Older ones are not shown" in of_three
    assert "Older ones" not in of_two


def test_a_job_is_retried_copied_cancelled_and_deleted(client: httpx.Client, storage: Storage) -> None:
    job_id = fail(storage, method="one")[0]
    token = token_of(client.get(f"/jobs/{job_id}").text)

    def post(what: str) -> httpx.Response:
        return client.post(f"/jobs/{job_id}/{what}", data={"page_token": token})

    assert post("retry").status_code == 303
    assert post("retry").status_code == 409  # it is not Failed any more
    assert present(storage, job_id).state_name is StateName.ENQUEUED
    copied = urlsplit(post("copy").headers["location"]).path.rpartition("/")[2]
    assert post("cancel").status_code == 303
    assert present(storage, job_id).state_name is StateName.DELETED
    assert post("delete").status_code == 409
    copy = present(storage, copied)
    assert (copy.method, copy.payload, copy.state_name) == (
        "one",
        {"password": "hunter2"},
        StateName.ENQUEUED,
    )
    assert [act.what for act in storage.list_acts(limit=3).acts] == ["cancel job", "copy job", "retry job"]


def test_a_copy_keeps_the_options_but_the_unique_key(client: httpx.Client, storage: Storage) -> None:
    original = Job.new(
        "kept", {"n": 1}, queue="mine", priority=7, timeout=HOUR, max_retries=0, unique_key="only",
        metadata={"by": "me", PARENT_ID: "x"},
    )  # fmt: skip
    storage.enqueue(original)
    token = token_of(client.get(f"/jobs/{original.id}").text)

    location = client.post(f"/jobs/{original.id}/copy", data={"page_token": token}).headers["location"]

    copy = present(storage, urlsplit(location).path.rpartition("/")[2])
    assert (copy.queue, copy.priority, copy.timeout, copy.max_retries) == ("mine", 7, HOUR, 0)
    assert (copy.unique_key, copy.metadata) == (None, {"by": "me"})


def test_a_value_is_shown_and_given_as_the_json_that_it_is_whatever_its_characters(
    client: httpx.Client, storage: Storage
) -> None:
    payload: JsonValue = {"a\u00a0price": "10\u00a0€\x9b\u2028\u202e\U000e0001\n"}
    job_id = storage.enqueue(Job.new("odd", payload))

    screen = client.get(f"/jobs/{job_id}").text
    listed = client.get("/jobs?method=odd").text
    given = client.get(f"/jobs/{job_id}/value?what=payload").text

    assert all(line.isprintable() for line in given.split("\n"))
    assert json.loads(given) == payload
    for shown in (screen, listed):
        texts = re.findall(r'{\s*"a\\u00a0price": "[^"]*"\s*}', unescape(shown))
        assert [json.loads(text) for text in texts] == [payload]


def test_big_values_are_cut_with_a_link_to_the_whole(client: httpx.Client, storage: Storage) -> None:
    big: dict[str, JsonValue] = {"text": "x" * 1_000_000, "secret": "y" * 40_000}
    claim = claim_new(storage)
    storage.finish(claim, Success(result=big, duration=HOUR), retention=KEEP)
    storage.enqueue(Job.new("big", big))

    response = client.get(f"/jobs/{claim.job.id}")
    whole = client.get(link(response, "The whole result"))

    assert len(response.content) < 60_000
    assert len(client.get("/jobs").content) < 200_000
    assert whole.headers["content-type"].startswith("text/plain")
    assert "x" * 1_000_000 in whole.text
    assert "yyyy" not in whole.text


def test_a_job_that_is_not_there_is_said_so(client: httpx.Client) -> None:
    gone = client.get("/jobs/01a20ff2-659c-78a5-9cfb-d95426a19a21")
    odd = client.get("/jobs/odd")

    assert (gone.status_code, odd.status_code) == (404, 400)
    assert "No job has the id" in text_of(gone)


def test_errors_are_grouped_counted_and_lead_to_their_jobs(client: httpx.Client, storage: Storage) -> None:
    ids = fail(storage, 3, method="grouped")
    response = client.get("/errors?method=grouped")

    of_a_kind = client.get(link(response, "3"))
    question = client.get(unescape(re.search(r'href="(/jobs/change[^"]*)"', response.text)[1]))  # type: ignore[index]
    answer(client, question, "3")

    assert "shop/tasks.py:12 in thumb" in text_of(response)
    assert listed(of_a_kind) == ids
    assert "Type how many (3)" in text_of(question)
    assert states(storage, ids) == {StateName.ENQUEUED}
    assert "No job has failed" in client.get("/errors?method=none").text


def test_who_may_only_read_sees_no_action(
    storage: Storage, url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job_id = fail(storage, method="looked-at")[0]
    with served(url, tmp_path_factory.mktemp("read"), "--read-only") as page, page.visitor() as client:
        for path in ("/jobs", f"/jobs/{job_id}", "/errors", "/jobs/change?change=retry&which=all"):
            response = client.get(path)
            assert response.status_code == 200
            assert "<button>Filter" in response.text or "<button" not in response.text
            assert 'method="post"' not in response.text
