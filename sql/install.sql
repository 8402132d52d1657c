--
-- CREATE EXTENSION: checks, objects, guarded tables
--

-- newer servers report the line of the script in which an error occurred
\set SHOW_CONTEXT never

-- The list of members leaves out the row types of tables, because only newer
-- servers list them.
CREATE VIEW members AS
	SELECT pg_describe_object(d.classid, d.objid, d.objsubid) COLLATE "C" AS object
	FROM pg_depend d
	JOIN pg_extension x ON x.oid = d.refobjid
	WHERE d.refclassid = 'pg_extension'::regclass
	  AND d.deptype = 'e'
	  AND d.classid <> 'pg_type'::regclass
	  AND x.extname = 'pg_notify_events';

-- The recipe's table exists already: follow the hint.
CREATE TABLE notification_events (
	id			serial PRIMARY KEY,
	event_name	varchar(100),
	event_data	jsonb,
	created_at	timestamptz DEFAULT now()
);
INSERT INTO notification_events (event_name, event_data, created_at) VALUES
	('order_created', '{"id": 1}', '2020-01-01 12:00:00+00'),
	('order_paid', NULL, '2020-01-02 12:00:00+00');
CREATE EXTENSION pg_notify_events;
SELECT * FROM members;
ALTER TABLE notification_events RENAME TO old_events;
ALTER INDEX notification_events_pkey RENAME TO old_events_pkey;
ALTER SEQUENCE notification_events_id_seq RENAME TO old_events_id_seq;
CREATE EXTENSION pg_notify_events;
INSERT INTO notification_events (event_name, event_data, created_at)
	SELECT event_name, event_data, created_at FROM old_events ORDER BY id;
DROP TABLE old_events;
SELECT id, event_name, event_data, created_at AT TIME ZONE 'UTC' AS created_at
	FROM notification_events ORDER BY id;

-- All members.
SELECT extversion, extrelocatable, extnamespace::regnamespace FROM pg_extension
	WHERE extname = 'pg_notify_events';
SELECT superuser, trusted, relocatable, schema, requires FROM pg_available_extension_versions
	WHERE name = 'pg_notify_events' AND version = '1.0';
SELECT object FROM members ORDER BY object;
SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull, attidentity,
	pg_get_expr(adbin, adrelid) AS "default"
	FROM pg_attribute
	LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
	WHERE attrelid = 'notification_events'::regclass AND attnum > 0
	ORDER BY attnum;
SELECT seqtypid::regtype, seqstart, seqincrement, seqmax, seqcache, seqcycle FROM pg_sequence
	WHERE seqrelid = pg_get_serial_sequence('notification_events', 'id')::regclass;

-- Every table, view and function has a comment, and so has every column of the log.
SELECT pg_describe_object(d.classid, d.objid, 0) AS "without comment"
	FROM pg_depend d
	WHERE d.refclassid = 'pg_extension'::regclass
	  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')
	  AND d.deptype = 'e'
	  AND d.classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
	  AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relkind NOT IN ('r', 'v'))
	  AND obj_description(d.objid, d.classid::regclass::name) IS NULL
UNION ALL
SELECT attname FROM pg_attribute
	WHERE attrelid = 'notification_events'::regclass AND attnum > 0
	  AND col_description(attrelid, attnum) IS NULL;

-- Every table has a primary key, every trigger is ENABLE ALWAYS.
SELECT c.relname AS "without primary key"
	FROM pg_depend d
	JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass
	WHERE d.refclassid = 'pg_extension'::regclass
	  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')
	  AND d.deptype = 'e'
	  AND c.relkind = 'r'
	  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);
SELECT tgrelid::regclass, tgname, tgfoid::regproc, tgenabled FROM pg_trigger
	WHERE tgfoid IN ('_notification_event_row'::regproc, '_guard'::regproc)
	ORDER BY tgrelid::regclass::text COLLATE "C", tgname;

-- PUBLIC may read the views and wait, nothing else.
SELECT m.object
	FROM members m
	JOIN LATERAL (
		SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0) AS object, p.proacl AS acl, 'f'::"char" AS kind, p.proowner AS owner
		FROM pg_proc p
		UNION ALL
		SELECT pg_describe_object('pg_class'::regclass, c.oid, 0), c.relacl, 'r', c.relowner FROM pg_class c
	) o ON o.object = m.object
	WHERE EXISTS (SELECT FROM aclexplode(COALESCE(o.acl, acldefault(o.kind, o.owner))) a WHERE a.grantee = 0)
	ORDER BY m.object;

-- The functions of the install script and the trigger functions cannot be called
-- by users.
SELECT _extension_installing();
SELECT _extension_installed();
CREATE TABLE other (a integer);
CREATE TRIGGER other BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION _notification_event_row();
INSERT INTO other VALUES (1);
CREATE TRIGGER other_late AFTER INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION _notification_event_row();
INSERT INTO notification_events (event_name) VALUES ('refused');
DROP TRIGGER other_late ON notification_events;
DROP TABLE other;

--
-- The guard: only the extension's functions change its internal tables.
--
-- Put a row into each internal table: a channel, a handler with a failed event, a
-- consumer that has handed an event back.
SELECT listen_event_channel('guarded');
CREATE FUNCTION fails(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'no way';
END
$$;
SELECT create_event_handler('guarded', 'fails', retry_delay => '1 h');
SELECT create_event_consumer('guarded');
SELECT notify_event('guarded') > 0 AS emitted;
SELECT retry_event('guarded', id, '1 h') FROM fetch_events('guarded');
CALL wait_for_event_handlers();

CREATE FUNCTION try_statement(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	found_rows bigint;
BEGIN
	EXECUTE statement;
	GET DIAGNOSTICS found_rows = ROW_COUNT;
	RETURN format('did %s rows', found_rows);
EXCEPTION WHEN OTHERS THEN
	RETURN format('%s: %s', sqlstate, sqlerrm);
END
$$;
SELECT c.relname, s.command, try_statement(format(s.statement, c.relname, a.attname)) AS result
	FROM pg_class c
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
	CROSS JOIN (VALUES
		(1, 'UPDATE', 'UPDATE %1$I SET %2$I = %2$I'),
		(2, 'DELETE', 'DELETE FROM %1$I'),
		(3, 'TRUNCATE', 'TRUNCATE %1$I')
	) s (ord, command, statement)
	WHERE c.relnamespace = 'public'::regnamespace
	  AND c.relkind = 'r'
	  AND c.relname LIKE '\_event\_%'
	ORDER BY c.relname COLLATE "C", s.ord;
SET session_replication_role = replica;
SELECT try_statement('DELETE FROM _event_handlers');
RESET session_replication_role;
UPDATE _event_handlers SET paused = true;

-- An INSERT is a restore: it is allowed, and the handler is dormant.
SELECT try_statement('INSERT INTO _event_install SELECT NOT singleton, install_id, database FROM _event_install');
SELECT try_statement('INSERT INTO _event_announcer SELECT NOT singleton, cursor FROM _event_announcer');
CREATE TEMPORARY TABLE restored AS TABLE _event_handlers;
UPDATE restored SET name = 'restored';
INSERT INTO _event_handlers SELECT * FROM restored;
CREATE TEMPORARY TABLE restored_progress AS TABLE _event_handler_progress;
UPDATE restored_progress SET handler = 'restored';
INSERT INTO _event_handler_progress SELECT * FROM restored_progress;
SELECT handler, state = 'dormant' AS dormant FROM event_handler_stats ORDER BY handler;
SELECT notify_event('guarded') > 0 AS emitted;
CALL wait_for_event_handlers();
SELECT handler, state = 'dormant' AS dormant, failed FROM event_handler_stats ORDER BY handler;
SELECT drop_event_handler('restored');
-- a restored consumer is dormant, too
CREATE TEMPORARY TABLE restored_consumer AS TABLE _event_consumers;
UPDATE restored_consumer SET name = 'restored';
INSERT INTO _event_consumers SELECT * FROM restored_consumer;
CREATE TEMPORARY TABLE restored_consumer_progress AS TABLE _event_consumer_progress;
UPDATE restored_consumer_progress SET consumer = 'restored', batch = '\x0202', batch_length = 1;
INSERT INTO _event_consumer_progress SELECT * FROM restored_consumer_progress;
SELECT consumer, state, batch FROM event_consumer_stats ORDER BY consumer;
SELECT name, kind, status FROM event_delivery_status((SELECT max(id) FROM notification_events)) ORDER BY name, kind;
SELECT fetch_events('restored');
SELECT ack_events('restored');
SELECT retry_event('restored', (SELECT max(id) FROM notification_events));
CALL wait_for_events('restored');
SELECT create_event_consumer('restored', or_replace => true);
SELECT consumer, state FROM event_consumer_stats ORDER BY consumer;
SELECT activate_events();
SELECT drop_event_consumer('restored');
SELECT unlisten_event_channel('guarded');
DROP FUNCTION try_statement;

--
-- DROP, then CREATE again
--
DROP EXTENSION pg_notify_events;
SELECT object FROM members;
SELECT relname FROM pg_class WHERE relname ~ '^_?(notification_)?event_' ORDER BY relname;
\set VERBOSITY terse
SELECT notify_event('too late');
\set VERBOSITY default
BEGIN;
CREATE EXTENSION pg_notify_events;
SELECT notify_event('rolled back');
ROLLBACK;
SELECT object FROM members;
CREATE EXTENSION pg_notify_events;
SELECT count(*) FROM notification_events;
SELECT count(*) FROM event_handlers;
SELECT notify_event('again') AS id;
CREATE EXTENSION pg_notify_events;
CREATE EXTENSION IF NOT EXISTS pg_notify_events;

-- DROP fails while other objects depend on the extension.
CREATE FUNCTION count_events(notification_events) RETURNS void LANGUAGE sql AS '';
DROP EXTENSION pg_notify_events;
DROP EXTENSION pg_notify_events CASCADE;

--
-- Schemas
--
CREATE SCHEMA regress_events;
CREATE EXTENSION pg_notify_events SCHEMA regress_events;
SELECT regress_events.notify_event('in a schema') AS id;
SELECT id, event_name FROM regress_events.notification_events;
ALTER EXTENSION pg_notify_events SET SCHEMA public;
DROP EXTENSION pg_notify_events;

-- A warning if others may create objects in the schema.
CREATE ROLE regress_creator;
GRANT CREATE ON SCHEMA regress_events TO PUBLIC;
CREATE EXTENSION pg_notify_events SCHEMA regress_events;
DROP EXTENSION pg_notify_events;
REVOKE CREATE ON SCHEMA regress_events FROM PUBLIC;

-- The schema's owner may do so, whatever is granted: the same warning.
ALTER SCHEMA regress_events OWNER TO regress_creator;
REVOKE ALL ON SCHEMA regress_events FROM regress_creator;
CREATE EXTENSION pg_notify_events SCHEMA regress_events;
DROP EXTENSION pg_notify_events;
ALTER SCHEMA regress_events OWNER TO CURRENT_USER;

-- Superusers only.
GRANT ALL ON SCHEMA regress_events TO regress_creator;
SET ROLE regress_creator;
CREATE EXTENSION pg_notify_events SCHEMA regress_events;
RESET ROLE;

DROP SCHEMA regress_events;
DROP ROLE regress_creator;
DROP FUNCTION fails;
DROP VIEW members;
