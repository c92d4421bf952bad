-- What must outlive a controller. Beliefs and phases are not here: the agents say them again within seconds.
-- Bodies are the JSON of the core's own types; the columns beside them are what is searched for.

CREATE TABLE controller_term (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    term INTEGER NOT NULL,
    raised_at_ms INTEGER NOT NULL
);

CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    updated_at_ms INTEGER NOT NULL
);

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    updated_at_ms INTEGER NOT NULL
);

CREATE TABLE operations (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    is_open INTEGER NOT NULL,
    body TEXT NOT NULL,
    recorded_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
);
CREATE INDEX operations_open ON operations (id) WHERE is_open = 1;

-- (term, seq) makes a batch that was committed without an answer harmless to repeat.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    term INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
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
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    used_at_ms INTEGER
);

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    issued_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL
);
