-- What nodes that share a database ask of it. {now} is the database's clock in nanoseconds, {began} what
-- it showed when the statement came, {…_max} the latest that it lets a lease end, or a node be seen. What is
-- later was written by another clock, as of the server before a fail-over, and counts as over, or as
-- never seen: else it would hold until this clock gets there. {quick} lets the transaction end without
-- waiting for the disk: what it writes may be lost with the server.

-- name: versions
SELECT key, version FROM perdure.states WHERE key = ANY($1::bigint[]);

-- name: watch
WITH u AS (
    SELECT * FROM unnest($1::bigint[], $2::smallint[]) AS u (key, awaited)
),
marked AS (
    UPDATE perdure.states AS s SET watched = l.awaited
    FROM (
        SELECT s.key, u.awaited FROM perdure.states AS s JOIN u ON u.key = s.key
        WHERE s.watched < u.awaited AND {patient} ORDER BY s.key FOR NO KEY UPDATE OF s
    ) AS l
    WHERE s.key = l.key AND {quick}
    RETURNING s.key, s.version
)
SELECT key, max(version) FROM (
    SELECT key, version FROM marked
    UNION ALL
    SELECT s.key, s.version FROM perdure.states AS s JOIN u ON u.key = s.key
) AS found GROUP BY key;

-- name: lease_tasks
-- Here and below what was found is an array: a join with it may go through the whole table, as a plan
-- that is kept does not know how few there are.
WITH free AS (
    SELECT id FROM perdure.tasks
    WHERE namespace = $1 AND queue = $2 AND kind = $3
        AND leased_until_ns NOT BETWEEN {now} AND {task_lease_max}
    ORDER BY rank, id LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE perdure.tasks AS t SET leased_until_ns = {now} + $5::bigint
WHERE t.id = ANY(ARRAY(SELECT id FROM free)) AND {quick}
RETURNING t.id, t.namespace, t.queue, t.kind, t.key, t.scheduled_event_id, t.stamp, t.created_ns,
    t.rank, t.fairness_key;

-- name: release_tasks
WITH found AS (
    SELECT id FROM perdure.tasks WHERE id = ANY($1::bigint[]) FOR UPDATE SKIP LOCKED
)
UPDATE perdure.tasks AS t SET leased_until_ns = 0 FROM found WHERE t.id = found.id AND {quick}
RETURNING t.namespace, t.queue, t.kind;

-- name: drop_tasks
DELETE FROM perdure.tasks WHERE id IN (
    SELECT t.id FROM perdure.tasks AS t WHERE t.id = ANY($1::bigint[])
        AND NOT EXISTS (SELECT FROM perdure.states AS s WHERE s.key = t.key)
    FOR UPDATE SKIP LOCKED
);

-- name: lease_due
WITH due AS (
    SELECT key FROM perdure.states WHERE wake_at_ns > 0 AND wake_at_ns <= $1
    ORDER BY wake_at_ns LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE perdure.states AS s SET wake_at_ns = $1 + $3::bigint
WHERE s.key = ANY(ARRAY(SELECT key FROM due)) AND {quick}
RETURNING s.key;

-- name: lease_messages
WITH free AS (
    SELECT id FROM perdure.messages
    WHERE leased_until_ns NOT BETWEEN {now} AND {message_lease_max}
    ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE perdure.messages AS m SET leased_until_ns = {now} + $2::bigint
WHERE m.id = ANY(ARRAY(SELECT id FROM free)) AND {quick}
RETURNING m.id, m.key, m.body;

-- name: release_messages
WITH found AS (
    SELECT id FROM perdure.messages WHERE id = ANY($1::bigint[]) FOR UPDATE SKIP LOCKED
)
UPDATE perdure.messages AS m SET leased_until_ns = 0 FROM found WHERE m.id = found.id AND {quick};

-- name: rate
SELECT {now}, coalesce((SELECT due_ns FROM perdure.rates WHERE name = $1), 0);

-- name: take_rate
INSERT INTO perdure.rates AS r (name, due_ns) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET due_ns = excluded.due_ns WHERE r.due_ns = $3
RETURNING {quick};

-- name: post
-- The number is of the node's own block of ids. nextval('perdure.ids') in its place would use up a
-- block, and as this transaction does not wait for the disk, hand it out again after a crash. The
-- column's own sequence, of older nodes, is unlogged as its table is, and on PostgreSQL 15 to 17 broken
-- for good ("bad magic number in sequence") once a replica was promoted.
INSERT INTO perdure.letters (id, address, created_ns, body) OVERRIDING SYSTEM VALUE
VALUES ($1, $2, {now}, $3)
RETURNING {quick};

-- name: take_back
DELETE FROM perdure.letters WHERE id = $1 RETURNING {quick};

-- name: collect
DELETE FROM perdure.letters WHERE id IN (
    SELECT id FROM perdure.letters WHERE address = ANY($1::text[])
    ORDER BY created_ns, id LIMIT $2 FOR UPDATE SKIP LOCKED
) AND {quick}
RETURNING created_ns, id, address, body;

-- name: tell
SELECT pg_notify('perdure', notice) FROM unnest($1::text[]) AS notice WHERE {quick};

-- name: free_notices
-- Lets go of notices that all have read. Else who sends one does so, now and then, after it was sent: a
-- queue that is full stayed so, also when the session is gone that did not read.
SELECT pg_notification_queue_usage();

-- name: beat
-- $1 node, $2 how long a silent node lives, $3 how long a funeral takes, $4-$6 queues, $7 addresses,
-- $8 how long an alarm may have been due, $9-$10 when this node may say that others are dead. Nobody
-- is told anything within it: where the server's queue of notices is full, who tells something fails. It locks its own row, and only then those of others, without waiting.
-- Only indexes have the orders of tasks and alarms: one queue's tasks are not gone through for another,
-- nor all alarms for one that is due.
-- That a namespace changed shows in the transaction that wrote its row: bodies may have megabytes.
WITH mine AS (
    INSERT INTO perdure.nodes AS n (id, seen_ns) VALUES ($1, {began})
    ON CONFLICT (id) DO UPDATE SET seen_ns = excluded.seen_ns
    RETURNING {quick}
),
gone AS (
    UPDATE perdure.nodes AS n SET taken_until_ns = {began} + $3::bigint
    FROM (
        SELECT id FROM perdure.nodes
        WHERE id <> $1 AND seen_ns NOT BETWEEN {began} - $2::bigint AND {seen_max}
            AND taken_until_ns NOT BETWEEN {began} AND {funeral_max}
            AND {began} BETWEEN $9::bigint AND $10::bigint AND (SELECT count(*) FROM mine) = 1
        FOR UPDATE SKIP LOCKED
    ) AS dead
    WHERE n.id = dead.id
    RETURNING n.id
)
SELECT
    {now},
    ARRAY(
        SELECT id FROM perdure.nodes
        WHERE seen_ns BETWEEN {began} - $2::bigint AND {seen_max}
            OR {began} NOT BETWEEN $9::bigint AND $10::bigint
    ),
    ARRAY(SELECT id FROM gone),
    ARRAY(
        SELECT q.place::integer
        FROM unnest($4::text[], $5::text[], $6::integer[])
            WITH ORDINALITY AS q (namespace, queue, kind, place)
        WHERE (
            SELECT true FROM perdure.tasks AS t
            WHERE t.namespace = q.namespace AND t.queue = q.queue AND t.kind = q.kind
                AND t.leased_until_ns NOT BETWEEN {now} AND {task_lease_max}
            ORDER BY t.rank, t.id LIMIT 1
        )
    ),
    EXISTS (SELECT FROM perdure.letters WHERE address = ANY($7::text[])),
    EXISTS (
        SELECT FROM perdure.messages
        WHERE leased_until_ns NOT BETWEEN {now} AND {message_lease_max}
    ),
    coalesce((
        SELECT wake_at_ns FROM perdure.states WHERE wake_at_ns > 0 ORDER BY wake_at_ns LIMIT 1
    ) < {now} - $8::bigint, false),
    (SELECT sum(hashtextextended(concat(xmin, ' ', name), 0))::text FROM perdure.namespaces),
    (SELECT max(number) FROM perdure.migrations),
    (SELECT max(oldest) FROM perdure.migrations),
    (SELECT count(*) FROM mine);

-- name: version
SELECT max(number), max(oldest) FROM perdure.migrations;

-- name: sweep_letters
DELETE FROM perdure.letters WHERE id IN (
    SELECT id FROM perdure.letters WHERE created_ns < {now} - $1::bigint FOR UPDATE SKIP LOCKED
);

-- name: sweep_tasks
-- What waits on the sticky queue of a worker that died is taken by nobody: its run goes on without.
-- $1 where the former page ended, $2 how many to look at; where this one ends, if there may be more.
-- Runs are looked up one by one: however many there are, a page costs the same.
WITH page AS (
    SELECT id, key FROM perdure.tasks WHERE id > $1 ORDER BY id LIMIT $2
),
gone AS (
    DELETE FROM perdure.tasks WHERE id = ANY(ARRAY(
        SELECT t.id FROM perdure.tasks AS t
        WHERE t.leased_until_ns NOT BETWEEN {now} AND {task_lease_max} AND t.id = ANY(ARRAY(
            SELECT id FROM page
            WHERE coalesce((SELECT close_ns FROM perdure.runs AS r WHERE r.key = page.key), 1) <> 0
        ))
        FOR UPDATE SKIP LOCKED
    ))
)
SELECT CASE WHEN count(*) = $2 THEN max(id) ELSE 0 END FROM page;

-- name: sweep_messages
-- No run that has messages is deleted, but former versions did so: nobody can deliver them.
-- Runs are looked up one by one: there are more of them than of messages.
DELETE FROM perdure.messages WHERE id = ANY(ARRAY(
    SELECT m.id FROM perdure.messages AS m
    WHERE (SELECT s.key FROM perdure.states AS s WHERE s.key = m.key) IS NULL
    LIMIT 1000 FOR UPDATE SKIP LOCKED
));

-- name: sweep_rates
-- A rate that is not due any more is as good as one that was never used.
DELETE FROM perdure.rates WHERE name IN (
    SELECT name FROM perdure.rates WHERE due_ns < {now} - $1::bigint FOR UPDATE SKIP LOCKED
);

-- name: orphans
-- $1 how long a silent node lives, $2-$3 the open run that the former page ended with, $4 how many
-- to look at, $5-$6 when this node may say that others are dead. By the index of open runs: those
-- that closed long ago cost nothing, and one on states.node would cost transitions their HOT updates.
WITH living AS (
    SELECT id FROM perdure.nodes
    WHERE seen_ns BETWEEN {began} - $1::bigint AND {seen_max}
        OR {began} NOT BETWEEN $5::bigint AND $6::bigint
),
page AS (
    SELECT r.namespace, r.workflow_id, r.key,
        (SELECT s.node FROM perdure.states AS s WHERE s.key = r.key) AS node
    FROM perdure.runs AS r
    WHERE r.close_ns = 0 AND (r.namespace, r.workflow_id) > ($2, $3)
    ORDER BY r.namespace, r.workflow_id LIMIT $4
)
SELECT
    ARRAY(SELECT key FROM page WHERE node <> 0 AND node NOT IN (SELECT id FROM living)),
    (SELECT ARRAY[namespace, workflow_id] FROM page
        ORDER BY namespace, workflow_id OFFSET $4::bigint - 1 LIMIT 1);

-- name: dead
-- $1 nodes, $2 how long a silent node lives, $3-$4 when this node may say that others are dead.
SELECT u.id FROM unnest($1::bigint[]) AS u (id) WHERE NOT EXISTS (
    SELECT FROM perdure.nodes AS n WHERE n.id = u.id AND (
        n.seen_ns BETWEEN {began} - $2::bigint AND {seen_max}
        OR {began} NOT BETWEEN $3::bigint AND $4::bigint
    )
);

-- name: bury
-- But not who came back meanwhile.
DELETE FROM perdure.nodes
WHERE id = $1 AND seen_ns NOT BETWEEN {began} - $2::bigint AND {seen_max};

-- name: leave
DELETE FROM perdure.nodes WHERE id = $1;
