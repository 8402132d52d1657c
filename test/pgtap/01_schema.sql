-- What CREATE EXTENSION creates: names, types, privileges.
BEGIN;
SELECT * FROM no_plan();

SELECT has_table('notification_events');
SELECT columns_are('notification_events',
	ARRAY['id', 'event_name', 'event_data', 'created_at', 'txid', 'origin_txid', 'announce']);
SELECT col_type_is('notification_events', 'id', 'bigint');
SELECT col_is_pk('notification_events', 'id');
SELECT col_hasnt_default('notification_events', 'id');
SELECT col_type_is('notification_events', 'event_name', 'character varying(100)');
SELECT col_not_null('notification_events', 'event_name');
SELECT col_type_is('notification_events', 'event_data', 'jsonb');
SELECT col_type_is('notification_events', 'created_at', 'timestamp with time zone');
SELECT col_default_is('notification_events', 'created_at', 'now()');
SELECT col_type_is('notification_events', 'txid', 'xid8');
SELECT col_not_null('notification_events', 'txid');
SELECT col_hasnt_default('notification_events', 'txid');

-- with a FOR ALL TABLES publication, a table without a primary key refuses UPDATE and DELETE
SELECT is_empty($$
	SELECT c.relname FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE c.relkind = 'r'
	AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
$$, 'every table has a primary key');

-- an upgrade of the operating system may change the order of characters and so
-- corrupt an index; last_error and the names in the log are left out, because no
-- index contains them
SELECT is_empty($$
	SELECT a.attrelid::regclass, a.attname FROM pg_attribute a
	JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND c.relname <> 'notification_events'
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'last_error'
	AND a.attcollation NOT IN (0, '"C"'::regcollation)
$$, 'every text of an own table is compared by bytes');
SELECT is_empty($$
	SELECT i.indexrelid::regclass, k.oid::regcollation FROM pg_index i
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indrelid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events',
	unnest(i.indcollation) k (oid)
	WHERE k.oid NOT IN (0, '"C"'::regcollation)
$$, '... and so by every index, the log''s included');
SELECT is_empty($$
	SELECT i.indexrelid::regclass FROM pg_index i
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indrelid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE (i.indexprs IS NOT NULL AND pg_get_expr(i.indexprs, i.indrelid) IS NOT NULL)
	OR i.indpred::text LIKE '%:inputcollid 100 %'
$$, '... and by the condition of every one that has one');

SELECT is_empty($$
	SELECT t.tgrelid::regclass, t.tgname FROM pg_trigger t
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = t.tgrelid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE t.tgenabled <> 'A'
$$, 'every trigger of the extension is ENABLE ALWAYS');

SELECT set_eq($$
	SELECT c.relname::text FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE c.relkind = 'v'
$$, ARRAY['event_handlers', 'event_retries', 'event_handler_stats', 'event_consumers', 'event_consumer_stats',
	'event_worker_stats', 'event_stats', 'event_channels', 'event_channel_stats']);

SELECT is_empty($$
	SELECT d.classid::regclass, d.objid
	FROM pg_depend d
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	LEFT JOIN pg_description c ON c.classoid = d.classid AND c.objoid = d.objid AND c.objsubid = 0
	LEFT JOIN pg_class r ON d.classid = 'pg_class'::regclass AND r.oid = d.objid
	WHERE d.deptype = 'e' AND c.description IS NULL
	AND d.classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
	AND COALESCE(r.relkind, 'f') <> 'S'
$$, 'every table, view and function has a comment');

-- functions: signatures, volatility, parallel safety
SELECT has_function('notify_event', ARRAY[]::text[]);
SELECT function_returns('notify_event', ARRAY[]::text[], 'trigger');
SELECT function_returns('notify_event', ARRAY['character varying', 'jsonb'], 'bigint');
SELECT function_returns('notify_event', ARRAY['character varying', 'json'], 'bigint');
SELECT function_returns('notify_event', ARRAY['character varying', 'text'], 'bigint');
SELECT has_function('create_event_handler', ARRAY['text', 'text', 'text', 'jsonpath', 'integer', 'integer',
	'interval', 'interval', 'interval', 'boolean', 'text', 'text', 'boolean']);
SELECT has_function('alter_event_handler');
SELECT has_function('drop_event_handler', ARRAY['text']);
SELECT has_function('pause_event_handler', ARRAY['text']);
SELECT has_function('resume_event_handler', ARRAY['text']);
SELECT has_function('call_event_handler', ARRAY['text', 'bigint']);
SELECT function_returns('retry_dead_events', ARRAY['text'], 'bigint');
SELECT function_returns('discard_dead_events', ARRAY['text'], 'bigint');
SELECT function_returns('replay_events', ARRAY['text', 'bigint', 'bigint'], 'bigint');
SELECT function_returns('event_delivery_status', ARRAY['bigint'], 'setof record');
SELECT is_procedure('wait_for_event_handlers', ARRAY['interval']);
SELECT has_function('create_event_consumer', ARRAY['text', 'text', 'jsonpath', 'text', 'text', 'boolean']);
SELECT has_function('drop_event_consumer', ARRAY['text']);
SELECT function_returns('fetch_events', ARRAY['text', 'integer', 'interval'], 'setof notification_events');
SELECT function_returns('ack_events', ARRAY['text', 'bigint'], 'bigint');
SELECT function_returns('retry_event', ARRAY['text', 'bigint', 'interval'], 'void');
SELECT is_procedure('wait_for_events', ARRAY['text', 'interval']);
SELECT columns_are('event_consumers', ARRAY['name', 'owner', 'event_name', 'filter', 'created_at', 'altered_at']);
SELECT columns_are('event_consumer_stats', ARRAY['consumer', 'owner', 'state', 'fetched', 'acknowledged', 'retried',
	'waiting', 'batch', 'leased_until', 'held_pid', 'held_since', 'pending', 'pending_is_exact', 'oldest_pending_at',
	'last_event_id', 'last_fetched_at', 'last_acknowledged_at']);
SELECT function_returns('activate_events', ARRAY[]::text[], 'bigint');
SELECT has_function('reset_event_stats', ARRAY[]::text[]);
SELECT function_returns('listen_event_channel', ARRAY['text', 'text'], 'void');
SELECT function_returns('unlisten_event_channel', ARRAY['text'], 'void');
SELECT columns_are('event_channels', ARRAY['channel', 'owner', 'event_name', 'created_at']);
SELECT columns_are('event_channel_stats', ARRAY['channel', 'notifications', 'bytes', 'dropped', 'last_received_at', 'state']);

SELECT is_empty($$
	SELECT p.oid::regprocedure FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE p.proparallel <> 'u' OR p.provolatile <> 'v' OR p.prosecdef
$$, 'every function is volatile, parallel unsafe and not SECURITY DEFINER');

-- privileges of PUBLIC
SELECT set_eq($$
	SELECT p.proname::text FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events'
	WHERE p.proacl IS NULL
$$, ARRAY['alter_event_handler', 'drop_event_handler', 'pause_event_handler', 'resume_event_handler',
	'call_event_handler', 'retry_dead_events', 'discard_dead_events', 'replay_events', 'event_delivery_status',
	'wait_for_event_handlers', 'drop_event_consumer', 'fetch_events', 'ack_events', 'retry_event', 'wait_for_events',
	'unlisten_event_channel', '_handler_statistics', '_consumer_statistics', '_worker_statistics', '_event_statistics', '_channel_statistics'],
	'only functions that check rights themselves are granted to PUBLIC');

SELECT set_eq($$
	SELECT c.relname::text FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_notify_events',
	aclexplode(c.relacl) a
	WHERE a.grantee = 0
$$, ARRAY['event_handlers', 'event_retries', 'event_handler_stats', 'event_consumers', 'event_consumer_stats',
	'event_worker_stats', 'event_stats', 'event_channels', 'event_channel_stats'],
	'only the views are granted to PUBLIC');

SELECT set_eq($$
	SELECT r.privilege_type FROM information_schema.role_table_grants r
	WHERE r.grantee = 'PUBLIC' AND r.table_name IN
	('event_handlers', 'event_retries', 'event_handler_stats', 'event_consumers', 'event_consumer_stats',
	'event_worker_stats', 'event_stats', 'event_channels', 'event_channel_stats')
$$, ARRAY['SELECT'], 'and only for reading');

-- settings
SELECT set_eq($$ SELECT name FROM pg_settings WHERE name LIKE 'pg\_notify\_events.%' $$,
	ARRAY['pg_notify_events.announce', 'pg_notify_events.batch_bytes', 'pg_notify_events.batch_time',
	'pg_notify_events.channel', 'pg_notify_events.databases', 'pg_notify_events.enabled',
	'pg_notify_events.executor_idle_timeout', 'pg_notify_events.max_executors',
	'pg_notify_events.max_handler_timeout', 'pg_notify_events.naptime',
	'pg_notify_events.partition_root', 'pg_notify_events.payload', 'pg_notify_events.queue_usage_limit', 'pg_notify_events.superuser_handlers',
	'pg_notify_events.synchronous_commit']);
SELECT is_empty($$ SELECT name FROM pg_settings WHERE name LIKE 'pg\_notify\_events.%' AND short_desc IS NULL $$,
	'every setting has a description');
SELECT set_eq($$ SELECT name || ' ' || unit FROM pg_settings WHERE name LIKE 'pg\_notify\_events.%' AND unit IS NOT NULL $$,
	ARRAY['pg_notify_events.batch_bytes kB', 'pg_notify_events.batch_time ms',
	'pg_notify_events.executor_idle_timeout ms', 'pg_notify_events.max_handler_timeout ms',
	'pg_notify_events.naptime ms']);
SELECT results_eq($$ SELECT context, string_agg(substr(name, 18), ' ' ORDER BY name COLLATE "C") FROM pg_settings
	WHERE name LIKE 'pg\_notify\_events.%' GROUP BY context ORDER BY context $$,
	$$ VALUES ('sighup', 'batch_bytes batch_time databases enabled executor_idle_timeout max_executors max_handler_timeout naptime queue_usage_limit superuser_handlers synchronous_commit'),
	('superuser', 'announce channel partition_root payload') $$);
SELECT throws_ok($$ SET pg_notify_events.no_such_thing = 1 $$, '42602', NULL, 'the prefix is reserved');
SELECT throws_ok($$ SET pg_notify_events.channel = '' $$, '22023', NULL, 'an empty channel is refused');
SELECT throws_ok(format('SET pg_notify_events.channel = %L', repeat('x', 64)), '22023', NULL, 'a channel of 64 bytes is refused');

SELECT * FROM finish();
ROLLBACK;
