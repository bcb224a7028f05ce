"""What the tables are made of: one set of metadata, and the kinds of columns and indices."""

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

# Constraints have names of their own, so that later migrations can speak of them everywhere.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. SQLite keeps no time zone, so UTC is what is written and what is assumed."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Into the database; a moment without a time zone is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Out of the database, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SanitizedText(TypeDecorator[str]):
    """What others said about themselves. PostgreSQL takes no NUL, and the end of a log may have one."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Into the database."""
        return value if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def json_column(name: str, *, nullable: bool) -> Column[object]:
    """A column for what JSON can say; None is a null of the database."""
    return Column(name, JSON(none_as_null=True), nullable=nullable)


# SQLite counts up by itself in columns of exactly this type only.
Counter = BigInteger().with_variant(Integer, "sqlite")


def partial_index(
    name: str, where: ColumnElement[bool], *columns: str, is_unique: bool = False
) -> Index:
    """An index of the rows that are still to be looked after: as small as they are few."""
    return Index(name, *columns, unique=is_unique, sqlite_where=where, postgresql_where=where)
