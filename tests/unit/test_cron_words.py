"""Tests: what a cron expression means, in words."""

from __future__ import annotations

import pytest

from qml_mp.core.cron import CronSchedule


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0,30 * * * *", "every 30 minutes"),
        ("*/7 * * * *", "at minutes 0, 7, … 56 of every hour"),
        ("0 * * * *", "at minute 0 of every hour"),
        ("7,9 * * * *", "at minutes 7 and 9 of every hour"),
        ("0 */2 * * *", "at minute 0 in the hours 0, 2, … 22"),
        ("* 2 * * *", "every minute in the hour 2 every day"),
        ("*/15 9-17 * * 1-5", "every 15 minutes in the hours 9 to 17 on Monday to Friday"),
        ("30 2 * * *", "at 02:30 every day"),
        ("0 0,12 * * *", "at 00:00 and 12:00 every day"),
        ("30 59 23 31 12 *", "at 23:59:30 on day 31 of the month in December"),
        ("* * * * * *", "every second"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("5 * * * * *", "at second 5 of every minute"),
        ("5 */20 2 * * *", "at second 5 every 20 minutes in the hour 2 every day"),
        ("0 0 0 1 1 * 2099", "at 00:00 on day 1 of the month in January in 2099"),
        ("0 0 0 1 1 * 2027-2030", "at 00:00 on day 1 of the month in January in 2027 to 2030"),
        ("0 9 * * MON-FRI", "at 09:00 on Monday to Friday"),
        ("0 9 * * 2-6", "at 09:00 on Tuesday to Saturday"),
        ("0 9 * * 0", "at 09:00 on Sunday"),
        ("0 9 * * FRI-MON", "at 09:00 on Monday and Friday to Sunday"),
        ("0 9 1 * MON", "at 09:00 on day 1 of the month or on Monday"),
        ("0 9 */2 * MON", "at 09:00 on days 1, 3, … 31 of the month, only if on Monday"),
        ("0 9 1-31 * MON", "at 09:00 every day"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        ("0 0 1,15,L * *", "at 00:00 on days 1 and 15 and on the last day of the month"),
        ("0 0 * * 5L", "at 00:00 on the last Friday of the month"),
        ("0 0 * * MON#2,3", "at 00:00 on Wednesday and on the 2nd Monday of the month"),
        ("0 0 * JAN-MAR,6 *", "at 00:00 in January to March and June"),
        ("@hourly", "at minute 0 of every hour"),
        ("@weekly", "at 00:00 on Sunday"),
        ("@monthly", "at 00:00 on day 1 of the month"),
        ("@yearly", "at 00:00 on day 1 of the month in January"),
    ],
)
def test_an_expression_in_words(text: str, words: str) -> None:
    assert CronSchedule(text, tz="Europe/Berlin").words == f"{words} (Europe/Berlin)"
