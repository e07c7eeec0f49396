"""Memory that a process has freed, and that goes back to the system only when it is asked for."""

import ctypes


def give_back() -> None:
    """Gives freed memory back to the system, which glibc otherwise keeps."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
