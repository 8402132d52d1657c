--
-- Any schema, any search_path
--
CREATE SCHEMA "odd Schema ü";
CREATE EXTENSION pg_notify_events SCHEMA "odd Schema ü";
CREATE SCHEMA "my ""own"" schema";

-- With an empty search_path.
SET search_path = '';
CREATE TABLE "my ""own"" schema".calls (n serial, handler text, event_name text, event_data jsonb);
CREATE FUNCTION "my ""own"" schema"."of row"("odd Schema ü".notification_events) RETURNS void LANGUAGE sql AS
	$$INSERT INTO "my ""own"" schema".calls (handler, event_name, event_data) VALUES ('row', $1.event_name, $1.event_data)$$;
CREATE FUNCTION "my ""own"" schema"."of array"("odd Schema ü".notification_events[]) RETURNS void LANGUAGE sql AS
	$$INSERT INTO "my ""own"" schema".calls (handler, event_name) SELECT 'array', string_agg(event_name, ' ' ORDER BY id) FROM unnest($1)$$;
CREATE FUNCTION "my ""own"" schema"."of ""text"", jsonb"(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF $2 ? 'fail' THEN
		RAISE EXCEPTION 'failed on purpose';
	END IF;
	INSERT INTO "my ""own"" schema".calls (handler, event_name, event_data) VALUES ('text', $1, $2);
END
$$;
SELECT "odd Schema ü".create_event_handler('r', '"my ""own"" schema"."of row"');
SELECT "odd Schema ü".create_event_handler('a', '"my ""own"" schema"."of array"("odd Schema ü".notification_events[])');
SELECT "odd Schema ü".create_event_handler('t', '"my ""own"" schema"."of ""text"", jsonb"', filter => '!exists($.hidden)', retry_delay => '1 h');
SELECT "odd Schema ü".create_event_handler('t', '"of ""text"", jsonb"');
SELECT name, function FROM "odd Schema ü".event_handlers ORDER BY name;
CREATE TABLE "my ""own"" schema"."T 1" (id integer, v text);
CREATE TRIGGER notify AFTER INSERT ON "my ""own"" schema"."T 1"
	FOR EACH ROW EXECUTE FUNCTION "odd Schema ü".notify_event();
CREATE TRIGGER notify_2 AFTER UPDATE ON "my ""own"" schema"."T 1" REFERENCING NEW TABLE AS n OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION "odd Schema ü".notify_event('updated', new, v);
BEGIN;
INSERT INTO "my ""own"" schema"."T 1" VALUES (1, 'one'), (2, 'two');
UPDATE "my ""own"" schema"."T 1" SET v = upper(v);
SELECT "odd Schema ü".notify_event('called', '{"a": 1}') IS NOT NULL AS recorded;
SELECT "odd Schema ü".notify_event('called', '{"fail": 1}') IS NOT NULL AS recorded;
SELECT "odd Schema ü".notify_event('called', '{"hidden": 1}') IS NOT NULL AS recorded;
INSERT INTO "odd Schema ü".notification_events (event_name) VALUES ('plain');
COMMIT;
CALL "odd Schema ü".wait_for_event_handlers();
SELECT handler, event_name, event_data FROM "my ""own"" schema".calls ORDER BY handler, n;
TRUNCATE "my ""own"" schema".calls;
SELECT handler, delivered, failed, waiting, pending, last_error FROM "odd Schema ü".event_handler_stats ORDER BY handler;
SELECT handler, state, last_error FROM "odd Schema ü".event_retries;
SELECT kind FROM "odd Schema ü".event_worker_stats WHERE database = current_database() ORDER BY kind;
SELECT "odd Schema ü".alter_event_handler('t', clear_filter => true);
SELECT "odd Schema ü".pause_event_handler('r');
SELECT "odd Schema ü".resume_event_handler('r');
SELECT "odd Schema ü".drop_event_handler('a');
SELECT "odd Schema ü".listen_event_channel('a channel');
SELECT channel, event_name FROM "odd Schema ü".event_channels;
SELECT channel, notifications FROM "odd Schema ü".event_channel_stats;
SELECT "odd Schema ü".unlisten_event_channel('a channel');
SELECT "odd Schema ü".reset_event_stats();
SELECT "odd Schema ü".activate_events();
SELECT max(id) AS id FROM "odd Schema ü".notification_events \gset
SELECT "odd Schema ü".call_event_handler('r', :id);
SELECT handler, event_name, event_data FROM "my ""own"" schema".calls ORDER BY n;
TRUNCATE "my ""own"" schema".calls;

-- The schema is renamed: workers, plans and triggers continue.
ALTER SCHEMA "odd Schema ü" RENAME TO "even Schema ß";
SELECT "even Schema ß".notify_event('after the rename', '{}') IS NOT NULL AS recorded;
INSERT INTO "my ""own"" schema"."T 1" VALUES (3, 'three');
CALL "even Schema ß".wait_for_event_handlers();
SELECT handler, event_name FROM "my ""own"" schema".calls ORDER BY handler, n;
TRUNCATE "my ""own"" schema".calls;
SELECT handler, delivered, pending FROM "even Schema ß".event_handler_stats ORDER BY handler;
SELECT "even Schema ß".alter_event_handler('t', batch_size => 5);
-- The schema of a handler's function is different: a handler stores the function's name.
ALTER SCHEMA "my ""own"" schema" RENAME TO mine;
SELECT handler, suspended_reason FROM "even Schema ß".event_handler_stats ORDER BY handler;
ALTER SCHEMA mine RENAME TO "my ""own"" schema";
ALTER SCHEMA "even Schema ß" RENAME TO "odd Schema ü";

--
-- A schema before pg_catalog in the search_path, with other versions of the objects
-- that the extension's statements use
--
CREATE SCHEMA regress_shadow;
CREATE TABLE regress_shadow.caught (what text);
CREATE FUNCTION regress_shadow.shout(what text) RETURNS void LANGUAGE sql AS $$INSERT INTO regress_shadow.caught VALUES ($1)$$;
CREATE FUNCTION regress_shadow.now() RETURNS timestamptz LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('now'); RETURN NULL; END$$;
CREATE FUNCTION regress_shadow.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('clock_timestamp'); RETURN NULL; END$$;
CREATE FUNCTION regress_shadow.to_jsonb(anyelement) RETURNS jsonb LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('to_jsonb'); RETURN NULL; END$$;
CREATE FUNCTION regress_shadow.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
CREATE FUNCTION regress_shadow.pg_has_role(oid, text) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('pg_has_role'); RETURN false; END$$;
CREATE FUNCTION regress_shadow.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('text = text'); RETURN false; END$$;
CREATE OPERATOR regress_shadow.= (FUNCTION = regress_shadow.eq, LEFTARG = text, RIGHTARG = text);
CREATE FUNCTION regress_shadow.eq(oid, oid) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('oid = oid'); RETURN false; END$$;
CREATE OPERATOR regress_shadow.= (FUNCTION = regress_shadow.eq, LEFTARG = oid, RIGHTARG = oid);
CREATE OPERATOR regress_shadow.<> (FUNCTION = regress_shadow.eq, LEFTARG = oid, RIGHTARG = oid);
CREATE FUNCTION regress_shadow.eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('bigint = bigint'); RETURN false; END$$;
CREATE OPERATOR regress_shadow.= (FUNCTION = regress_shadow.eq, LEFTARG = bigint, RIGHTARG = bigint);
CREATE FUNCTION regress_shadow.eq(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('uuid <> uuid'); RETURN true; END$$;
CREATE OPERATOR regress_shadow.<> (FUNCTION = regress_shadow.eq, LEFTARG = uuid, RIGHTARG = uuid);
CREATE FUNCTION regress_shadow.plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_shadow.shout('bigint + bigint'); RETURN 0; END$$;
CREATE OPERATOR regress_shadow.+ (FUNCTION = regress_shadow.plus, LEFTARG = bigint, RIGHTARG = bigint);
CREATE DOMAIN regress_shadow.jsonb AS text;
CREATE DOMAIN regress_shadow.text AS varchar(1);
CREATE DOMAIN regress_shadow.pg_snapshot AS varchar(1);
CREATE TABLE regress_shadow._event_handlers (name varchar);
CREATE TABLE regress_shadow.notification_events (id bigint);

-- In new sessions, including executors, this schema comes first.
SELECT "odd Schema ü".drop_event_handler('r'), "odd Schema ü".drop_event_handler('t');
ALTER DATABASE :"DBNAME" SET search_path = regress_shadow, pg_catalog, "odd Schema ü";
DROP FUNCTION "my ""own"" schema"."of row", "my ""own"" schema"."of array";
DROP EXTENSION pg_notify_events CASCADE;
SET search_path = regress_shadow, pg_catalog, "odd Schema ü";
CREATE EXTENSION pg_notify_events SCHEMA "odd Schema ü";
SELECT create_event_handler('t', '"my ""own"" schema"."of ""text"", jsonb"', retry_delay => '1 h', start_from => 'beginning');
SELECT alter_event_handler('t', batch_size => 5, filter => '!exists($.hidden)');
CREATE TRIGGER notify AFTER INSERT ON "my ""own"" schema"."T 1"
	FOR EACH ROW EXECUTE FUNCTION notify_event('shadowed', new, id);
INSERT INTO "my ""own"" schema"."T 1" VALUES (4, 'four');
SELECT notify_event('called', '{"fail": 1}') OPERATOR(pg_catalog.>) 0 AS recorded;
CALL wait_for_event_handlers();
RESET search_path;
SET search_path = "odd Schema ü";
SELECT handler, event_name, event_data FROM "my ""own"" schema".calls ORDER BY n;
SELECT handler, delivered, failed, waiting, pending, last_error FROM event_handler_stats;
SELECT max_attempts, batch_size, filter, created_at IS NOT NULL AS created, altered_at IS NOT NULL AS altered FROM event_handlers;
SELECT event_name, created_at IS NOT NULL AS created, event_data FROM notification_events ORDER BY id;
SELECT pause_event_handler('t');
SELECT drop_event_handler('t');
SELECT listen_event_channel('a channel', 'bridged');
DO $$
BEGIN
	FOR i IN 1 .. 6000 LOOP
		EXIT WHEN (SELECT state = 'listening' FROM event_channel_stats);
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
NOTIFY "a channel", '{"b": 1}';
NOTIFY "a channel", 'text';
DO $$
BEGIN
	FOR i IN 1 .. 6000 LOOP
		EXIT WHEN (SELECT count(*) = 2 FROM notification_events WHERE event_name = 'bridged');
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
SELECT event_name, event_data FROM notification_events WHERE event_name = 'bridged' ORDER BY id;
SELECT what FROM regress_shadow.caught;

ALTER DATABASE :"DBNAME" RESET search_path;
SET search_path = public;
SET client_min_messages = warning;
DROP SCHEMA "my ""own"" schema", regress_shadow CASCADE;
DROP EXTENSION pg_notify_events;
DROP SCHEMA "odd Schema ü";
