-- The first schema, in a PostgreSQL schema of its own, so that it lives beside the tables of an
-- application. Every row of a run starts with the run's key: what commits together can live
-- together on an engine that distributes tables. Text is compared by code point (COLLATE "C").

CREATE TABLE perdure.namespaces (
    name text COLLATE "C" PRIMARY KEY,
    id text NOT NULL,
    body bytea NOT NULL
);

-- A block of ids for each nextval: unique over all nodes, whatever crashes.
CREATE SEQUENCE perdure.ids INCREMENT 65536;

-- The columns are the fields of Record, in their order.
CREATE TABLE perdure.runs (
    key bigint PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    workflow_type text COLLATE "C" NOT NULL,
    task_queue text COLLATE "C" NOT NULL,
    status integer NOT NULL,
    start_ns bigint NOT NULL,
    execution_ns bigint NOT NULL,
    close_ns bigint NOT NULL,
    history_length bigint NOT NULL,
    history_size_bytes bigint NOT NULL,
    transition_count bigint NOT NULL,
    parent_workflow_id text COLLATE "C" NOT NULL,
    parent_run_id text COLLATE "C" NOT NULL,
    root_workflow_id text COLLATE "C" NOT NULL,
    root_run_id text COLLATE "C" NOT NULL,
    first_run_id text COLLATE "C" NOT NULL,
    search_attributes jsonb NOT NULL,
    info bytea NOT NULL,
    memo bytea NOT NULL,
    attributes bytea NOT NULL
);
CREATE UNIQUE INDEX runs_by_run_id ON perdure.runs (namespace, run_id);
CREATE UNIQUE INDEX runs_open ON perdure.runs (namespace, workflow_id) WHERE close_ns = 0;
CREATE INDEX runs_by_workflow_id ON perdure.runs (namespace, workflow_id, start_ns);
CREATE INDEX runs_by_start ON perdure.runs (namespace, start_ns, key);
CREATE INDEX runs_by_type ON perdure.runs (namespace, workflow_type, start_ns, key);
CREATE INDEX runs_by_status ON perdure.runs (namespace, status, start_ns, key);
CREATE INDEX runs_by_close ON perdure.runs (namespace, close_ns, key);
CREATE INDEX runs_by_queue ON perdure.runs (namespace, task_queue, start_ns, key);
CREATE INDEX runs_by_parent ON perdure.runs (namespace, parent_workflow_id, start_ns, key)
    WHERE parent_workflow_id > '';
CREATE INDEX runs_by_attributes ON perdure.runs USING gin (search_attributes jsonb_path_ops)
    WHERE search_attributes <> '{}';

-- Rewritten by every transition: room in each page keeps the new version there (a HOT update) as
-- long as no indexed column changes. wake_at_ns is the only one, and it rarely does.
CREATE TABLE perdure.states (
    key bigint PRIMARY KEY,
    version bigint NOT NULL,
    wake_at_ns bigint NOT NULL,
    node bigint NOT NULL,  -- whose own workers hold tasks of the run; 0: nobody's
    watched smallint NOT NULL DEFAULT 0,  -- who wants to hear: 0 nobody, 1 of the close, 2 of all
    state bytea NOT NULL
) WITH (
    fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX states_by_alarm ON perdure.states (wake_at_ns) WHERE wake_at_ns > 0;

CREATE TABLE perdure.items (
    key bigint NOT NULL,
    id integer NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (key, id)
) WITH (
    fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- position = the writing transaction's number << 20 | the row's place in its batch. Below the oldest
-- transaction that runs (pg_snapshot_xmin) no position can appear any more: a feed reads up to
-- there. Not unique: after a dump is restored elsewhere, numbers begin anew.
CREATE TABLE perdure.history (
    key bigint NOT NULL,
    first_event_id bigint NOT NULL,
    last_event_id bigint NOT NULL,
    position bigint NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (key, first_event_id)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX history_by_position ON perdure.history (position);

-- leased_until_ns: a node is about to start the task, by the database's clock.
CREATE TABLE perdure.tasks (
    id bigint PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    kind integer NOT NULL,
    key bigint NOT NULL,
    scheduled_event_id bigint NOT NULL,
    stamp bigint NOT NULL,
    created_ns bigint NOT NULL,
    rank bigint NOT NULL,
    fairness_key text COLLATE "C" NOT NULL,
    leased_until_ns bigint NOT NULL DEFAULT 0
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX tasks_by_queue ON perdure.tasks (namespace, queue, kind, rank, id);

-- leased_until_ns: a node is about to deliver the message.
CREATE TABLE perdure.messages (
    id bigint PRIMARY KEY,
    key bigint NOT NULL,
    body bytea NOT NULL,
    leased_until_ns bigint NOT NULL DEFAULT 0
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX messages_by_run ON perdure.messages (key);

-- Nodes that have workers of their own or wait for something, by their last sign of life.
CREATE TABLE perdure.nodes (
    id bigint PRIMARY KEY,
    seen_ns bigint NOT NULL,
    taken_until_ns bigint NOT NULL DEFAULT 0  -- another node offers its work again
) WITH (fillfactor = 50);

-- What may be lost with the database server: how far rate-limited queues are, and what nodes ask
-- each other.
CREATE UNLOGGED TABLE perdure.rates (
    name text COLLATE "C" PRIMARY KEY,
    due_ns bigint NOT NULL
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE perdure.letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address text COLLATE "C" NOT NULL,
    created_ns bigint NOT NULL,
    body bytea NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX letters_by_address ON perdure.letters (address, id);
