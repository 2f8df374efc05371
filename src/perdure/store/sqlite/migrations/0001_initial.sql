-- The first schema.
--
-- An ordinary step appends to history and its one index, and rewrites one row of states, in place:
-- no column that it sets is in an index. Rows are found by integer keys, in the order of writing.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    body BLOB NOT NULL
) WITHOUT ROWID;

-- What list, count and describe see; written at start, close and upsert.
CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    workflow_type TEXT NOT NULL,
    task_queue TEXT NOT NULL,
    status INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    execution_ns INTEGER NOT NULL,
    close_ns INTEGER NOT NULL,
    history_length INTEGER NOT NULL,
    history_size_bytes INTEGER NOT NULL,
    transition_count INTEGER NOT NULL,
    parent_workflow_id TEXT NOT NULL,
    parent_run_id TEXT NOT NULL,
    root_workflow_id TEXT NOT NULL,
    root_run_id TEXT NOT NULL,
    first_run_id TEXT NOT NULL,
    search_attributes TEXT NOT NULL,
    info BLOB NOT NULL,
    memo BLOB NOT NULL,
    attributes BLOB NOT NULL
);

CREATE UNIQUE INDEX runs_by_run_id ON runs (namespace, run_id);
CREATE UNIQUE INDEX runs_open ON runs (namespace, workflow_id) WHERE close_ns = 0;
CREATE INDEX runs_by_workflow_id ON runs (namespace, workflow_id, start_ns);
CREATE INDEX runs_by_start ON runs (namespace, start_ns);
CREATE INDEX runs_by_type ON runs (namespace, workflow_type, start_ns);
CREATE INDEX runs_by_status ON runs (namespace, status, start_ns);

-- The blob comes last, so that the small columns are read without its overflow pages.
CREATE TABLE states (
    key INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    wake_at_ns INTEGER NOT NULL,
    in_flight INTEGER NOT NULL,
    state BLOB NOT NULL
);

CREATE INDEX states_by_alarm ON states (wake_at_ns) WHERE wake_at_ns > 0;

-- id = key << 24 | item id: a run's items lie together.
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    body BLOB NOT NULL
);

-- id is the position in commit order, never used twice.
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    key INTEGER NOT NULL,
    first_event_id INTEGER NOT NULL,
    last_event_id INTEGER NOT NULL,
    events BLOB NOT NULL
);

CREATE INDEX history_by_run ON history (key, first_event_id);

CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    queue TEXT NOT NULL,
    kind INTEGER NOT NULL,
    key INTEGER NOT NULL,
    scheduled_event_id INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    created_ns INTEGER NOT NULL
);

CREATE INDEX tasks_by_queue ON tasks (namespace, queue, kind);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    key INTEGER NOT NULL,
    body BLOB NOT NULL
);
