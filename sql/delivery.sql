--
-- Delivery status of an event; dead events; replay
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_delivery;
SET search_path = regress_delivery, public;

CREATE ROLE regress_delivery_owner LOGIN;
CREATE ROLE regress_delivery_other LOGIN;
GRANT USAGE, CREATE ON SCHEMA regress_delivery TO regress_delivery_owner;
GRANT USAGE ON SCHEMA regress_delivery TO regress_delivery_other;
GRANT SELECT ON notification_events TO regress_delivery_owner;
GRANT EXECUTE ON FUNCTION create_event_handler TO regress_delivery_owner;

CREATE TABLE calls (n serial, handler text, id bigint, event_name text);
GRANT ALL ON calls, calls_n_seq TO regress_delivery_owner;
CREATE TABLE mood (bad boolean);
INSERT INTO mood VALUES (true);
GRANT SELECT ON mood TO regress_delivery_owner;

-- ids differ from run to run: the tests use event names instead
CREATE FUNCTION id(name text) RETURNS bigint LANGUAGE sql AS
	$$SELECT e.id FROM notification_events e WHERE e.event_name = name$$;

-- fails for events called bad ..., while mood.bad is true
CREATE FUNCTION moody(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.event_name LIKE 'bad%' AND (SELECT bad FROM regress_delivery.mood) THEN
		RAISE EXCEPTION 'in a bad mood for %', e.event_name;
	END IF;
	INSERT INTO regress_delivery.calls (handler, id, event_name) VALUES ('moody', e.id, e.event_name);
END
$$;
CREATE FUNCTION plain(e notification_events) RETURNS void LANGUAGE sql AS
	$$INSERT INTO regress_delivery.calls (handler, id, event_name) VALUES ('plain', e.id, e.event_name)$$;

SELECT notify_event('early', '{"n": 0}'::jsonb) IS NOT NULL AS emitted;

SET ROLE regress_delivery_owner;
SELECT create_event_handler('moody', 'moody', max_attempts => 1);
SELECT create_event_handler('patient', 'moody', event_name => 'bad 1', retry_delay => '1 h');
SELECT create_event_handler('big', 'plain', filter => '$.n > 2');
SELECT create_event_handler('paused', 'plain');
SELECT pause_event_handler('paused');
RESET ROLE;
SELECT create_event_handler('other', 'plain', event_name => 'x*');

SELECT notify_event('good', '{"n": 1}'::jsonb) IS NOT NULL AS emitted;
SELECT notify_event('bad 1', '{"n": 2}'::jsonb) IS NOT NULL AS emitted;
SELECT notify_event('bad 2', '{"n": 3}'::jsonb) IS NOT NULL AS emitted;
CALL wait_for_event_handlers();

--
-- event_delivery_status
--
SELECT e.event_name, s.name, s.kind, s.status, s.attempts, s.next_attempt_at > now() AS later, s.last_error
	FROM notification_events e, event_delivery_status(e.id) s
	ORDER BY e.id, s.name COLLATE "C";

-- an event of the current transaction
BEGIN;
SELECT notify_event('x now') AS id \gset
SELECT name, status FROM event_delivery_status(:id) ORDER BY name COLLATE "C";
ROLLBACK;

-- a role sees its own handlers, and nothing without the right to read the log; pg_monitor sees all
SET ROLE regress_delivery_owner;
SELECT name, status FROM event_delivery_status(id('bad 1')) ORDER BY name COLLATE "C";
RESET ROLE;
SELECT id('bad 1') AS bad_1 \gset
SET ROLE regress_delivery_other;
SELECT * FROM event_delivery_status(:bad_1);
RESET ROLE;
GRANT pg_monitor TO regress_delivery_other;
SET ROLE regress_delivery_other;
SELECT name, status FROM event_delivery_status(:bad_1) ORDER BY name COLLATE "C";
RESET ROLE;
REVOKE pg_monitor FROM regress_delivery_other;

-- row security hides the event, and so its delivery status
ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY good ON notification_events FOR SELECT USING (event_name = 'good');
SET ROLE regress_delivery_owner;
SELECT count(*) FROM event_delivery_status(id('good'));
SELECT name, status FROM event_delivery_status(:bad_1) ORDER BY name COLLATE "C";
-- nor does the result of a replay reveal it
SELECT alter_event_handler('big', event_name => 'bad 2');
SELECT replay_events('big', 1);
SELECT alter_event_handler('big', event_name => '*');
RESET ROLE;
ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
DROP POLICY good ON notification_events;

-- an error in another handler's filter does not fail the query
SELECT pause_event_handler('other');
SELECT alter_event_handler('other', event_name => '*', filter => '$ ? ("2020-01-01T00:00:00+00".datetime() > "2020-01-01".datetime())');
SELECT name, status FROM event_delivery_status(id('good')) ORDER BY name COLLATE "C";
SELECT alter_event_handler('other', event_name => 'x*', clear_filter => true);
SELECT resume_event_handler('other');

-- bad input
SELECT * FROM event_delivery_status(NULL);
SELECT * FROM event_delivery_status(-1);

--
-- Dead events
--
SET ROLE regress_delivery_other;
SELECT retry_dead_events('moody');
SELECT discard_dead_events('moody');
SELECT replay_events('moody', 1);
RESET ROLE;
SELECT retry_dead_events('none');
SELECT discard_dead_events(NULL);

SET ROLE regress_delivery_owner;
SELECT retry_dead_events('big');
SELECT retry_dead_events('moody');
CALL wait_for_event_handlers();
CREATE FUNCTION becomes_true(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '10 s';
	result boolean;
BEGIN
	LOOP
		PERFORM pg_stat_clear_snapshot();
		EXECUTE 'SELECT ' || condition INTO result;
		EXIT WHEN result OR clock_timestamp() > deadline;
	END LOOP;
	RETURN result;
END
$$;
-- they fail again
SELECT becomes_true($$count(*) = 2 FROM event_retries WHERE handler = 'moody' AND state = 'dead' AND attempts = 1$$) AS dead_again;
RESET ROLE;
UPDATE mood SET bad = false;
SET ROLE regress_delivery_owner;
SELECT retry_dead_events('moody');
SELECT becomes_true($$count(*) = 0 FROM event_retries WHERE handler = 'moody'$$) AS gone;
SELECT event_name FROM calls WHERE handler = 'moody' AND event_name LIKE 'bad%' ORDER BY n;
SELECT delivered, failed, retried, waiting, dead FROM event_handler_stats WHERE handler = 'moody';

-- discarded events stay listed and are not tried again
RESET ROLE;
UPDATE mood SET bad = true;
SELECT notify_event('bad 3') IS NOT NULL AS emitted;
CALL wait_for_event_handlers();
SET ROLE regress_delivery_owner;
SELECT discard_dead_events('moody');
SELECT discard_dead_events('moody');
SELECT retry_dead_events('moody');
SELECT handler, state, attempts, next_attempt_at, last_error FROM event_retries WHERE handler = 'moody';
SELECT status FROM event_delivery_status(id('bad 3')) WHERE name = 'moody';

--
-- Replay
--
TRUNCATE calls;
-- events that wait for a retry are not counted; discarded ones are delivered again
SELECT replay_events('patient', 1);
RESET ROLE;
UPDATE mood SET bad = false;
SET ROLE regress_delivery_owner;
SELECT replay_events('moody', id('good'));
SELECT replay_events('big', 1);
-- events that the position has not reached yet are not replayed
SELECT replay_events('paused', id('good'));
SELECT becomes_true($$count(*) = 5 FROM regress_delivery.calls$$) AS called;
SELECT event_name FROM calls WHERE handler = 'moody' ORDER BY n;
SELECT event_name FROM calls WHERE handler = 'plain' ORDER BY n;
-- both bounds are included
TRUNCATE calls;
SELECT replay_events('moody', id('bad 1'), id('bad 2'));
SELECT becomes_true($$count(*) = 2 FROM regress_delivery.calls$$) AS called;
SELECT event_name FROM calls ORDER BY n;
-- events from before the handler's start can be replayed, too
SELECT replay_events('moody', id('early'), id('early'));
SELECT becomes_true($$count(*) = 3 FROM regress_delivery.calls$$) AS called;
-- bad input
SELECT replay_events('moody', NULL);
SELECT replay_events('moody', 2, 1);
SELECT replay_events('none', 1);
SELECT replay_events('moody', 9223372036854775807);

-- an event that was deleted from the log but still has a retry
RESET ROLE;
SELECT id('bad 1') AS bad_1 \gset
DELETE FROM notification_events WHERE event_name = 'bad 1';
SELECT name, status FROM event_delivery_status(:bad_1);
SELECT drop_event_handler('patient');
SELECT name, status FROM event_delivery_status(:bad_1);

-- the filter has changed since the event failed
UPDATE mood SET bad = true;
SELECT alter_event_handler('moody', max_attempts => 1000, retry_delay => '100 ms', max_retry_delay => '100 ms');
SELECT notify_event('bad 4', '{"n": 4}'::jsonb) IS NOT NULL AS emitted;
CALL wait_for_event_handlers();
SELECT alter_event_handler('moody', filter => '$.n == 5');
SELECT becomes_true($$count(*) = 1 FROM event_retries WHERE handler = 'moody' AND state = 'discarded' AND event_id = id('bad 4')$$) AS discarded;
SELECT last_error FROM event_retries WHERE handler = 'moody' AND event_id = id('bad 4');
-- max_attempts becomes lower than the attempts made so far
SELECT alter_event_handler('moody', clear_filter => true, max_attempts => 20, retry_delay => '2 s', max_retry_delay => '2 s');
SELECT notify_event('bad 5') IS NOT NULL AS emitted;
CALL wait_for_event_handlers();
SELECT alter_event_handler('moody', max_attempts => 1);
SELECT becomes_true($$count(*) = 1 FROM event_retries WHERE handler = 'moody' AND state = 'dead' AND attempts = 1 AND event_id = id('bad 5')$$) AS dead;

-- An ordered handler is replayed in order, even if an event fails meanwhile.
CREATE SEQUENCE tries;
CREATE FUNCTION first_fails(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_delivery.calls (handler, id, event_name) VALUES ('ordered', e.id, e.event_name);
	IF e.event_name = 'row 1' AND nextval('regress_delivery.tries') <= 2 THEN
		RAISE EXCEPTION 'not yet';
	END IF;
END
$$;
SELECT drop_event_handler('moody');
SELECT count(notify_event('row ' || i)) FROM generate_series(1, 4) i;
TRUNCATE calls;
SELECT create_event_handler('ordered', 'first_fails', 'row *', ordered => true, retry_delay => '50 ms');
CALL wait_for_event_handlers();
SELECT replay_events('ordered', 1);
SELECT notify_event('row 5') IS NOT NULL AS emitted;
SELECT becomes_true($$count(*) = 5 FROM regress_delivery.calls WHERE handler = 'ordered'$$) AS called;
SELECT event_name FROM calls WHERE handler = 'ordered' ORDER BY n;
SELECT failed FROM event_handler_stats WHERE handler = 'ordered';

SELECT drop_event_handler(name) FROM event_handlers ORDER BY name COLLATE "C";
SET client_min_messages = warning;
DROP SCHEMA regress_delivery CASCADE;
DROP OWNED BY regress_delivery_owner, regress_delivery_other;
DROP ROLE regress_delivery_owner, regress_delivery_other;
DROP EXTENSION pg_notify_events;
