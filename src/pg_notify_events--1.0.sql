/* pg_notify_events--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_notify_events" to load this file. \quit

-- Names that begin with an underscore are internal. Applications should not use
-- them; they may change in any release.

----------------------------------------------------------------------------
-- Installation
----------------------------------------------------------------------------

CREATE FUNCTION _extension_installing() RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_extension_installing';
COMMENT ON FUNCTION _extension_installing() IS
	'internal: checks the schema at the start of CREATE EXTENSION';
REVOKE ALL ON FUNCTION _extension_installing() FROM PUBLIC;

SELECT _extension_installing();

----------------------------------------------------------------------------
-- Emit
----------------------------------------------------------------------------

-- The log. It is insert-only: no event is ever updated. The column txid has no
-- default, so a given value comes from elsewhere (a restore), and the row
-- trigger keeps it in origin_txid. The column id has no default, either: the
-- row trigger draws it, and so it can tell that an id was given.
CREATE TABLE notification_events (
	id			bigint PRIMARY KEY,
	event_name	varchar(100) NOT NULL,
	event_data	jsonb,
	created_at	timestamptz DEFAULT pg_catalog.now(),
	txid		xid8 NOT NULL,
	origin_txid xid8,
	announce	boolean
);
COMMENT ON TABLE notification_events IS
	'the event log of pg_notify_events: one row per event';
COMMENT ON COLUMN notification_events.id IS
	'drawn by the row trigger when the event is recorded; events may become visible in another order';
COMMENT ON COLUMN notification_events.event_name IS
	'what happened, 1 to 100 characters';
COMMENT ON COLUMN notification_events.event_data IS
	'data of the event, of any form';
COMMENT ON COLUMN notification_events.created_at IS
	'start of the transaction that recorded the event';
COMMENT ON COLUMN notification_events.txid IS
	'top-level transaction that recorded the event; set by the row trigger';
COMMENT ON COLUMN notification_events.origin_txid IS
	'txid of a restored or replicated row in the database that it came from';
COMMENT ON COLUMN notification_events.announce IS
	'whether the listener announces the event; set by the row trigger';

CREATE SEQUENCE notification_events_id_seq AS bigint OWNED BY notification_events.id;
COMMENT ON SEQUENCE notification_events_id_seq IS
	'ids of events; a role with UPDATE on it may give a row any id';

CREATE INDEX notification_events_txid_idx ON notification_events (txid);

CREATE FUNCTION _notification_event_row() RETURNS trigger
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_notification_event_row';
COMMENT ON FUNCTION _notification_event_row() IS
	'internal: sets id, transaction and announcer of each event, and wakes the workers at commit';
REVOKE ALL ON FUNCTION _notification_event_row() FROM PUBLIC;

-- The name makes it fire after other BEFORE triggers. ENABLE ALWAYS: events that
-- come by logical replication are events of this database, too.
CREATE TRIGGER zz_notification_event_row
	BEFORE INSERT ON notification_events
	FOR EACH ROW EXECUTE FUNCTION _notification_event_row();
ALTER TABLE notification_events ENABLE ALWAYS TRIGGER zz_notification_event_row;

CREATE FUNCTION notify_event() RETURNS trigger
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_notify_event_trigger';
COMMENT ON FUNCTION notify_event() IS
	'trigger function: records an event; arguments: event name, JSON text or new/old for the row, columns to record';

CREATE FUNCTION notify_event(event_name varchar, event_data jsonb DEFAULT NULL) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_notify_event_jsonb';
COMMENT ON FUNCTION notify_event(varchar, jsonb) IS
	'records an event and returns its id';

CREATE FUNCTION notify_event(event_name varchar, event_data json) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_notify_event_json';
COMMENT ON FUNCTION notify_event(varchar, json) IS
	'records an event and returns its id';

CREATE FUNCTION notify_event(event_name varchar, event_data text) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_notify_event_text';
COMMENT ON FUNCTION notify_event(varchar, text) IS
	'records an event whose data is given as JSON text, and returns its id';

REVOKE ALL ON FUNCTION notify_event() FROM PUBLIC;
REVOKE ALL ON FUNCTION notify_event(varchar, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION notify_event(varchar, json) FROM PUBLIC;
REVOKE ALL ON FUNCTION notify_event(varchar, text) FROM PUBLIC;

----------------------------------------------------------------------------
-- Handlers: tables
----------------------------------------------------------------------------

-- The extension compares its own texts by bytes, COLLATE "C". So indexes stay
-- valid when an update of the operating system changes how languages sort.

-- Identifies this installation. It is not dumped: a restored database has drawn
-- another install_id, which distinguishes restored definitions from active ones.
CREATE TABLE _event_install (
	singleton	boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	install_id uuid NOT NULL,
	database	oid NOT NULL,
	created_at	timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE _event_install IS
	'internal: identity of this installation, and the database in which it was created or activated';

-- How far the listener has followed the log. Not dumped.
CREATE TABLE _event_announcer (
	singleton	boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	cursor		pg_snapshot NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE _event_announcer IS
	'internal: the listener''s position in the log';

CREATE TABLE _event_handlers (
	name				text COLLATE "C" PRIMARY KEY,
	number				bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY (MAXVALUE 281474976710655) UNIQUE,
	owner				oid NOT NULL,
	owner_name			name NOT NULL,
	function_schema		name NOT NULL,
	function_name		name NOT NULL,
	function_shape		"char" NOT NULL,
	function_owner		oid NOT NULL,
	function_owner_name name NOT NULL,
	event_name			text COLLATE "C" NOT NULL,
	filter				jsonpath,
	batch_size			integer NOT NULL,
	max_attempts		integer NOT NULL,
	retry_delay			interval NOT NULL,
	max_retry_delay		interval NOT NULL,
	timeout				interval NOT NULL,
	ordered				boolean NOT NULL,
	paused				boolean NOT NULL DEFAULT false,
	install_id			uuid NOT NULL,
	database			oid NOT NULL,
	created_at			timestamptz NOT NULL DEFAULT pg_catalog.now(),
	altered_at			timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE _event_handlers IS
	'internal: handler definitions; use the view event_handlers';
COMMENT ON COLUMN _event_handlers.number IS
	'drawn in this database, also for a restored row; identifies the handler''s lock, whose tag has room for 48 bits';

-- One row per handler, updated once per batch. It has no long texts, because each
-- batch leaves an old version of it behind while an old snapshot is held.
CREATE TABLE _event_handler_progress (
	handler				text COLLATE "C" PRIMARY KEY,
	created				bigint NOT NULL,
	version				bigint NOT NULL,
	cursor				pg_snapshot NOT NULL,
	"window"			pg_snapshot,
	last_id				bigint,
	start				pg_snapshot NOT NULL,
	owner_token			bigint,
	at_risk				integer NOT NULL DEFAULT 0,
	guarded_events		integer NOT NULL DEFAULT 0,
	tried_upto			bigint,
	delivered			bigint NOT NULL DEFAULT 0,
	retried				bigint NOT NULL DEFAULT 0,
	last_event_id		bigint,
	last_delivered_at	timestamptz
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE _event_handler_progress IS
	'internal: the position of each handler: it has handled the events visible in cursor, and those visible in window up to last_id';
COMMENT ON COLUMN _event_handler_progress.owner_token IS
	'owner token of the executor that runs the handler; if another executor finds it set, that one was lost';
COMMENT ON COLUMN _event_handler_progress.at_risk IS
	'how many events are to be tried under guard if the executor that runs the handler is lost';
COMMENT ON COLUMN _event_handler_progress.guarded_events IS
	'how many events are still to be tried under guard after an executor was lost';
COMMENT ON COLUMN _event_handler_progress.tried_upto IS
	'after an executor was lost: last event of the group that is being tried, which begins at the position';

CREATE TABLE _event_handler_failures (
	handler			text COLLATE "C" PRIMARY KEY,
	failed			bigint NOT NULL,
	last_error		text NOT NULL,
	last_sqlstate	text COLLATE "C" NOT NULL,
	last_error_at	timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE _event_handler_failures IS
	'internal: how often each handler failed, and its last error';

CREATE TABLE _event_retries (
	handler			text COLLATE "C" NOT NULL,
	event_id		bigint NOT NULL,
	event_txid		xid8 NOT NULL,
	state			text COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'dead', 'discarded')),
	attempts		integer NOT NULL,
	next_attempt_at timestamptz,
	last_error		text,
	last_sqlstate	text COLLATE "C",
	last_error_at	timestamptz,
	attempt_began_at timestamptz,
	deferred		boolean NOT NULL DEFAULT false,
	untried			boolean NOT NULL DEFAULT false,
	PRIMARY KEY (handler, event_id, event_txid)
);
CREATE INDEX _event_retries_due_idx ON _event_retries (handler, next_attempt_at, event_id)
	WHERE state = 'waiting';
CREATE INDEX _event_retries_open_idx ON _event_retries (handler)
	WHERE deferred OR attempt_began_at IS NOT NULL OR untried;
CREATE INDEX _event_retries_dead_idx ON _event_retries (handler)
	WHERE state = 'dead';
COMMENT ON TABLE _event_retries IS
	'internal: events that failed; use the view event_retries';
COMMENT ON COLUMN _event_retries.event_txid IS
	'the event''s transaction: another event may have the same id later';
COMMENT ON COLUMN _event_retries.attempt_began_at IS
	'set while an attempt is under way; attempts already counts it';
COMMENT ON COLUMN _event_retries.untried IS
	'the position has passed the event, and its first attempt has not ended yet';
COMMENT ON COLUMN _event_retries.deferred IS
	'the last attempt is not counted yet; it is counted when the handler succeeds with any event';

----------------------------------------------------------------------------
-- Consumers: tables
----------------------------------------------------------------------------

CREATE TABLE _event_consumers (
	name			text COLLATE "C" PRIMARY KEY,
	number			bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY (MAXVALUE 281474976710655) UNIQUE,
	owner			oid NOT NULL,
	owner_name		name NOT NULL,
	event_name		text COLLATE "C" NOT NULL,
	filter			jsonpath,
	install_id		uuid NOT NULL,
	database		oid NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	altered_at		timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE _event_consumers IS
	'internal: consumer definitions; use the view event_consumers';
COMMENT ON COLUMN _event_consumers.number IS
	'drawn in this database, also for a restored row; identifies the consumer''s lock, whose tag has room for 48 bits';

-- One row per consumer, updated by each fetch and each acknowledgement.
CREATE TABLE _event_consumer_progress (
	consumer				text COLLATE "C" PRIMARY KEY,
	cursor					pg_snapshot NOT NULL,
	"window"				pg_snapshot,
	last_id					bigint,
	start					pg_snapshot NOT NULL,
	batch					bytea NOT NULL DEFAULT '',
	batch_length			integer NOT NULL DEFAULT 0,
	leased_until			timestamptz,
	fetched					bigint NOT NULL DEFAULT 0,
	acknowledged			bigint NOT NULL DEFAULT 0,
	retried					bigint NOT NULL DEFAULT 0,
	last_event_id			bigint,
	last_fetched_at			timestamptz,
	last_acknowledged_at	timestamptz
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE _event_consumer_progress IS
	'internal: the position of each consumer: it has fetched the events visible in cursor, and those visible in window up to last_id';
COMMENT ON COLUMN _event_consumer_progress.batch IS
	'the open batch: the events that were fetched and not acknowledged, as consumer_batch.c encodes them; the position has passed them';
COMMENT ON COLUMN _event_consumer_progress.batch_length IS
	'number of events in batch';

CREATE TABLE _event_consumer_retries (
	consumer		text COLLATE "C" NOT NULL,
	event_id		bigint NOT NULL,
	event_txid		xid8 NOT NULL,
	attempts		integer NOT NULL,
	next_attempt_at timestamptz,
	PRIMARY KEY (consumer, event_id, event_txid)
);
CREATE INDEX _event_consumer_retries_due_idx ON _event_consumer_retries (consumer, next_attempt_at);
COMMENT ON TABLE _event_consumer_retries IS
	'internal: events that consumers have handed back';
COMMENT ON COLUMN _event_consumer_retries.event_txid IS
	'the event''s transaction: another event may have the same id later';
COMMENT ON COLUMN _event_consumer_retries.next_attempt_at IS
	'null exactly as long as the event is in the open batch again';

CREATE TABLE _event_channels (
	channel		text COLLATE "C" PRIMARY KEY,
	event_name	text COLLATE "C" NOT NULL,
	owner		oid NOT NULL,
	owner_name	name NOT NULL,
	install_id uuid NOT NULL,
	database	oid NOT NULL,
	created_at	timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE _event_channels IS
	'internal: channels whose notifications become events; use the view event_channels';

----------------------------------------------------------------------------
-- Internal tables: only the extension's functions change them; dumps include them
----------------------------------------------------------------------------

CREATE FUNCTION _guard() RETURNS trigger
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_guard';
COMMENT ON FUNCTION _guard() IS
	'internal: allows only the extension''s functions to change its tables';
REVOKE ALL ON FUNCTION _guard() FROM PUBLIC;

DO $$
DECLARE
	internal_table name;
BEGIN
	FOREACH internal_table IN ARRAY ARRAY[
		'_event_install', '_event_announcer',
		'_event_handlers', '_event_handler_progress', '_event_handler_failures', '_event_retries',
		'_event_consumers', '_event_consumer_progress', '_event_consumer_retries',
		'_event_channels']
	LOOP
		EXECUTE pg_catalog.format(
			'CREATE TRIGGER guard_rows BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION _guard()',
			internal_table);
		EXECUTE pg_catalog.format(
			'CREATE TRIGGER guard_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION _guard()',
			internal_table);
		EXECUTE pg_catalog.format(
			'ALTER TABLE %I ENABLE ALWAYS TRIGGER guard_rows, ENABLE ALWAYS TRIGGER guard_truncate', internal_table);
	END LOOP;
END
$$;

SELECT pg_catalog.pg_extension_config_dump('notification_events', '');
SELECT pg_catalog.pg_extension_config_dump('notification_events_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('_event_handlers', '');
SELECT pg_catalog.pg_extension_config_dump('_event_handler_progress', '');
SELECT pg_catalog.pg_extension_config_dump('_event_handler_failures', '');
SELECT pg_catalog.pg_extension_config_dump('_event_retries', '');
SELECT pg_catalog.pg_extension_config_dump('_event_consumers', '');
SELECT pg_catalog.pg_extension_config_dump('_event_consumer_progress', '');
SELECT pg_catalog.pg_extension_config_dump('_event_consumer_retries', '');
SELECT pg_catalog.pg_extension_config_dump('_event_channels', '');

----------------------------------------------------------------------------
-- Handlers: functions
----------------------------------------------------------------------------

CREATE FUNCTION create_event_handler(
	name text,
	function text,
	event_name text DEFAULT '*',
	filter jsonpath DEFAULT NULL,
	batch_size integer DEFAULT 1000,
	max_attempts integer DEFAULT 20,
	retry_delay interval DEFAULT '1 s',
	max_retry_delay interval DEFAULT '1 h',
	timeout interval DEFAULT '30 s',
	ordered boolean DEFAULT false,
	start_from text DEFAULT 'now',
	owner text DEFAULT NULL,
	or_replace boolean DEFAULT false
) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_create_event_handler';
COMMENT ON FUNCTION create_event_handler(text, text, text, jsonpath, integer, integer, interval, interval, interval, boolean, text, text, boolean) IS
	'creates a handler: a background worker calls the function as the owner for each event whose name and data match';
REVOKE ALL ON FUNCTION create_event_handler(text, text, text, jsonpath, integer, integer, interval, interval, interval, boolean, text, text, boolean) FROM PUBLIC;

CREATE FUNCTION alter_event_handler(
	name text,
	function text DEFAULT NULL,
	event_name text DEFAULT NULL,
	filter jsonpath DEFAULT NULL,
	batch_size integer DEFAULT NULL,
	max_attempts integer DEFAULT NULL,
	retry_delay interval DEFAULT NULL,
	max_retry_delay interval DEFAULT NULL,
	timeout interval DEFAULT NULL,
	ordered boolean DEFAULT NULL,
	owner text DEFAULT NULL,
	clear_filter boolean DEFAULT false
) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_alter_event_handler';
COMMENT ON FUNCTION alter_event_handler(text, text, text, jsonpath, integer, integer, interval, interval, interval, boolean, text, boolean) IS
	'changes a handler''s definition where arguments are not null, keeps its position, and confirms the current owner of its function';

CREATE FUNCTION drop_event_handler(name text) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_drop_event_handler';
COMMENT ON FUNCTION drop_event_handler(text) IS
	'drops a handler and its events that wait for a retry';

CREATE FUNCTION pause_event_handler(name text) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_pause_event_handler';
COMMENT ON FUNCTION pause_event_handler(text) IS
	'stops calling a handler; its events wait';

CREATE FUNCTION resume_event_handler(name text) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_resume_event_handler';
COMMENT ON FUNCTION resume_event_handler(text) IS
	'resumes a paused handler; events that came meanwhile are delivered';

CREATE FUNCTION call_event_handler(name text, event_id bigint) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_call_event_handler';
COMMENT ON FUNCTION call_event_handler(text, bigint) IS
	'calls a handler with one event in the caller''s transaction and records nothing; only its owner may do so';

CREATE FUNCTION retry_dead_events(handler text) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_retry_dead_events';
COMMENT ON FUNCTION retry_dead_events(text) IS
	'has a handler''s dead events tried again, with attempts counted from zero; returns how many';

CREATE FUNCTION discard_dead_events(handler text) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_discard_dead_events';
COMMENT ON FUNCTION discard_dead_events(text) IS
	'gives up a handler''s dead events; they stay listed as discarded; returns how many';

CREATE FUNCTION replay_events(handler text, from_id bigint, to_id bigint DEFAULT NULL) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_replay_events';
COMMENT ON FUNCTION replay_events(text, bigint, bigint) IS
	'has a handler called again with events that its position has passed; returns how many';

CREATE FUNCTION event_delivery_status(
	IN event_id bigint,
	OUT name text,
	OUT kind text,
	OUT status text,
	OUT attempts integer,
	OUT next_attempt_at timestamptz,
	OUT last_error text
) RETURNS SETOF record
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_event_delivery_status';
COMMENT ON FUNCTION event_delivery_status(bigint) IS
	'the delivery of an event: one row for each handler and consumer that the caller may see';

CREATE PROCEDURE wait_for_event_handlers(timeout interval DEFAULT '10 s')
	LANGUAGE C
	AS 'MODULE_PATHNAME', 'pne_wait_for_event_handlers';
COMMENT ON PROCEDURE wait_for_event_handlers(interval) IS
	'returns when all events committed before have been handled or are in event_retries; raises an error at the timeout';

CREATE FUNCTION activate_events() RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_activate_events';
COMMENT ON FUNCTION activate_events() IS
	'activates the handlers, consumers and channels of a copied or restored database; for superusers only; returns how many';
REVOKE ALL ON FUNCTION activate_events() FROM PUBLIC;

----------------------------------------------------------------------------
-- Consumers: functions
----------------------------------------------------------------------------

CREATE FUNCTION create_event_consumer(
	name text,
	event_name text DEFAULT '*',
	filter jsonpath DEFAULT NULL,
	start_from text DEFAULT 'now',
	owner text DEFAULT NULL,
	or_replace boolean DEFAULT false
) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_create_event_consumer';
COMMENT ON FUNCTION create_event_consumer(text, text, jsonpath, text, text, boolean) IS
	'creates a consumer: its owner and members of that role can fetch each event whose name and data match';
REVOKE ALL ON FUNCTION create_event_consumer(text, text, jsonpath, text, text, boolean) FROM PUBLIC;

CREATE FUNCTION drop_event_consumer(name text) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_drop_event_consumer';
COMMENT ON FUNCTION drop_event_consumer(text) IS
	'drops a consumer, its open batch, and the events that it has handed back';

CREATE FUNCTION fetch_events(consumer text, max_events integer DEFAULT 100, lease interval DEFAULT NULL)
	RETURNS SETOF notification_events
	LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100
	AS 'MODULE_PATHNAME', 'pne_fetch_events';
COMMENT ON FUNCTION fetch_events(text, integer, interval) IS
	'returns the next batch of events for a consumer; the same batch again until it is acknowledged';

CREATE FUNCTION ack_events(consumer text, up_to_id bigint DEFAULT NULL) RETURNS bigint
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_ack_events';
COMMENT ON FUNCTION ack_events(text, bigint) IS
	'acknowledges the open batch of a consumer, or its events up to one of them; returns how many';

CREATE FUNCTION retry_event(consumer text, event_id bigint, delay interval DEFAULT '0') RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_retry_event';
COMMENT ON FUNCTION retry_event(text, bigint, interval) IS
	'hands back one event of a consumer''s open batch, to be fetched again after the delay';

CREATE PROCEDURE wait_for_events(consumer text, timeout interval DEFAULT '10 s')
	LANGUAGE C
	AS 'MODULE_PATHNAME', 'pne_wait_for_events';
COMMENT ON PROCEDURE wait_for_events(text, interval) IS
	'returns when a consumer has events that could be fetched, or at the timeout';

----------------------------------------------------------------------------
-- Views and statistics
----------------------------------------------------------------------------

CREATE VIEW event_handlers WITH (security_barrier) AS
	SELECT h.name,
		   COALESCE(r.rolname, h.owner_name) AS owner,
		   pg_catalog.format('%I.%I(%s)', h.function_schema, h.function_name,
							 CASE h.function_shape
							 WHEN 'e' THEN 'notification_events'
							 WHEN 'a' THEN 'notification_events[]'
							 WHEN 't' THEN 'text, jsonb'
							 WHEN 'v' THEN 'character varying, jsonb'
							 END) AS function,
		   h.event_name,
		   h.filter,
		   h.batch_size,
		   h.max_attempts,
		   h.retry_delay,
		   h.max_retry_delay,
		   h.timeout,
		   h.ordered,
		   h.paused,
		   h.created_at,
		   h.altered_at
	FROM _event_handlers h
	LEFT JOIN pg_catalog.pg_roles r ON r.oid = h.owner
	WHERE pg_catalog.pg_has_role(h.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_handlers IS
	'handler definitions of the roles that the current role is a member of; pg_monitor sees all';

CREATE VIEW event_retries WITH (security_barrier) AS
	SELECT t.handler,
		   t.event_id,
		   t.state,
		   t.attempts,
		   t.next_attempt_at,
		   t.last_error,
		   t.last_sqlstate,
		   t.last_error_at,
		   t.event_txid
	FROM _event_retries t
	JOIN _event_handlers h ON h.name = t.handler
	WHERE pg_catalog.pg_has_role(h.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_retries IS
	'events that failed: waiting for their next attempt, dead, or discarded';

CREATE FUNCTION _handler_statistics(
	IN handler text,
	OUT state text,
	OUT suspended_reason text,
	OUT pending bigint,
	OUT pending_is_exact boolean,
	OUT oldest_pending_at timestamptz,
	OUT calls bigint,
	OUT batches bigint,
	OUT total_time double precision,
	OUT mean_time double precision,
	OUT max_time double precision,
	OUT latency_p50 double precision,
	OUT latency_p95 double precision,
	OUT latency_p99 double precision
)
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_handler_statistics';
COMMENT ON FUNCTION _handler_statistics(text) IS
	'internal: statistics of one handler that are in no table';

CREATE VIEW event_handler_stats WITH (security_barrier) AS
	SELECT h.name AS handler,
		   COALESCE(r.rolname, h.owner_name) AS owner,
		   f.state,
		   f.suspended_reason,
		   p.delivered,
		   COALESCE(e.failed, 0) AS failed,
		   p.retried,
		   (SELECT pg_catalog.count(*) FROM (
				SELECT FROM _event_retries t
				WHERE t.handler = h.name AND t.state = 'waiting' LIMIT 100000) t) AS waiting,
		   (SELECT pg_catalog.count(*) FROM (
				SELECT FROM _event_retries t
				WHERE t.handler = h.name AND t.state = 'dead' LIMIT 100000) t) AS dead,
		   f.pending,
		   f.pending_is_exact,
		   f.oldest_pending_at,
		   p.last_event_id,
		   p.last_delivered_at,
		   e.last_error,
		   e.last_error_at,
		   f.calls,
		   f.batches,
		   f.total_time,
		   f.mean_time,
		   f.max_time,
		   f.latency_p50,
		   f.latency_p95,
		   f.latency_p99
	FROM _event_handlers h
	JOIN _event_handler_progress p ON p.handler = h.name
	LEFT JOIN _event_handler_failures e ON e.handler = h.name
	LEFT JOIN pg_catalog.pg_roles r ON r.oid = h.owner
	CROSS JOIN LATERAL _handler_statistics(h.name) f
	WHERE pg_catalog.pg_has_role(h.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_handler_stats IS
	'statistics of handlers: what they have done and what waits; waiting and dead are counted up to 100,000; times in milliseconds';
COMMENT ON COLUMN event_handler_stats.pending IS
	'events after the position whose names match, as far as one look reads the log';
COMMENT ON COLUMN event_handler_stats.pending_is_exact IS
	'false: more events may be pending, and older ones than oldest_pending_at';

CREATE VIEW event_consumers WITH (security_barrier) AS
	SELECT c.name,
		   COALESCE(r.rolname, c.owner_name) AS owner,
		   c.event_name,
		   c.filter,
		   c.created_at,
		   c.altered_at
	FROM _event_consumers c
	LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.owner
	WHERE pg_catalog.pg_has_role(c.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_consumers IS
	'consumer definitions of the roles that the current role is a member of; pg_monitor sees all';

CREATE FUNCTION _consumer_statistics(
	IN consumer text,
	OUT state text,
	OUT held_pid integer,
	OUT held_since timestamptz,
	OUT pending bigint,
	OUT pending_is_exact boolean,
	OUT oldest_pending_at timestamptz
)
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_consumer_statistics';
COMMENT ON FUNCTION _consumer_statistics(text) IS
	'internal: statistics of one consumer that are in no table';

CREATE VIEW event_consumer_stats WITH (security_barrier) AS
	SELECT c.name AS consumer,
		   COALESCE(r.rolname, c.owner_name) AS owner,
		   f.state,
		   p.fetched,
		   p.acknowledged,
		   p.retried,
		   (SELECT pg_catalog.count(*) FROM (
				SELECT FROM _event_consumer_retries t
				WHERE t.consumer = c.name AND t.next_attempt_at IS NOT NULL LIMIT 100000) t) AS waiting,
		   p.batch_length AS batch,
		   CASE WHEN f.state = 'leased' THEN p.leased_until END AS leased_until,
		   f.held_pid,
		   f.held_since,
		   f.pending,
		   f.pending_is_exact,
		   f.oldest_pending_at,
		   p.last_event_id,
		   p.last_fetched_at,
		   p.last_acknowledged_at
	FROM _event_consumers c
	JOIN _event_consumer_progress p ON p.consumer = c.name
	LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.owner
	CROSS JOIN LATERAL _consumer_statistics(c.name) f
	WHERE pg_catalog.pg_has_role(c.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_consumer_stats IS
	'statistics of consumers: what they have fetched and what waits; waiting is counted up to 100,000';
COMMENT ON COLUMN event_consumer_stats.pending IS
	'events after the position whose names match, as far as one look reads the log';
COMMENT ON COLUMN event_consumer_stats.pending_is_exact IS
	'false: more events may be pending, and older ones than oldest_pending_at';

CREATE FUNCTION _worker_statistics(
	OUT database name,
	OUT kind text,
	OUT owner name,
	OUT pid integer,
	OUT state text,
	OUT started_at timestamptz,
	OUT wakeups bigint,
	OUT notifications_received bigint,
	OUT events_announced bigint,
	OUT events_handled bigint,
	OUT last_error text,
	OUT last_error_at timestamptz
) RETURNS SETOF record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_worker_statistics';
COMMENT ON FUNCTION _worker_statistics() IS
	'internal: the workers of the cluster, from shared memory; without errors of other roles'' executors';

CREATE VIEW event_worker_stats AS
	SELECT w.database, w.kind, w.owner, w.pid, w.state, w.started_at, w.wakeups,
		   w.notifications_received, w.events_announced, w.events_handled,
		   w.last_error, w.last_error_at
	FROM _worker_statistics() w;
COMMENT ON VIEW event_worker_stats IS
	'the background workers: launcher, listeners, executors';

CREATE FUNCTION _event_statistics(
	OUT event_name text,
	OUT emitted bigint,
	OUT announced bigint,
	OUT delivered bigint,
	OUT failed bigint,
	OUT last_emitted_at timestamptz
) RETURNS SETOF record
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_event_statistics';
COMMENT ON FUNCTION _event_statistics() IS
	'internal: counters per event name of this database, for roles that may read the whole log';

CREATE VIEW event_stats AS
	SELECT s.event_name, s.emitted, s.announced, s.delivered, s.failed, s.last_emitted_at
	FROM _event_statistics() s;
COMMENT ON VIEW event_stats IS
	'statistics of events by name since the server started or since reset_event_stats()';

CREATE FUNCTION reset_event_stats() RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_reset_event_stats';
COMMENT ON FUNCTION reset_event_stats() IS
	'resets the counters of this database in shared memory: event_stats, event_channel_stats, and times and latencies of event_handler_stats';
REVOKE ALL ON FUNCTION reset_event_stats() FROM PUBLIC;

GRANT SELECT ON event_handlers, event_retries, event_handler_stats, event_consumers, event_consumer_stats,
	event_worker_stats, event_stats TO PUBLIC;

----------------------------------------------------------------------------
-- Channels
----------------------------------------------------------------------------

CREATE FUNCTION listen_event_channel(channel text, event_name text DEFAULT NULL) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_listen_event_channel';
COMMENT ON FUNCTION listen_event_channel(text, text) IS
	'turns notifications on a channel, whoever sends them, into events; event_name is by default the channel''s name';
REVOKE ALL ON FUNCTION listen_event_channel(text, text) FROM PUBLIC;

CREATE FUNCTION unlisten_event_channel(channel text) RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_unlisten_event_channel';
COMMENT ON FUNCTION unlisten_event_channel(text) IS
	'stops turning notifications on a channel into events';

CREATE VIEW event_channels WITH (security_barrier) AS
	SELECT c.channel,
		   COALESCE(r.rolname, c.owner_name) AS owner,
		   c.event_name,
		   c.created_at
	FROM _event_channels c
	LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.owner
	WHERE pg_catalog.pg_has_role(c.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_channels IS
	'channels whose notifications become events, of the roles that the current role is a member of; pg_monitor sees all';

CREATE FUNCTION _channel_statistics(
	IN channel text,
	OUT notifications bigint,
	OUT bytes bigint,
	OUT dropped bigint,
	OUT last_received_at timestamptz,
	OUT state text
)
	LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_channel_statistics';
COMMENT ON FUNCTION _channel_statistics(text) IS
	'internal: what was received on one event channel, from shared memory';

CREATE VIEW event_channel_stats WITH (security_barrier) AS
	SELECT c.channel, f.notifications, f.bytes, f.dropped, f.last_received_at, f.state
	FROM _event_channels c
	CROSS JOIN LATERAL _channel_statistics(c.channel) f
	WHERE pg_catalog.pg_has_role(c.owner, 'USAGE')
	   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW event_channel_stats IS
	'statistics of event channels since the server started or since reset_event_stats(), and whether the listener listens on them';

GRANT SELECT ON event_channels, event_channel_stats TO PUBLIC;

----------------------------------------------------------------------------
-- End of the installation: draw the install_id, start the workers at commit
----------------------------------------------------------------------------

CREATE FUNCTION _extension_installed() RETURNS void
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pne_extension_installed';
COMMENT ON FUNCTION _extension_installed() IS
	'internal: draws the install_id at the end of CREATE EXTENSION, and starts the workers at its commit';
REVOKE ALL ON FUNCTION _extension_installed() FROM PUBLIC;

SELECT _extension_installed();
