"""Tests: the tables of the page."""

from __future__ import annotations

import re

from qml_mp.web.rendering import make_environment


def test_a_column_of_buttons_has_a_heading_for_those_who_hear_the_page() -> None:
    table = make_environment().from_string(
        '{% import "_parts.html" as parts %}'
        '{% call parts.table("T", [("Name", ""), ("", "")]) %}{% endcall %}'
    )

    headings = re.findall(r"<th [^>]*>(.*?)</th>", table.render())

    assert headings == ["Name", '<span class="unseen">Change</span>']
