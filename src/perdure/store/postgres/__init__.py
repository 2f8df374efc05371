"""The store on PostgreSQL 14 to 18, shared by as many nodes as there are."""

from perdure.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
