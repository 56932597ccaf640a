"""Tests: the token that a job asks whether it should end."""

from __future__ import annotations

import pytest

from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelReason, CancelToken

Request = tuple[CancelReason, str]


class Requests:
    """A source of requests that notes how it was asked."""

    def __init__(self, *answers: Request | None) -> None:
        self.answers = list(answers)
        self.asked: list[float | None] = []

    def poll(self, timeout_s: float | None) -> Request | None:
        self.asked.append(timeout_s)
        return self.answers.pop(0)


def test_a_token_that_nobody_cancels_says_so() -> None:
    token = CancelToken.never()

    token.raise_if_cancelled()

    assert not token.is_cancelled
    assert token.reason is None
    assert token.message is None
    assert token.wait(0.001) is False


def test_a_look_does_not_wait_and_a_wait_does() -> None:
    requests = Requests(None, None)
    token = CancelToken(requests.poll)

    seen = (token.is_cancelled, token.wait(2.5))

    assert seen == (False, False)
    assert requests.asked == [0, 2.5]


def test_a_cancelled_token_stays_cancelled_with_its_first_reason_and_asks_no_more() -> None:
    requests = Requests(None, (CancelReason.SHUTDOWN, "the server stops"))
    token = CancelToken(requests.poll)

    seen = [token.is_cancelled, token.is_cancelled, token.is_cancelled, token.wait(60)]

    assert seen == [False, True, True, True]
    assert (token.reason, token.message) == (CancelReason.SHUTDOWN, "the server stops")
    assert len(requests.asked) == 2


@pytest.mark.parametrize("reason", list(CancelReason))
def test_a_cancelled_token_raises_what_fits_its_reason(reason: CancelReason) -> None:
    token = CancelToken(Requests((reason, "enough")).poll)

    with pytest.raises(JobInterrupted, match="enough") as caught:
        token.raise_if_cancelled()

    assert isinstance(caught.value, JobTimeout) is (reason is CancelReason.TIMEOUT)


def test_an_interruption_is_no_exception_that_user_code_swallows_by_accident() -> None:
    assert not issubclass(JobInterrupted, Exception)
