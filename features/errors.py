"""Errors as users see them: one exception, one `error:` line, one exit status."""


class ShelfmarkError(Exception):
    """An error that the user can fix: what happened, what was expected, what to do next, in one line."""

    status = 1  # of the process that ends with it


class Stopped(ShelfmarkError):
    """A guard has stopped the run: the work is in order, what came in may not be."""

    status = 4


class Busy(ShelfmarkError):
    """Another job is at work there; the same command succeeds later (EX_TEMPFAIL of sysexits.h)."""

    status = 75


def one_line(error: Exception) -> str:
    """Returns what an error says to a user, in one line.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: No such file or directory; expected to read and write there; check path, permissions, free space'
    """
    if isinstance(error, ShelfmarkError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = error.strerror or " ".join(str(error).split())[:300]
        return f"{where}{message}; expected to read and write there; check path, permissions, free space"
    message = " ".join(str(error).split())[:300]
    advice = "this is a fault of shelfmark or its set-up; run again with --debug and report it"
    return f"{type(error).__name__}: {message}; {advice}"
