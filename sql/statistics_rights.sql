--
-- Statistics: what each role can see, and what a rollback restores
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_statistics;
SET search_path = regress_statistics, public;
CREATE ROLE regress_statistics_owner LOGIN;
CREATE ROLE regress_statistics_member IN ROLE regress_statistics_owner;
CREATE ROLE regress_statistics_bypass BYPASSRLS IN ROLE regress_statistics_owner;
CREATE ROLE regress_statistics_columns;
CREATE ROLE regress_statistics_monitor IN ROLE pg_monitor;
CREATE ROLE regress_statistics_stranger;
GRANT USAGE ON SCHEMA regress_statistics TO PUBLIC;
GRANT SELECT ON notification_events TO regress_statistics_owner, regress_statistics_bypass;
GRANT SELECT (id, event_name, created_at) ON notification_events TO regress_statistics_columns;

-- Workers count after they have committed, and the listener at times of its own.
CREATE FUNCTION becomes_true(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '30 s';
	result boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO result;
		EXIT WHEN result OR clock_timestamp() > deadline;
	END LOOP;
	RETURN result;
END
$$;
CREATE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT';

--
-- A role that may not read every event sees neither names nor numbers of events
--
SELECT create_event_handler('paused', 'ignore', owner => 'regress_statistics_owner');
SELECT pause_event_handler('paused');
SELECT create_event_consumer('consumer', event_name => 'secret*', owner => 'regress_statistics_owner');
SELECT reset_event_stats();
INSERT INTO notification_events (event_name) VALUES ('open'), ('secret 1'), ('secret 2'), ('secret 2');
SELECT becomes_true('sum(emitted) = 4 FROM event_stats') AS counted;

-- What event_stats, event_handler_stats and event_consumer_stats show to each
-- role. Any role may call the functions behind the views, too.
CREATE FUNCTION seen_by_each() RETURNS TABLE (seen_by text, events text, handlers text, consumers text, behind text) LANGUAGE plpgsql AS $$
BEGIN
	FOR seen_by IN SELECT substr(rolname, 20) FROM pg_roles WHERE rolname LIKE 'regress\_statistics\_%' ORDER BY rolname COLLATE "C"
	LOOP
		PERFORM set_config('role', 'regress_statistics_' || seen_by, true);
		SELECT string_agg(format('%s %s', COALESCE(event_name, 'null'), emitted), ', ' ORDER BY event_name COLLATE "C") INTO events
			FROM event_stats WHERE last_emitted_at IS NOT NULL;
		SELECT string_agg(format('%s %s %s', state, COALESCE(pending::text, 'null'), oldest_pending_at IS NOT NULL), ', ') INTO handlers
			FROM event_handler_stats;
		SELECT string_agg(format('%s %s %s', state, COALESCE(pending::text, 'null'), oldest_pending_at IS NOT NULL), ', ') INTO consumers
			FROM event_consumer_stats;
		SELECT format('%s %s %s', COALESCE(h.pending::text, 'null'), COALESCE(c.pending::text, 'null'), (SELECT count(*) FROM _event_statistics())) INTO behind
			FROM _handler_statistics('paused') h, _consumer_statistics('consumer') c;
		PERFORM set_config('role', 'none', true);
		RETURN NEXT;
	END LOOP;
END
$$;
SELECT * FROM seen_by_each();
-- a policy shows some events to one role; a role without a policy sees nothing
ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY open ON notification_events FOR SELECT TO regress_statistics_owner USING (event_name = 'open');
SELECT * FROM seen_by_each();
-- a session that prefers an error to hidden rows
SET row_security = off;
SELECT * FROM seen_by_each();
RESET row_security;
-- no role sees the delivery status of an event that the policy hides, or which
-- handlers match its name
CREATE FUNCTION status_seen_by_each(event bigint) RETURNS TABLE (seen_by text, status text) LANGUAGE plpgsql AS $$
BEGIN
	FOR seen_by IN SELECT substr(rolname, 20) FROM pg_roles WHERE rolname LIKE 'regress\_statistics\_%' ORDER BY rolname COLLATE "C"
	LOOP
		PERFORM set_config('role', 'regress_statistics_' || seen_by, true);
		BEGIN
			SELECT string_agg(format('%s %s', s.name, s.status), ', ' ORDER BY s.name COLLATE "C") INTO status FROM event_delivery_status(event) s;
		EXCEPTION WHEN OTHERS THEN
			status := SQLSTATE;
		END;
		PERFORM set_config('role', 'none', true);
		RETURN NEXT;
	END LOOP;
END
$$;
SELECT min(id) FILTER (WHERE event_name = 'open') AS open, min(id) FILTER (WHERE event_name = 'secret 1') AS secret FROM notification_events \gset
SELECT * FROM status_seen_by_each(:open);
SELECT * FROM status_seen_by_each(:secret);
-- visible events can still be read
SET ROLE regress_statistics_owner;
SELECT event_name FROM notification_events;
RESET ROLE;
-- no privilege to read the log
REVOKE SELECT ON notification_events FROM regress_statistics_owner, regress_statistics_bypass;
SELECT * FROM seen_by_each();
ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
SELECT * FROM seen_by_each();
GRANT SELECT ON notification_events TO regress_statistics_owner;
SELECT * FROM seen_by_each();
-- a superuser sees everything, whatever the policies
ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE notification_events FORCE ROW LEVEL SECURITY;
SELECT event_name, emitted FROM event_stats ORDER BY event_name COLLATE "C";
SELECT pending FROM event_handler_stats;
ALTER TABLE notification_events NO FORCE ROW LEVEL SECURITY;
ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
DROP POLICY open ON notification_events;

SELECT drop_event_handler('paused');

--
-- A DROP that is rolled back keeps the statistics
--
SELECT create_event_handler('first', 'ignore'), create_event_handler('second', 'ignore');
SELECT listen_event_channel('regress_statistics');
SELECT becomes_true($$state = 'listening' FROM event_channel_stats$$) AS listening;
SELECT reset_event_stats();
NOTIFY regress_statistics, '1';
SELECT becomes_true('count(*) = 1 FROM notification_events WHERE event_name = $$regress_statistics$$') AS bridged;
CALL wait_for_event_handlers();
CREATE VIEW figures AS SELECT
	(SELECT string_agg(format('%s %s', handler, calls), ', ' ORDER BY handler) FROM event_handler_stats) AS handlers,
	(SELECT string_agg(format('%s %s %s', event_name, emitted, delivered), ', ') FROM event_stats) AS events,
	(SELECT string_agg(format('%s %s', channel, notifications), ', ') FROM event_channel_stats) AS channels;
SELECT becomes_true($$(handlers, events, channels) = ('first 1, second 1', 'regress_statistics 1 2', 'regress_statistics 1') FROM figures$$) AS counted;
CREATE FUNCTION drop_and_fail(command text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RAISE 'not after all';
EXCEPTION WHEN raise_exception THEN
	NULL;
END
$$;
-- a user's views depend on the extension: the DROP and its rollback include them
SET client_min_messages = warning;
BEGIN;
SAVEPOINT a;
DROP EXTENSION pg_notify_events CASCADE;
ROLLBACK TO a;
COMMIT;
SELECT * FROM figures;
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT drop_event_handler('first');
SAVEPOINT c;
SELECT drop_event_handler('second');
SELECT unlisten_event_channel('regress_statistics');
DROP EXTENSION pg_notify_events CASCADE;
RELEASE c;
RELEASE b;
ROLLBACK TO a;
-- no DROP, but a change that wakes a worker
SELECT pause_event_handler('second');
COMMIT;
SELECT * FROM figures;
SELECT drop_and_fail('DROP EXTENSION pg_notify_events CASCADE'), drop_and_fail($$SELECT drop_event_handler('first')$$);
SELECT * FROM figures;
BEGIN;
SELECT drop_and_fail('DROP EXTENSION pg_notify_events CASCADE'), drop_and_fail($$SELECT drop_event_handler('first')$$);
DROP EXTENSION pg_notify_events CASCADE;
ROLLBACK;
SELECT * FROM figures;
-- a rolled back DROP does not prevent PREPARE TRANSACTION; a change that stays does
BEGIN;
SELECT drop_and_fail('DROP EXTENSION pg_notify_events CASCADE'), drop_and_fail($$SELECT drop_event_handler('first')$$);
SAVEPOINT a;
SELECT resume_event_handler('second');
ROLLBACK TO a;
SELECT notify_event('prepared') IS NOT NULL AS recorded;
PREPARE TRANSACTION 'regress_statistics';
COMMIT PREPARED 'regress_statistics';
SELECT becomes_true($$emitted = 1 FROM event_stats WHERE event_name = 'prepared'$$) AS counted;
BEGIN;
SAVEPOINT a;
SELECT resume_event_handler('second');
RELEASE a;
PREPARE TRANSACTION 'regress_statistics';
-- a DROP that is committed discards them: a new one of the same name starts at zero
BEGIN;
SAVEPOINT a;
SELECT drop_event_handler('first'), create_event_handler('first', 'ignore');
RELEASE a;
SAVEPOINT b;
SELECT drop_event_handler('second');
ROLLBACK TO b;
COMMIT;
SELECT handlers FROM figures;
BEGIN;
SAVEPOINT a;
DROP EXTENSION pg_notify_events CASCADE;
RELEASE a;
CREATE EXTENSION pg_notify_events SCHEMA public;
COMMIT;
SELECT event_name, emitted FROM event_stats;
SELECT create_event_handler('second', 'ignore'), listen_event_channel('regress_statistics');
SELECT calls FROM event_handler_stats;
SELECT notifications FROM event_channel_stats;

DROP SCHEMA regress_statistics CASCADE;
DROP EXTENSION pg_notify_events;
DROP ROLE regress_statistics_owner, regress_statistics_member, regress_statistics_bypass, regress_statistics_columns,
	regress_statistics_monitor, regress_statistics_stranger;
