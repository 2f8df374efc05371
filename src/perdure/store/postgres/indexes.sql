-- Indexes and statistics of custom attributes; see indexes.py.

-- name: listed
-- Those that are there, with whether they are whole. One that is not is being made, or was left when
-- its maker died.
SELECT coalesce(index.name, statistics.name), coalesce(is_valid AND statistics.name <> '', false)
FROM (
    SELECT c.relname AS name, i.indisvalid AS is_valid
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = 'perdure.runs'::regclass AND starts_with(c.relname::text, $1::text)
) AS index
FULL JOIN (
    SELECT stxname AS name FROM pg_catalog.pg_statistic_ext
    WHERE stxrelid = 'perdure.runs'::regclass AND starts_with(stxname::text, $1::text)
) AS statistics ON statistics.name = index.name;

-- name: size
SELECT pg_relation_size('perdure.runs');

-- name: is_busy
-- Whether a session makes or drops an index of the table (or vacuums it).
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE relation = 'perdure.runs'::regclass AND mode = 'ShareUpdateExclusiveLock'
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
);

-- name: quoted
-- A statement about an index, and an attribute: the server quotes both names.
SELECT format($1::text, $2::text, $3::text);
