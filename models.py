"""The four tables of DB4Sci's administrative database, as SQLAlchemy 2 declarative classes.

One definition serves PostgreSQL 9.6 to 18 and SQLite. The deployed tables have no foreign keys, no unique
constraints, no index but the primary keys, and every column but `id` may be NULL: the classes say the same,
so that what `admin_db.create_tables` makes is what a site really has.

This module describes tables. It opens no connection and holds no query: those are in `admin_db`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DDL, JSON, DateTime, Sequence, Text, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DOCUMENT = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    """Maps Python types to column types: text without a length, naive timestamps."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text(), datetime: DateTime(timezone=False)}


class ContainerRow(Base):
    """A container that was ever made; names repeat. `data` holds passwords: never select it whole."""

    __tablename__ = "containers"

    id: Mapped[int] = mapped_column(Sequence("containers_id_seq"), primary_key=True)
    name: Mapped[str | None]
    data: Mapped[Any] = mapped_column(DOCUMENT, nullable=True)
    ts: Mapped[datetime | None]  # creation, naive UTC


class ContainerState(Base):
    """The state of an active container; DB4Sci deletes the row together with the container."""

    __tablename__ = "container_state"

    id: Mapped[int] = mapped_column(Sequence("container_state_id_seq"), primary_key=True)
    c_id: Mapped[int | None]
    name: Mapped[str | None]
    state: Mapped[str | None]
    last_state: Mapped[str | None]
    observerd: Mapped[str | None]  # the deployed tables spell it so
    changed_by: Mapped[str | None]
    ts: Mapped[datetime | None]


class ActionLog(Base):
    """What was done to a container, and when."""

    __tablename__ = "action_log"

    id: Mapped[int] = mapped_column(Sequence("action_log_id_seq"), primary_key=True)
    c_id: Mapped[int | None]
    name: Mapped[str | None]
    action: Mapped[str | None]
    description: Mapped[str | None]
    ts: Mapped[datetime | None]


class BackupLog(Base):
    """One row of the backup log: the `start` or the `end` of a run. `command` can hold a password."""

    __tablename__ = "backups"

    id: Mapped[int] = mapped_column(Sequence("backups_id_seq"), primary_key=True)
    c_id: Mapped[int | None]
    name: Mapped[str | None]
    state: Mapped[str | None]
    backup_id: Mapped[str | None]
    backup_type: Mapped[str | None]
    url: Mapped[str | None]
    command: Mapped[str | None]
    err_msg: Mapped[str | None]
    ts: Mapped[datetime | None]  # naive UTC in every public version of DB4Sci


# An insert through these classes asks the sequence itself, so that it also works on a site whose `id`
# columns have no default. The tables made here get the default as well, for those who insert with psql.
for _table in Base.metadata.tables.values():
    _default = f"ALTER TABLE {_table.name} ALTER COLUMN id SET DEFAULT nextval('{_table.name}_id_seq')"
    event.listen(_table, "after_create", DDL(_default).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]
