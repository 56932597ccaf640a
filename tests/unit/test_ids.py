"""Tests: identifiers."""

from __future__ import annotations

import uuid

import pytest

from qml_mp.core.job import check_job_id, new_job_id
from qml_mp.core.server_info import new_server_id
from qml_mp.errors import InvalidJob


def test_a_job_id_is_a_uuid_of_version_7() -> None:
    parsed = uuid.UUID(new_job_id())

    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_job_ids_are_distinct_and_sort_by_millisecond() -> None:
    ids = [new_job_id() for _ in range(2000)]

    milliseconds = [uuid.UUID(text).int >> 80 for text in ids]
    assert len(set(ids)) == 2000
    assert milliseconds == sorted(milliseconds)


def test_a_server_id_is_its_name_and_a_uuid() -> None:
    name, _, unique = new_server_id("night").partition("#")

    assert name == "night"
    assert uuid.UUID(unique).version == 4


def test_a_job_id_is_put_into_canonical_form() -> None:
    assert check_job_id("0190D5C7A1B27C3D8E4F0123456789AB") == "0190d5c7-a1b2-7c3d-8e4f-0123456789ab"


@pytest.mark.parametrize("text", ["", "42", "no-uuid", None, 7, "0190d5c7-a1b2-7c3d-8e4f-0123456789abff"])
def test_what_is_no_job_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="is not a job id"):
        check_job_id(text)
