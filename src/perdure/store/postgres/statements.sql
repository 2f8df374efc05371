-- Every fixed statement of the PostgreSQL store but the commit's, by name. List and count are
-- rendered in render.py, the commit is put together in batch.py. {record} is the fields of Record.

-- name: lock_states
SELECT key, version FROM perdure.states WHERE key = ANY($1::bigint[]) ORDER BY key
FOR NO KEY UPDATE;

-- name: locked_states
-- Of runs, those that another session has locked.
WITH free AS (
    SELECT key FROM perdure.states WHERE key = ANY($1::bigint[]) ORDER BY key
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT key FROM perdure.states WHERE key = ANY($1::bigint[]) AND key NOT IN (SELECT key FROM free);

-- name: locked_starts
-- Of the locks of workflow ids, those that another session has.
SELECT number FROM unnest($1::bigint[]) AS number WHERE NOT pg_try_advisory_xact_lock(number);

-- name: taken_run_ids
SELECT r.namespace, r.run_id FROM perdure.runs AS r
JOIN unnest($1::text[], $2::text[]) AS u (namespace, run_id)
    ON r.namespace = u.namespace AND r.run_id = u.run_id;

-- name: present_tasks
-- Locked, so that no sweep removes them before the commit does.
SELECT id FROM perdure.tasks WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE;

-- name: starts_over
-- Waits for a transaction that starts these workflow ids; see batch.py for the order.
SELECT pg_advisory_xact_lock(number) FROM (
    SELECT number FROM unnest($1::bigint[]) AS number WHERE {hasty} ORDER BY number
) AS sorted;

-- name: fence
-- Waits for statements that change these runs, and takes those that come later their version. It is
-- on disk like a commit: nodes go on from what it leaves. The step is as random as theirs, so that
-- the new version is nobody else's even where the database loses it.
WITH u AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS u (key, based_on)
),
l AS (
    SELECT s.key FROM perdure.states AS s JOIN u ON u.key = s.key
    WHERE s.version = u.based_on AND {hasty} ORDER BY s.key FOR NO KEY UPDATE OF s
)
UPDATE perdure.states AS s SET version = s.version + 1 + floor(random() * 1048576)::bigint
FROM l WHERE s.key = l.key
RETURNING s.key;

-- name: next_ids
-- A sequence is logged for 32 blocks ahead: the transaction that hands out another of them has nothing
-- to write, and so waits for nobody's disk. The empty message makes it wait: else a crash of the
-- server could take back the log, and the block be handed out again.
SELECT nextval('perdure.ids'), pg_logical_emit_message(true, 'perdure', '');

-- name: find_run
SELECT key FROM perdure.runs WHERE namespace = $1 AND run_id = $2 AND workflow_id = $3;

-- name: find_current
-- Of each the open one (place 0), else the one that started last.
SELECT u.namespace, u.workflow_id, f.key, f.place
FROM unnest($1::text[], $2::text[]) AS u (namespace, workflow_id)
CROSS JOIN LATERAL (
    (
        SELECT key, 0 AS place FROM perdure.runs AS r
        WHERE r.namespace = u.namespace AND r.workflow_id = u.workflow_id AND close_ns = 0
    )
    UNION ALL
    (SELECT last.key, 1 AS place FROM ({last_runs}) AS last ORDER BY last.key DESC LIMIT 1)
    ORDER BY place LIMIT 1
) AS f;

-- name: load
-- One snapshot of everything, in one answer.
SELECT s.version, s.wake_at_ns, s.state, {r.record}, (
    SELECT array_agg((i.id, i.body) ORDER BY i.id) FROM perdure.items AS i WHERE i.key = s.key
) AS items
FROM perdure.states AS s JOIN perdure.runs AS r ON r.key = s.key WHERE s.key = $1;

-- name: history
SELECT first_event_id, last_event_id, events
FROM (
    SELECT *, sum(octet_length(events)) OVER (ORDER BY first_event_id)
        - octet_length(events) AS bytes_before
    FROM (
        SELECT first_event_id, last_event_id, events FROM perdure.history
        WHERE key = $1
            AND first_event_id >= coalesce((
                SELECT max(first_event_id) FROM perdure.history
                WHERE key = $1 AND first_event_id <= $2
            ), $2)
            AND first_event_id <= $3 AND last_event_id >= $2
        ORDER BY first_event_id LIMIT $4
    ) AS overlapping
) AS summed
WHERE bytes_before < $5 ORDER BY first_event_id;

-- name: history_reversed
SELECT first_event_id, last_event_id, events
FROM (
    SELECT *, sum(octet_length(events)) OVER (ORDER BY first_event_id DESC)
        - octet_length(events) AS bytes_before
    FROM (
        SELECT first_event_id, last_event_id, events FROM perdure.history
        WHERE key = $1
            AND first_event_id >= coalesce((
                SELECT max(first_event_id) FROM perdure.history
                WHERE key = $1 AND first_event_id <= $2
            ), $2)
            AND first_event_id <= $3 AND last_event_id >= $2
        ORDER BY first_event_id DESC LIMIT $4
    ) AS overlapping
) AS summed
WHERE bytes_before < $5 ORDER BY first_event_id DESC;

-- name: changes
SELECT position, key, first_event_id, last_event_id, events FROM perdure.history
WHERE position > $1
    AND position < (pg_snapshot_xmin(pg_current_snapshot())::text::bigint << 20)
ORDER BY position LIMIT $2;

-- name: due
SELECT key, wake_at_ns FROM perdure.states WHERE wake_at_ns > 0 AND wake_at_ns <= $1
ORDER BY wake_at_ns LIMIT $2;

-- name: next_alarm
SELECT wake_at_ns FROM perdure.states WHERE wake_at_ns > 0 ORDER BY wake_at_ns LIMIT 1;

-- name: tasks
SELECT id, namespace, queue, kind, key, scheduled_event_id, stamp, created_ns, rank, fairness_key
FROM perdure.tasks
WHERE namespace = $1 AND queue = $2 AND kind = $3 AND (rank, id) > ($4, $5)
ORDER BY rank, id LIMIT $6;

-- name: backlogs
SELECT namespace, queue, kind, (rank >> 48)::integer, fairness_key,
    count(*), min(rank), max(rank), min(created_ns)
FROM perdure.tasks GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5;

-- name: backlogs_of_queue
-- The first rank is that of those that no node has leased: it may hold one back for a while.
SELECT namespace, queue, kind, (rank >> 48)::integer, fairness_key, count(*),
    coalesce(
        min(rank) FILTER (WHERE leased_until_ns NOT BETWEEN {began} AND {task_lease_max}), min(rank)
    ),
    max(rank), min(created_ns)
FROM perdure.tasks WHERE namespace = $1 AND queue = $2 AND kind = $3
GROUP BY 1, 2, 3, 4, 5 ORDER BY 4, 5;

-- name: messages
SELECT id, key, body FROM perdure.messages WHERE id > $1 ORDER BY id LIMIT $2;

-- name: lock_runs
-- What is read and deleted afterwards is what the commits left that were waited for here.
SELECT key FROM perdure.states WHERE key = ANY($1::bigint[]) ORDER BY key FOR UPDATE;

-- name: has_messages
SELECT min(key) FROM perdure.messages WHERE key = ANY($1::bigint[]);

-- name: delete
WITH ds AS (DELETE FROM perdure.states WHERE key = ANY($1::bigint[])),
di AS (DELETE FROM perdure.items WHERE key = ANY($1::bigint[])),
dh AS (DELETE FROM perdure.history WHERE key = ANY($1::bigint[]))
DELETE FROM perdure.runs WHERE key = ANY($1::bigint[]);

-- name: shorten
-- Nothing, if there are no more than so many: what is compared with is NULL then.
WITH gone AS (
    DELETE FROM perdure.history WHERE key = $1 AND first_event_id < (
        SELECT first_event_id FROM perdure.history WHERE key = $1 ORDER BY first_event_id
        LIMIT 1 OFFSET $2
    )
    RETURNING 1
)
SELECT count(*) > 0 FROM gone;

-- name: put_namespace
INSERT INTO perdure.namespaces AS n (name, id, body) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET id = excluded.id, body = excluded.body WHERE n.body = $4
RETURNING name;

-- name: namespaces
SELECT name, id, body FROM perdure.namespaces ORDER BY name;

-- name: namespace
SELECT name, id, body FROM perdure.namespaces WHERE name = $1;
