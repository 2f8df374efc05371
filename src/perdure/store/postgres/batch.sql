-- The parts of the one statement that writes a batch; batch.py joins those that a batch needs.
-- {n} stands for the next parameter.

-- name: states
-- Locks the runs' rows in the order of their keys, and changes those that are as assumed.
w AS (
    SELECT * FROM unnest(
        {1}::bigint[], {2}::bigint[], {3}::bigint[], {4}::bigint[], {5}::smallint[],
        {6}::boolean[], {7}::bytea[]
    ) AS w (key, based_on, version, wake_at_ns, in_flight, closes, state)
),
l AS (
    SELECT key, version, watched FROM perdure.states
    WHERE key = ANY({1}::bigint[]) AND {brisk} ORDER BY key FOR NO KEY UPDATE
),
s AS (
    UPDATE perdure.states AS s SET
        version = w.version, wake_at_ns = coalesce(w.wake_at_ns, s.wake_at_ns),
        node = CASE
            WHEN w.in_flight = 0 THEN 0
            WHEN w.in_flight = 1 THEN s.node
            WHEN s.node IN (0, {8}::bigint) THEN {8}::bigint
            ELSE -1  -- several nodes
        END,
        watched = CASE WHEN w.closes THEN 0 ELSE least(l.watched, 1) END,
        state = w.state
    FROM w JOIN l ON l.key = w.key AND l.version = w.based_on
    WHERE s.key = w.key
    RETURNING s.key, l.watched = 2 OR (l.watched = 1 AND w.closes) AS awaited
)

-- name: new_states
ns AS (
    INSERT INTO perdure.states (key, version, wake_at_ns, node, state)
    SELECT * FROM unnest({1}::bigint[], {2}::bigint[], {3}::bigint[], {4}::bigint[], {5}::bytea[])
)

-- name: new_records
-- Of runs whose workflow ids are locked: who has one open is seen here, and which one was the last.
nr AS (
    INSERT INTO perdure.runs ({record})
    SELECT
        key, namespace, workflow_id, run_id, workflow_type, task_queue, status, start_ns, execution_ns,
        close_ns, history_length, history_size_bytes, transition_count, parent_workflow_id,
        parent_run_id, root_workflow_id, root_run_id, first_run_id, search_attributes::jsonb, info,
        memo, attributes
    FROM unnest(
        {1}::bigint[], {2}::text[], {3}::text[], {4}::text[], {5}::text[], {6}::text[], {7}::integer[],
        {8}::bigint[], {9}::bigint[], {10}::bigint[], {11}::bigint[], {12}::bigint[], {13}::bigint[],
        {14}::text[], {15}::text[], {16}::text[], {17}::text[], {18}::text[], {19}::text[], {20}::bytea[],
        {21}::bytea[], {22}::bytea[], {23}::bigint[]
    ) AS u (
        key, namespace, workflow_id, run_id, workflow_type, task_queue, status, start_ns, execution_ns,
        close_ns, history_length, history_size_bytes, transition_count, parent_workflow_id,
        parent_run_id, root_workflow_id, root_run_id, first_run_id, search_attributes, info, memo,
        attributes, follows
    )
    WHERE (
        (u.close_ns > 0 AND u.follows IS NULL) OR NOT EXISTS (
            SELECT FROM perdure.runs AS r
            WHERE r.namespace = u.namespace AND r.workflow_id = u.workflow_id AND r.close_ns = 0
        )
    ) AND (
        u.follows IS NULL OR u.follows = (
            SELECT coalesce(max(last.key), 0) FROM ({last_runs}) AS last
        )
    )
    RETURNING key
)

-- name: records
-- Only what may change during a run: the columns of most indexes stay as they are.
r AS (
    UPDATE perdure.runs AS r SET
        task_queue = u.task_queue, execution_ns = u.execution_ns,
        history_length = u.history_length, history_size_bytes = u.history_size_bytes,
        transition_count = u.transition_count, search_attributes = u.search_attributes::jsonb,
        info = u.info, memo = u.memo, attributes = u.attributes, status = u.status,
        close_ns = u.close_ns
    FROM unnest(
        {1}::bigint[], {2}::text[], {3}::bigint[], {4}::bigint[], {5}::bigint[], {6}::bigint[],
        {7}::text[], {8}::bytea[], {9}::bytea[], {10}::bytea[], {11}::integer[], {12}::bigint[]
    ) AS u (
        key, task_queue, execution_ns, history_length, history_size_bytes, transition_count,
        search_attributes, info, memo, attributes, status, close_ns
    )
    WHERE r.key = u.key
    RETURNING r.key
)

-- name: history
h AS (
    INSERT INTO perdure.history (key, first_event_id, last_event_id, events, position)
    SELECT key, first, last, events, (pg_current_xact_id()::text::bigint << 20) + place
    FROM unnest({1}::bigint[], {2}::bigint[], {3}::bigint[], {4}::bytea[])
        WITH ORDINALITY AS u (key, first, last, events, place)
)

-- name: put_items
pi AS (
    INSERT INTO perdure.items (key, id, body)
    SELECT * FROM unnest({1}::bigint[], {2}::integer[], {3}::bytea[])
    ON CONFLICT (key, id) DO UPDATE SET body = excluded.body
)

-- name: drop_items
di AS (
    DELETE FROM perdure.items AS i USING unnest({1}::bigint[], {2}::integer[]) AS u (key, id)
    WHERE i.key = u.key AND i.id = u.id
)

-- name: put_tasks
t AS (
    INSERT INTO perdure.tasks (
        id, namespace, queue, kind, key, scheduled_event_id, stamp, created_ns, rank, fairness_key
    )
    SELECT * FROM unnest(
        {1}::bigint[], {2}::text[], {3}::text[], {4}::integer[], {5}::bigint[], {6}::bigint[],
        {7}::bigint[], {8}::bigint[], {9}::bigint[], {10}::text[]
    )
)

-- name: drop_tasks
dt AS (
    DELETE FROM perdure.tasks WHERE id = ANY({1}::bigint[]) AND {locked} RETURNING id
)

-- name: put_messages
m AS (
    INSERT INTO perdure.messages (id, key, body, leased_until_ns)
    SELECT id, key, body, {now} + {4}::bigint
    FROM unnest({1}::bigint[], {2}::bigint[], {3}::bytea[]) AS u (id, key, body)
)

-- name: drop_messages
dm AS (DELETE FROM perdure.messages WHERE id = ANY({1}::bigint[]) AND {locked})
