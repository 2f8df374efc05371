-- Waiting tasks are given out by rank, then by age. Those that wait already get the default level,
-- and go first in it.

ALTER TABLE tasks ADD COLUMN rank INTEGER NOT NULL DEFAULT 844424930131968;
ALTER TABLE tasks ADD COLUMN fairness_key TEXT NOT NULL DEFAULT '';

DROP INDEX tasks_by_queue;
CREATE INDEX tasks_by_queue ON tasks (namespace, queue, kind, rank);
