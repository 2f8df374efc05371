-- oldest: 1
-- Letters have ids of the nodes' blocks. The column's own sequence is unlogged as its table is, and on
-- PostgreSQL 15 to 17 broken for good ("bad magic number in sequence") once a replica was promoted.
-- Nodes that know it insert OVERRIDING SYSTEM VALUE, which means nothing without it.

ALTER TABLE perdure.letters ALTER COLUMN id DROP IDENTITY;
