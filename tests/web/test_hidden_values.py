"""Tests: what the page masks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
from tests.web.serving import served


def test_what_hide_names_is_masked_beside_what_is_hidden_anyhow(file_url: str, tmp_path: Path) -> None:
    with closing(open_storage(file_url)) as storage:
        job_id = storage.enqueue(Job.new("pay", {"password": "hunter2", "iban": "DE89", "sum": 12}))

    with served(file_url, tmp_path, "--hide", "iban") as page, page.visitor() as client:
        shown = client.get(f"/jobs/{job_id}/value?what=payload").text

    assert "hunter2" not in shown
    assert "DE89" not in shown
    assert "12" in shown
