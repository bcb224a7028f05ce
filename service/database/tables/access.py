"""Tables of keys, uploads and stored responses."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, String, Table

from service.database.columns import UtcDateTime, json_column, metadata

responses = Table(
    "idempotency",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("route", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    # Null while the request is being processed.
    Column("status", Integer, nullable=True),
    Column("location", String(255), nullable=True),
    json_column("body", nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    json_column("scopes", nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", UtcDateTime, nullable=True),
    Column("revoked_at", UtcDateTime, nullable=True),
    Column("last_used_at", UtcDateTime, nullable=True),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(128), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=True),
    # The client writes to object storage itself, by a signed link.
    Column("direct", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    # The fence of completion: each attempt has the next number, and writes an object of its own.
    Column("attempt", Integer, nullable=False),
    # Until when the current attempt excludes others.
    Column("lease_until", UtcDateTime, nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("completed_at", UtcDateTime, nullable=True),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
)

# Which datasets name an upload: it is kept while one of them may still be read.
upload_uses = Table(
    "upload_uses",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("dataset", String(32), ForeignKey("datasets.id"), primary_key=True, index=True),
)
