--
-- Channels: notifications that become events
--
CREATE EXTENSION pg_notify_events;
CREATE SCHEMA regress_channels;
SET search_path = regress_channels, public;
CREATE ROLE regress_bridge LOGIN;
CREATE ROLE regress_bridge_member LOGIN IN ROLE regress_bridge;
CREATE ROLE regress_stranger LOGIN;
CREATE ROLE regress_watcher LOGIN IN ROLE pg_monitor;
GRANT USAGE ON SCHEMA regress_channels TO PUBLIC;

CREATE FUNCTION becomes_true(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 s';
	result boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO result;
		EXIT WHEN result OR clock_timestamp() > deadline;
	END LOOP;
	RETURN result;
END
$$;
CREATE FUNCTION try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(E'\n', sqlstate || ': ' || message, 'HINT: ' || NULLIF(hint, ''));
END
$$;

-- Notifications that the listener receives before the channel is defined are ignored;
-- it is the same with LISTEN in a session that already listens.
SELECT becomes_true($$count(*) = 1 FROM event_worker_stats
	WHERE kind = 'listener' AND database = current_database() AND state IN ('listening', 'idle')$$);
SELECT notifications_received AS before FROM event_worker_stats
	WHERE kind = 'listener' AND database = current_database() \gset
NOTIFY orders, 'too early';
NOTIFY event_notification, 'too early';
SELECT becomes_true(format($$notifications_received > %s FROM event_worker_stats
	WHERE kind = 'listener' AND database = current_database()$$, :before));
SELECT listen_event_channel('orders');
SELECT listen_event_channel('Order "Ü" changed', 'order_changed');
SELECT channel, owner = current_user AS mine, event_name, created_at IS NOT NULL AS created
	FROM event_channels ORDER BY channel COLLATE "C";
SELECT becomes_true($$(SELECT bool_and(state = 'listening') FROM event_channel_stats)$$);
SELECT * FROM event_channel_stats ORDER BY channel COLLATE "C";
NOTIFY orders, '{"id": 1, "paid": true}';
NOTIFY "Order ""Ü"" changed", 'not JSON';
NOTIFY orders;
NOTIFY "ORDERS", 'another channel';
SELECT pg_notify('orders', '"a string"');
SELECT becomes_true($$count(*) = 4 FROM notification_events$$);
SELECT event_name, event_data, created_at IS NOT NULL AS created, txid IS NOT NULL AS stamped
	FROM notification_events ORDER BY id;
SELECT channel, notifications, bytes, dropped, last_received_at IS NOT NULL AS received, state
	FROM event_channel_stats ORDER BY channel COLLATE "C";

-- A notification of a rolled back transaction is not sent.  Equal notifications of
-- one transaction become one, as with NOTIFY.  They arrive in order.
BEGIN;
NOTIFY orders, 'rolled back';
ROLLBACK;
BEGIN;
NOTIFY orders, '1';
NOTIFY orders, '2';
NOTIFY orders, '1';
SAVEPOINT s;
NOTIFY orders, 'rolled back';
ROLLBACK TO s;
NOTIFY orders, '3';
COMMIT;
SELECT becomes_true($$count(*) = 7 FROM notification_events$$);
SELECT event_name, event_data FROM notification_events WHERE id > 4 ORDER BY id;

-- The statistics are reset, the channels stay.
SELECT reset_event_stats();
SELECT * FROM event_channel_stats ORDER BY channel COLLATE "C";

-- A transaction that is rolled back neither defines nor ends a channel.
BEGIN;
SELECT listen_event_channel('rolled back');
SELECT unlisten_event_channel('orders');
SELECT channel, state FROM event_channel_stats ORDER BY channel COLLATE "C";
ROLLBACK;
SELECT channel, state FROM event_channel_stats ORDER BY channel COLLATE "C";

-- To change the event name, end the channel and define it again, here in one transaction.
BEGIN;
SELECT unlisten_event_channel('orders');
SELECT listen_event_channel('orders', 'renamed');
COMMIT;
SELECT becomes_true($$state = 'listening' FROM event_channel_stats WHERE channel = 'orders'$$);
NOTIFY orders, 'x';
SELECT becomes_true($$count(*) = 8 FROM notification_events$$);
SELECT event_name, event_data FROM notification_events ORDER BY id DESC LIMIT 1;
SELECT notifications FROM event_channel_stats WHERE channel = 'orders';

-- No events after unlisten. The other channel shows when the notification has passed.
SELECT unlisten_event_channel('orders');
SELECT listen_event_channel('last', 'last');
SELECT becomes_true($$state = 'listening' FROM event_channel_stats WHERE channel = 'last'$$);
NOTIFY orders, 'too late';
NOTIFY last;
SELECT becomes_true($$count(*) = 9 FROM notification_events$$);
SELECT event_name, event_data FROM notification_events ORDER BY id DESC LIMIT 2;
SELECT unlisten_event_channel('last'), unlisten_event_channel('Order "Ü" changed');
SELECT count(*) FROM event_channels;
SELECT count(*) FROM event_channel_stats;

--
-- Bad input
--
\pset format unaligned
\pset tuples_only on
SELECT listen_event_channel('taken');
SELECT s, try(s), '' FROM (VALUES
	('SELECT listen_event_channel(NULL)'),
	('SELECT listen_event_channel('''')'),
	('SELECT listen_event_channel(repeat(''x'', 64))'),
	('SELECT listen_event_channel(repeat(''ü'', 32))'),
	('SELECT listen_event_channel(''x'', '''')'),
	('SELECT listen_event_channel(''x'', repeat(''ü'', 101))'),
	('SELECT listen_event_channel(''taken'')'),
	('SELECT listen_event_channel(''taken'', ''otherwise'')'),
	('SELECT listen_event_channel(''event_notification'')'),
	('SET LOCAL pg_notify_events.channel = ''other''; SELECT listen_event_channel(''other'')'),
	('SET LOCAL transaction_read_only = on; SELECT listen_event_channel(''x'')'),
	('SELECT unlisten_event_channel(NULL)'),
	('SELECT unlisten_event_channel('''')'),
	('SELECT unlisten_event_channel(repeat(''x'', 64))'),
	('SELECT unlisten_event_channel(''TAKEN'')'),
	('SELECT count(*) FROM _channel_statistics(NULL)'),
	('SELECT count(*) FROM _channel_statistics(''no such'')'),
	('INSERT INTO _event_channels SELECT ''x'' || channel, event_name, owner, owner_name, install_id, database, created_at FROM _event_channels WHERE false'),
	('UPDATE _event_channels SET event_name = ''x'''),
	('DELETE FROM _event_channels'),
	('TRUNCATE _event_channels')
) AS t (s);
\pset format aligned
\pset tuples_only off
SELECT * FROM _channel_statistics('no such');

-- The longest possible names, in bytes and in characters.
SELECT listen_event_channel(repeat('x', 63)), listen_event_channel(repeat('ü', 31) || 'x', repeat('ü', 100));
SELECT octet_length(channel), octet_length(event_name) FROM event_channels WHERE channel <> 'taken' ORDER BY 2;
SELECT count(unlisten_event_channel(channel)) FROM event_channels;

-- A NOTICE is shown for a name that an unquoted identifier does not match.  The
-- SELECT after LISTEN must find the same names.
CREATE TEMPORARY TABLE names (channel text);
INSERT INTO names VALUES ('orders'), ('orders_2$'), ('größe'), ('Ärger'), ('_x'), ('values'), ('notify'),
	('Orders'), ('ORDERS'), ('größE'), ('order'), ('user'), ('left'), ('2orders'), ('$x'), ('orders-2'), ('orders.new'),
	('two words'), (' x'), ('"orders"'), ('it''s'), ('x;');
SELECT channel, listen_event_channel(channel) FROM names;
DO $$
DECLARE
	name text;
BEGIN
	FOR name IN SELECT channel FROM names LOOP
		BEGIN
			EXECUTE 'LISTEN ' || name;
		EXCEPTION WHEN syntax_error THEN
		END;
	END LOOP;
END
$$;
SELECT channel FROM names WHERE channel NOT IN (SELECT pg_listening_channels());
UNLISTEN *;
SELECT count(unlisten_event_channel(channel)) FROM names;

--
-- Rights
--
SET ROLE regress_bridge;
SELECT try($$SELECT listen_event_channel('mine')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION listen_event_channel TO regress_bridge;
SET ROLE regress_bridge;
SELECT listen_event_channel('mine', 'mine');
SELECT channel, owner, event_name FROM event_channels;
SELECT becomes_true($$state = 'listening' FROM event_channel_stats WHERE channel = 'mine'$$);
SELECT try('SELECT FROM _event_channels'), try('INSERT INTO _event_channels (channel) VALUES (1)');
RESET ROLE;
-- A role that can NOTIFY can record events of that name, and do nothing else.
SET ROLE regress_stranger;
NOTIFY mine, 'by anybody';
SELECT channel FROM event_channels;
SELECT channel FROM event_channel_stats;
SELECT * FROM _channel_statistics('mine');
SELECT try($$SELECT unlisten_event_channel('mine')$$);
SELECT try($$SELECT notify_event('mine')$$);
RESET ROLE;
SET ROLE regress_watcher;
SELECT becomes_true($$notifications = 1 FROM event_channel_stats$$);
SELECT channel, owner, event_name FROM event_channels;
SELECT notifications, bytes, dropped, state FROM _channel_statistics('mine');
SELECT try($$SELECT unlisten_event_channel('mine')$$);
RESET ROLE;
SET ROLE regress_bridge_member;
SELECT channel, notifications, bytes, dropped, state FROM event_channel_stats;
SELECT unlisten_event_channel('mine');
RESET ROLE;
SELECT becomes_true($$event_data = '"by anybody"' FROM notification_events WHERE event_name = 'mine'$$);
-- A superuser may end the channel of any role.
SET ROLE regress_bridge;
SELECT listen_event_channel('mine');
RESET ROLE;
SELECT unlisten_event_channel('mine');
-- The owner is dropped: its channels stay, with its name, and belong to superusers.
SET ROLE regress_bridge;
SELECT listen_event_channel('orphan');
RESET ROLE;
REVOKE ALL ON FUNCTION listen_event_channel FROM regress_bridge;
DROP ROLE regress_bridge_member, regress_bridge;
SELECT channel, owner, event_name FROM event_channels;
SELECT becomes_true($$state = 'listening' FROM event_channel_stats$$);
NOTIFY orphan, 'goes on';
SELECT becomes_true($$event_data = '"goes on"' FROM notification_events WHERE event_name = 'orphan'$$);
SELECT unlisten_event_channel('orphan');

--
-- A restored row is dormant.
--
SELECT listen_event_channel('original');
CREATE TEMPORARY TABLE restored AS TABLE _event_channels;
UPDATE restored SET channel = 'restored';
INSERT INTO _event_channels SELECT * FROM restored;
SELECT becomes_true($$state = 'listening' FROM event_channel_stats WHERE channel = 'original'$$);
SELECT channel, state FROM event_channel_stats ORDER BY channel;
SELECT activate_events();
SELECT unlisten_event_channel('restored'), unlisten_event_channel('original');

-- The only table of channels whose rows are in a dump: the definitions.
SELECT c.relname FROM pg_extension x, unnest(x.extconfig) o JOIN pg_class c ON c.oid = o
	WHERE x.extname = 'pg_notify_events' AND c.relname LIKE '%channel%';

DROP EXTENSION pg_notify_events;
DROP ROLE regress_stranger, regress_watcher;
SET client_min_messages = warning;
DROP SCHEMA regress_channels CASCADE;
