"""Times in files, as ISO 8601 in UTC: 2026-11-23T02:10:00+00:00."""

import datetime
import time


def utc(seconds: float | None = None) -> str:
    """A time as text.

    Args:
        seconds: since 1970; None: now.

    >>> utc(0)
    '1970-01-01T00:00:00+00:00'
    """
    moment = datetime.datetime.fromtimestamp(time.time() if seconds is None else seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds")
