"""Tests of the page: promises that no other test shows. Each kills a mutant (tests/mutants)."""

from __future__ import annotations

from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.storage.store import Storage
from tests.storage.helpers import KEEP, claim_new
from tests.web.serving import Served

SCRIPT = "<script>window.owned=1</script>"


def test_what_a_job_says_is_text_on_the_page(page: Served, storage: Storage) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Failure(error=ErrorInfo(type=SCRIPT, message=SCRIPT)), retention=KEEP)

    with page.visitor() as visitor:
        shown = visitor.get(f"/jobs/{claim.job.id}").text

    assert "&lt;script&gt;window.owned=1&lt;/script&gt;" in shown
    assert SCRIPT not in shown
