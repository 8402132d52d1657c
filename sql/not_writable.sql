--
-- Where nothing can be written, each function that writes raises an error of its
-- own: in read-only transactions, and in parallel operations, which a user's function
-- that is marked PARALLEL SAFE may start.  In parallel operations a function that has
-- to evaluate filters of other roles does the same.
--
CREATE EXTENSION pg_notify_events;
CREATE FUNCTION handle(notification_events) RETURNS void LANGUAGE sql AS '';
SELECT create_event_handler('x', 'handle', filter => '$.a'), create_event_consumer('x'), listen_event_channel('x');
SELECT notify_event('x') > 0 AS recorded;
CREATE TABLE rows WITH (parallel_workers = 2) AS SELECT a FROM generate_series(1, 1000) AS a;

-- A call of each function that PUBLIC may use, with the required arguments
CREATE VIEW calls AS
	SELECT format('%I(%s)', p.proname, (
			SELECT string_agg(CASE t.type::regtype
					WHEN 'text'::regtype THEN CASE p.proargnames[t.n] WHEN 'function' THEN '''handle''' WHEN 'event_data' THEN '''{}'''
						ELSE '''x''' END
					WHEN 'varchar'::regtype THEN '''x'''
					WHEN 'bigint'::regtype THEN '1'
					ELSE 'NULL::' || t.type::regtype END, ', ' ORDER BY t.n)
			FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t(type, n)
			WHERE t.n <= p.pronargs - p.pronargdefaults)) AS call
	FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
	WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')
	  AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype AND p.proname NOT LIKE '\_%' AND p.provolatile = 'v';
CREATE FUNCTION outcome(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || regexp_replace(SQLERRM, '\d+', 'N');
END $$;

-- read-only
BEGIN READ ONLY;
SELECT call, outcome('SELECT ' || call) FROM calls ORDER BY call COLLATE "C";
COMMIT;

-- a parallel operation, first in the leader, then in a worker
CREATE FUNCTION outcome_in_parallel(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'CREATE OR REPLACE FUNCTION careless(integer) RETURNS integer PARALLEL SAFE LANGUAGE plpgsql AS '
		|| quote_literal('BEGIN PERFORM ' || call || '; RETURN 1; END');
	RETURN outcome('SELECT careless(a) FROM rows');
END $$;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
EXPLAIN (COSTS OFF) SELECT abs(a) FROM rows;
SET max_parallel_workers = 0;
SELECT call, outcome_in_parallel(call) FROM calls ORDER BY call COLLATE "C";
RESET max_parallel_workers;
SET parallel_leader_participation = off;
SELECT call, outcome_in_parallel(call) FROM calls ORDER BY call COLLATE "C";

SET client_min_messages = warning;
DROP EXTENSION pg_notify_events CASCADE;
DROP FUNCTION outcome, outcome_in_parallel, careless;
DROP VIEW calls;
DROP TABLE rows;
