"""The tables of corrections.

    corrections                               corrections_sellers
      id           rises, never given twice     seller, key
      seller ┐     one in use for each pair     revision    rises with every change
      product_id ┘                              corrections how many are in use
      category                                  suspicion   the sum of evidence, suspicion.py
      who, made, comment, release               flagged     why they look wrong
      images       JSON list of digests         set_aside   why a person took them out of use
      fingerprint, bottleneck_rows              restored    the last id when a person restored him
      base, evidence   as its first head saw it
      ended, because   undone or replaced     corrections_bottlenecks
                                                id, key
    corrections_vectors                         width, numbers   float16
      head, seller, first   key
      size         corrections in this piece  corrections_version
      ids          int64                        version
      names        JSON [[base, …], [true, …]]
      numbers      float16 (size, v)

Vectors and bottlenecks are of corrections in use alone. A piece holds up to PIECE vectors of one seller and
one head, with ids from `first` on, in order. So a history of 800 corrections is read as 25 rows that lie side
by side, which takes a quarter of the time of 800 rows. Bottlenecks lie apart: no list and no history reads
them.
"""

from datetime import UTC, datetime

import sqlalchemy as sql

VERSION = 1  # of the tables; a newer one is refused


class _Utc(sql.TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps it without the zone."""

    impl = sql.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Returns what the database gets."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Returns what Python gets."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


TABLES = sql.MetaData()
ID = sql.BigInteger().with_variant(sql.Integer(), "sqlite")
VERSIONS = sql.Table("corrections_version", TABLES, sql.Column("version", sql.Integer, primary_key=True))
ROWS = sql.Table(
    "corrections",
    TABLES,
    sql.Column("id", ID, sql.Identity(always=True), primary_key=True),
    sql.Column("seller", sql.Text, nullable=False),
    sql.Column("product_id", sql.Text, nullable=False),
    sql.Column("category", sql.Text, nullable=False),
    sql.Column("who", sql.Text),
    sql.Column("made", _Utc, nullable=False),
    sql.Column("comment", sql.Text),
    sql.Column("release", sql.Text),
    sql.Column("images", sql.Text, nullable=False),
    sql.Column("fingerprint", sql.Text),
    sql.Column("bottleneck_rows", sql.Integer, nullable=False),
    sql.Column("base", sql.Text),
    sql.Column("evidence", sql.Double),
    sql.Column("ended", _Utc),
    sql.Column("because", sql.Text),
    sqlite_autoincrement=True,  # an id that was deleted is not given again
)
sql.Index("corrections_of_seller", ROWS.c.seller)
sql.Index(
    "corrections_in_use",
    ROWS.c.seller,
    ROWS.c.product_id,
    unique=True,
    sqlite_where=ROWS.c.ended.is_(None),
    postgresql_where=ROWS.c.ended.is_(None),
)
SELLERS = sql.Table(
    "corrections_sellers",
    TABLES,
    sql.Column("seller", sql.Text, primary_key=True),
    sql.Column("revision", sql.BigInteger, nullable=False),
    sql.Column("corrections", sql.Integer, nullable=False),
    sql.Column("suspicion", sql.Double, nullable=False),
    sql.Column("flagged", sql.Text),
    sql.Column("set_aside", sql.Text),
    sql.Column("restored", ID, nullable=False),
    sqlite_with_rowid=False,
)
VECTORS = sql.Table(
    "corrections_vectors",
    TABLES,
    sql.Column("head", sql.Text, primary_key=True),
    sql.Column("seller", sql.Text, primary_key=True),
    sql.Column("first", ID, primary_key=True, autoincrement=False),
    sql.Column("size", sql.Integer, nullable=False),
    sql.Column("ids", sql.LargeBinary, nullable=False),
    sql.Column("names", sql.Text, nullable=False),
    sql.Column("numbers", sql.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
sql.Index("corrections_vector_counts", VECTORS.c.head, VECTORS.c.seller, VECTORS.c.size)
BOTTLENECKS = sql.Table(
    "corrections_bottlenecks",
    TABLES,
    sql.Column("id", ID, primary_key=True, autoincrement=False),
    sql.Column("width", sql.Integer, nullable=False),
    sql.Column("numbers", sql.LargeBinary, nullable=False),
)
IN_USE = ROWS.c.ended.is_(None)

# for statements that are made once: making one takes longer than running it
NAME = sql.bindparam("name", type_=sql.Text)  # of a seller
ACCOUNT = sql.select(SELLERS).where(SELLERS.c.seller == NAME)
