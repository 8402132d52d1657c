-- What test/demo runs, as the superuser of an empty database "demo".

-- The extension. Its background workers start when this commits, no restart needed.
CREATE EXTENSION pg_notify_events;

-- An application has its own role, which may write events, read them and create handlers.
CREATE ROLE shop LOGIN;
CREATE SCHEMA shop AUTHORIZATION shop;
GRANT EXECUTE ON FUNCTION notify_event(), notify_event(varchar, text), create_event_handler TO shop;
GRANT SELECT ON notification_events TO shop;
\connect - shop

-- A table whose new rows become events: one trigger is enough.
CREATE TABLE orders (
	id			bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	product		text NOT NULL,
	quantity	integer NOT NULL
);
CREATE TRIGGER orders_notify AFTER INSERT ON orders
	FOR EACH ROW EXECUTE FUNCTION notify_event('order_created');

-- A handler is a function that the server calls with each event. This one takes the product from the stock.
CREATE TABLE stock (
	product		text PRIMARY KEY,
	quantity	integer NOT NULL CHECK (quantity >= 0)
);
INSERT INTO stock VALUES ('apple', 10), ('plum', 20);
CREATE FUNCTION take_from_stock(event_name text, event_data jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	UPDATE stock SET quantity = quantity - (event_data #>> '{new,quantity}')::integer
	WHERE product = event_data #>> '{new,product}';
	IF NOT FOUND THEN
		RAISE EXCEPTION 'no such product: %', event_data #>> '{new,product}';
	END IF;
END
$$;
SELECT create_event_handler('stock', 'take_from_stock', event_name => 'order_created',
	max_attempts => 3, retry_delay => '100 ms', ordered => true);

-- Orders come in. A rolled back order leaves no event.
INSERT INTO orders (product, quantity) VALUES ('apple', 3), ('plum', 5);
BEGIN;
INSERT INTO orders (product, quantity) VALUES ('apple', 7);
ROLLBACK;

-- Wait until the server has handled the events, then look at the log and at the handler's effects.
CALL wait_for_event_handlers();
SELECT id, event_name, event_data -> 'new' AS new FROM notification_events ORDER BY id;
SELECT * FROM stock ORDER BY product;

-- Any client may LISTEN as well: it receives the name of each event.
LISTEN event_notification;
INSERT INTO orders (product, quantity) VALUES ('apple', 2);
CALL wait_for_event_handlers();
UNLISTEN event_notification;

-- An event needs no table. No handler handles this one; it is recorded and announced.
SELECT notify_event('shop_opened', '{"by": "Ada"}') AS id;

-- The server listens, too: it counts a plain NOTIFY, as the statistics below show.
NOTIFY event_notification, 'hello';

-- This order fails: there is no pear in the stock. Its effects are undone, its error is kept, and it will be retried.
INSERT INTO orders (product, quantity) VALUES ('pear', 1);
CALL wait_for_event_handlers();
SELECT handler, event_id, state, last_error FROM event_retries;

-- Pears arrive, and the next attempt succeeds. The handler is ordered, so the plum waits for the pear.
INSERT INTO stock VALUES ('pear', 8);
INSERT INTO orders (product, quantity) VALUES ('plum', 1);
CALL wait_for_event_handlers();
SELECT handler, event_id, state, last_error FROM event_retries;
SELECT * FROM stock ORDER BY product;

-- This order can never succeed. After max_attempts it is dead: it is kept, and the handler continues with the others.
INSERT INTO orders (product, quantity) VALUES ('apple', 1000);
INSERT INTO orders (product, quantity) VALUES ('apple', 4);
CALL wait_for_event_handlers();
SELECT handler, event_id, state, attempts, last_error FROM event_retries;
SELECT * FROM stock ORDER BY product;

-- The statistics: of the handler, with times in milliseconds ...
SELECT handler, state, delivered, failed, retried, waiting, dead, pending FROM event_handler_stats;
SELECT calls, batches, round(mean_time::numeric, 3) AS mean_time, round(max_time::numeric, 3) AS max_time,
	round(latency_p50::numeric, 1) AS latency_p50, round(latency_p99::numeric, 1) AS latency_p99
FROM event_handler_stats;

-- ... of each event name ...
SELECT event_name, emitted, announced, delivered, failed FROM event_stats ORDER BY event_name;

-- ... and of the background workers.
SELECT kind, owner, state, wakeups, notifications_received, events_handled FROM event_worker_stats;
