--
-- Statistics: handlers, retries, workers, event names
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_stats;
SET search_path = regress_stats, public;

-- Workers count after they have committed, and the listener at times of its own.
-- Wait until the condition is true.
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

-- The columns are an interface: they must not change.
SELECT c.relname AS view, string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) AS columns
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
	WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v'
	GROUP BY c.relname ORDER BY c.relname;

-- The workers start soon after CREATE EXTENSION. One launcher serves all
-- databases.
SELECT becomes_true($$EXISTS (SELECT FROM event_worker_stats
	WHERE kind = 'listener' AND database = current_database() AND state = 'listening' AND wakeups > 0)$$) AS listening;
SELECT kind, owner, pid IS NOT NULL AS has_pid, started_at <= now() AS started, last_error, last_error_at
	FROM event_worker_stats WHERE database = current_database();
SELECT count(*), count(database) AS databases, count(owner) AS owners, bool_and(pid IS NOT NULL) AS has_pid
	FROM event_worker_stats WHERE kind = 'launcher';
SELECT a.backend_type, a.datname = current_database() AS here, a.query <> '' AS has_query
	FROM event_worker_stats w JOIN pg_stat_activity a ON a.pid = w.pid
	WHERE w.database = current_database() OR w.kind = 'launcher' ORDER BY a.backend_type;

-- A NOTIFY on the extension's channel is counted, one on another channel is not.
-- Announcements use the same channel, so they are switched off here.
SET pg_notify_events.announce = off;
SELECT notifications_received AS before FROM event_worker_stats WHERE kind = 'listener' AND database = current_database() \gset
NOTIFY event_notification, 'x';
NOTIFY event_notification, 'yü';
NOTIFY another_channel, 'z';
SELECT pg_notify('event_notification', NULL);
SELECT becomes_true(format($$notifications_received = %s + 3 FROM event_worker_stats
	WHERE kind = 'listener' AND database = current_database()$$, :before)) AS counted;

--
-- event_stats
--
SELECT reset_event_stats();
CREATE FUNCTION handle(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF $2 ? 'fail' THEN
		RAISE EXCEPTION 'cannot handle %', $1;
	END IF;
END
$$;
SELECT create_event_handler('all', 'handle', retry_delay => '1 h');
SELECT create_event_handler('some', 'handle', event_name => 'order_*', filter => '!exists($.fail)', retry_delay => '1 h');
BEGIN;
SELECT notify_event('order_rolled_back') IS NOT NULL AS recorded;
ROLLBACK;
SELECT count(notify_event('order_paid', CASE WHEN i = 2 THEN '{"fail": true}' END)) FROM generate_series(1, 3) i;
INSERT INTO notification_events (event_name, event_data) VALUES ('order_paid', '{}'), ('order_lost', '{}'), (repeat('ü', 100), NULL);
-- event_stats does not count restored rows as emitted, but handlers get them.
INSERT INTO notification_events (event_name, txid) VALUES ('restored', '42');
CALL wait_for_event_handlers();
SELECT becomes_true('(sum(emitted), sum(delivered), sum(failed)) = (6, 8, 1) FROM event_stats') AS counted;
SELECT event_name, emitted, delivered, failed, last_emitted_at = (SELECT max(created_at) FROM notification_events e WHERE e.event_name = s.event_name) AS last
	FROM event_stats s ORDER BY event_name COLLATE "C";
SELECT reset_event_stats();
SELECT event_name, emitted, delivered, failed FROM event_stats;

--
-- event_handler_stats, event_retries
--
-- A reset keeps the counters that must survive a crash, and clears times.
SELECT handler, delivered, failed, retried, waiting, dead, pending, oldest_pending_at, calls, batches, total_time, mean_time, max_time,
	latency_p50, latency_p95, latency_p99
	FROM event_handler_stats ORDER BY handler;
SELECT count(notify_event('order_paid', '{}')) FROM generate_series(1, 10);
CALL wait_for_event_handlers();
SELECT becomes_true($$bool_and(calls = 10 AND state = 'ready') FROM event_handler_stats$$) AS counted;
SELECT h.handler, h.delivered, h.failed, h.calls, h.batches BETWEEN 1 AND 10 AS batches, h.last_event_id = (SELECT max(id) FROM notification_events) AS at_the_end,
	h.last_delivered_at BETWEEN now() - interval '1 min' AND now() AS just_now,
	h.last_error, h.last_error_at < now() AS before,
	h.total_time >= h.max_time AND h.max_time >= h.mean_time AND h.mean_time > 0 AND abs(h.mean_time * h.calls / h.total_time - 1) < 0.001 AS times,
	h.latency_p50 > 0 AND h.latency_p50 <= h.latency_p95 AND h.latency_p95 <= h.latency_p99 AND h.latency_p99 < 60000 AS latencies
	FROM event_handler_stats h ORDER BY h.handler;
SELECT r.handler, e.event_name, r.state, r.attempts, r.next_attempt_at > now() AS later, r.last_error, r.last_sqlstate, r.last_error_at < now() AS before
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id;
-- The owner has an executor.
SELECT w.kind, w.owner = current_user AS mine, w.events_handled > 0 AS handled, w.events_announced, w.last_error
	FROM event_worker_stats w WHERE w.kind = 'executor' AND w.database = current_database();
SELECT becomes_true($$(w.state, a.backend_type, a.usename, a.datname) = ('idle', 'pg_notify_events executor', session_user, current_database())
	FROM event_worker_stats w JOIN pg_stat_activity a ON a.pid = w.pid WHERE w.kind = 'executor' AND w.database = current_database()$$) AS is_seen;

-- Pending events: counted by name, whatever the filter, with the time of the oldest.
SELECT pause_event_handler(name) FROM event_handlers;
SELECT handler, state, pending, oldest_pending_at FROM event_handler_stats ORDER BY handler;
INSERT INTO notification_events (event_name, event_data, created_at) VALUES
	('order_paid', '{"fail": 1}', '2020-01-02 00:00:00+00'), ('other', NULL, '2020-01-01 00:00:00+00'), ('order_paid', NULL, '2020-01-03 00:00:00+00');
SELECT handler, state, pending, oldest_pending_at AT TIME ZONE 'UTC' AS oldest_pending_at FROM event_handler_stats ORDER BY handler;
-- Events that are not committed or rolled back are not pending.
BEGIN;
SELECT count(notify_event('other')) FROM generate_series(1, 5);
SELECT handler, pending FROM event_handler_stats ORDER BY handler;
ROLLBACK;
SELECT handler, pending FROM event_handler_stats ORDER BY handler;
DELETE FROM notification_events WHERE event_name = 'other';
SELECT handler, pending FROM event_handler_stats ORDER BY handler;
SELECT resume_event_handler(name) FROM event_handlers;
CALL wait_for_event_handlers();
SELECT handler, pending, oldest_pending_at, waiting FROM event_handler_stats ORDER BY handler;

-- A new handler of the same name starts at zero.
SELECT drop_event_handler(name) FROM event_handlers;
SELECT create_event_handler('all', 'handle');
SELECT delivered, failed, retried, waiting, dead, pending, last_event_id, last_delivered_at, last_error, last_error_at, calls, batches, latency_p99
	FROM event_handler_stats;
-- A replaced one keeps its counters.
SELECT notify_event('order_paid') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT becomes_true('calls = 1 FROM event_handler_stats') AS counted;
SELECT create_event_handler('all', 'handle', batch_size => 2, or_replace => true);
SELECT delivered, calls, batches FROM event_handler_stats;

--
-- Limited space: further names are counted as (other)
--
-- Events with a created_at before the server's start are as new as the others.
SELECT becomes_true('emitted = 13 FROM event_stats WHERE event_name = $$order_paid$$') AS counted;
SELECT reset_event_stats();
INSERT INTO notification_events (event_name) SELECT 'name ' || i FROM generate_series(1, 1500) i;
INSERT INTO notification_events (event_name) SELECT 'name ' || i FROM generate_series(1, 1500) i;
CALL wait_for_event_handlers();
SELECT becomes_true('(sum(emitted), sum(delivered)) = (3000, 3000) FROM event_stats') AS counted;
SELECT count(*) BETWEEN 500 AND 1024 AS bounded, count(*) FILTER (WHERE event_name = '(other)') AS other FROM event_stats;
SELECT reset_event_stats();
SELECT count(*) FROM event_stats;

-- The cumulative statistics that autovacuum uses count changes of the internal tables.
SELECT becomes_true($$n_tup_upd > 0 FROM pg_stat_all_tables WHERE relid = 'public._event_handler_progress'::regclass$$) AS seen;

SET client_min_messages = warning;
DROP SCHEMA regress_stats CASCADE;
DROP EXTENSION pg_notify_events;
