--
-- Consumers: fetch, acknowledge, hand back
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_consumers;
SET search_path = regress_consumers, public;
\set SHOW_CONTEXT never

CREATE ROLE regress_consumers_owner;
CREATE ROLE regress_consumers_member LOGIN;
CREATE ROLE regress_consumers_other LOGIN;
GRANT regress_consumers_owner TO regress_consumers_member;
GRANT USAGE ON SCHEMA regress_consumers TO regress_consumers_owner, regress_consumers_other;

-- ids differ from run to run: the tests use event names instead
CREATE FUNCTION id(name text) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	$$SELECT e.id FROM public.notification_events e WHERE e.event_name = name$$;
-- the events that a fetch returns, in that order
CREATE FUNCTION fetched(consumer text, max_events integer DEFAULT 100, lease interval DEFAULT NULL) RETURNS text LANGUAGE sql AS
	$$SELECT string_agg(e.event_name, ' ') FROM public.fetch_events(consumer, max_events, lease) e$$;
CREATE FUNCTION becomes_true(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '10 s';
	result boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO result;
		EXIT WHEN result OR clock_timestamp() > deadline;
	END LOOP;
	RETURN result;
END
$$;
CREATE FUNCTION emit(VARIADIC names text[]) RETURNS bigint LANGUAGE sql AS
	$$SELECT count(public.notify_event(n, '{}'::jsonb)) FROM unnest(names) n$$;

--
-- Definitions
--
-- EXECUTE is not granted to PUBLIC, and the owner must be able to read the log
SET ROLE regress_consumers_owner;
SELECT create_event_consumer('mail');
RESET ROLE;
GRANT EXECUTE ON FUNCTION create_event_consumer TO regress_consumers_owner;
SET ROLE regress_consumers_owner;
SELECT create_event_consumer('mail');
RESET ROLE;
SELECT create_event_consumer('mail', owner => 'regress_consumers_owner');
GRANT SELECT ON notification_events TO regress_consumers_owner;
SELECT emit('early');
SET ROLE regress_consumers_owner;
SELECT create_event_consumer('mail');
SELECT create_event_consumer('mail');
SELECT create_event_consumer('theirs', owner => 'regress_consumers_other');
SELECT create_event_consumer('all', 'e*', '$.n > 1', 'beginning', 'regress_consumers_owner', false);
SELECT name, owner, event_name, filter, created_at = altered_at AS unaltered FROM event_consumers ORDER BY name COLLATE "C";
-- one consumer starts at the beginning of the log, the other at its end
SELECT create_event_consumer('all', start_from => 'beginning', or_replace => true);
SELECT name, owner, event_name, filter, created_at < altered_at AS altered FROM event_consumers ORDER BY name COLLATE "C";
SELECT fetched('all'), fetched('mail');
SELECT ack_events('all');

--
-- Batches
--
RESET ROLE;
SELECT emit('a1', 'a2', 'a3', 'a4', 'a5');
SET ROLE regress_consumers_owner;
SELECT fetched('mail', 3);
-- the same batch again until it is acknowledged, whatever max_events says
SELECT fetched('mail', 1);
SELECT fetched('mail', 10000);
-- part of the batch is acknowledged
SELECT ack_events('mail', id('a1'));
SELECT fetched('mail');
-- the fence: an event outside the open batch cannot be acknowledged
SELECT ack_events('mail', id('a1'));
SELECT ack_events('mail', id('a4'));
SELECT ack_events('mail', -1);
SELECT fetched('mail');
SELECT ack_events('mail');
SELECT ack_events('mail');
SELECT ack_events('mail', id('a3'));
SELECT fetched('mail');
-- another consumer has its own position
SELECT fetched('all');
SELECT ack_events('all', id('a5')), ack_events('mail', id('a5'));
SELECT fetched('all') IS NULL AND fetched('mail') IS NULL AS nothing_more;
-- all columns are returned
RESET ROLE;
SELECT notify_event('columns', '{"n": 1}'::jsonb) AS id \gset
SELECT e = n AS same FROM fetch_events('mail') e JOIN notification_events n ON n.id = :id;
ALTER TABLE notification_events ADD COLUMN more integer DEFAULT 7;
SELECT event_name, event_data, more FROM fetch_events('mail');
ALTER TABLE notification_events DROP COLUMN more;
SELECT event_name, event_data, txid IS NOT NULL AS has_txid FROM fetch_events('mail');
SELECT ack_events('mail'), ack_events('all');
SELECT fetched('all'), ack_events('all');

-- a fetch that is rolled back, with its transaction or a savepoint, has no effect
SELECT emit('r1', 'r2');
BEGIN;
SAVEPOINT s;
SELECT fetched('mail', 1), ack_events('mail');
ROLLBACK TO s;
SELECT fetched('mail', 1), ack_events('mail');
SELECT fetched('mail', 1), ack_events('mail');
ROLLBACK;
SELECT fetched('mail'), ack_events('mail'), fetched('all'), ack_events('all');

-- fetch and effects in one statement, acknowledgement in the next
CREATE TABLE effects (name text);
SELECT emit('s1', 's2', 's3');
BEGIN;
INSERT INTO effects SELECT event_name FROM fetch_events('mail', 2);
SELECT ack_events('mail');
INSERT INTO effects SELECT event_name FROM fetch_events('mail', 2);
SELECT ack_events('mail');
INSERT INTO effects SELECT event_name FROM fetch_events('mail', 2);
COMMIT;
TABLE effects;
SELECT fetched('all'), ack_events('all');

-- A transaction fetches its own events, too, but only after it has committed.  It
-- fetches those that others committed before.
SELECT emit('before');
BEGIN;
SELECT emit('own 1');
SELECT fetched('mail'), ack_events('mail');
SELECT emit('own 2');
SELECT fetched('mail'), ack_events('mail');
COMMIT;
SELECT fetched('mail'), ack_events('mail');
SELECT fetched('all'), ack_events('all');

--
-- Matching: by name, by filter, and with a filter that raises an error
--
SELECT create_event_consumer('big', 'order *', '$.n > 2');
SELECT create_event_consumer('moody', 'order *', '$ ? ("2020-01-01T00:00:00+00".datetime() > "2020-01-01".datetime())');
SELECT count(notify_event('order ' || n, jsonb_build_object('n', n))) FROM generate_series(1, 4) n;
SELECT emit('else');
SELECT fetched('big'), ack_events('big');
SELECT fetched('moody'), ack_events('moody');
-- The definition changes, the position stays: events that were passed stay passed,
-- and the open batch stays as it is
SELECT count(notify_event('order ' || n, jsonb_build_object('n', n))) FROM generate_series(5, 6) n;
SELECT fetched('big', 1);
SELECT create_event_consumer('big', 'order ?', or_replace => true);
SELECT notify_event('order 7') IS NOT NULL AS emitted;
SELECT fetched('big'), ack_events('big');
SELECT fetched('big'), ack_events('big');
SELECT create_event_consumer('big', 'none', start_from => 'beginning', or_replace => true);
SELECT fetched('big');
-- an event without data passes no filter
SELECT create_event_consumer('big', 'order *', '$.n < 100', or_replace => true);
SELECT notify_event('order 8') IS NOT NULL AS emitted;
SELECT fetched('big');
SELECT drop_event_consumer('big'), drop_event_consumer('moody');
SELECT fetched('mail') IS NOT NULL AS fetched, ack_events('mail');
SELECT fetched('all') IS NOT NULL AS fetched, ack_events('all');

--
-- Hand back
--
SELECT emit('h1', 'h2', 'h3', 'h4', 'h5', 'h6');
SELECT fetched('mail', 4);
SELECT retry_event('mail', id('h2'));
SELECT retry_event('mail', id('h3'), '1 h');
SELECT name, status, attempts, next_attempt_at <= clock_timestamp() AS due FROM event_delivery_status(id('h2'));
SELECT name, status, attempts, next_attempt_at > now() + interval '59 min' AS later FROM event_delivery_status(id('h3'));
SELECT retry_event('mail', id('h3'));
SELECT retry_event('mail', id('h5'));
SELECT fetched('mail');
SELECT ack_events('mail');
-- due events come with the next batch, before others if max_events is too small, by id
SELECT fetched('mail', 1);
SELECT name, status, attempts, next_attempt_at FROM event_delivery_status(id('h2'));
SELECT retry_event('mail', id('h2'), '0 s');
SELECT fetched('mail', 2);
SELECT attempts FROM event_delivery_status(id('h2')) WHERE name = 'mail';
SELECT consumer, state, fetched > 10 AS fetched, retried, waiting, batch, leased_until, pending, last_event_id = id('h4') AS last_is_h4
	FROM event_consumer_stats WHERE consumer = 'mail';
SELECT ack_events('mail');
SELECT retried, waiting, batch FROM event_consumer_stats WHERE consumer = 'mail';
SELECT name, status, attempts FROM event_delivery_status(id('h2')) WHERE name = 'mail';
-- a delay that elapses
SELECT fetched('mail');
SELECT retry_event('mail', id('h6'), '1 ms');
SELECT becomes_true($$fetched('mail') IS NOT NULL$$) AS fetched;
SELECT fetched('mail'), ack_events('mail');
-- a rollback undoes the handing back
SELECT emit('h7');
SELECT fetched('mail');
BEGIN;
SELECT retry_event('mail', id('h7'), '1 h');
SELECT fetched('mail');
ROLLBACK;
SELECT fetched('mail'), ack_events('mail');
-- nothing is left after the consumer is dropped
SELECT count(*) FROM _event_consumer_retries;
SELECT drop_event_consumer('mail');
SELECT count(*) FROM _event_consumer_retries;
SELECT create_event_consumer('mail', owner => 'regress_consumers_owner');
SELECT fetched('mail');
SELECT fetched('all') IS NOT NULL AS fetched, ack_events('all');

--
-- Leases
--
SELECT emit('l1', 'l2', 'l3');
SELECT fetched('mail', 2, '1 h');
SELECT fetched('mail'), fetched('mail', 2, '1 h');
SELECT state, batch, leased_until > now() + interval '59 min' AS leased FROM event_consumer_stats WHERE consumer = 'mail';
-- a lease continues after a partial acknowledgement; the fence still applies
SELECT ack_events('mail', id('l1'));
SELECT fetched('mail');
SELECT ack_events('mail', id('l3'));
SELECT ack_events('mail', id('l2'));
SELECT state, batch, leased_until FROM event_consumer_stats WHERE consumer = 'mail';
SELECT fetched('mail', 1, '1 h');
-- the lease ends when all of its events are acknowledged or handed back
SELECT retry_event('mail', id('l3'));
SELECT fetched('mail');
-- an open batch without a lease can get one later
SELECT fetched('mail', 1, '1 h');
SELECT fetched('mail');
SELECT ack_events('mail');
-- a lease that expires
SELECT emit('l4', 'l5');
SELECT fetched('mail', 2, '1 ms');
SELECT becomes_true($$fetched('mail') = 'l4 l5'$$) AS the_same_again;
SELECT state, batch, leased_until FROM event_consumer_stats WHERE consumer = 'mail';
SELECT ack_events('mail');
-- no lease if nothing was fetched
SELECT fetched('mail', 1, '1 h');
SELECT emit('l6');
SELECT fetched('mail', 1, '1 h'), ack_events('mail');
SELECT fetched('all') IS NOT NULL AS fetched, ack_events('all');

--
-- Events that are deleted
--
SELECT emit('d1', 'd2', 'd3', 'd4', 'd5', 'd6');
SELECT fetched('mail', 3);
SELECT id('d1') AS d1, id('d3') AS d3 \gset
DELETE FROM notification_events WHERE event_name = 'd1';
SELECT fetched('mail');
SELECT batch FROM event_consumer_stats WHERE consumer = 'mail';
SELECT ack_events('mail', :d1);
-- it was fetched, so it can be acknowledged
DELETE FROM notification_events WHERE event_name = 'd3';
SELECT ack_events('mail', :d3);
-- all events of a batch are deleted: the next batch comes
SELECT fetched('mail', 1);
DELETE FROM notification_events WHERE event_name = 'd4';
SELECT fetched('mail', 1);
-- an event that was handed back is deleted
SELECT id('d5') AS d5 \gset
SELECT retry_event('mail', :d5);
DELETE FROM notification_events WHERE event_name = 'd5';
SELECT name, status FROM event_delivery_status(:d5);
SELECT fetched('mail'), ack_events('mail');
SELECT count(*) FROM _event_consumer_retries;
SELECT name, status FROM event_delivery_status(:d5);
SELECT fetched('all'), ack_events('all');

--
-- Polling an idle consumer writes nothing and assigns no transaction id
--
SELECT create_event_consumer('rare', 'rare', '$.n == 1');
SELECT count(notify_event('often')) FROM generate_series(1, 998) n;
SELECT notify_event('rare') IS NOT NULL AS emitted;
SELECT ctid AS ctid_before FROM _event_consumer_progress WHERE consumer = 'rare' \gset
BEGIN;
SELECT fetched('rare'), fetched('rare', 1, '1 h');
SELECT pg_current_xact_id_if_assigned();
-- nor does it lock the consumer
SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND classid = '_event_consumers'::regclass;
COMMIT;
SELECT ctid = :'ctid_before' AS untouched FROM _event_consumer_progress WHERE consumer = 'rare';
-- but the position is stored after it has passed many events
SELECT notify_event('often') IS NOT NULL AS emitted;
SELECT fetched('rare');
SELECT p.ctid = :'ctid_before' AS untouched, pg_visible_in_snapshot(n.txid, p.cursor) AS passed
	FROM _event_consumer_progress p, notification_events n
	WHERE p.consumer = 'rare' AND n.event_name = 'rare';
SELECT notify_event('rare', '{"n": 1}'::jsonb) IS NOT NULL AS emitted;
SELECT fetched('rare'), ack_events('rare');
-- fetch the open batch again, without a lease
SELECT fetched('mail', 500) IS NOT NULL AS fetched;
BEGIN;
SELECT fetched('mail') IS NOT NULL AS fetched;
SELECT pg_current_xact_id_if_assigned();
COMMIT;
-- a window that is fetched in several parts, in order
SELECT ack_events('mail');
SELECT count(*), array_agg(id) = array_agg(id ORDER BY id) AS in_order FROM fetch_events('mail', 300);
SELECT ack_events('mail');
SELECT count(*), array_agg(id) = array_agg(id ORDER BY id) AS in_order FROM fetch_events('mail', 300);
SELECT ack_events('mail');
SELECT fetched('mail');
SELECT count(*) FROM fetch_events('all', 10000);
SELECT ack_events('all');
DELETE FROM notification_events WHERE event_name = 'often';
-- rows are returned only when all WAL is flushed.  This must also work where the
-- WAL ends at the end of a page or of a segment
SELECT emit('wal');
SELECT fetched('mail');
DO $$
DECLARE
	boundaries integer := 0;
BEGIN
	FOR i IN 1 .. 200000 LOOP
		PERFORM pg_logical_emit_message(false, 'regress', repeat('x', i % 16 * 8));
		IF (pg_current_wal_insert_lsn() - '0/0') % 8192 = 24 THEN
			boundaries := boundaries + 1;
			IF regress_consumers.fetched('mail') <> 'wal' THEN
				RAISE EXCEPTION 'no rows';
			END IF;
		END IF;
		EXIT WHEN boundaries = 5;
	END LOOP;
	RAISE NOTICE '% page boundaries', boundaries;
END
$$;
SELECT pg_switch_wal() IS NOT NULL AS switched;
SELECT fetched('mail'), ack_events('mail');
SELECT fetched('all'), ack_events('all');
-- the rest of a window whose ids lie far apart, with many newer events in between
SELECT emit('f1', 'f2');
INSERT INTO notification_events (event_name) SELECT 'far' FROM generate_series(1, 3);
UPDATE notification_events SET id = id + 1000000 WHERE event_name = 'f2';
SELECT fetched('mail', 1), ack_events('mail');
INSERT INTO notification_events (event_name) SELECT 'far' FROM generate_series(1, 12000);
SELECT count(*), count(*) FILTER (WHERE event_name = 'f2') AS f2 FROM fetch_events('mail', 10000);
SELECT ack_events('mail');
SELECT count(*), count(*) FILTER (WHERE event_name = 'f2') AS f2 FROM fetch_events('mail', 10000);
SELECT ack_events('mail');
SELECT count(*), count(*) FILTER (WHERE event_name = 'f2') AS f2 FROM fetch_events('mail', 10000);
SELECT drop_event_consumer('all');

--
-- Rights
--
SELECT emit('p1', 'p2');
SET ROLE regress_consumers_other;
SELECT fetch_events('mail');
SELECT ack_events('mail');
SELECT retry_event('mail', id('p1'));
CALL wait_for_events('mail');
SELECT drop_event_consumer('mail');
SELECT create_event_consumer('mail');
SELECT * FROM event_consumers;
SELECT * FROM event_consumer_stats;
-- these roles can read the log, but see no consumer
RESET ROLE;
GRANT SELECT ON notification_events TO regress_consumers_other;
GRANT EXECUTE ON FUNCTION create_event_consumer TO regress_consumers_other;
SET ROLE regress_consumers_other;
SELECT create_event_consumer('mail', or_replace => true);
SELECT * FROM event_delivery_status(id('p1'));
RESET ROLE;
GRANT pg_monitor TO regress_consumers_other;
SET ROLE regress_consumers_other;
SELECT name, owner FROM event_consumers ORDER BY name COLLATE "C";
SELECT consumer, state, pending FROM event_consumer_stats ORDER BY consumer COLLATE "C";
SELECT name, kind, status FROM event_delivery_status(id('p1')) ORDER BY name COLLATE "C";
SELECT fetch_events('mail');
RESET ROLE;
REVOKE pg_monitor FROM regress_consumers_other;
-- members of the owner
SET ROLE regress_consumers_member;
SELECT event_name FROM fetch_events('mail', 1);
SELECT retry_event('mail', id('p1'));
SELECT event_name FROM fetch_events('mail', 1);
SELECT ack_events('mail', id('p1'));
CALL wait_for_events('mail', '0');
SELECT consumer, owner, state FROM event_consumer_stats;
SELECT create_event_consumer('mail', owner => 'regress_consumers_owner', or_replace => true);
RESET ROLE;
-- the owner loses the right to read the log
REVOKE SELECT ON notification_events FROM regress_consumers_owner;
SELECT fetch_events('mail');
CALL wait_for_events('mail', '0');
SELECT create_event_consumer('mail', or_replace => true);
-- and gets it back
GRANT SELECT ON notification_events TO regress_consumers_owner;
SELECT fetched('mail'), ack_events('mail');

--
-- Row security: the owner's policies apply, whichever role fetches
--
ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON notification_events FOR SELECT TO regress_consumers_owner
	USING (event_name LIKE 'v%' AND current_user = 'regress_consumers_owner');
CREATE POLICY member ON notification_events FOR SELECT TO regress_consumers_member USING (event_name = 'x2');
SELECT emit('v1', 'x2', 'v3', 'v4');
SELECT event_name FROM fetch_events('mail', 2);
SET ROLE regress_consumers_member;
SELECT event_name FROM fetch_events('mail');
SELECT current_user;
-- an event that a policy hides since the fetch is no longer in the batch
RESET ROLE;
ALTER POLICY owner ON notification_events USING (event_name IN ('v3', 'v4'));
SET ROLE regress_consumers_owner;
SELECT event_name FROM fetch_events('mail');
SELECT ack_events('mail');
SELECT event_name FROM fetch_events('mail');
SELECT ack_events('mail'), fetched('mail');
RESET ROLE;
-- a policy that fails raises an error, and the current role stays the same
CREATE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no way'; END$$;
ALTER POLICY owner ON notification_events USING (fail());
SELECT emit('v5');
SET ROLE regress_consumers_member;
SELECT fetch_events('mail');
SELECT current_user;
RESET ROLE;
DROP POLICY owner ON notification_events;
DROP POLICY member ON notification_events;
ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
SELECT fetched('mail'), ack_events('mail');

--
-- Delivery status of an event
--
SELECT create_event_consumer('late', start_from => 'now'), create_event_consumer('fussy', 'w?', '$.n == 1');
SELECT name, kind, status, attempts, next_attempt_at, last_error FROM event_delivery_status(id('v5')) ORDER BY name COLLATE "C";
SELECT emit('w1', 'w2', 'w3');
SELECT fetched('mail', 2), ack_events('mail', id('w1'));
SELECT name, status, attempts FROM event_delivery_status(id('w2')) WHERE name = 'mail';
SELECT retry_event('mail', id('w2'), '1 h');
SELECT e.event_name, s.name, s.kind, s.status, s.attempts FROM notification_events e, event_delivery_status(e.id) s
	WHERE e.event_name LIKE 'w%' ORDER BY e.id, s.name COLLATE "C";

--
-- Where consumers do not work
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT fetch_events('mail');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT fetch_events('mail');
ROLLBACK;
BEGIN READ ONLY;
SELECT fetch_events('mail');
ROLLBACK;
BEGIN READ ONLY;
SELECT ack_events('mail');
ROLLBACK;
BEGIN READ ONLY;
SELECT retry_event('mail', 1);
ROLLBACK;
BEGIN;
CALL wait_for_events('mail');
ROLLBACK;
SET default_transaction_isolation = 'repeatable read';
CALL wait_for_events('mail');
RESET default_transaction_isolation;
DO $$BEGIN CALL public.wait_for_events('mail', '0'); END$$;
-- in a handler
CREATE FUNCTION waits(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN CALL public.wait_for_events('mail', '0'); END$$;
SELECT create_event_handler('waits', 'waits', max_attempts => 1);
SELECT emit('for the handler');
CALL wait_for_event_handlers();
SELECT last_error, last_sqlstate FROM event_retries WHERE handler = 'waits';
SELECT drop_event_handler('waits');
-- the owner was dropped
SELECT create_event_consumer('orphan', owner => 'regress_consumers_owner');
DROP OWNED BY regress_consumers_owner;
DROP ROLE regress_consumers_owner;
\set VERBOSITY sqlstate
SELECT fetch_events('orphan');
SELECT create_event_consumer('orphan', or_replace => true);
\set VERBOSITY default
SELECT owner FROM event_consumers WHERE name = 'orphan';
SELECT create_event_consumer('orphan', or_replace => true, owner => current_user);
SELECT fetch_events('orphan');

SELECT drop_event_consumer('none');
SELECT drop_event_consumer(name) FROM event_consumers ORDER BY name COLLATE "C";
SELECT (SELECT count(*) FROM _event_consumers), (SELECT count(*) FROM _event_consumer_progress), (SELECT count(*) FROM _event_consumer_retries);
SET client_min_messages = warning;
DROP SCHEMA regress_consumers CASCADE;
DROP OWNED BY regress_consumers_member, regress_consumers_other;
DROP ROLE regress_consumers_member, regress_consumers_other;
DROP EXTENSION pg_notify_events;
