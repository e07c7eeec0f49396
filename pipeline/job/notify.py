"""Notify: sends the account of a run to a web address, for a mail gateway, a chat or a dashboard.

One POST of run.json as application/json. Nothing here fails a run: what does not succeed is one line of the
log, which names the server and not the rest of the address, because that is often a secret.
"""

import base64
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pipeline.job.config import NotifySettings
from pipeline.job.progress import log

AGAIN = {408, 425, 429, *range(500, 600)}  # statuses after which a later try may succeed
PAUSES = (1.0, 4.0)  # s before the second and the third try


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without the account: it is refused."""

    def redirect_request(self, *request: Any) -> None:
        return None


def notify(settings: NotifySettings, account: bytes, *, attempts: int = 3, limit: float = 60) -> bool:
    """Posts an account; returns whether it was taken. Logs one line, raises nothing.

    Args:
        settings: where to, and how long a try waits.
        account: the bytes of run.json.
        attempts: tries, where the server cannot be reached or says that it is at fault.
        limit: seconds after which the sending is given up, whatever it waits for.
    """
    outcome: list[str] = []  # "" for success
    sending = threading.Thread(target=lambda: outcome.append(_send(settings, account, attempts)), daemon=True)
    sending.start()
    sending.join(limit)
    problem = outcome[0] if outcome else f"no answer within {limit:g} s"
    if problem:
        log.warning("notify: %s was not notified: %s", _server(settings.url), problem)
    else:
        log.info("notify: %s has the account", _server(settings.url))
    return not problem


def _send(settings: NotifySettings, account: bytes, attempts: int) -> str:
    """Tries until the server takes it; returns the last problem, "" for none."""
    problem = ""
    for number in range(attempts):
        if number:
            time.sleep(PAUSES[min(number, len(PAUSES)) - 1])
        problem, again = _try(settings, account)
        if not again:
            break
    return problem


def _try(settings: NotifySettings, account: bytes) -> tuple[str, bool]:
    """The problem of one try, "" for none, and whether another may succeed."""
    try:
        request = _request(settings.url, account)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=settings.timeout):
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            return f"it answers with a redirect ({error.code}); set the address that it leads to", False
        return f"it answers with status {error.code}", error.code in AGAIN
    except urllib.error.URLError as error:
        return f"it cannot be reached ({type(error.reason).__name__})", True
    except TimeoutError:
        return f"no answer within {settings.timeout:g} s", True
    except Exception as error:  # of http.client: a server that speaks something else
        return f"it does not answer as a web server ({type(error).__name__})", True


def _request(url: str, account: bytes) -> urllib.request.Request:
    """The POST; user and password of the address go into a header, as a browser puts them."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "shelfmark"}
    if parts.username is not None:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return urllib.request.Request(url, data=account, headers=headers, method="POST")


def _server(url: str) -> str:
    """Scheme and host of an address: the part that is no secret.

    >>> _server("https://user:word@hooks.example/T0/B0/x?key=1")
    'https://hooks.example'
    """
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
