--
-- Tables and triggers that are altered between two statements of a session.  The
-- session keeps what a trigger is to record from one statement to the next.  It must not
-- use an outdated version.  (Changes by other sessions: test/specs/altered_table.spec.)
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_altered;
SET search_path = regress_altered, public;
CREATE FUNCTION take_events(OUT event_name text, OUT event_data jsonb) RETURNS SETOF record
	LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (
		DELETE FROM notification_events RETURNING id, event_name, event_data
	)
	SELECT taken.event_name, taken.event_data FROM taken ORDER BY id;
END;
-- the number of triggers that the session keeps data of
CREATE FUNCTION kept() RETURNS bigint LANGUAGE sql
	RETURN (SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'event trigger');

--
-- Names
--
CREATE TABLE orders (id integer);
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO orders VALUES (1);
INSERT INTO orders VALUES (2);
ALTER TABLE orders RENAME TO purchases;
INSERT INTO purchases VALUES (3);
ALTER TABLE purchases SET SCHEMA public;
INSERT INTO purchases VALUES (4);
ALTER TABLE purchases SET SCHEMA regress_altered;
ALTER SCHEMA regress_altered RENAME TO regress_altered_too;
SET search_path = regress_altered_too, public;
INSERT INTO purchases VALUES (5);
ALTER SCHEMA regress_altered_too RENAME TO regress_altered;
SET search_path = regress_altered, public;
INSERT INTO purchases VALUES (6);
SELECT * FROM take_events();

--
-- Columns
--
ALTER TABLE purchases ADD COLUMN amount numeric DEFAULT 1.5, ADD COLUMN note text DEFAULT 'n';
INSERT INTO purchases VALUES (1);
ALTER TABLE purchases RENAME COLUMN note TO remark;
INSERT INTO purchases VALUES (2);
ALTER TABLE purchases DROP COLUMN amount;
INSERT INTO purchases VALUES (3);
-- a column type that only to_jsonb() can convert, and another one that it need not
ALTER TABLE purchases ALTER COLUMN remark DROP DEFAULT, ALTER COLUMN remark TYPE json USING '[1]';
INSERT INTO purchases VALUES (4, '{"a": null}');
ALTER TABLE purchases ALTER COLUMN remark TYPE date USING NULL;
INSERT INTO purchases VALUES (5, '2020-02-29');
SELECT * FROM take_events();

--
-- Triggers
--
CREATE OR REPLACE TRIGGER notify AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('bought', 'new', 'id', 'remark');
INSERT INTO purchases VALUES (1);
CREATE OR REPLACE TRIGGER notify AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('sold', '{"fixed": 1}');
INSERT INTO purchases VALUES (2);
CREATE OR REPLACE TRIGGER notify AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('lost', 'new', 'remark', 'id');
INSERT INTO purchases VALUES (3);
CREATE TRIGGER second AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('second', '2');
INSERT INTO purchases VALUES (4);
DROP TRIGGER second ON purchases;
SELECT * FROM take_events();
-- A column that the trigger names is missing, and is added again
ALTER TABLE purchases RENAME COLUMN remark TO note;
INSERT INTO purchases VALUES (5);
ALTER TRIGGER notify ON purchases RENAME TO notify_of_loss;
INSERT INTO purchases VALUES (6);
ALTER TABLE purchases RENAME COLUMN note TO remark;
INSERT INTO purchases VALUES (7);
SELECT * FROM take_events();

--
-- Changes that are rolled back have no effect
--
BEGIN;
INSERT INTO purchases VALUES (1);
SAVEPOINT before;
ALTER TABLE purchases ADD COLUMN b boolean DEFAULT true;
CREATE OR REPLACE TRIGGER notify_of_loss AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('tried', 'new', 'b', 'id');
INSERT INTO purchases VALUES (2);
SELECT * FROM take_events();
ROLLBACK TO before;
INSERT INTO purchases VALUES (3);
SAVEPOINT before;
DROP TABLE purchases;
CREATE TABLE purchases (b integer);
CREATE TRIGGER notify_of_loss AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION notify_event('another');
INSERT INTO purchases VALUES (4);
SELECT * FROM take_events();
ROLLBACK TO before;
INSERT INTO purchases VALUES (5);
COMMIT;
SELECT * FROM take_events();

--
-- Changes during a statement: the statement keeps the names it began with;
-- statements that begin later use the new ones
--
CREATE TABLE items (id integer);
CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.id = 1 THEN
		ALTER SCHEMA regress_altered RENAME TO regress_altered_too;
		INSERT INTO regress_altered_too.items VALUES (101);
		CREATE SCHEMA regress_altered_more;
	END IF;
	IF NEW.id < 3 THEN
		INSERT INTO regress_altered_too.items VALUES (NEW.id + 200);
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER a_notify AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION notify_event();
CREATE TRIGGER b_meddle AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION meddle();
BEGIN;
INSERT INTO items VALUES (1), (2), (3);
SELECT * FROM regress_altered_too.take_events();
ROLLBACK;
INSERT INTO items VALUES (4);
SELECT * FROM take_events();

-- A trigger is replaced during a statement: this statement fires the old version,
-- and statements that begin later fire the new one, even if they fire first
CREATE TABLE people (id integer PRIMARY KEY, name text, secret text);
INSERT INTO people VALUES (0, 'a', 'known');
CREATE FUNCTION replace_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM people WHERE id > 0) THEN
		RETURN NULL;
	ELSIF TG_ARGV[0] = 'with fewer arguments' THEN
		CREATE OR REPLACE TRIGGER b_notify AFTER INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION notify_event('wide', 'new', 'id');
	ELSE
		CREATE OR REPLACE TRIGGER b_notify AFTER INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION notify_event('other', 'new', 'id', 'name');
		INSERT INTO people VALUES (2, 'a', 'hidden');
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER b_notify AFTER INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION notify_event('wide', 'new', 'id', 'secret');
BEGIN;
CREATE TRIGGER a_replace BEFORE INSERT ON people FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION replace_notify('with fewer arguments');
INSERT INTO people VALUES (1, 'a', 'known');
INSERT INTO people VALUES (3, 'a', 'hidden');
SELECT * FROM take_events();
ROLLBACK;
BEGIN;
CREATE TRIGGER a_replace BEFORE INSERT ON people FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION replace_notify('with others');
INSERT INTO people VALUES (1, 'a', 'known'), (0, '', '') ON CONFLICT (id) DO UPDATE SET name = 'b';
INSERT INTO people VALUES (3, 'a', 'hidden'), (0, '', '') ON CONFLICT (id) DO UPDATE SET name = 'c';
SELECT * FROM take_events();
ROLLBACK;

--
-- The log: its schema can be renamed.  Recording an event needs nothing of the
-- extension but the log's table.
--
BEGIN;
ALTER SCHEMA public RENAME TO regress_altered_public;
INSERT INTO purchases VALUES (1);
SELECT * FROM take_events();
ROLLBACK;
BEGIN;
ALTER TABLE public._event_retries RENAME TO _event_retries_of_old;
INSERT INTO purchases VALUES (2);
SELECT * FROM take_events();
ROLLBACK;
BEGIN;
ALTER TABLE public.notification_events RENAME TO notification_events_of_old;
INSERT INTO purchases VALUES (3);
ROLLBACK;
INSERT INTO purchases VALUES (4);
SELECT * FROM take_events();
-- the extension is dropped by the statement that calls its function
SET client_min_messages = warning;
CREATE FUNCTION drop_extension() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
	DROP EXTENSION pg_notify_events CASCADE;
	RETURN 1;
END $$;
SELECT notify_event('late', '{}'::jsonb) FROM (SELECT drop_extension() OFFSET 0) AS s (n) WHERE n = 1;
RESET client_min_messages;

--
-- The session keeps nothing of tables that were dropped
--
INSERT INTO purchases VALUES (1);
SELECT kept() > 0 AS something_is_kept;
DELETE FROM notification_events;
DROP TABLE items, purchases;
DO $$
BEGIN
	FOR i IN 1..100 LOOP
		CREATE TEMP TABLE passing (n integer);
		CREATE TRIGGER notify AFTER INSERT ON passing FOR EACH ROW EXECUTE FUNCTION notify_event('passing', 'new', 'n');
		INSERT INTO passing VALUES (i);
		DROP TABLE passing;
	END LOOP;
END $$;
SELECT kept();
SELECT count(*) AS events, count(DISTINCT event_data) AS different FROM take_events();
-- nor old versions of a table that is altered many times in one transaction
CREATE TABLE restless (n integer);
CREATE TRIGGER notify AFTER INSERT ON restless FOR EACH ROW EXECUTE FUNCTION notify_event('restless', 'new', 'n');
BEGIN;
DO $$
BEGIN
	FOR i IN 1..100 LOOP
		EXECUTE format('ALTER TABLE restless ALTER n SET (n_distinct = %s)', i);
		INSERT INTO restless VALUES (i);
	END LOOP;
END $$;
SELECT kept();
ROLLBACK;

SET client_min_messages = warning;
DROP SCHEMA regress_altered CASCADE;
DROP EXTENSION pg_notify_events CASCADE;
