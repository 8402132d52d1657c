--
-- notify_event() as a statement trigger
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_statement;
SET search_path = regress_statement, public;

CREATE FUNCTION take_events(OUT event_name text, OUT op text, OUT "table" text, OUT new jsonb, OUT old jsonb, OUT data jsonb)
	RETURNS SETOF record
	LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (
		DELETE FROM notification_events RETURNING id, event_name, event_data AS d
	)
	SELECT event_name, d ->> 'op', d ->> 'table', d -> 'new', d -> 'old', d - '{op,schema,table,new,old}'::text[]
		FROM taken ORDER BY id;
END;

CREATE TABLE orders (
	id		integer,
	product	text,
	secret	text
);

--
-- Without transition tables: one event for the statement
--
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event();
INSERT INTO orders VALUES (1, 'apple', 's'), (2, 'plum', 's');
UPDATE orders SET product = 'pear';
DELETE FROM orders WHERE id = 1;
TRUNCATE orders;
-- The trigger also fires for statements that affect no row.
INSERT INTO orders SELECT 1 WHERE false;
UPDATE orders SET id = 1;
DELETE FROM orders;
SELECT event_name, event_data FROM notification_events ORDER BY id;
SELECT count(*) FROM take_events();
DROP TRIGGER notify ON orders;

-- Data given as an argument.
CREATE TRIGGER notify AFTER INSERT OR TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('own data', '{"hint": "look at orders"}');
INSERT INTO orders VALUES (1), (2);
TRUNCATE orders;
SELECT event_name, data FROM take_events();
DROP TRIGGER notify ON orders;

-- Columns to record must exist, although there is no row to take them from.
CREATE TRIGGER notify AFTER TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated', old, id);
TRUNCATE orders;
SELECT event_name, op, new, old FROM take_events();
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated', old, price);
TRUNCATE orders;
DROP TRIGGER notify ON orders;

-- One statement truncates several tables. BEFORE triggers are refused.
CREATE TABLE items (order_id integer);
CREATE TRIGGER notify AFTER TRUNCATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated');
CREATE TRIGGER notify AFTER TRUNCATE ON items FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated');
TRUNCATE orders, items;
SELECT event_name, op, "table" FROM take_events() ORDER BY "table";
DROP TABLE items;
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify BEFORE TRUNCATE ON orders FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated');
TRUNCATE orders;
DROP TRIGGER notify ON orders;

--
-- With transition tables: one event for each row
--
CREATE TRIGGER inserted AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('inserted');
CREATE TRIGGER updated AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_orders OLD TABLE AS old_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('updated');
CREATE TRIGGER deleted AFTER DELETE ON orders REFERENCING OLD TABLE AS old_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('deleted');
INSERT INTO orders VALUES (1, 'apple', 's1'), (2, 'plum', NULL), (3, 'fig', 's3');
SELECT * FROM take_events();
-- new and old belong to the same row, even if the columns of the key change.
UPDATE orders SET id = 6 - id, product = upper(product) WHERE id <> 2;
SELECT * FROM take_events();
UPDATE orders SET id = 4 - id;
SELECT new ->> 'product' = old ->> 'product' AS same_product, new ->> 'id' AS new_id, old ->> 'id' AS old_id
	FROM take_events() ORDER BY new_id;
DELETE FROM orders WHERE id < 0 OR product = 'plum';
SELECT * FROM take_events();
-- No event without a row.
INSERT INTO orders SELECT 9 WHERE false;
UPDATE orders SET id = 9 WHERE false;
DELETE FROM orders WHERE false;
SELECT * FROM take_events();
DROP TRIGGER inserted ON orders;
DROP TRIGGER updated ON orders;
DROP TRIGGER deleted ON orders;
DELETE FROM orders;

-- Only one of the two transition tables of an UPDATE.
CREATE TRIGGER only_new AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('only new', new, id);
CREATE TRIGGER only_old AFTER UPDATE ON orders REFERENCING OLD TABLE AS old_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('only old', old, id);
INSERT INTO orders VALUES (1), (2);
UPDATE orders SET id = id + 10;
SELECT event_name, op, new, old FROM take_events();
DROP TRIGGER only_new ON orders;
DROP TRIGGER only_old ON orders;
DELETE FROM orders;

-- Several triggers read the same transition tables, also triggers of users.
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '%: % new rows, ids %', TG_NAME, (SELECT count(*) FROM new_orders),
		(SELECT string_agg(id::text, ' ' ORDER BY id) FROM new_orders);
	RETURN NULL;
END
$$;
CREATE TRIGGER a_count AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER b_notify AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('b', new, id);
CREATE TRIGGER c_count AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER d_notify AFTER INSERT ON orders REFERENCING NEW TABLE AS other_name
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('d', new, product);
CREATE TRIGGER e_notify AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('e', '{"fixed": true}');
CREATE TRIGGER f_row AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('f', new, id);
INSERT INTO orders VALUES (1, 'apple'), (2, 'plum');
SELECT event_name, new, data FROM take_events();
DROP TRIGGER a_count ON orders;
DROP TRIGGER b_notify ON orders;
DROP TRIGGER c_count ON orders;
DROP TRIGGER d_notify ON orders;
DROP TRIGGER e_notify ON orders;
DROP TRIGGER f_row ON orders;
DELETE FROM orders;

-- A statement that inserts and updates fires both triggers, each with its own rows.
ALTER TABLE orders ADD PRIMARY KEY (id);
CREATE TRIGGER inserted AFTER INSERT ON orders REFERENCING NEW TABLE AS new_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('inserted', new, id, product);
CREATE TRIGGER updated AFTER UPDATE ON orders REFERENCING NEW TABLE AS new_orders OLD TABLE AS old_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('updated', new, id, product);
CREATE TRIGGER deleted AFTER DELETE ON orders REFERENCING OLD TABLE AS old_orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('deleted', old, id, product);
INSERT INTO orders VALUES (1, 'apple'), (2, 'plum'), (3, 'fig');
SELECT count(*) FROM take_events();
INSERT INTO orders VALUES (2, 'PLUM'), (4, 'kiwi') ON CONFLICT (id) DO UPDATE SET product = excluded.product;
SELECT event_name, new, old FROM take_events() ORDER BY event_name;
MERGE INTO orders o USING (VALUES (1, NULL), (2, 'Plum'), (5, 'nut')) AS m (id, product) ON o.id = m.id
	WHEN MATCHED AND m.product IS NULL THEN DELETE
	WHEN MATCHED THEN UPDATE SET product = m.product
	WHEN NOT MATCHED THEN INSERT VALUES (m.id, m.product);
SELECT event_name, new, old FROM take_events() ORDER BY event_name;
WITH gone AS (DELETE FROM orders WHERE id = 2 RETURNING *)
INSERT INTO orders SELECT id + 100, product FROM gone;
SELECT event_name, new, old FROM take_events() ORDER BY event_name;

-- COPY is a statement.
COPY orders (id, product) FROM stdin;
20	twenty
21	twenty-one
\.
SELECT event_name, new FROM take_events();

-- A rollback to a savepoint removes the events, too.
BEGIN;
INSERT INTO orders VALUES (30, 'kept');
SAVEPOINT a;
INSERT INTO orders VALUES (31, 'undone'), (32, 'undone');
ROLLBACK TO a;
COMMIT;
SELECT event_name, new FROM take_events();
DROP TABLE orders;

--
-- Many rows, wide rows
--
CREATE TABLE bulk (id integer, wide text, gone integer);
ALTER TABLE bulk DROP COLUMN gone;
ALTER TABLE bulk ADD COLUMN double_id integer GENERATED ALWAYS AS (id * 2) STORED;
CREATE TRIGGER inserted AFTER INSERT ON bulk REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('bulk inserted');
CREATE TRIGGER updated AFTER UPDATE ON bulk REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('bulk updated');
INSERT INTO bulk (id, wide) SELECT i, repeat(i::text, 500) FROM generate_series(1, 1000) i;
SELECT event_name, count(*), count(DISTINCT (new ->> 'id')::integer), sum((new ->> 'id')::integer),
	bool_and(new ->> 'wide' = repeat(new ->> 'id', 500)) AS wide,
	bool_and((new ->> 'double_id')::integer = 2 * (new ->> 'id')::integer) AS generated, bool_and(old = 'null') AS old_is_null
	FROM take_events() GROUP BY event_name;
UPDATE bulk SET id = id + 1;
SELECT event_name, count(*), bool_and((new ->> 'id')::integer = (old ->> 'id')::integer + 1) AS paired,
	bool_and(new ->> 'wide' = old ->> 'wide') AS wide
	FROM take_events() GROUP BY event_name;

-- More rows than work_mem can hold.
SET work_mem = '64kB';
UPDATE bulk SET id = id + 1;
SELECT event_name, count(*), bool_and((new ->> 'id')::integer = (old ->> 'id')::integer + 1) AS paired
	FROM take_events() GROUP BY event_name;
RESET work_mem;

-- Ids follow the order of the rows.
TRUNCATE bulk;
INSERT INTO bulk (id) SELECT i FROM generate_series(1000, 1, -1) i;
SELECT count(*) FROM (
	SELECT (event_data #>> '{new,id}')::integer - lag((event_data #>> '{new,id}')::integer) OVER (ORDER BY id) AS step
		FROM notification_events
	) s WHERE step <> -1;
SELECT count(*) FROM take_events();
DROP TABLE bulk;

--
-- A statement's events are inserted in bulk, unless a trigger or the like could tell
--
CREATE TABLE numbers (n integer);
CREATE TRIGGER notify AFTER INSERT ON numbers REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('number', new);
-- More rows than one bulk insert takes, few and large ones.
INSERT INTO numbers SELECT i FROM generate_series(1, 2500) i;
SELECT count(*), min((event_data #>> '{new,n}')::integer), max((event_data #>> '{new,n}')::integer),
	bool_and(txid::text = (SELECT DISTINCT xmin::text FROM numbers)) AS stamped,
	count(origin_txid) AS restored, count(DISTINCT announce) AS decisions, count(DISTINCT created_at) AS times
	FROM notification_events;
-- An index scan finds them, too.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM notification_events WHERE id >= 0;
SELECT count(DISTINCT n.id) FROM notification_events t, notification_events n WHERE n.txid = t.txid
	AND t.id = (SELECT min(id) FROM notification_events);
RESET enable_seqscan;
RESET enable_bitmapscan;
SELECT count(*) FROM take_events();
CREATE TABLE texts (t text);
CREATE TRIGGER notify AFTER INSERT ON texts REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('text', new);
INSERT INTO texts SELECT string_agg(md5((i * 1000 + j)::text), '' ORDER BY j)
	FROM generate_series(1, 30) i, generate_series(1, 500) j GROUP BY i;
SELECT count(*), count(DISTINCT new ->> 't'), min(length(new ->> 't')), bool_and(new ->> 't' IN (SELECT t FROM texts)) AS same
	FROM take_events();
DROP TABLE texts;

-- A user's AFTER trigger fires for each event and sees all of them.
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% % sees %, of %', TG_WHEN, NEW.event_data #>> '{new,n}', (SELECT count(*) FROM notification_events),
		CASE WHEN NEW.txid = pg_current_xact_id() THEN 'this transaction' ELSE 'no transaction' END;
	RETURN CASE WHEN NEW.event_data #>> '{new,n}' = '2' AND TG_WHEN = 'BEFORE' THEN NULL ELSE NEW END;
END
$$;
CREATE TRIGGER see AFTER INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION see();
INSERT INTO numbers VALUES (1), (2), (3);
SELECT new ->> 'n' AS n FROM take_events();
DROP TRIGGER see ON notification_events;

-- A user's BEFORE trigger sees the events inserted before, and can skip one.
CREATE TRIGGER see BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION see();
INSERT INTO numbers VALUES (1), (2), (3);
SELECT count(*), count(txid) AS stamped FROM notification_events;
SELECT new ->> 'n' AS n FROM take_events();
ALTER TABLE notification_events ENABLE ALWAYS TRIGGER see;
INSERT INTO numbers VALUES (1), (2), (3);
SELECT new ->> 'n' AS n FROM take_events();
ALTER TABLE notification_events DISABLE TRIGGER see;
INSERT INTO numbers VALUES (1), (2), (3);
SELECT new ->> 'n' AS n FROM take_events();
DROP TRIGGER see ON notification_events;

-- What such a trigger allocates for several rows must outlive each row.
CREATE TABLE words (w text);
CREATE TRIGGER notify AFTER INSERT ON words REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('word', new);
CREATE FUNCTION definer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET work_mem = '1MB' AS $$
BEGIN
	RETURN NEW;
END
$$;
CREATE TRIGGER definer BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION definer();
INSERT INTO words SELECT repeat('x', i * 100) FROM generate_series(1, 40) i;
SELECT count(*), sum(length(new ->> 'w')) FROM take_events();
DROP TRIGGER definer ON notification_events;
DROP TABLE words;

-- A row trigger may have transition tables, too: each row is one event.
CREATE TABLE words (w text);
CREATE TRIGGER notify AFTER INSERT ON words REFERENCING NEW TABLE AS new_rows
	FOR EACH ROW EXECUTE FUNCTION notify_event('word', new);
INSERT INTO words VALUES ('a'), ('b');
SELECT new ->> 'w' AS w FROM take_events();
DROP TABLE words;

-- The log refuses rows while its row trigger is disabled.
\set VERBOSITY terse
ALTER TABLE notification_events DISABLE TRIGGER zz_notification_event_row;
SELECT notify_event('unstamped');
INSERT INTO numbers VALUES (1), (2);
ALTER TABLE notification_events ENABLE ALWAYS TRIGGER zz_notification_event_row;

-- Constraints apply to each event, and added columns get their defaults.
ALTER TABLE notification_events ADD CONSTRAINT few CHECK (event_data #>> '{new,n}' <> '3') NOT VALID;
INSERT INTO numbers SELECT i FROM generate_series(1, 5) i;
SELECT notify_event('other', '{"new": {"n": 3}}');
INSERT INTO numbers VALUES (1), (2);
SELECT new ->> 'n' AS n FROM take_events();
ALTER TABLE notification_events DROP CONSTRAINT few;
CREATE FUNCTION public.stored_before() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM notification_events';
ALTER TABLE notification_events ADD COLUMN stored_after bigint DEFAULT public.stored_before();
INSERT INTO numbers VALUES (1), (2), (3);
SELECT event_data #>> '{new,n}' AS n, stored_after FROM notification_events ORDER BY id;
ALTER TABLE notification_events DROP COLUMN stored_after;
DROP FUNCTION public.stored_before();
SELECT count(*) FROM take_events();

-- An error in one of them undoes all.
CREATE UNIQUE INDEX each_once ON notification_events ((event_data #>> '{new,n}'));
INSERT INTO notification_events (event_name, event_data) VALUES ('in the way', '{"new": {"n": 3}}');
INSERT INTO numbers VALUES (1), (2), (3), (4);
\set VERBOSITY default
SELECT event_name FROM take_events();
DROP INDEX each_once;
DROP TABLE numbers;

--
-- Partitioned tables and inheritance: the statement's table, its columns
--
CREATE TABLE parted (k integer, v text) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 (v text, gone integer, k integer);
ALTER TABLE parted_2 DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
CREATE TRIGGER inserted AFTER INSERT ON parted REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('inserted', new, k, v);
CREATE TRIGGER updated AFTER UPDATE ON parted REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('updated', new, k, v);
CREATE TRIGGER deleted AFTER DELETE ON parted REFERENCING OLD TABLE AS old_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('deleted', old, k, v);
INSERT INTO parted VALUES (1, 'one'), (2, 'two');
UPDATE parted SET v = upper(v);
SELECT event_name, op, "table", new, old FROM take_events();
-- A row that moves to another partition is a DELETE and an INSERT; the server
-- does put it into the transition tables of the UPDATE.
UPDATE parted SET k = 2 WHERE k = 1;
SELECT event_name, op, "table", new, old FROM take_events();
DELETE FROM parted;
SELECT event_name, op, "table", new, old FROM take_events() ORDER BY old ->> 'v';
DROP TABLE parted;

CREATE TABLE mother (a integer);
CREATE TABLE daughter (b integer) INHERITS (mother);
CREATE TRIGGER updated AFTER UPDATE ON mother REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('updated');
INSERT INTO mother VALUES (1);
INSERT INTO daughter VALUES (2, 2);
UPDATE mother SET a = a + 10;
SELECT event_name, op, "table", new, old FROM take_events() ORDER BY new ->> 'a';
DROP TABLE daughter, mother;

-- An AFTER statement trigger of a view, whose INSTEAD OF trigger handles the rows.
CREATE TABLE base (a integer);
CREATE VIEW base_view AS SELECT a FROM base;
CREATE TRIGGER notify AFTER INSERT ON base_view FOR EACH STATEMENT EXECUTE FUNCTION notify_event('view');
CREATE FUNCTION insert_base() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO base VALUES (NEW.a);
	RETURN NEW;
END
$$;
CREATE TRIGGER instead INSTEAD OF INSERT ON base_view FOR EACH ROW EXECUTE FUNCTION insert_base();
INSERT INTO base_view VALUES (1), (2);
SELECT event_name, op, "table" FROM take_events();

SET client_min_messages = warning;
DROP SCHEMA regress_statement CASCADE;
DROP EXTENSION pg_notify_events;
