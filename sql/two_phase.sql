--
-- PREPARE TRANSACTION: refused only after a NOTIFY
--
-- It cannot be tested on a server without max_prepared_transactions.
SELECT current_setting('max_prepared_transactions') = '0' AS impossible \gset
\if :impossible
\quit
\endif

CREATE EXTENSION pg_notify_events;

-- In direct mode the transaction contains a NOTIFY.
SET pg_notify_events.announce = direct;
BEGIN;
SELECT notify_event('direct') AS id;
PREPARE TRANSACTION 'regress_direct';
BEGIN;
INSERT INTO notification_events (event_name) VALUES ('direct, plain');
PREPARE TRANSACTION 'regress_direct';
RESET pg_notify_events.announce;
SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'regress%';

-- It works when nobody announces the event, or when the listener does.
CREATE TABLE handled (event_name text);
CREATE FUNCTION handle(text, jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO handled VALUES ($1)';
SELECT create_event_handler('two phases', 'handle');
SET pg_notify_events.announce = off;
BEGIN;
SELECT notify_event('prepared, committed') IS NOT NULL AS recorded;
PREPARE TRANSACTION 'regress_one';
RESET pg_notify_events.announce;
BEGIN;
INSERT INTO notification_events (event_name) VALUES ('prepared, rolled back');
PREPARE TRANSACTION 'regress_two';
SELECT notify_event('later, committed before') IS NOT NULL AS recorded;

-- A prepared transaction blocks nobody, and its event is not visible.
CALL wait_for_event_handlers();
SELECT event_name FROM handled;
COMMIT PREPARED 'regress_one';
ROLLBACK PREPARED 'regress_two';
CALL wait_for_event_handlers();
SELECT event_name FROM handled ORDER BY event_name;
SELECT event_name FROM notification_events ORDER BY id;

DROP FUNCTION handle;
DROP TABLE handled;
DROP EXTENSION pg_notify_events;
