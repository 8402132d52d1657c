--
-- notify_event() as a row trigger and as a function, and plain INSERTs
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_emit;
SET search_path = regress_emit, public;

-- Return the events that were recorded since the last call, and delete them.
CREATE FUNCTION take_events(OUT event_name text, OUT event_data jsonb) RETURNS SETOF record
	LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (
		DELETE FROM notification_events RETURNING id, event_name, event_data
	)
	SELECT taken.event_name, taken.event_data FROM taken ORDER BY id;
END;

--
-- The row trigger: which rows, which name
--
CREATE TABLE orders (
	id		integer PRIMARY KEY,
	product	text,
	secret	text
);
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW EXECUTE FUNCTION notify_event('order changed');
INSERT INTO orders VALUES (1, 'apple', 's1'), (2, NULL, 's2');
UPDATE orders SET product = 'plum' WHERE id = 2;
DELETE FROM orders WHERE id = 1;
UPDATE orders SET product = 'none' WHERE id = 99;
INSERT INTO orders VALUES (2, 'pear', 's2') ON CONFLICT (id) DO UPDATE SET product = excluded.product;
INSERT INTO orders VALUES (2, 'fig', 's2') ON CONFLICT DO NOTHING;
SELECT * FROM take_events();
DROP TRIGGER notify ON orders;

-- Without arguments: schema.table.op in lower case.
CREATE TABLE "Odd Täble" (a integer);
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON "Odd Täble"
	FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO "Odd Täble" VALUES (1);
UPDATE "Odd Täble" SET a = 2;
DELETE FROM "Odd Täble";
SELECT * FROM take_events();
DROP TABLE "Odd Täble";

-- One statement can both insert and update.
CREATE TABLE upserted (a integer PRIMARY KEY, b text);
CREATE TRIGGER notify AFTER INSERT OR UPDATE ON upserted
	FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO upserted VALUES (1, 'there');
INSERT INTO upserted VALUES (2, 'new'), (1, 'again'), (3, 'new') ON CONFLICT (a) DO UPDATE SET b = excluded.b;
SELECT * FROM take_events();
DROP TABLE upserted;

-- Each row is recorded as to_jsonb() writes it, whatever the types of its columns:
-- types that the extension writes itself (src/emit/change_record.c) and others.
CREATE DOMAIN amount AS numeric(10, 3);
CREATE DOMAIN small_amount AS amount CHECK (value < 1000);
CREATE DOMAIN numbers AS integer[];
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a integer, b text);
CREATE TABLE plain (
	"true" boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(10, 2), d amount,
	dd small_amount, gone integer, t text, v varchar(20), b char(5), c "char", name name, "date" date, time time, timetz timetz, ts timestamp,
	tstz timestamptz, span interval, u uuid, bits bit(3), bytes bytea, address inet, r int4range, m nummultirange, o oid, class regclass, money money,
	p point, lsn pg_lsn, "É ""q" text, g integer GENERATED ALWAYS AS (i4 + 1) STORED, long text, "json path" jsonpath
);
ALTER TABLE plain DROP COLUMN gone;
INSERT INTO plain ("true", i4) VALUES (true, 1);
ALTER TABLE plain ADD COLUMN later text DEFAULT 'of old', ADD COLUMN later_number numeric DEFAULT 1.50;
INSERT INTO plain VALUES
	(true, 1, 10000, 0, 1.5, 1e300, 1.500, 2, 3.25, 1, '', 'v', 'b', 'c', 'n', '2020-02-29', '10:00', '10:00+02', '2020-02-29 10:00', '2020-02-29 10:00+00',
	'1 day 02:00', '00000000-0000-0000-0000-000000000001', B'101', '\x00ff', '10.0.0.1/8', '[1,3)', '{[1,2]}', 1, 'pg_class', '1',
	'(1,2)', '0/1', 'q', DEFAULT, repeat('long', 10000), '$.a'),
	(false, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', 0.00, -0.001, 0, E'\t"\\\u0001é', ' ', ' ', '"', '', '0044-03-15 BC', '24:00', '00:00-15',
	'infinity', '-infinity', '-1 year', NULL, NULL, '', '::1', 'empty', '{}', 0, NULL, '-1', '(NaN,Infinity)', NULL, '', DEFAULT, '', NULL),
	(NULL, 32767, 1200, 9223372036854775807, 'Infinity', 1e-300, 'Infinity', 1e7, 1e6, 999, NULL, NULL, NULL, NULL, NULL, '-infinity', NULL, NULL, '4714-11-24 00:00:00 BC', '294276-12-31 23:59:59+00',
	NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, DEFAULT, NULL, NULL),
	(NULL, 0, NULL, 1000000000000, 0, '-0', 1e100, NULL, NULL, NULL, '', '', '', '', '', 'infinity', NULL, NULL, NULL, NULL,
	NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, DEFAULT, NULL, NULL);
INSERT INTO plain (n) VALUES ('-Infinity'), (1e-200), (-12345.67890);
INSERT INTO plain DEFAULT VALUES;
CREATE TABLE other (LIKE plain, a integer[], tt text[], nn numbers, j json, jb jsonb, mood mood, pair pair);
INSERT INTO other SELECT plain.*, '{1,2}', '{a}', '{3}', '{"a": 1, "a": 2}', '{"b": [1]}', 'sad', ROW(1, 'x')::pair FROM plain;
CREATE FUNCTION to_json(mood) RETURNS json LANGUAGE sql RETURN json_build_object('mood', $1::text);
CREATE CAST (mood AS json) WITH FUNCTION to_json(mood);
CREATE TABLE of_json AS SELECT j FROM other;
CREATE TABLE of_jsonb AS SELECT jb FROM other;
CREATE TABLE of_arrays AS SELECT a FROM other;
CREATE TABLE of_domains AS SELECT nn FROM other;
CREATE TABLE of_moods AS SELECT mood FROM other;
CREATE TABLE of_pairs AS SELECT pair FROM other;
CREATE TABLE of_catalog AS SELECT m FROM pg_am AS m WHERE amname IN ('heap', 'btree');
CREATE TABLE nothing ();
INSERT INTO nothing DEFAULT VALUES;
CREATE FUNCTION check_records(checked regclass) RETURNS TABLE (op text, events bigint, same_rows bigint, same_record boolean)
	LANGUAGE plpgsql SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' AS $$
BEGIN
	DELETE FROM notification_events;
	EXECUTE format('CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION notify_event(''row'')', checked);
	CREATE TEMP TABLE wanted (record jsonb);
	EXECUTE format('INSERT INTO wanted SELECT jsonb_build_object(''op'', ''DELETE'', ''schema'', ''regress_emit'', ''table'', %L, ''new'', NULL, ''old'', to_jsonb(whole)) FROM %s AS whole',
		checked::text, checked);
	EXECUTE format('DELETE FROM %s', checked);
	RETURN QUERY SELECT e.event_data ->> 'op', count(*), count(w), bool_and(e.event_data::text = w.record::text)
		FROM notification_events AS e LEFT JOIN wanted AS w ON w.record = e.event_data AND
			pg_column_size(e.event_data || '{}') = pg_column_size(w.record || '{}')
		GROUP BY 1;
	DELETE FROM notification_events;
	DROP TABLE wanted;
END $$;
SELECT * FROM check_records('plain');
SELECT * FROM check_records('other');
SELECT kind, r.* FROM unnest('{of_json,of_jsonb,of_arrays,of_domains,of_moods,of_pairs,of_catalog,nothing}'::regclass[]) AS kind, check_records(kind) AS r;
-- Chosen columns, one of them twice
CREATE TRIGGER notify_some AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION notify_event('some', 'new', 'n2', 'i4', 'later', 'b');
CREATE TRIGGER notify_twice AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION notify_event('twice', 'new', 'n2', 'i4', 'n2');
DROP TRIGGER notify ON plain;
INSERT INTO plain (n2, i4, b) VALUES (1, 2, 'x');
SELECT * FROM take_events();
DROP TABLE plain, other, of_json, of_jsonb, of_arrays, of_domains, of_moods, of_pairs, of_catalog, nothing;
DROP FUNCTION check_records;
DROP CAST (mood AS json);
DROP FUNCTION to_json(mood);
DROP DOMAIN small_amount, amount, numbers;
DROP TYPE mood, pair;

-- Cut to 100 characters, not bytes, and never within one.
SELECT repeat('s', 63) AS long_schema, repeat('t', 30) || repeat('É', 16) AS long_table \gset
CREATE SCHEMA :long_schema;
CREATE TABLE :long_schema.:"long_table" (a integer);
CREATE TRIGGER notify AFTER INSERT ON :long_schema.:"long_table"
	FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO :long_schema.:"long_table" VALUES (1);
SELECT event_name, length(event_name), octet_length(event_name) FROM take_events();
DROP TABLE :long_schema.:"long_table";
DROP SCHEMA :long_schema;

-- A name has 1 to 100 characters.
SELECT repeat('é', 100) AS longest, repeat('é', 101) AS too_long \gset
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event(:'longest');
INSERT INTO orders VALUES (3);
SELECT event_name = :'longest' AS whole FROM take_events();
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event(:'too_long');
INSERT INTO orders VALUES (4);
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('');
INSERT INTO orders VALUES (4);
DROP TRIGGER notify ON orders;

--
-- The row trigger: what is recorded
--
-- The second argument is the data if it is JSON.  If it is new or old, in upper
-- or lower case, the trigger records the row.
CREATE TRIGGER a AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('a', '{"fixed": [1, null, "ä"]}');
CREATE TRIGGER b AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('b', '"just text"');
CREATE TRIGGER c AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('c', 'null');
CREATE TRIGGER d AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('d', NEW);
CREATE TRIGGER e AFTER INSERT OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('e', Old);
CREATE TRIGGER f AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event(7, 42);
INSERT INTO orders VALUES (5, 'kiwi', 's5');
DELETE FROM orders WHERE id = 5;
SELECT * FROM take_events();
DROP TRIGGER a ON orders;
DROP TRIGGER b ON orders;
DROP TRIGGER c ON orders;
DROP TRIGGER d ON orders;
DROP TRIGGER e ON orders;
DROP TRIGGER f ON orders;

-- Not JSON.
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('bad', 'row');
INSERT INTO orders VALUES (5, 'kiwi', 's5');
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('bad', '');
INSERT INTO orders VALUES (5, 'kiwi', 's5');
DROP TRIGGER notify ON orders;

-- Columns to record: the other columns are not in the event.
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW EXECUTE FUNCTION notify_event('named', new, product, id);
INSERT INTO orders VALUES (6, 'kiwi', 's6');
UPDATE orders SET secret = 's66' WHERE id = 6;
DELETE FROM orders WHERE id = 6;
SELECT * FROM take_events();
SELECT count(*) FROM orders WHERE id = 6;
DROP TRIGGER notify ON orders;

-- A column that does not exist.  Its name must be spelled exactly, and system
-- columns cannot be recorded.
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('named', new, id, price);
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('named', new, 'ID');
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('named', new, ctid);
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('named', new, '');
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;

-- Both data and columns: an error.
CREATE TRIGGER notify AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('both', '{}', id);
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;

-- Only AFTER triggers are allowed.
CREATE TRIGGER notify BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('before');
INSERT INTO orders VALUES (6);
DROP TRIGGER notify ON orders;
CREATE TRIGGER notify BEFORE DELETE ON orders FOR EACH STATEMENT EXECUTE FUNCTION notify_event('before');
DELETE FROM orders;
DROP TRIGGER notify ON orders;
CREATE VIEW orders_view AS SELECT * FROM orders;
CREATE TRIGGER notify INSTEAD OF INSERT ON orders_view FOR EACH ROW EXECUTE FUNCTION notify_event('instead');
INSERT INTO orders_view VALUES (6);
DROP VIEW orders_view;
SELECT count(*) FROM orders WHERE id = 6;
SELECT * FROM take_events();

-- Features of all triggers: WHEN, UPDATE OF, deferred triggers.
CREATE TRIGGER w AFTER UPDATE ON orders FOR EACH ROW WHEN (new.product IS DISTINCT FROM old.product)
	EXECUTE FUNCTION notify_event('other product', new, product);
CREATE TRIGGER x AFTER UPDATE OF secret ON orders FOR EACH ROW EXECUTE FUNCTION notify_event('other secret', '{}');
CREATE CONSTRAINT TRIGGER y AFTER UPDATE ON orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION notify_event('deferred', new, product);
BEGIN;
UPDATE orders SET secret = 'other' WHERE id = 3;
UPDATE orders SET product = 'grape' WHERE id = 3;
UPDATE orders SET product = 'grape' WHERE id = 3;
SELECT event_name FROM notification_events ORDER BY id;
COMMIT;
SELECT * FROM take_events();
DROP TABLE orders;

--
-- All kinds of tables
--
-- Generated and dropped columns, types of all kinds, odd names.
CREATE TYPE pair AS (x integer, "y z" text);
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN positive AS integer CHECK (value > 0);
CREATE TABLE kinds (
	dropped_first	integer,
	n				numeric,
	i				bigint,
	f				double precision,
	b				boolean,
	t				timestamptz,
	dropped			text,
	a				integer[],
	p				pair,
	ps				pair[],
	m				mood,
	d				positive,
	j				json,
	jb				jsonb,
	by				bytea,
	g				bigint GENERATED ALWAYS AS (i * 2) STORED,
	"odd "" 'näme.1" text
);
ALTER TABLE kinds DROP COLUMN dropped_first, DROP COLUMN dropped;
ALTER TABLE kinds ADD COLUMN late text DEFAULT 'filled in';
CREATE TRIGGER whole AFTER INSERT ON kinds FOR EACH ROW EXECUTE FUNCTION notify_event('whole');
CREATE TRIGGER named AFTER INSERT ON kinds FOR EACH ROW
	EXECUTE FUNCTION notify_event('named', new, g, 'odd " ''näme.1', ps, late, j);
SET TIME ZONE 'UTC';
INSERT INTO kinds (n, i, f, b, t, a, p, ps, m, d, j, jb, by, "odd "" 'näme.1") VALUES
	(1.50, 9007199254740993, 0.1, true, '2020-02-29 12:00:00.5+00', '{1,null,3}', '(1,"a b")',
	 array[(1, 'x')::pair, NULL], 'glad', 3, '{"b": 1, "a": 2}', '{"b": 1, "a": 2}', '\x00ff', E'q"''\\\n\u00e9');
RESET TIME ZONE;
SELECT event_name, jsonb_pretty(event_data) AS event_data FROM take_events() ORDER BY event_name DESC;
INSERT INTO kinds DEFAULT VALUES;
SELECT event_name, jsonb_strip_nulls(event_data) AS event_data FROM take_events();
-- Numbers that JSON does not have.
INSERT INTO kinds (n, f, t) VALUES ('NaN', '-Infinity', 'infinity');
SELECT event_name, jsonb_strip_nulls(event_data) AS event_data FROM take_events() WHERE event_name = 'whole';
ALTER TABLE kinds DROP COLUMN late;
INSERT INTO kinds (i) VALUES (1);
DROP TABLE kinds;
DROP TYPE pair;
DROP TYPE mood;
DROP DOMAIN positive;

-- A table without columns, and a temporary one.
CREATE TABLE empty_handed ();
CREATE TRIGGER notify AFTER INSERT ON empty_handed FOR EACH ROW EXECUTE FUNCTION notify_event();
INSERT INTO empty_handed DEFAULT VALUES;
CREATE TEMPORARY TABLE passing (a integer);
CREATE TRIGGER notify AFTER INSERT ON passing FOR EACH ROW EXECUTE FUNCTION notify_event('temporary', '{}');
INSERT INTO passing VALUES (1);
SELECT * FROM take_events();
DROP TABLE empty_handed;

-- Large values.
CREATE TABLE large (a text, b text);
ALTER TABLE large ALTER a SET STORAGE external;
CREATE TRIGGER notify AFTER INSERT OR UPDATE ON large FOR EACH ROW EXECUTE FUNCTION notify_event('large');
INSERT INTO large VALUES (repeat('äb', 100000), 'b');
UPDATE large SET b = 'c';
SELECT event_data ->> 'op' AS op, length(event_data #>> '{new,a}') AS new, length(event_data #>> '{old,a}') AS old,
	event_data #>> '{new,b}' AS b
	FROM take_events();
DROP TABLE large;

-- A partitioned table: the row is in a partition, whose columns may have another
-- order. A row moves to another partition as DELETE and INSERT.
CREATE TABLE parted (k integer, v text) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_2 (v text, gone integer, k integer);
ALTER TABLE parted_2 DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
CREATE TRIGGER notify AFTER INSERT OR UPDATE OR DELETE ON parted
	FOR EACH ROW EXECUTE FUNCTION notify_event('parted', new, k, v);
INSERT INTO parted VALUES (1, 'one'), (2, 'two');
UPDATE parted SET v = v || '!';
UPDATE parted SET k = 2 WHERE k = 1;
SELECT * FROM take_events();
DROP TABLE parted;

-- A cascade.
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (id integer REFERENCES parent ON DELETE CASCADE);
CREATE TRIGGER notify AFTER DELETE ON child FOR EACH ROW EXECUTE FUNCTION notify_event('child gone');
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1);
DELETE FROM parent;
SELECT * FROM take_events();
DROP TABLE child, parent;

--
-- notify_event() as a function
--
SELECT notify_event('jsonb', jsonb '{"b": 1, "a": [true]}') > 0 AS recorded;
SELECT notify_event('json', json '{"b": 1, "b": 2}') > 0 AS recorded;
SELECT notify_event('text', text '{"c": "\u00e9"}') > 0 AS recorded;
SELECT notify_event('varchar', varchar '[1]') > 0 AS recorded;
SELECT notify_event('unknown', '{"d": null}') > 0 AS recorded;
SELECT notify_event('no data') > 0 AS recorded;
SELECT notify_event('null jsonb', NULL::jsonb) > 0 AS recorded;
SELECT notify_event('null json', NULL::json) > 0 AS recorded;
SELECT notify_event('null text', NULL::text) > 0 AS recorded;
SELECT notify_event('null', NULL) > 0 AS recorded;
SELECT notify_event('json null', 'null') > 0 AS recorded;
SELECT notify_event(event_name => 'by name', event_data => '1') > 0 AS recorded;
SELECT notify_event(event_data => '2', event_name => text 'text name') > 0 AS recorded;
SELECT notify_event(E'odd "\\''\n name', to_jsonb('a string'::text)) > 0 AS recorded;
SELECT event_name, event_data, event_data IS NULL AS is_null FROM take_events();
SELECT count(notify_event('many ' || i, to_jsonb(i))) FROM generate_series(1, 3) i;
SELECT * FROM take_events();

-- The function returns the id of the row.
SELECT notify_event('mine', '{"a": 1}') AS id \gset
SELECT notify_event('another') > :id AS later;
SELECT event_name FROM notification_events WHERE id = :id;
SELECT count(*) FROM take_events();

-- Bad names and data.
SELECT notify_event(NULL);
SELECT notify_event('');
SELECT notify_event(repeat('n', 101));
SELECT notify_event(:'too_long', '{}');
SELECT notify_event('no json', 'plain text');
SELECT notify_event('no json', '{"a": ');
SELECT notify_event('no json', '');
SELECT notify_event('no json', '{"a": "' || repeat('long ', 30));
SELECT notify_event('no json', '"\u0000"');
SELECT notify_event();
\set VERBOSITY terse
SELECT notify_event('a', '{}', 'c');
\set VERBOSITY default
SELECT * FROM take_events();
-- ' ' is a valid name.
SELECT notify_event(' ') > 0 AS recorded;
SELECT event_name = ' ' AS kept FROM take_events();

--
-- Plain INSERTs are events like any other
--
INSERT INTO notification_events (event_name, event_data) VALUES ('order_created', '{"id": 1}')
	RETURNING event_name, event_data, origin_txid, txid = pg_current_xact_id() AS own_txid, created_at = now() AS now;
INSERT INTO notification_events (event_name) SELECT 'many' FROM generate_series(1, 3);
COPY notification_events (event_name, event_data) FROM stdin;
copied	{"by": "COPY"}
\.
SELECT * FROM take_events();

-- The recipe's trigger function, unchanged.
CREATE TABLE recipe (id serial, product text);
CREATE FUNCTION notify_recipe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO notification_events (event_name, event_data) VALUES (TG_ARGV[0], row_to_json(NEW));
	RETURN NEW;
END
$$;
CREATE TRIGGER notify AFTER INSERT ON recipe FOR EACH ROW EXECUTE FUNCTION notify_recipe('order_created');
INSERT INTO recipe (product) VALUES ('apple');
SELECT * FROM take_events();
DROP TABLE recipe;
DROP FUNCTION notify_recipe;

-- The log checks plain INSERTs, too.
\set VERBOSITY terse
INSERT INTO notification_events (event_data) VALUES ('{}');
\set VERBOSITY default
INSERT INTO notification_events (event_name) VALUES ('');
INSERT INTO notification_events (event_name) VALUES (:'too_long');

-- A trigger of the log that records an event for each event recurses without end.
CREATE TRIGGER endless AFTER INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION notify_event('endless', '1');
\set VERBOSITY terse
SELECT notify_event('first');
INSERT INTO notification_events (event_name) VALUES ('first');
\set VERBOSITY default
DROP TRIGGER endless ON notification_events;
SELECT * FROM take_events();

-- txid is always the transaction's own. A given txid is that of a restored row: the
-- log keeps it in origin_txid, and nobody announces the row again. Values given for
-- the other two columns are ignored.
CREATE FUNCTION honest(e notification_events) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s: own txid %s, origin %s, announce %s', $1.event_name,
		$1.txid = pg_current_xact_id_if_assigned(), COALESCE($1.origin_txid::text, 'null'), $1.announce)
$$;
SET pg_notify_events.announce = direct;
BEGIN;
INSERT INTO notification_events (event_name, txid) VALUES ('given txid', '42');
INSERT INTO notification_events (event_name, txid, origin_txid, announce) VALUES ('given all', '42', '43', true);
INSERT INTO notification_events (event_name, origin_txid, announce) VALUES ('given the others', '43', true);
INSERT INTO notification_events (event_name, txid, announce) VALUES ('given nulls', NULL, NULL);
SET LOCAL session_replication_role = replica;
INSERT INTO notification_events (event_name) VALUES ('replica');
SELECT notify_event('replica function') > 0 AS recorded;
SET LOCAL session_replication_role = origin;
SAVEPOINT a;
SELECT notify_event('subtransaction') > 0 AS recorded;
RELEASE SAVEPOINT a;
SELECT honest(e) FROM notification_events e ORDER BY id;
ROLLBACK;
RESET pg_notify_events.announce;
-- An id may be given.  The sequence continues after it.
INSERT INTO notification_events (id, event_name, txid) VALUES (1000000, 'restored', '42');
INSERT INTO notification_events (id, event_name, txid) VALUES (1000000, 'twice', '42');
SELECT notify_event('next');
SELECT event_name FROM take_events();

-- created_at is the start of the transaction, unless it is given.
BEGIN;
SELECT notify_event('function') > 0 AS recorded;
INSERT INTO notification_events (event_name) VALUES ('default');
INSERT INTO notification_events (event_name, created_at) VALUES ('given', '2020-01-01 00:00:00+00'), ('null', NULL);
SELECT event_name, created_at = now() AS now, created_at = '2020-01-01 00:00:00+00' AS given
	FROM notification_events ORDER BY id;
ROLLBACK;

--
-- Transactions
--
-- A rollback leaves no event.
CREATE TABLE t (a integer);
CREATE TRIGGER notify AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION notify_event('t', new, a);
BEGIN;
INSERT INTO t VALUES (1);
SAVEPOINT a;
INSERT INTO t VALUES (2);
SELECT notify_event('rolled back') > 0 AS recorded;
ROLLBACK TO a;
INSERT INTO t VALUES (3);
SAVEPOINT b;
INSERT INTO t VALUES (4);
RELEASE b;
COMMIT;
BEGIN;
INSERT INTO t VALUES (5);
ROLLBACK;
DO $$
BEGIN
	BEGIN
		INSERT INTO t VALUES (6);
		RAISE EXCEPTION 'undo';
	EXCEPTION WHEN raise_exception THEN
		INSERT INTO t VALUES (7);
	END;
END
$$;
SELECT * FROM take_events();
-- An error after the event removes the event, too.
ALTER TABLE t ADD CONSTRAINT small UNIQUE (a) DEFERRABLE INITIALLY DEFERRED;
INSERT INTO t VALUES (7);
SELECT * FROM take_events();
DROP TABLE t;

-- All isolation levels.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT notify_event('serializable') > 0 AS recorded;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT notify_event('repeatable read') > 0 AS recorded;
COMMIT;
SELECT * FROM take_events();

-- Read-only transactions: a trigger can fire for temporary tables only.
BEGIN READ ONLY;
SELECT notify_event('read only');
ROLLBACK;
BEGIN READ ONLY;
INSERT INTO passing VALUES (2);
ROLLBACK;
BEGIN READ ONLY;
INSERT INTO notification_events (event_name) VALUES ('read only');
ROLLBACK;
SELECT * FROM take_events();

-- All payloads, including those that are too long for a notification.
BEGIN;
SET LOCAL pg_notify_events.announce = direct;
SET LOCAL pg_notify_events.payload = id;
SELECT notify_event('id', '{"a": 1}') > 0 AS recorded;
SET LOCAL pg_notify_events.payload = json;
SELECT notify_event('json', '{"a": 1}') > 0 AS recorded;
SELECT notify_event('json null') > 0 AS recorded;
SELECT count(notify_event(:'longest', to_jsonb(repeat('x', i)))) FROM generate_series(7000, 8100) i;
SELECT notify_event(:'longest', to_jsonb(repeat('"é\', 1000000))) > 0 AS recorded;
COMMIT;
SELECT count(*) FROM take_events();

--
-- The log itself
--
-- Columns that a user added.
CREATE DOMAIN positive_number AS integer DEFAULT 7 CHECK (value > 0);
ALTER TABLE notification_events
	ADD COLUMN source text DEFAULT current_schema(),
	ADD COLUMN shout text GENERATED ALWAYS AS (upper(event_name)) STORED,
	ADD COLUMN nothing text,
	ADD COLUMN dropped integer DEFAULT 1,
	ADD COLUMN number positive_number,
	ADD COLUMN place integer GENERATED ALWAYS AS IDENTITY;
ALTER TABLE notification_events DROP COLUMN dropped;
CREATE TABLE t (a integer);
CREATE TRIGGER notify AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION notify_event('trigger');
SELECT notify_event('function') > 0 AS recorded;
INSERT INTO t VALUES (1);
INSERT INTO notification_events (event_name, nothing) VALUES ('plain', 'something');
SELECT event_name, source, shout, nothing, number, place, txid IS NOT NULL AS has_txid FROM notification_events ORDER BY id;
\set VERBOSITY terse
ALTER TABLE notification_events ADD CONSTRAINT calm CHECK (event_name <> 'panic');
SELECT notify_event('panic');
TRUNCATE notification_events;
ALTER TABLE notification_events ALTER nothing SET NOT NULL;
SELECT notify_event('function');
\set VERBOSITY default
ALTER TABLE notification_events DROP CONSTRAINT calm, DROP COLUMN source, DROP COLUMN shout, DROP COLUMN nothing,
	DROP COLUMN number, DROP COLUMN place;
DROP DOMAIN positive_number;
SELECT notify_event('narrow again') > 0 AS recorded;
INSERT INTO t VALUES (2);
SELECT * FROM take_events();

-- A BEFORE trigger may change the row or skip it; a skipped row returns no id.
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.event_name = 'swallowed' THEN
		RETURN NULL;
	END IF;
	NEW.event_name := NEW.event_name || ' (seen)';
	NEW.txid := '42';
	RETURN NEW;
END
$$;
CREATE TRIGGER swallow BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION swallow();
SELECT notify_event('swallowed') IS NULL AS is_null;
SELECT notify_event('kept') IS NULL AS is_null;
INSERT INTO notification_events (event_name) VALUES ('swallowed'), ('plain');
INSERT INTO t VALUES (3);
SELECT * FROM take_events();
DROP TRIGGER swallow ON notification_events;
DROP FUNCTION swallow;

-- Statement triggers of the log fire for INSERT statements only.
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% % %', TG_WHEN, TG_OP, TG_LEVEL;
	RETURN NULL;
END
$$;
CREATE TRIGGER tell AFTER INSERT ON notification_events FOR EACH STATEMENT EXECUTE FUNCTION tell();
SELECT notify_event('quiet') > 0 AS recorded;
INSERT INTO notification_events (event_name) VALUES ('loud');
DROP TRIGGER tell ON notification_events;
-- A deferred trigger fires at the end of the transaction.
CREATE CONSTRAINT TRIGGER tell AFTER INSERT ON notification_events DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION tell();
BEGIN;
SELECT notify_event('deferred') > 0 AS recorded;
COMMIT;
DROP TRIGGER tell ON notification_events;
DROP FUNCTION tell;
SELECT * FROM take_events();

-- Events about events.
CREATE TRIGGER notify AFTER INSERT ON notification_events FOR EACH ROW WHEN (new.event_name NOT LIKE 'meta%')
	EXECUTE FUNCTION notify_event('meta', new, event_name);
SELECT notify_event('first') > 0 AS recorded;
DROP TRIGGER notify ON notification_events;
SELECT * FROM take_events();

-- Inside other functions and statements.
CREATE FUNCTION emits(n integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	result bigint;
BEGIN
	FOR i IN 1 .. n LOOP
		result := notify_event('loop ' || i, jsonb_build_object('i', i));
	END LOOP;
	PERFORM notify_event('performed');
	RETURN result;
END
$$;
SELECT emits(2) > 0 AS recorded;
WITH e AS (INSERT INTO t VALUES (4), (5) RETURNING a)
SELECT a, notify_event('from cte', to_jsonb(a)) > 0 AS recorded FROM e ORDER BY a;
SELECT * FROM take_events() ORDER BY event_name COLLATE "C", event_data;
DROP FUNCTION emits;

--
-- Triggers that users add to the log run as the role that emits, never as the
-- extension's owner, here added by a role with the TRIGGER privilege.
--
CREATE ROLE regress_intruder;
CREATE ROLE regress_emitter;
GRANT USAGE, CREATE ON SCHEMA regress_emit TO regress_intruder, regress_emitter;
GRANT ALL ON notification_events TO regress_intruder;
GRANT EXECUTE ON FUNCTION notify_event(), notify_event(varchar, jsonb), notify_event(varchar, text) TO regress_emitter;
GRANT INSERT (event_name, event_data) ON notification_events TO regress_emitter;
SET ROLE regress_intruder;
CREATE TABLE caught (seen text);
GRANT ALL ON caught TO PUBLIC;
CREATE FUNCTION intrude() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_emit.caught VALUES (format('%s, %s %s: %s', NEW.event_name, lower(TG_WHEN), lower(TG_OP), current_user));
	RETURN NEW;
END
$$;
CREATE TRIGGER before_event BEFORE INSERT ON public.notification_events FOR EACH ROW EXECUTE FUNCTION intrude();
CREATE TRIGGER after_event AFTER INSERT ON public.notification_events FOR EACH ROW EXECUTE FUNCTION intrude();
RESET ROLE;
SET ROLE regress_emitter;
CREATE TABLE traced (a integer);
CREATE TRIGGER row AFTER INSERT ON traced FOR EACH ROW EXECUTE FUNCTION notify_event('row');
CREATE TRIGGER statement AFTER INSERT ON traced REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION notify_event('statement');
SELECT notify_event('function') > 0 AS recorded;
INSERT INTO traced VALUES (1);
INSERT INTO public.notification_events (event_name) VALUES ('plain');
SELECT seen FROM caught;
RESET ROLE;
-- The emitter is the role that fires the trigger, not the owner of its table.
GRANT INSERT ON traced TO regress_intruder;
TRUNCATE caught;
SET ROLE regress_intruder;
INSERT INTO traced VALUES (2);
SELECT seen FROM caught;
RESET ROLE;

-- Only superusers can set how events are announced.
SET ROLE regress_emitter;
SET pg_notify_events.announce = off;
SET pg_notify_events.channel = other;
SET pg_notify_events.payload = json;
SET pg_notify_events.nonsense = 1;
RESET ROLE;
SET pg_notify_events.announce = maybe;
SET pg_notify_events.channel = '';
SELECT set_config('pg_notify_events.channel', repeat('c', 64), false);
SET pg_notify_events.payload = xml;

SET client_min_messages = warning;
DROP SCHEMA regress_emit CASCADE;
DROP EXTENSION pg_notify_events CASCADE;
DROP ROLE regress_intruder, regress_emitter;
