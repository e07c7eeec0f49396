"""Databases by SQLAlchemy: which texts are their URLs, how psycopg connects, what an error says.

sqlite:///shop.db                      a file
postgresql+psycopg://user@host/shop    a server; postgresql:// is the same
"""

import re
from typing import Any

PSYCOPG = "postgresql+psycopg"
DIALECTS = {"sqlite": "sqlite", "postgresql": PSYCOPG, "postgres": PSYCOPG, PSYCOPG: PSYCOPG}
# of other databases that SQLAlchemy knows: to be refused by name, and not taken for an object store
OTHERS = ("mysql", "mariadb", "oracle", "mssql", "duckdb", "snowflake", "redshift", "bigquery", "clickhouse",
          "cockroachdb")  # fmt: skip
PSYCOPG_OPTIONS: dict[str, Any] = {
    "connect_timeout": 10,  # s
    # a connection that is lost without a word is noticed within a minute
    "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000,
    "application_name": "shelfmark",
}  # fmt: skip


def is_database(text: str) -> bool:
    """Returns whether a text is the URL of a database, and no path.

    >>> [is_database(text) for text in ("sqlite:///a.db#t", "postgresql+psycopg://host/shop", "s3://shop/a.csv")]
    [True, True, False]
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9]*)(\+\w+)?:/", text)
    return scheme is not None and scheme[1].lower() in (*DIALECTS, *OTHERS)


def hide_password(text: str) -> str:
    """Returns the text of a database's URL as it may be shown; every other text as it is.

    >>> hide_password("postgresql://ann:s@cret/@host/shop?password=b#t")
    'postgresql://ann:***@host/shop?password=***#t'
    """
    if not is_database(text):
        return text
    text = re.sub(r"(?i)^([^:]+://[^:/@]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^=&#]*password)=[^&#]*", r"\1=***", text)


# Errors


def is_of_database(error: BaseException) -> bool:
    """Returns whether an error is SQLAlchemy's or a driver's."""
    return any(
        kind.__module__.partition(".")[0] in ("sqlalchemy", "psycopg", "sqlite3")
        for kind in type(error).__mro__
    )


def line_of(error: BaseException) -> str:
    """Returns what the database says, in one line."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    return said[:300] or type(error).__name__


def state_of(error: BaseException) -> str:
    """Returns the SQLSTATE of an error of PostgreSQL; empty where there is none."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def may_pass(error: BaseException) -> bool:
    """Returns whether the same transaction may succeed later: the connection was lost, or two jobs met."""
    state = state_of(error)
    lost = getattr(error, "connection_invalidated", False) or (
        not state and type(getattr(error, "orig", error)).__module__.startswith("psycopg")
        and type(getattr(error, "orig", error)).__name__ == "OperationalError"
    )  # fmt: skip
    return lost or state[:2] in ("08", "40", "57") or state in ("53300", "55P03")
