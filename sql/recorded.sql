--
-- A row is recorded in the same way, whatever the settings of the session
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_recorded;
SET search_path = regress_recorded, public;
SET TIME ZONE 'UTC';

-- Record a row with one column of a type under each of these settings. Return the
-- result under the standard ones, and the settings for which it differs.
CREATE TABLE settings (name text, value text);
INSERT INTO settings VALUES
	('DateStyle', 'ISO, DMY'), ('DateStyle', 'SQL, DMY'), ('DateStyle', 'German'), ('DateStyle', 'Postgres, MDY'),
	('IntervalStyle', 'iso_8601'), ('IntervalStyle', 'sql_standard'), ('IntervalStyle', 'postgres_verbose'),
	('bytea_output', 'escape'), ('extra_float_digits', '0'), ('extra_float_digits', '-15'), ('extra_float_digits', '3'),
	('search_path', 'pg_catalog'), ('search_path', 'regress_recorded, public, pg_catalog'), ('quote_all_identifiers', 'on'),
	('array_nulls', 'off'), ('xmlbinary', 'hex'), ('xmloption', 'document');
CREATE FUNCTION recorded(type text, value text) RETURNS TABLE (recorded jsonb, other_with text[])
	LANGUAGE plpgsql AS $$
DECLARE
	setting settings;
	before text;
BEGIN
	EXECUTE format('CREATE TABLE regress_recorded.written (c %s)', type);
	EXECUTE format('CREATE TABLE regress_recorded.given AS SELECT CAST(%L AS %s) AS c', value, type);
	CREATE TRIGGER notify AFTER INSERT ON regress_recorded.written
		FOR EACH ROW EXECUTE FUNCTION public.notify_event('row');
	INSERT INTO regress_recorded.written SELECT * FROM regress_recorded.given;
	SELECT event_data #> '{new,c}' INTO recorded FROM public.notification_events ORDER BY id DESC LIMIT 1;
	other_with := '{}';
	FOR setting IN SELECT * FROM settings LOOP
		before := current_setting(setting.name);
		PERFORM set_config(setting.name, setting.value, true);
		INSERT INTO regress_recorded.written SELECT * FROM regress_recorded.given;
		IF current_setting(setting.name) <> setting.value AND setting.name <> 'DateStyle' THEN
			RAISE 'setting % has changed', setting.name;
		END IF;
		PERFORM set_config(setting.name, before, true);
		IF (SELECT event_data #> '{new,c}' <> recorded FROM public.notification_events ORDER BY id DESC LIMIT 1) THEN
			other_with := other_with || (setting.name || '=' || setting.value);
		END IF;
	END LOOP;
	DROP TABLE regress_recorded.written, regress_recorded.given;
	DELETE FROM public.notification_events;
	RETURN NEXT;
END $$;

CREATE TYPE float_range AS RANGE (subtype = float8);
CREATE TYPE parts AS (d date, i interval, b bytea, f real, c regclass, n integer);
CREATE TYPE nest AS (p parts, ps parts[]);
CREATE TYPE parts_range AS RANGE (subtype = parts);
CREATE DOMAIN span AS interval;
CREATE DOMAIN spans AS span[];
CREATE DOMAIN part AS parts;
-- a type with its own output function
CREATE TYPE moment;
CREATE FUNCTION moment_in(cstring, oid, integer) RETURNS moment LANGUAGE internal IMMUTABLE STRICT AS 'timestamp_in';
CREATE FUNCTION moment_out(moment) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'timestamp_out';
CREATE TYPE moment (INPUT = moment_in, OUTPUT = moment_out, LIKE = timestamp);
-- a type with a cast to JSON, which can run any code
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE FUNCTION to_json(mood) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('mood', $1::text, 'since', timestamp '2020-02-29 12:00'::text, 'for', interval '1 day 2:00'::text,
		'by', bytea '\x00ff'::text, 'of', float8 '0.1' + float8 '0.2')
$$;
CREATE CAST (mood AS json) WITH FUNCTION to_json(mood);
CREATE TABLE "some Table" ();

SELECT type, r.* FROM (VALUES
	('date', '2020-02-29'), ('timestamp', '2020-02-29 12:00'), ('timestamptz', '2020-02-29 12:00+00'), ('timetz', '12:00+02'), ('time', '12:00'),
	('interval', '1 year 2 days -03:04:05'), ('bytea', '\x00ff5c'), ('float4', '0.1'), ('float8', '0.30000000000000004'),
	('point', '(0.1,0.30000000000000004)'), ('lseg', '[(0,0),(0.1,0.1)]'), ('box', '(0.1,0.1),(0,0)'), ('line', '{0.1,1,0}'),
	('path', '[(0.1,0.1),(1,1)]'), ('polygon', '((0,0),(0.1,0.1))'), ('circle', '<(0.1,0.1),1>'),
	('daterange', '[2020-02-01,2020-02-29)'), ('tsrange', '[2020-02-01,2020-02-29)'), ('tstzrange', '[2020-02-01,2020-02-29)'),
	('tsmultirange', '{[2020-02-01,2020-02-29)}'), ('float_range', '[0.1,0.30000000000000004]'), ('parts_range', '["(2020-02-29,1 day,,,,)","(2020-02-29,2 days,,,,)"]'),
	('interval[]', '{1 day 02:00,NULL}'), ('bytea[]', '{{"\\x00ff"},{"\\x01"}}'), ('float4[]', '{0.1}'), ('tsrange[]', '{"[2020-02-01,2020-02-29)"}'),
	('span', '1 day 02:00'), ('spans', '{1 day 02:00}'), ('parts', '(2020-02-29,1 day 02:00,"\\x00ff",0.1,settings,1)'),
	('part', '(2020-02-29,1 day 02:00,"\\x00ff",0.1,settings,1)'), ('parts[]', '{"(2020-02-29,1 day 02:00,,0.1,settings,1)"}'),
	('nest', '("(,1 day 02:00,,,settings,)","{""(,1 day 02:00,,,settings,)""}")'),
	('moment', '2020-02-29 12:00'), ('moment[]', '{2020-02-29 12:00}'), ('mood', 'sad'), ('mood[]', '{sad}'),
	('regclass', 'settings'), ('regclass', '"some Table"'), ('regclass', 'pg_class'), ('regproc', 'recorded'), ('regprocedure', 'to_json(mood)'),
	('regoper', '!!'), ('regoperator', '!!(NONE,tsquery)'), ('regtype', 'mood'), ('regtype', 'integer'), ('regconfig', 'simple'), ('regdictionary', 'simple'),
	('regnamespace', 'regress_recorded'), ('regrole', 'pg_monitor'), ('regcollation', '"C"'), ('regtype[]', '{mood}'),
	('text[]', '{NULL,"NULL",a}'), ('numeric', '1.50'), ('tsvector', 'a:1'), ('jsonpath', '$.a'), ('pg_lsn', '0/1')
) AS t(type, value), recorded(type, value) AS r;

-- An attribute is added to a column's type later
CREATE TYPE growing AS (a integer);
CREATE TABLE grown (g growing);
CREATE TRIGGER notify AFTER INSERT ON grown FOR EACH ROW EXECUTE FUNCTION notify_event('grown');
SET search_path = regress_recorded, public;
INSERT INTO grown VALUES (ROW(1));
ALTER TYPE growing ADD ATTRIBUTE c regclass, ADD ATTRIBUTE j json;
INSERT INTO grown VALUES (ROW(2, 'settings', '"\u0000"'));
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;
-- and a cast is added later
CREATE TYPE state AS ENUM ('on');
CREATE TABLE states (s state);
CREATE TRIGGER notify AFTER INSERT ON states FOR EACH ROW EXECUTE FUNCTION notify_event('state');
INSERT INTO states VALUES ('on');
CREATE FUNCTION to_json(state) RETURNS json LANGUAGE sql AS $$ SELECT to_json(interval '1 day') $$;
CREATE CAST (state AS json) WITH FUNCTION to_json(state);
SET IntervalStyle = 'iso_8601';
INSERT INTO states VALUES ('on');
RESET IntervalStyle;
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;

-- The session has its own settings again after each row, even after an error. A
-- function of a type may change settings for itself.
CREATE TYPE moody AS ENUM ('calm', 'mad');
CREATE FUNCTION to_json(moody) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	SET DateStyle = 'Postgres';
	RETURN to_json($1::text || 1 / (CASE $1 WHEN 'calm' THEN 1 ELSE 0 END));
END
$$;
CREATE CAST (moody AS json) WITH FUNCTION to_json(moody);
CREATE TABLE moods (m moody, i interval, c regclass);
CREATE TRIGGER notify AFTER INSERT ON moods FOR EACH ROW EXECUTE FUNCTION notify_event('mood');
SET IntervalStyle = 'iso_8601';
SET DateStyle = 'German';
INSERT INTO moods VALUES ('calm', '1 day', 'settings');
SELECT current_setting('IntervalStyle'), current_setting('DateStyle'), current_setting('search_path');
INSERT INTO moods VALUES ('mad', '1 day', 'settings');
SELECT current_setting('IntervalStyle'), current_setting('DateStyle'), current_setting('search_path');
BEGIN;
SET LOCAL IntervalStyle = 'sql_standard';
INSERT INTO moods VALUES ('calm', '1 day', 'settings');
SAVEPOINT a;
INSERT INTO moods VALUES ('mad', '1 day', 'settings');
ROLLBACK TO a;
SELECT current_setting('IntervalStyle'), current_setting('DateStyle'), current_setting('search_path');
INSERT INTO moods VALUES ('calm', '1 day', 'settings');
COMMIT;
SELECT current_setting('IntervalStyle'), current_setting('DateStyle'), current_setting('search_path');
RESET IntervalStyle;
RESET DateStyle;
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;

-- Such a function finds the same objects by the search_path, whatever other columns
-- the row has.
CREATE TYPE tone AS ENUM ('low');
CREATE FUNCTION spelled(tone) RETURNS text LANGUAGE sql AS $$ SELECT upper($1::text) $$;
CREATE FUNCTION to_json(tone) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN to_json(spelled($1)); END $$;
CREATE CAST (tone AS json) WITH FUNCTION to_json(tone);
CREATE TABLE tones (c regclass, t tone, z regtype[]);
CREATE TRIGGER notify AFTER INSERT ON tones FOR EACH ROW EXECUTE FUNCTION notify_event('tone');
INSERT INTO tones VALUES ('settings', 'low', '{tone}');
CREATE TYPE tuned AS (c regclass, t tone);
CREATE TABLE tunes (c regclass, t tuned[], z regtype[]);
CREATE TRIGGER notify AFTER INSERT ON tunes FOR EACH ROW EXECUTE FUNCTION notify_event('tune');
INSERT INTO tunes VALUES ('settings', array[ROW('pg_class', 'low')::tuned], '{tone}');
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;
SHOW search_path;

-- A statement trigger records rows in the same way.
CREATE TABLE many (i interval, j json);
CREATE TRIGGER notify AFTER INSERT ON many REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('many');
SET IntervalStyle = 'iso_8601';
INSERT INTO many VALUES ('1 day', '"\u0000"'), ('2 days', '"\u0001"');
RESET IntervalStyle;
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;

-- The time zone is the session's: the instant is the same.
CREATE TABLE instants (t timestamptz, ts timestamptz[]);
CREATE TRIGGER notify AFTER INSERT ON instants FOR EACH ROW EXECUTE FUNCTION notify_event('instant');
SET TIME ZONE 'Asia/Kolkata';
INSERT INTO instants VALUES ('2020-02-29 12:00+00', '{2020-02-29 12:00+00}');
RESET TIME ZONE;
SELECT event_data -> 'new' AS new FROM notification_events;
DELETE FROM notification_events;

--
-- JSON that jsonb cannot hold is recorded as a string, other JSON unchanged
--
CREATE TYPE papers AS (j json, n integer);
CREATE TYPE folder AS (p papers, ps papers[], js json[]);
CREATE DOMAIN paper AS json;
CREATE DOMAIN stack AS paper[];
CREATE TABLE documents (id integer, j json, d paper, js json[], s stack, p papers, f folder, jb jsonb);
CREATE TRIGGER notify AFTER INSERT ON documents FOR EACH ROW EXECUTE FUNCTION notify_event('document');
INSERT INTO documents (id, j) VALUES (1, '{"a": "\u0000"}'), (2, '"\ud800"'), (3, '[1e400000]'), (4, '{"\udead": 1}'), (5, '"\udc00\ud800"'), (6, '-1e-400000'),
	(7, ' {"a" :  "\u0001", "a": 1e3} '), (8, 'null'), (9, NULL), (10, '"\\u0000"');
INSERT INTO documents (id, d) VALUES (11, '"\u0000"'), (12, '1');
INSERT INTO documents (id, js) VALUES (13, array['1', '"\u0000"', NULL]::json[]), (14, array[['1'], ['"\ud800"']]::json[]), (15, '{}');
INSERT INTO documents (id, s) VALUES (16, array['"\u0000"', '[2]']::paper[]);
INSERT INTO documents (id, p) VALUES (17, ROW('"\u0000"', 7)), (18, ROW('[{}]', 7)), (19, ROW(NULL, NULL));
INSERT INTO documents (id, f) VALUES (20, ROW(ROW('"\u0000"', 1), array[ROW('"\ud800"', 2), NULL, ROW('{"a": []}', 3)]::papers[], array['1e400000', '[1, [2]]']::json[]));
INSERT INTO documents (id, jb) VALUES (21, '[[], {}, {"a": {"b": [1, "x", null, true]}}, [[[1.50]]]]'), (22, '1'), (23, '"s"'), (24, 'null'), (25, '[1]'), (26, '{}'), (27, '[]');
SELECT jsonb_strip_nulls(event_data -> 'new') AS new FROM notification_events ORDER BY id;
DELETE FROM notification_events;
-- Rows still contain the values of a dropped attribute.
CREATE TYPE shrinking AS (a integer, j json, b text);
CREATE TABLE shrunk (s shrinking, ss shrinking[]);
CREATE TRIGGER notify AFTER UPDATE ON shrunk FOR EACH ROW EXECUTE FUNCTION notify_event('shrunk');
INSERT INTO shrunk VALUES (ROW(1, '"\u0000"', 'b'), array[ROW(1, '"\u0000"', 'b')::shrinking]);
ALTER TYPE shrinking DROP ATTRIBUTE a, DROP ATTRIBUTE b;
UPDATE shrunk SET s = s;
SELECT event_data -> 'new' AS new FROM notification_events;
DELETE FROM notification_events;
-- Only the values that jsonb cannot hold become strings.
SELECT count(*) AS same FROM documents WHERE id IN (1, 2, 3, 4, 5, 6);
TRUNCATE documents;
-- notify_event() accepts such JSON, too. Text must be JSON that jsonb can hold.
SELECT notify_event('json', json '{"a": "\u0000"}') > 0 AS recorded;
SELECT notify_event('text', text '{"a": "\u0000"}');
SELECT event_data FROM notification_events;
DELETE FROM notification_events;

--
-- The error for a value that cannot be recorded names its place and a solution
--
CREATE TYPE shape AS ENUM ('point', 'tin');
CREATE FUNCTION no_json(shape) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RAISE 'cannot be JSON'; END $$;
CREATE CAST (shape AS json) WITH FUNCTION no_json(shape);
CREATE TABLE places (id integer, "place of" shape, more integer[]);
CREATE TRIGGER "the trigger" AFTER INSERT OR UPDATE ON places FOR EACH ROW EXECUTE FUNCTION notify_event('place');
INSERT INTO places VALUES (1, 'tin');
INSERT INTO places VALUES (1, NULL);
UPDATE places SET "place of" = 'tin';
CREATE OR REPLACE FUNCTION no_json(shape) RETURNS json LANGUAGE plpgsql AS
	$$ BEGIN RAISE NOTICE 'soon'; RAISE 'cannot be JSON' USING HINT = 'a hint of its own'; END $$;
INSERT INTO places VALUES (1, 'tin');
CREATE OR REPLACE FUNCTION no_json(shape) RETURNS json LANGUAGE sql AS $$ SELECT json '"\u0000"' $$;
INSERT INTO places VALUES (1, 'tin');
-- in a statement trigger
CREATE TRIGGER "statement's" AFTER INSERT ON places REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('many');
DROP TRIGGER "the trigger" ON places;
INSERT INTO places VALUES (1, NULL), (2, 'tin');
DROP TRIGGER "statement's" ON places;
-- the solution of the hint works
CREATE TRIGGER "the trigger" AFTER INSERT ON places FOR EACH ROW EXECUTE FUNCTION notify_event('place', new, id, more);
INSERT INTO places VALUES (1, 'tin', '{1}');
SELECT event_data -> 'new' AS new FROM notification_events ORDER BY id DESC LIMIT 1;
DELETE FROM notification_events;

--
-- Partitions: an event names the row's partition or the root table
--
CREATE SCHEMA regress_elsewhere;
CREATE TABLE parted (k integer, v text) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1) PARTITION BY LIST (v);
CREATE TABLE parted_1a PARTITION OF parted_1 DEFAULT;
CREATE TABLE parted_2 (v text, k integer);
ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON parted FOR EACH ROW EXECUTE FUNCTION notify_event();
CREATE TRIGGER leaf AFTER INSERT ON parted_1a FOR EACH ROW EXECUTE FUNCTION notify_event('leaf', new, v);
CREATE FUNCTION take_names(OUT event_name text, OUT "schema" text, OUT "table" text, OUT data text) RETURNS SETOF record LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (DELETE FROM notification_events RETURNING *)
	SELECT t.event_name, t.event_data ->> 'schema', t.event_data ->> 'table', COALESCE(t.event_data -> 'new', t.event_data -> 'old') FROM taken AS t ORDER BY id;
END;
INSERT INTO parted VALUES (1, 'one'), (2, 'two');
SELECT * FROM take_names();
SET pg_notify_events.partition_root = on;
INSERT INTO parted VALUES (1, 'one'), (2, 'two');
UPDATE parted SET k = 1 WHERE k = 2;
SELECT * FROM take_names();
-- with the current name of the root, after it was renamed, detached or attached
ALTER TABLE parted RENAME TO whole;
INSERT INTO parted_1a VALUES (1, 'one');
ALTER TABLE whole SET SCHEMA regress_elsewhere;
INSERT INTO parted_1a VALUES (1, 'one');
SELECT * FROM take_names();
ALTER TABLE regress_elsewhere.whole DETACH PARTITION parted_1;
INSERT INTO parted_1a VALUES (1, 'one');
ALTER TABLE parted_1 DETACH PARTITION parted_1a;
INSERT INTO parted_1a VALUES (1, 'one');
ALTER TABLE regress_elsewhere.whole ATTACH PARTITION parted_1a FOR VALUES IN (1);
INSERT INTO parted_1a VALUES (1, 'one');
SELECT * FROM take_names();
RESET pg_notify_events.partition_root;
INSERT INTO parted_1a VALUES (1, 'one');
SELECT * FROM take_names();
-- a statement trigger of a partition fires if the statement names the partition
CREATE TRIGGER statement AFTER INSERT ON parted_2 FOR EACH STATEMENT EXECUTE FUNCTION notify_event();
INSERT INTO parted_2 VALUES ('two', 2);
SET pg_notify_events.partition_root = on;
INSERT INTO parted_2 VALUES ('two', 2);
SELECT * FROM take_names();
-- an inheritance child is not a partition: the event names the child
CREATE TABLE heir () INHERITS (documents);
CREATE TRIGGER notify AFTER INSERT ON heir FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO heir (id) VALUES (1);
SELECT event_name, "schema", "table" FROM take_names();
RESET pg_notify_events.partition_root;
-- A role that writes cannot change this setting.
CREATE ROLE regress_writer;
SET ROLE regress_writer;
SET pg_notify_events.partition_root = on;
RESET ROLE;
DROP ROLE regress_writer;

SET client_min_messages = warning;
DROP SCHEMA regress_recorded, regress_elsewhere CASCADE;
DROP EXTENSION pg_notify_events;
