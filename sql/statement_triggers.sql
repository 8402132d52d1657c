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
-- Statements that touch no row are statements, too.
INSERT INTO orders SELECT 1 WHERE false;
UPDATE orders SET id = 1;
DELETE FROM orders;
SELECT event_name, event_data FROM notification_events ORDER BY id;
SELECT count(*) FROM take_events();
DROP TRIGGER notify ON orders;

-- Own data.
CREATE TRIGGER notify AFTER INSERT OR TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('own data', '{"hint": "look at orders"}');
INSERT INTO orders VALUES (1), (2);
TRUNCATE orders;
SELECT event_name, data FROM take_events();
DROP TRIGGER notify ON orders;

-- Columns to record, where there is no row.
CREATE TRIGGER notify AFTER TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated', old, id);
TRUNCATE orders;
SELECT event_name, op, new, old FROM take_events();
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER TRUNCATE ON orders
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('truncated', old, price);
TRUNCATE orders;
DROP TRIGGER notify ON orders;

-- Several tables are truncated by one statement; BEFORE is refused.
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
-- new and old are of the same row, also where what makes up a key changes.
UPDATE orders SET id = 6 - id, product = upper(product) WHERE id <> 2;
SELECT * FROM take_events();
UPDATE orders SET id = 4 - id;
SELECT new ->> 'product' = old ->> 'product' AS same_product, new ->> 'id' AS new_id, old ->> 'id' AS old_id
	FROM take_events() ORDER BY new_id;
DELETE FROM orders WHERE id < 0 OR product = 'plum';
SELECT * FROM take_events();
-- No row, no event.
INSERT INTO orders SELECT 9 WHERE false;
UPDATE orders SET id = 9 WHERE false;
DELETE FROM orders WHERE false;
SELECT * FROM take_events();
DROP TRIGGER inserted ON orders;
DROP TRIGGER updated ON orders;
DROP TRIGGER deleted ON orders;
DELETE FROM orders;

-- Only one of the two tables of an UPDATE.
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

-- Several triggers read the same transition tables, among them others'.
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

-- One statement that inserts and updates fires both triggers, each with its rows.
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

-- A rolled back savepoint takes the rows' events along.
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

-- More than fits into work_mem.
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
-- puts its rows into the transition tables of the UPDATE.
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

-- A view's statement triggers fire AFTER, its rows being those of INSTEAD OF.
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
