-- What SQLite says in its own words: its clock, and that the event log is only ever appended to.

CREATE VIEW database_clock AS SELECT CAST(unixepoch('subsec') * 1000 AS BIGINT) AS now_ms;

CREATE TRIGGER events_never_change BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'the event log is append-only');
END;

-- Retention may forget what is older than the newest million, and nothing else may go.
CREATE TRIGGER events_never_vanish BEFORE DELETE ON events
WHEN OLD.id > (SELECT max(id) FROM events) - 1000000
BEGIN
    SELECT RAISE(ABORT, 'the event log is append-only');
END;
