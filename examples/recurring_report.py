"""Worker: a report on a schedule. Run it: qml-mp -A examples.recurring_report:app start -w 1

Stop it with Ctrl-C and start it again: the schedule is kept in the storage, each firing makes one
job however many servers run, and the firings missed in between are made up for by one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from qml_mp import QmlApp

app = QmlApp()


# Seconds come first when there are six fields: this is every second, to have something to see.
# At nine on workdays in Berlin would be: @app.recurring("0 9 * * MON-FRI", tz="Europe/Berlin")
@app.recurring("* * * * * *", payload={"file": "report.txt"})
def report(file: str) -> None:
    """Append a line that says how many jobs there are in each state."""
    counts = app.storage.job_counts()
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    with Path(file).open("a") as stream:
        stream.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {told}\n")
