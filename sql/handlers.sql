--
-- Handlers: definitions, matching, calls, retries, waiting
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_handlers;
SET search_path = regress_handlers, public;

-- The calls of the handlers, in order.
CREATE TABLE calls (
	n			serial,
	handler		text,
	event_name	text,
	event_data	jsonb
);
CREATE FUNCTION take_calls(OUT handler text, OUT event_name text, OUT event_data jsonb) RETURNS SETOF record
	LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (DELETE FROM calls RETURNING *)
	SELECT taken.handler, taken.event_name, taken.event_data FROM taken ORDER BY n;
END;
CREATE FUNCTION drop_handlers() RETURNS void LANGUAGE sql AS
	$$SELECT drop_event_handler(name) FROM event_handlers$$;

-- Counters in shared memory are updated after the commit, not as a part of it.
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

--
-- The signatures that a function may have
--
CREATE FUNCTION of_row(e notification_events) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name, event_data)
		VALUES ('row', e.event_name, jsonb_build_object('data', e.event_data, 'has id', e.id IS NOT NULL,
			'has txid', e.txid IS NOT NULL, 'has created_at', e.created_at IS NOT NULL))
$$;
CREATE FUNCTION of_array(events notification_events[]) RETURNS text LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name, event_data)
		SELECT 'array', string_agg(e.event_name, ', ' ORDER BY o), jsonb_agg(e.event_data ORDER BY o)
			FROM unnest(events) WITH ORDINALITY AS e (id, event_name, event_data, created_at, txid, origin_txid, announce, o);
	SELECT 'result is ignored'
$$;
CREATE FUNCTION of_text(event_name text, event_data jsonb) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('text', event_name, event_data);
	RETURN NULL;
END
$$;
CREATE FUNCTION of_varchar(varchar, jsonb) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('varchar', $1, $2);
	RETURN 3;
END
$$;
SELECT create_event_handler('by row', 'of_row');
SELECT create_event_handler('by array', 'regress_handlers.of_array');
SELECT create_event_handler('by text', 'of_text(text, jsonb)');
SELECT create_event_handler('by varchar', '"regress_handlers" . of_varchar (varchar(3), jsonb)');
SELECT name, function, event_name, filter, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused
	FROM event_handlers ORDER BY name;
-- One transaction is one window, so the array contains all of its events.
BEGIN;
SELECT notify_event('a', '{"n": 1}') IS NOT NULL AS recorded;
SELECT notify_event('b') IS NOT NULL AS recorded;
INSERT INTO notification_events (event_name, event_data) VALUES ('c', '3');
COMMIT;
CALL wait_for_event_handlers();
SELECT * FROM take_calls() ORDER BY handler, event_name;
SELECT handler, delivered, failed, retried, waiting, dead, pending,
	last_event_id = (SELECT max(id) FROM notification_events) AS at_the_end
	FROM event_handler_stats ORDER BY handler;
SELECT drop_handlers();

-- A function's name is resolved when the handler is created, with the search_path
-- of that moment. A function that is created later in an earlier schema changes
-- nothing. An overload with another signature is not the handler's function.
CREATE SCHEMA regress_handlers_2;
CREATE FUNCTION of_text(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
SET search_path = regress_handlers_2, regress_handlers, public;
SELECT create_event_handler('resolved', 'of_text');
CREATE FUNCTION regress_handlers_2.of_text(text, jsonb) RETURNS void LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'the wrong one'; END$$;
SELECT name, function FROM event_handlers;
SELECT notify_event('which') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT create_event_handler('resolved', 'of_text', or_replace => true);
SELECT name, function FROM event_handlers;
SELECT drop_handlers();
DROP FUNCTION regress_handlers_2.of_text(text, jsonb);
SET search_path = regress_handlers, public;

--
-- Matching by name: * is any string, ? is one character, all others are literal
--
CREATE TABLE patterns (n serial, pattern text);
INSERT INTO patterns (pattern) VALUES
	('*'), ('?'), ('??'), ('order_*'), ('*_paid'), ('*er*a*'), ('o*_*_*'), ('order?paid'), ('a%b'), ('a_b'), ('[ab]'),
	('a\b'), ('\*'), ('a.b'), ('ü*'), ('*ö'), ('?ü'), ('A*'), ('***a***b***'), ('order_paid'), ('(a|b)'), (' '), ('*?');
CREATE PROCEDURE make_function(name text, handler text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE FUNCTION %I(text, jsonb) RETURNS void LANGUAGE sql AS %L', name,
		format('INSERT INTO regress_handlers.calls (handler, event_name) VALUES (%L, $1)', handler));
END
$$;
DO $$
DECLARE
	p patterns;
BEGIN
	FOR p IN SELECT * FROM patterns LOOP
		CALL make_function('glob_' || p.n, p.pattern);
	END LOOP;
END
$$;
SELECT count(create_event_handler('glob ' || n, 'glob_' || n, event_name => pattern)) FROM patterns;
SELECT count(notify_event(name)) FROM unnest(array['order_paid', 'order_paid_late', 'order-paid', 'orderpaid',
	'a%b', 'axb', 'axxb', 'a_b', '[ab]', 'a', 'b', 'a\b', 'a\\b', '*', '\x', 'a.b', 'ü', 'ü1', 'öü', 'uö', 'Ab', '(a|b)', ' ']) name;
CALL wait_for_event_handlers();
SELECT p.pattern, string_agg(format('"%s"', c.event_name), ' ' ORDER BY c.n) AS names
	FROM patterns p LEFT JOIN calls c ON c.handler = p.pattern
	GROUP BY p.n, p.pattern ORDER BY p.n;
SELECT drop_handlers();
TRUNCATE calls;

-- Names and patterns with many stars do not take long.
SELECT create_event_handler('stars', 'of_text', event_name => repeat('*a', 99) || '*b');
SELECT notify_event(repeat('a', 100)) IS NOT NULL AS recorded;
SELECT notify_event(repeat('a', 99) || 'b') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_handlers();

--
-- Matching by data: a predicate must be true, another path must return an item
--
CREATE TABLE filters (n serial, filter jsonpath);
INSERT INTO filters (filter) VALUES
	('$.new.amount > 100'), ('strict $.new.amount > 100'), ('$.tags[*] == "red"'), ('$.tags[*] ? (@ == "red")'), ('$.flag'), ('$.flag == true'),
	('exists($.flag)'), ('!($.new.amount > 100)'), ('$.new.amount > 100 && $.flag == true'), ('$.new.amount > 1000 || $.flag == false'),
	('($.new.amount > 100) is unknown'), ('$.name starts with "ä"'), ('$.name like_regex "^Ä" flag "i"'), ('$'), ('$ == null'), ('true'), ('1'),
	('$.new.amount / 0 > 1'), ('$[*].id ? (@ > 1)');
DO $$
DECLARE
	f filters;
BEGIN
	FOR f IN SELECT * FROM filters LOOP
		CALL make_function('filter_' || f.n, f.n::text);
	END LOOP;
END
$$;
SELECT count(create_event_handler('filter ' || n, 'filter_' || n, filter => filter)) FROM filters;
SELECT count(notify_event(name, data)) FROM (VALUES
	('amount 50', '{"new": {"amount": 50}}'), ('amount 500', '{"new": {"amount": 500}, "flag": true}'),
	('no number', '{"new": {"amount": "many"}}'), ('array', '{"new": [{"amount": 5}, {"amount": 5000}]}'),
	('red', '{"tags": ["blue", "red"]}'), ('blue', '{"tags": ["blue"]}'), ('flag', '{"flag": true}'),
	('no flag', '{"flag": false}'), ('null flag', '{"flag": null}'), ('name', '{"name": "ärmel"}'), ('rows', '[{"id": 1}, {"id": 2}]'),
	('json null', 'null'), ('number', '7'), ('null', NULL)) v (name, data);
CALL wait_for_event_handlers();
SELECT f.filter, (SELECT string_agg(c.event_name, ', ' ORDER BY c.n) FROM calls c WHERE c.handler = f.n::text) AS events
	FROM filters f ORDER BY f.n;
-- A filter that no event passes leaves nothing to do. It is no failure.
SELECT count(*) FROM event_retries;
SELECT count(*) FROM event_handler_stats WHERE failed > 0 OR pending > 0;
SELECT drop_handlers();
TRUNCATE calls;

-- Name and filter.
SELECT create_event_handler('both', 'of_text', event_name => 'order_*', filter => '$.amount >= 10');
SELECT count(notify_event(name, jsonb_build_object('amount', amount)))
	FROM (VALUES ('order_paid', 9), ('order_paid', 10), ('bill_paid', 11), ('order_lost', 12)) v (name, amount);
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT delivered, pending FROM event_handler_stats;
SELECT drop_handlers();

--
-- Where a handler starts
--
SELECT notify_event('older') IS NOT NULL AS recorded;
BEGIN;
SELECT notify_event('same transaction, before') IS NOT NULL AS recorded;
SELECT create_event_handler('from now', 'of_text');
SELECT notify_event('same transaction, after') IS NOT NULL AS recorded;
COMMIT;
SELECT notify_event('newer') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_handlers();
SELECT count(*) AS events FROM notification_events \gset
SELECT create_event_handler('from the beginning', 'of_text', start_from => 'beginning');
CALL wait_for_event_handlers();
SELECT count(*) = :events AS all_of_them FROM take_calls();
SELECT delivered = :events AS all_of_them FROM event_handler_stats;
SELECT drop_handlers();

-- A definition that is rolled back has no effect, nor has one that is dropped in
-- the transaction that created it.
BEGIN;
SELECT create_event_handler('never', 'of_text');
ROLLBACK;
BEGIN;
SELECT create_event_handler('never', 'of_text');
SELECT notify_event('for nobody') IS NOT NULL AS recorded;
SELECT drop_event_handler('never');
COMMIT;
CALL wait_for_event_handlers();
SELECT count(*) FROM event_handlers;
SELECT * FROM take_calls();

--
-- create, replace, alter, pause, resume, drop
--
SELECT create_event_handler('h', 'of_text', event_name => 'x*', filter => '$.a == 1', batch_size => 1, max_attempts => 2,
	retry_delay => '2 s', max_retry_delay => '1 day', timeout => '1.5 s', ordered => true);
SELECT name, function, event_name, filter, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused
	FROM event_handlers;
-- The name is in use already.
SELECT create_event_handler('h', 'of_text');
-- Replace: arguments that are not given get their defaults. The position stays. An
-- event that came while the handler was paused is delivered once, and an event that
-- was delivered before is not delivered again, whatever start_from says.
SELECT create_event_handler('h', 'of_text', or_replace => true);
SELECT name, function, event_name, filter, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused
	FROM event_handlers;
SELECT notify_event('delivered') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT pause_event_handler('h');
SELECT notify_event('while paused') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT handler, state, pending FROM event_handler_stats;
SELECT create_event_handler('h', 'of_row', start_from => 'now', or_replace => true);
SELECT paused, function FROM event_handlers;
SELECT resume_event_handler('h');
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT create_event_handler('h', 'of_text', start_from => 'beginning', or_replace => true);
SELECT notify_event('after') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
-- or_replace where there is nothing to replace, and twice in a transaction.
BEGIN;
SELECT create_event_handler('h2', 'of_row', or_replace => true);
SELECT create_event_handler('h2', 'of_text', or_replace => true);
COMMIT;
SELECT name, function FROM event_handlers ORDER BY name;
SELECT drop_event_handler('h2');

-- Alter: null leaves a setting as it is.
SELECT alter_event_handler('h', function => 'of_varchar', event_name => 'al*', filter => '$ > 1', batch_size => 7,
	max_attempts => 8, retry_delay => '9 s', max_retry_delay => '10 min', timeout => '11 s', ordered => true);
SELECT name, function, event_name, filter, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused
	FROM event_handlers;
SELECT alter_event_handler('h');
SELECT alter_event_handler('h', batch_size => 70);
SELECT name, function, event_name, filter, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused
	FROM event_handlers;
SELECT alter_event_handler('h', clear_filter => true);
SELECT filter IS NULL AS cleared FROM event_handlers;
SELECT alter_event_handler('h', filter => '$ > 2', clear_filter => true);
SELECT filter FROM event_handlers;
SELECT count(notify_event('altered', to_jsonb(i))) FROM generate_series(1, 4) i;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
-- The change applies to events that are handled after it.
BEGIN;
SELECT notify_event('altered', '5') IS NOT NULL AS recorded;
SELECT alter_event_handler('h', filter => '$ > 5');
SELECT notify_event('altered', '6') IS NOT NULL AS recorded;
COMMIT;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
-- Pause twice, resume twice, and roll a resume back.
SELECT pause_event_handler('h');
SELECT pause_event_handler('h');
SELECT handler, state FROM event_handler_stats;
BEGIN;
SELECT resume_event_handler('h');
ROLLBACK;
SELECT count(notify_event('altered', to_jsonb(i))) FROM generate_series(6, 8) i;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT resume_event_handler('h');
SELECT resume_event_handler('h');
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_event_handler('h');
SELECT drop_event_handler('h');
SELECT count(*) FROM event_handlers;
SELECT count(*) FROM event_handler_stats;

--
-- Batches
--
-- batch_size 1: each event has its own transaction. Otherwise the events of a batch
-- share one, in the order of their ids.
CREATE FUNCTION with_xid(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('xid', $1, to_jsonb(pg_current_xact_id()::text))
$$;
SELECT create_event_handler('one', 'with_xid', batch_size => 1);
SELECT count(notify_event('e' || i)) FROM generate_series(1, 5) i;
CALL wait_for_event_handlers();
SELECT string_agg(event_name, ' ' ORDER BY n) AS events, count(DISTINCT event_data) AS transactions FROM calls;
SELECT becomes_true('(calls, batches) = (5, 5) FROM event_handler_stats');
TRUNCATE calls;
SELECT drop_handlers();
SELECT create_event_handler('arrays', 'of_array', batch_size => 3);
SELECT count(notify_event('e' || i)) FROM generate_series(1, 7) i;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT becomes_true('(calls, batches, delivered) = (3, 3, 7) FROM event_handler_stats');
SELECT drop_handlers();
-- More events than the executor holds in memory at once.
CREATE FUNCTION count_calls(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_data) VALUES ('count', $2)
$$;
SELECT create_event_handler('many', 'count_calls', batch_size => 700);
INSERT INTO notification_events (event_name, event_data) SELECT 'many', to_jsonb(i) FROM generate_series(1, 2500) i;
CALL wait_for_event_handlers();
SELECT count(*), count(DISTINCT event_data), min(event_data::integer), max(event_data::integer) FROM calls;
SELECT count(*) AS out_of_order FROM (SELECT event_data < lag(event_data) OVER (ORDER BY n) AS wrong FROM calls) s WHERE wrong;
SELECT delivered, pending FROM event_handler_stats;
TRUNCATE calls;
SELECT drop_handlers();

-- Rolled back events are not delivered. Ids need not follow the order of commits.
SELECT create_event_handler('h', 'of_text');
BEGIN;
SELECT notify_event('committed 1') IS NOT NULL AS recorded;
SAVEPOINT a;
SELECT notify_event('rolled back') IS NOT NULL AS recorded;
ROLLBACK TO a;
SELECT notify_event('committed 2') IS NOT NULL AS recorded;
COMMIT;
BEGIN;
SELECT notify_event('rolled back') IS NOT NULL AS recorded;
ROLLBACK;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();

-- Events may be deleted from the log before they are delivered.
SELECT pause_event_handler('h');
SELECT count(notify_event('e' || i)) FROM generate_series(1, 3) i;
DELETE FROM notification_events WHERE event_name = 'e2';
SELECT resume_event_handler('h');
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_handlers();

-- Session state does not pass from one batch to the next.
CREATE FUNCTION leaves_things(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('state', $1, jsonb_build_object(
		'search_path', current_setting('search_path') = 'pg_temp',
		'application_name', current_setting('application_name') = 'leaves things',
		'role', current_user = 'pg_monitor',
		'table', to_regclass('pg_temp.left_behind') IS NOT NULL,
		'prepared', EXISTS (SELECT FROM pg_prepared_statements),
		'cursor', EXISTS (SELECT FROM pg_cursors WHERE name = 'left_behind'),
		'listen', EXISTS (SELECT FROM pg_listening_channels()),
		'lock', EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())));
	PERFORM set_config('search_path', 'pg_temp', false);
	PERFORM set_config('application_name', 'leaves things', false);
	PERFORM set_config('role', 'pg_monitor', false);
	CREATE TEMPORARY TABLE left_behind (a integer);
	EXECUTE 'PREPARE left_behind AS SELECT 1';
	EXECUTE 'DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1';
	PERFORM pg_advisory_lock(4711);
END
$$;
SELECT create_event_handler('h', 'leaves_things', batch_size => 1);
SELECT count(notify_event('e' || i)) FROM generate_series(1, 2) i;
CALL wait_for_event_handlers();
SELECT event_name, event_data FROM take_calls();
SELECT last_error FROM event_retries;
SELECT drop_handlers();

--
-- Failures
--
-- The effects of a failing event are undone, and its error is kept; others are delivered.
CREATE FUNCTION may_fail(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('may fail', $1, $2);
	IF $2 ? 'fail' THEN
		RAISE EXCEPTION 'cannot handle %', $1 USING ERRCODE = $2 ->> 'fail', DETAIL = 'no detail is kept';
	END IF;
END
$$;
SELECT create_event_handler('h', 'may_fail', retry_delay => '1 h');
BEGIN;
SELECT count(notify_event('e' || i, CASE WHEN i IN (3, 7, 8) THEN '{"fail": "P0042"}' END)) FROM generate_series(1, 10) i;
COMMIT;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT r.handler, e.event_name, r.state, r.attempts, r.last_error, r.last_sqlstate, r.last_error_at IS NOT NULL AS at,
	r.next_attempt_at - r.last_error_at BETWEEN '45 min' AND '1 h' AS later
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id ORDER BY r.event_id;
SELECT delivered, failed, retried, waiting, dead, pending, last_error FROM event_handler_stats;
-- Dropping a handler removes the events that wait for it.
SELECT drop_handlers();
SELECT count(*) FROM event_retries;
SELECT count(*) FROM _event_retries;
SELECT count(*) FROM _event_handler_failures;

-- An array fails as a whole and is then divided.
CREATE FUNCTION array_may_fail(notification_events[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name)
		SELECT 'array may fail', e.event_name FROM unnest($1) e;
	IF EXISTS (SELECT FROM unnest($1) e WHERE e.event_data ? 'fail') THEN
		RAISE EXCEPTION 'not this array';
	END IF;
END
$$;
SELECT create_event_handler('h', 'array_may_fail', retry_delay => '1 h');
SELECT count(notify_event('e' || i, CASE WHEN i IN (1, 6) THEN '{"fail": true}' END)) FROM generate_series(1, 6) i;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT e.event_name, r.state, r.attempts, r.last_error, r.last_sqlstate
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id ORDER BY r.event_id;
SELECT drop_handlers();

-- An error at commit is a failure of the event, too.
CREATE TABLE unique_names (event_name text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION fails_at_commit(text, jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO regress_handlers.unique_names VALUES ($1)';
SELECT create_event_handler('h', 'fails_at_commit', retry_delay => '1 h');
SELECT count(notify_event(name)) FROM unnest('{a,b,a,c,d}'::text[]) name;
CALL wait_for_event_handlers();
SELECT event_name FROM unique_names ORDER BY event_name;
SELECT e.event_name, r.state, r.attempts, r.last_error, r.last_sqlstate
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id ORDER BY r.event_id;
SELECT delivered, failed FROM event_handler_stats;
SELECT drop_handlers();

-- The timeout ends a call that takes too long.
CREATE FUNCTION never_ends(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE $1 = 'endless' LOOP
	END LOOP;
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('quick', $1);
END
$$;
SELECT create_event_handler('h', 'never_ends', timeout => '300 ms', retry_delay => '1 h');
SELECT count(notify_event(name)) FROM unnest('{quick,endless,quick again}'::text[]) name;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT e.event_name, r.state, r.attempts, r.last_error, r.last_sqlstate
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id;
SELECT drop_handlers();

-- The retry succeeds when the cause is gone. A sequence counts the attempts: it is
-- not rolled back. The handler is ordered, so the second event waits for the first,
-- and a wait for the second event waits for the retry of the first.
CREATE SEQUENCE tries;
CREATE FUNCTION third_time(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF $1 = 'stubborn' AND nextval('regress_handlers.tries') < 3 THEN
		RAISE EXCEPTION 'not yet';
	END IF;
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('third time', $1);
END
$$;
SELECT create_event_handler('h', 'third_time', batch_size => 1, retry_delay => '10 ms', ordered => true);
SELECT count(notify_event(name)) FROM unnest('{easy,stubborn,next}'::text[]) name;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT last_value FROM tries;
SELECT count(*) FROM event_retries;
SELECT delivered, failed, retried, waiting, dead, pending, last_error FROM event_handler_stats;
SELECT drop_handlers();
ALTER SEQUENCE tries RESTART;

-- If the handler is not ordered, other events continue meanwhile.
SELECT create_event_handler('h', 'third_time', retry_delay => '1 h');
SELECT count(notify_event(name)) FROM unnest('{easy,stubborn,next}'::text[]) name;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT waiting FROM event_handler_stats;
SELECT drop_handlers();

-- After max_attempts the event is dead, and others no longer wait for it.
SELECT create_event_handler('h', 'may_fail', max_attempts => 3, retry_delay => '1 ms', max_retry_delay => '2 ms', ordered => true);
SELECT notify_event('deadly', '{"fail": "P0042"}') IS NOT NULL AS recorded;
SELECT notify_event('next') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT e.event_name, r.state, r.attempts, r.next_attempt_at, r.last_error, r.last_sqlstate
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id;
SELECT delivered, failed, retried, waiting, dead FROM event_handler_stats;
SELECT drop_handlers();
SELECT create_event_handler('h', 'may_fail', max_attempts => 1);
SELECT notify_event('deadly at once', '{"fail": "22012"}') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT e.event_name, r.state, r.attempts, r.next_attempt_at, r.last_error, r.last_sqlstate
	FROM event_retries r JOIN notification_events e ON e.id = r.event_id;
SELECT drop_handlers();

-- An ordered handler is held. A wait for it times out and names the handler.
SELECT create_event_handler('held', 'may_fail', retry_delay => '1 h', ordered => true);
SELECT notify_event('fails', '{"fail": "22012"}') IS NOT NULL AS recorded;
SELECT notify_event('next') IS NOT NULL AS recorded;
-- without state and last error, which vary from run to run
\set VERBOSITY terse
CALL wait_for_event_handlers('0 s');
\set VERBOSITY default
-- Other handlers are not held, and a wait ignores a paused handler.
SELECT pause_event_handler('held');
SELECT create_event_handler('free', 'of_text');
SELECT notify_event('free') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT handler, state = 'paused' AS paused, pending BETWEEN 2 AND 3 AS pending FROM event_handler_stats ORDER BY handler;
SELECT drop_handlers();

-- The event is deleted from the log: its retry is dropped.
SELECT create_event_handler('h', 'may_fail', retry_delay => '1 ms', ordered => true);
SELECT notify_event('to delete', '{"fail": "22012"}') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT pause_event_handler('h');
DELETE FROM notification_events WHERE event_name = 'to delete';
SELECT notify_event('next') IS NOT NULL AS recorded;
SELECT resume_event_handler('h');
CALL wait_for_event_handlers();
SELECT event_name FROM take_calls();
SELECT state, next_attempt_at, last_error FROM event_retries;
SELECT drop_handlers();

--
-- A function that cannot run any more: the handler is suspended, no event is lost or charged
--
CREATE FUNCTION comes_and_goes(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('comes and goes', $1)
$$;
SELECT create_event_handler('h', 'comes_and_goes');
DROP FUNCTION comes_and_goes;
SELECT notify_event('while gone') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, state, suspended_reason, pending, failed FROM event_handler_stats;
CREATE FUNCTION comes_and_goes(text, jsonb) RETURNS void LANGUAGE sql STRICT AS 'SELECT 1';
SELECT handler, state, suspended_reason FROM event_handler_stats;
DROP FUNCTION comes_and_goes;
CREATE PROCEDURE comes_and_goes(text, jsonb) LANGUAGE sql AS 'SELECT 1';
SELECT handler, state, suspended_reason FROM event_handler_stats;
DROP PROCEDURE comes_and_goes;
CREATE FUNCTION comes_and_goes(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('came again', $1)
$$;
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT handler, suspended_reason, pending, failed FROM event_handler_stats;
-- The function is replaced, and moved to another schema.
CREATE OR REPLACE FUNCTION comes_and_goes(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('replaced', $1)
$$;
SELECT notify_event('replaced') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
ALTER FUNCTION comes_and_goes SET SCHEMA regress_handlers_2;
SELECT notify_event('moved') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, state, suspended_reason, pending FROM event_handler_stats;
SELECT alter_event_handler('h', function => 'regress_handlers_2.comes_and_goes');
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT drop_handlers();

--
-- Handlers that emit
--
CREATE FUNCTION chain(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name, event_data) VALUES ('chain', $1, $2);
	IF $2::integer > 0 THEN
		PERFORM public.notify_event('chained', to_jsonb($2::integer - 1));
	END IF;
END
$$;
SELECT create_event_handler('chain', 'chain', event_name => 'chain*');
SELECT create_event_handler('watcher', 'of_row', event_name => 'chained');
SELECT notify_event('chain', '3') IS NOT NULL AS recorded;
-- Each event is committed before the next one is handled, so wait for each of them.
CALL wait_for_event_handlers();
CALL wait_for_event_handlers();
CALL wait_for_event_handlers();
CALL wait_for_event_handlers();
SELECT handler, event_name, COALESCE(event_data -> 'data', event_data) AS data FROM take_calls() ORDER BY handler, data DESC;
-- A failing call emits nothing.
CREATE FUNCTION emits_and_fails(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.notify_event('chained', '0');
	RAISE EXCEPTION 'undo';
END
$$;
SELECT create_event_handler('undone', 'emits_and_fails', event_name => 'try', max_attempts => 1);
SELECT notify_event('try') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_handlers();

-- A handler can change handlers, including itself.
CREATE FUNCTION changes_handlers(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_handlers.calls (handler, event_name) VALUES ('changes', $1);
	PERFORM public.create_event_handler('made by ' || $1, 'regress_handlers.of_text', event_name => 'for the new one');
	PERFORM public.pause_event_handler('h');
END
$$;
SELECT create_event_handler('h', 'changes_handlers', event_name => 'change');
SELECT notify_event('change') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT name, paused FROM event_handlers ORDER BY name;
SELECT last_error FROM event_retries;
SELECT notify_event('for the new one') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT drop_handlers();

--
-- call_event_handler calls the function at once, in this session, and records nothing
--
SELECT create_event_handler('h', 'of_text', event_name => 'not this');
SELECT create_event_handler('rows', 'of_row', event_name => 'not this', filter => '$ == 1');
SELECT create_event_handler('arrays', 'of_array');
SELECT pause_event_handler('arrays');
SELECT notify_event('called', '{"a": 1}') AS id \gset
SELECT call_event_handler('h', :id);
SELECT call_event_handler('rows', :id);
SELECT call_event_handler('arrays', :id);
SELECT * FROM take_calls();
SELECT handler, delivered, failed FROM event_handler_stats ORDER BY handler;
BEGIN;
SELECT call_event_handler('h', :id);
ROLLBACK;
-- An event of the current transaction.
BEGIN;
SELECT notify_event('own') AS id \gset
SELECT call_event_handler('h', :id);
COMMIT;
SELECT * FROM take_calls();
-- Errors are raised to the caller.
SELECT create_event_handler('fails', 'may_fail', event_name => 'not this');
SELECT notify_event('failing', '{"fail": "22012"}') AS id \gset
\set SHOW_CONTEXT never
SELECT call_event_handler('fails', :id);
\set SHOW_CONTEXT errors
SELECT * FROM take_calls();
SELECT count(*) FROM event_retries;
SELECT call_event_handler('h', 0);
SELECT call_event_handler('nobody', :id);
SELECT drop_handlers();

--
-- wait_for_event_handlers
--
-- Nothing to wait for.
CALL wait_for_event_handlers();
CALL wait_for_event_handlers('0 s');
CALL wait_for_event_handlers(timeout => '1 min');
-- Refused where it would wait for itself or could not see the result.
BEGIN;
CALL wait_for_event_handlers();
ROLLBACK;
DO $$
BEGIN
	CALL wait_for_event_handlers();
END
$$;
SET default_transaction_isolation = 'repeatable read';
CALL wait_for_event_handlers();
SET default_transaction_isolation = 'serializable';
CALL wait_for_event_handlers();
RESET default_transaction_isolation;
CREATE FUNCTION waits(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CALL public.wait_for_event_handlers();
END
$$;
SELECT create_event_handler('waits', 'waits', max_attempts => 1);
SELECT notify_event('wait') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT state, last_error, last_sqlstate FROM event_retries;
SELECT drop_handlers();
-- The timeout message names all handlers that are not done.
SELECT count(create_event_handler(name, 'may_fail', retry_delay => '1 h', ordered => true)) FROM unnest(array['first', 'sec"ond']) name;
SELECT create_event_handler('done', 'of_text');
SELECT count(notify_event('fails', '{"fail": "22012"}')) FROM generate_series(1, 2) i;
-- without state and last error, which vary from run to run
\set VERBOSITY terse
CALL wait_for_event_handlers('10 ms');
\set VERBOSITY default
SELECT drop_handlers();
CALL wait_for_event_handlers();

SET client_min_messages = warning;
DROP SCHEMA regress_handlers, regress_handlers_2 CASCADE;
DROP EXTENSION pg_notify_events;
