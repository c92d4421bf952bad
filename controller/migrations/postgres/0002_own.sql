-- What PostgreSQL says in its own words: its clock, and that the event log is only ever appended to.

-- Of the moment at which it is read, not of the transaction's begin.
CREATE VIEW database_clock AS
    SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT) AS now_ms;

CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the event log is append-only';
END
$$;

CREATE TRIGGER events_never_change BEFORE UPDATE ON events
FOR EACH ROW EXECUTE FUNCTION events_are_append_only();

CREATE TRIGGER events_never_go_at_once BEFORE TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only();

-- Retention may forget what is older than the newest million, and nothing else may go.
CREATE FUNCTION events_forget_only_the_old() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.id > (SELECT max(id) FROM events) - 1000000 THEN
        RAISE EXCEPTION 'the event log is append-only';
    END IF;
    RETURN OLD;
END
$$;

CREATE TRIGGER events_never_vanish BEFORE DELETE ON events
FOR EACH ROW EXECUTE FUNCTION events_forget_only_the_old();
