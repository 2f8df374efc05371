-- Every fixed statement of the SQLite store, by name. List and count are rendered in render.py.

-- name: insert_state
INSERT INTO states (key, version, wake_at_ns, in_flight, state) VALUES (?, ?, ?, ?, ?);

-- name: update_state
UPDATE states SET version = ?, in_flight = ?, state = ? WHERE key = ? AND version = ?;

-- name: update_state_and_alarm
UPDATE states SET version = ?, wake_at_ns = ?, in_flight = ?, state = ?
WHERE key = ? AND version = ?;

-- name: insert_record
INSERT INTO runs (
    key, namespace, workflow_id, run_id, workflow_type, task_queue, status, start_ns,
    execution_ns, close_ns, history_length, history_size_bytes, transition_count,
    parent_workflow_id, parent_run_id, root_workflow_id, root_run_id, first_run_id,
    search_attributes, info, memo, attributes
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: update_record
-- Only what may change during a run: the columns of most indexes stay as they are.
UPDATE runs SET
    task_queue = ?, execution_ns = ?, history_length = ?, history_size_bytes = ?,
    transition_count = ?, search_attributes = ?, info = ?, memo = ?, attributes = ?,
    status = ?, close_ns = ?
WHERE key = ?;

-- name: insert_history
INSERT INTO history (id, key, first_event_id, last_event_id, events) VALUES (?, ?, ?, ?, ?);

-- name: put_item
INSERT INTO items (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body;

-- name: drop_item
DELETE FROM items WHERE id = ?;

-- name: insert_task
INSERT INTO tasks (
    id, namespace, queue, kind, key, scheduled_event_id, stamp, created_ns, rank, fairness_key
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: drop_task
DELETE FROM tasks WHERE id = ?;

-- name: insert_message
INSERT INTO messages (id, key, body) VALUES (?, ?, ?);

-- name: drop_message
DELETE FROM messages WHERE id = ?;

-- name: get_meta
SELECT value FROM meta WHERE name = ?;

-- name: put_meta
INSERT INTO meta (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value);

-- name: last_position
SELECT max(id) FROM history;

-- name: find_run
SELECT key FROM runs WHERE namespace = ? AND run_id = ? AND workflow_id = ?;

-- name: find_open
SELECT key FROM runs WHERE namespace = ? AND workflow_id = ? AND close_ns = 0;

-- name: find_last
SELECT key FROM runs WHERE namespace = ? AND workflow_id = ?
ORDER BY start_ns DESC, key DESC LIMIT 1;

-- name: load_record
SELECT {record} FROM runs WHERE key = ?;

-- name: load_state
SELECT version, wake_at_ns, state FROM states WHERE key = ?;

-- name: load_items
SELECT id, body FROM items WHERE id BETWEEN ? AND ? ORDER BY id;

-- name: history
SELECT first_event_id, last_event_id, events FROM history
WHERE key = :key
    AND first_event_id >= coalesce((
        SELECT max(first_event_id) FROM history WHERE key = :key AND first_event_id <= :first
    ), :first)
    AND first_event_id <= :last AND last_event_id >= :first
ORDER BY first_event_id LIMIT :limit;

-- name: history_reversed
SELECT first_event_id, last_event_id, events FROM history
WHERE key = :key
    AND first_event_id >= coalesce((
        SELECT max(first_event_id) FROM history WHERE key = :key AND first_event_id <= :first
    ), :first)
    AND first_event_id <= :last AND last_event_id >= :first
ORDER BY first_event_id DESC LIMIT :limit;

-- name: changes
SELECT id, key, first_event_id, last_event_id, events FROM history
WHERE id > ? ORDER BY id LIMIT ?;

-- name: due
SELECT key, wake_at_ns FROM states WHERE wake_at_ns > 0 AND wake_at_ns <= ?
ORDER BY wake_at_ns LIMIT ?;

-- name: next_alarm
SELECT min(wake_at_ns) FROM states WHERE wake_at_ns > 0;

-- name: in_flight
SELECT states.key FROM runs INDEXED BY runs_open
JOIN states ON states.key = runs.key
WHERE runs.close_ns = 0 AND states.in_flight = 1 ORDER BY states.key;

-- name: tasks
SELECT id, namespace, queue, kind, key, scheduled_event_id, stamp, created_ns, rank, fairness_key
FROM tasks
WHERE namespace = ? AND queue = ? AND kind = ? AND (rank, id) > (?, ?) ORDER BY rank, id LIMIT ?;

-- name: backlogs
SELECT namespace, queue, kind, rank >> 48, fairness_key,
    count(*), min(rank), max(rank), min(created_ns)
FROM tasks GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5;

-- name: backlogs_of_queue
SELECT namespace, queue, kind, rank >> 48, fairness_key,
    count(*), min(rank), max(rank), min(created_ns)
FROM tasks WHERE namespace = ? AND queue = ? AND kind = ? GROUP BY 4, 5 ORDER BY 4, 5;

-- name: messages
SELECT id, key, body FROM messages WHERE id > ? ORDER BY id LIMIT ?;

-- name: delete_record
DELETE FROM runs WHERE key = ?;

-- name: delete_state
DELETE FROM states WHERE key = ?;

-- name: delete_items
DELETE FROM items WHERE id BETWEEN ? AND ?;

-- name: delete_history
DELETE FROM history WHERE key = ?;

-- name: shorten
-- Nothing, if there are no more than so many: what is compared with is NULL then.
DELETE FROM history WHERE key = :key AND first_event_id < (
    SELECT first_event_id FROM history WHERE key = :key ORDER BY first_event_id
    LIMIT 1 OFFSET :count
);

-- name: has_messages
SELECT EXISTS (SELECT 1 FROM messages WHERE key = ?);

-- name: put_namespace
INSERT INTO namespaces (name, id, body) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET id = excluded.id, body = excluded.body WHERE body = ?;

-- name: namespaces
SELECT name, id, body FROM namespaces ORDER BY name;

-- name: namespace
SELECT name, id, body FROM namespaces WHERE name = ?;
