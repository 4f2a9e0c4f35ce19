"""Days and minutes of a time, in UTC."""

import time


def day(date_time: int) -> str:
    """Return the date, such as 2015-07-15."""
    return time.strftime("%Y-%m-%d", time.gmtime(date_time // 1000))


def minute(date_time: int) -> str:
    """Return the time of the day to the minute, such as 08:30."""
    seconds = date_time // 1000
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}"
