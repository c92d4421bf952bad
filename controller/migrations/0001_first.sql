-- What must outlive a controller. Beliefs and phases are not here: the agents say them again within seconds.
-- Bodies are the JSON of the core's own types; the columns beside them are what is searched for.
-- One text for SQLite and PostgreSQL; what cannot be said for both at once is in the folder of each.
-- Times are milliseconds since 1970. Flags are 0 or 1.

-- Who leads, by the database's own time. Every write of a controller first takes this row's lock and compares the term.
CREATE TABLE controller_lease (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    term BIGINT NOT NULL,
    holder TEXT NOT NULL,
    holder_api TEXT NOT NULL,
    renewed_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);

CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

CREATE TABLE operations (
    id BIGINT PRIMARY KEY,
    node TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    is_open BIGINT NOT NULL,
    body TEXT NOT NULL,
    recorded_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);
CREATE INDEX operations_open ON operations (id) WHERE is_open = 1;
CREATE INDEX operations_closed ON operations (updated_at_ms) WHERE is_open = 0;

-- (term, seq) makes a batch that was committed without an answer harmless to repeat. Ids are given out under the lock
-- of the lease, so a reader that has seen one has seen all before it.
CREATE TABLE events (
    id BIGINT PRIMARY KEY,
    term BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    node TEXT,
    severity TEXT NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (term, seq)
);
CREATE INDEX events_of_node ON events (node, id);

-- The token itself is never stored, only its SHA-256.
CREATE TABLE join_tokens (
    hash TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms BIGINT
);

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    issued_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
CREATE INDEX certificates_of_node ON certificates (node);

-- Clusters as their provider lists them, one row each.
CREATE TABLE skypilot_clusters (
    cluster_name TEXT PRIMARY KEY,
    deployment TEXT NOT NULL,
    provider TEXT NOT NULL,
    region TEXT NOT NULL,
    zone TEXT NOT NULL,
    gpu TEXT NOT NULL,
    pricing TEXT NOT NULL,
    status TEXT NOT NULL,
    node_count BIGINT NOT NULL,
    price_per_hour_usd DOUBLE PRECISION,
    cluster_hash TEXT,
    launched_by BIGINT NOT NULL,
    launched_at_ms BIGINT NOT NULL,
    last_seen_at_ms BIGINT,
    updated_at_ms BIGINT NOT NULL
);

-- Snapshots of the store in the object store.
CREATE TABLE skypilot_state_snapshots (
    id BIGINT PRIMARY KEY,
    taken_at_ms BIGINT NOT NULL,
    term BIGINT NOT NULL,
    url TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    checksum TEXT NOT NULL,
    node_count BIGINT NOT NULL,
    operation_count BIGINT NOT NULL,
    state TEXT NOT NULL
);

-- A provider's list against the store. `drift` is JSON.
CREATE TABLE skypilot_sync_status (
    provider TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('in_sync', 'diverged', 'syncing')),
    store_hash TEXT NOT NULL,
    provider_hash TEXT NOT NULL,
    drift TEXT NOT NULL,
    checked_at_ms BIGINT NOT NULL,
    in_sync_since_ms BIGINT,
    error TEXT
);

-- Each time that a snapshot was written into this database. Operations get ids above `operation_floor`: those below may
-- have been given out after the snapshot was taken.
CREATE TABLE restores (
    term BIGINT PRIMARY KEY,
    snapshot TEXT NOT NULL,
    operation_floor BIGINT NOT NULL,
    restored_at_ms BIGINT NOT NULL
);
