"""Metadata of the tables, column types and indices."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
)

# Names for constraints, so that migrations can refer to them on both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with time zone. SQLite stores none, so values are written and read as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert for the database. Raises ValueError without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert from the database, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SanitizedText(TypeDecorator[str]):
    """Text from outside, such as the end of a log, without the NUL that PostgreSQL refuses."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Convert for the database."""
        return value if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def json_column(name: str, *, nullable: bool) -> Column[object]:
    """A JSON column; None is stored as NULL."""
    return Column(name, JSON(none_as_null=True), nullable=nullable)


# SQLite increments only columns of exactly this type.
Counter = BigInteger().with_variant(Integer, "sqlite")


def partial_index(
    name: str, where: ColumnElement[bool], *columns: str, is_unique: bool = False
) -> Index:
    """A partial index, of the rows that still need work."""
    return Index(name, *columns, unique=is_unique, sqlite_where=where, postgresql_where=where)
