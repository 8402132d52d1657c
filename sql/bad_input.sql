--
-- Bad input for each function: an SQLSTATE, a message that names the input, a hint
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_bad_input;
SET search_path = regress_bad_input, public;
CREATE ROLE regress_bad_input_nologin;

-- One line for each statement, then the parts of its error, one per line.
CREATE FUNCTION try(statement text, OUT result text) LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	result := 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	IF message ~ '^function .* does not exist$' THEN
		detail := NULL;			-- the server's own, which differ between versions
		hint := NULL;
	END IF;
	result := concat_ws(E'\n', sqlstate || ': ' || message, 'DETAIL: ' || NULLIF(detail, ''), 'HINT: ' || NULLIF(hint, ''));
END
$$;

CREATE FUNCTION good(text, jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION a_set(text, jsonb) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION strict_one(text, jsonb) RETURNS void LANGUAGE sql STRICT AS '';
CREATE PROCEDURE a_procedure(text, jsonb) LANGUAGE sql AS '';
CREATE FUNCTION step(text, text, jsonb) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE AGGREGATE an_aggregate(text, jsonb) (SFUNC = step, STYPE = text);
CREATE FUNCTION no_arguments() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION one_text(text) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION text_json(text, json) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION jsonb_text(jsonb, text) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION three(text, jsonb, integer DEFAULT 1) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION any_one(anyelement) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION a_variadic(VARIADIC jsonb[]) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION a_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION out_argument(text, jsonb, OUT integer) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION ambiguous(text, jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION ambiguous(notification_events) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION ambiguous(varchar, jsonb) RETURNS void LANGUAGE sql AS '';

\pset format unaligned
\pset tuples_only on

--
-- notify_event
--
SELECT s, try(s), '' FROM (VALUES
	('SELECT notify_event(NULL)'),
	('SELECT notify_event(NULL, ''{}'')'),
	('SELECT notify_event(NULL, ''{}''::jsonb)'),
	('SELECT notify_event(NULL, ''{}''::json)'),
	('SELECT notify_event('''')'),
	('SELECT notify_event('''', ''{}''::jsonb)'),
	('SELECT notify_event(repeat(''x'', 101))'),
	('SELECT notify_event(repeat(''ü'', 101), ''{}''::json)'),
	('SELECT notify_event(repeat(''x'', 1000000), ''{}'')'),
	('SELECT notify_event(''x'', ''no json'')'),
	('SELECT notify_event(''x'', '''')'),
	('SELECT notify_event(''x'', 1)'),
	('SELECT notify_event(1)'),
	('SELECT notify_event()'),
	('INSERT INTO notification_events (event_name) VALUES ('''')'),
	('INSERT INTO notification_events (event_name) VALUES (repeat(''x'', 101))'),
	('INSERT INTO notification_events (event_name, event_data) VALUES (''x'', ''no json'')')
) v (s);

--
-- create_event_handler: one bad argument at a time
--
-- The name.
SELECT s, try(format('SELECT create_event_handler(%s, ''good'')', s)), '' FROM (VALUES
	('NULL'), (''''''), ('repeat(''n'', 64)'), ('repeat(''ü'', 32)'), ('repeat(''n'', 63)'), ('repeat(''ü'', 31)'), (''' ''')
) v (s);
SELECT drop_event_handler(name) FROM event_handlers ORDER BY name;

-- The function.
SELECT s, try(format('SELECT create_event_handler(''h'', %s)', s)), '' FROM (VALUES
	('NULL'), (''''''), (''' '''), ('''missing'''), ('''missing(text, jsonb)'''), ('''nowhere.good'''),
	('''otherdb.regress_bad_input.good'''), ('''a.b.c.d'''), ('''"Good"'''), ('''"good'''), ('''good('''), ('''good()'''), ('''good(text)'''),
	('''good(text, jsonb) garbage'''), ('''good(text, nonsense)'''), ('''good; DROP TABLE x'''), ('''.good'''), ('''good.'''),
	('''strict_one'''), ('''strict_one(text, jsonb)'''), ('''a_set'''), ('''a_procedure'''), ('''a_procedure(text, jsonb)'''), ('''an_aggregate'''),
	('''no_arguments'''), ('''no_arguments()'''), ('''one_text(text)'''), ('''text_json(text, json)'''), ('''jsonb_text'''), ('''three'''),
	('''three(text, jsonb, integer)'''), ('''any_one'''), ('''any_one(anyelement)'''), ('''a_variadic'''), ('''a_trigger'''),
	('''ambiguous'''), ('''regress_bad_input.ambiguous'''), ('''lower'''), ('''lower(text)'''), ('''pg_catalog.rank'''),
	('repeat(''x'', 100)'), ('''"a""b"''')
) v (s);
-- These are valid.
SELECT s, try(format('SELECT create_event_handler(%1$s, %1$s)', quote_literal(s))), '' FROM (VALUES
	('ambiguous(text, jsonb)'), ('ambiguous(varchar, jsonb)'), ('ambiguous(notification_events)'), ('out_argument'),
	('regress_bad_input . "good" ( text , jsonb )'), ('Good')
) v (s);
SELECT name || ': ' || function FROM event_handlers ORDER BY name;
SELECT drop_event_handler(name) FROM event_handlers ORDER BY name;

-- All other arguments.
SELECT s, try(format('SELECT create_event_handler(''h'', ''good'', %s)', s)), '' FROM (VALUES
	('event_name => NULL'), ('event_name => '''''), ('event_name => repeat(''*'', 201)'), ('event_name => repeat(''ü'', 201)'),
	('filter => ''no path'''), ('filter => ''$.'''), ('filter => '''''),
	('filter => ''$.a == $b'''), ('filter => ''$.a ? (@ > $"b c")'''), ('filter => ''$."$b" == "\\"$\\""'''),
	('batch_size => NULL'), ('batch_size => 0'), ('batch_size => -1'), ('batch_size => 100001'), ('batch_size => 3000000000'),
	('max_attempts => NULL'), ('max_attempts => 0'), ('max_attempts => -1'),
	('retry_delay => NULL'), ('retry_delay => ''0'''), ('retry_delay => ''-1 s'''), ('retry_delay => ''0.1 ms'''),
	('retry_delay => ''2 h'''), ('retry_delay => ''25 days'', max_retry_delay => ''1 month'''), ('retry_delay => ''soon'''),
	('retry_delay => ''1000000 years'''),
	('max_retry_delay => NULL'), ('max_retry_delay => ''0'''), ('max_retry_delay => ''100 ms'''), ('max_retry_delay => ''1 month'''),
	('timeout => NULL'), ('timeout => ''0'''), ('timeout => ''-1 s'''), ('timeout => ''1 month'''), ('timeout => ''0.9 ms'''),
	('ordered => NULL'),
	('start_from => NULL'), ('start_from => '''''), ('start_from => ''NOW'''), ('start_from => ''yesterday'''), ('start_from => ''42'''),
	('owner => '''''), ('owner => ''regress_missing'''), ('owner => ''regress_bad_input_nologin'''), ('owner => repeat(''x'', 100)'), ('owner => ''public'''),
	('or_replace => NULL'),
	('nonsense => 1')
) v (s);
SELECT name FROM event_handlers;
-- These are valid.
SELECT s, try(format('SELECT create_event_handler(''h'', ''good'', %s, or_replace => true)', s)), '' FROM (VALUES
	('event_name => repeat(''ü'', 200)'), ('batch_size => 100000'), ('batch_size => 1'), ('max_attempts => 2147483647'),
	('retry_delay => ''1 ms'''), ('retry_delay => ''24 days'', max_retry_delay => ''24 days'''), ('timeout => ''1 ms'''), ('timeout => ''24 days'''),
	('filter => NULL'), ('owner => NULL')
) v (s);

-- The name is in use already.
SELECT try('SELECT create_event_handler(''h'', ''good'')');
SELECT try('SELECT create_event_handler(''h'', ''missing'', or_replace => true)');

--
-- alter_event_handler
--
SELECT s, try(format('SELECT alter_event_handler(%s)', s)), '' FROM (VALUES
	('NULL'), (''''''), ('''nobody'''), ('repeat(''n'', 64)'),
	('''h'', function => '''''), ('''h'', function => ''missing'''), ('''h'', function => ''strict_one'''), ('''h'', function => ''ambiguous'''),
	('''h'', event_name => '''''), ('''h'', event_name => repeat(''*'', 201)'), ('''h'', filter => ''$.'''),
	('''h'', batch_size => 0'), ('''h'', batch_size => 100001'), ('''h'', max_attempts => 0'),
	('''h'', retry_delay => ''0'''), ('''h'', retry_delay => ''2 h'''), ('''h'', max_retry_delay => ''1 ms'''), ('''h'', max_retry_delay => ''1 month'''),
	('''h'', timeout => ''0'''), ('''h'', timeout => ''1 month'''),
	('''h'', owner => ''regress_missing'''), ('''h'', owner => '''''), ('''h'', owner => ''regress_bad_input_nologin'''),
	('''h'', clear_filter => NULL'), ('''h'', start_from => ''now''')
) v (s);
SELECT concat_ws(', ', name, function, event_name, batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, paused) FROM event_handlers;

--
-- The other functions that take a name
--
SELECT replace(f, '%s', s), try(format('SELECT ' || f, s)), '' FROM
	(VALUES ('pause_event_handler(%s)'), ('resume_event_handler(%s)'), ('drop_event_handler(%s)'), ('call_event_handler(%s, 1)')) f (f),
	(VALUES ('NULL'), (''''''), ('''nobody'''), ('''H'''), ('repeat(''n'', 64)')) v (s)
	ORDER BY 1;
SELECT s, try(format('SELECT call_event_handler(''h'', %s)', s)), '' FROM (VALUES
	('NULL'), ('0'), ('-1'), ('9223372036854775807'), ('9223372036854775808'), ('''x''')
) v (s);

--
-- wait_for_event_handlers cannot be called from a function: call it as statements
--
CALL wait_for_event_handlers(NULL);
CALL wait_for_event_handlers('-1 s');
CALL wait_for_event_handlers('soon');
SELECT wait_for_event_handlers();
SELECT try('CALL wait_for_event_handlers()');
-- Any length of wait is allowed.
CALL wait_for_event_handlers('1000 years');
CALL wait_for_event_handlers('0.1 ms');

--
-- Consumers
--
SELECT s, try(format('SELECT create_event_consumer(%s)', s)), '' FROM (VALUES
	('NULL'), (''''''), ('repeat(''n'', 64)'),
	('''c'', event_name => NULL'), ('''c'', event_name => '''''), ('''c'', event_name => repeat(''*'', 201)'),
	('''c'', filter => ''$.'''), ('''c'', filter => ''$.a == $b'''),
	('''c'', start_from => NULL'), ('''c'', start_from => ''yesterday'''),
	('''c'', owner => '''''), ('''c'', owner => ''regress_missing'''), ('''c'', owner => ''regress_bad_input_nologin'''),
	('''c'', or_replace => NULL'), ('''c'', nonsense => 1')
) v (s);
SELECT name FROM event_consumers;
-- These are valid.
SELECT s, try(format('SELECT create_event_consumer(%s, or_replace => true)', s)), '' FROM (VALUES
	('repeat(''n'', 63)'), ('''c'', event_name => repeat(''ü'', 200)'), ('''c'', filter => NULL'), ('''c'', owner => NULL')
) v (s);
SELECT replace(f, '%s', s), try(format('SELECT ' || f, s)), '' FROM
	(VALUES ('drop_event_consumer(%s)'), ('fetch_events(%s)'), ('ack_events(%s)'), ('retry_event(%s, 1)')) f (f),
	(VALUES ('NULL'), (''''''), ('''nobody'''), ('''C'''), ('repeat(''n'', 64)')) v (s)
	ORDER BY 1;
SELECT s, try(format('SELECT fetch_events(''c'', %s)', s)), '' FROM (VALUES
	('NULL'), ('0'), ('-1'), ('10001'), ('3000000000'), ('1'), ('10000'),
	('lease => ''0'''), ('lease => ''-1 s'''), ('lease => ''0.1 ms'''), ('lease => ''1 month'''), ('lease => ''24 days'''), ('lease => NULL')
) v (s);
SELECT s, try(format('SELECT ack_events(''c'', %s)', s)), '' FROM (VALUES
	('0'), ('-1'), ('9223372036854775807'), ('9223372036854775808'), ('''x''')
) v (s);
SELECT s, try(format('SELECT retry_event(''c'', %s)', s)), '' FROM (VALUES
	('NULL'), ('1'), ('1, NULL'), ('1, ''-1 s'''), ('1, ''1 month'''), ('1, ''soon''')
) v (s);
CALL wait_for_events(NULL);
CALL wait_for_events('nobody');
CALL wait_for_events('c', NULL);
CALL wait_for_events('c', '-1 s');
CALL wait_for_events('c', '1 month');
CALL wait_for_events('c', '0.1 ms');
SELECT wait_for_events('c');
SELECT try('CALL wait_for_events(''c'')');
SELECT count(drop_event_consumer(name)) FROM event_consumers;

--
-- Internal functions, which nobody may call
--
SELECT s, try('SELECT ' || s), '' FROM (VALUES
	('_guard()'), ('_notification_event_row()'), ('_extension_installing()'), ('_extension_installed()'),
	('_handler_statistics(NULL)'), ('_handler_statistics('''')'), ('_handler_statistics(''nobody'')'),
	('_consumer_statistics(NULL)'), ('_consumer_statistics('''')'), ('_consumer_statistics(''nobody'')'), ('count(*) FROM _worker_statistics()'),
	('count(*) FROM _event_statistics()'), ('activate_events()'), ('reset_event_stats()')
) v (s);

-- None of these statements has left anything behind.
SELECT drop_event_handler('h');
SELECT count(*) FROM notification_events;
SELECT count(*) FROM _event_handlers;
SELECT count(*) FROM _event_handler_progress;

SET client_min_messages = warning;
DROP SCHEMA regress_bad_input CASCADE;
DROP EXTENSION pg_notify_events;
DROP ROLE regress_bad_input_nologin;
