# shellcheck shell=bash
#
# test/bench/contenders.sh - the databases that benchmarks compare.  Sourced,
# after lib.sh.
#
#	make_orders DATABASE		has only the table "orders": the upper limit
#	make_recipe DATABASE		has the recipe that applications write by hand
#	make_extension DATABASE ANNOUNCE PAYLOAD	has pg_notify_events
#	make_noting DATABASE		adds to one of make_extension a handler function note(),
#								which records its start time in "calls"
#	make_pgq DATABASE			has PgQ, with its trigger in C
#	$insert_order				the statement of a transaction of the load
#	$insert_both				the same and an event row, in one statement, for a
#								database of make_recipe; no trigger can be cheaper
#
# make_recipe and make_extension also make a function probe(name), which emits an
# event and returns the text of its announcement.

# shellcheck disable=SC2034  # used by the scripts
insert_order="INSERT INTO orders (customer, amount) VALUES ('Ada', 12.50);"
# shellcheck disable=SC2034
insert_both="WITH o AS (INSERT INTO orders (customer, amount) VALUES ('Ada', 12.50) RETURNING *)
INSERT INTO recipe_events (event_name, event_data) SELECT 'order_created', to_jsonb(o) FROM o;"

make_orders()
{
	with_server createdb "$1"
	script "$1" <<-'SQL'
		CREATE TABLE orders (id bigserial PRIMARY KEY, customer text, amount numeric);
	SQL
}

make_recipe()
{
	make_orders "$1"
	script "$1" <<-'SQL'
		CREATE TABLE recipe_events (
			id serial PRIMARY KEY,
			event_name varchar(100),
			event_data jsonb,
			created_at timestamptz DEFAULT now()
		);
		CREATE FUNCTION recipe_notify() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO recipe_events (event_name, event_data) VALUES (TG_ARGV[0], to_jsonb(NEW));
			PERFORM pg_notify('event_notification', TG_ARGV[0]);
			RETURN NEW;
		END
		$$;
		CREATE TRIGGER orders_created AFTER INSERT ON orders
			FOR EACH ROW EXECUTE FUNCTION recipe_notify('order_created');
		CREATE FUNCTION probe(name text) RETURNS text LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO recipe_events (event_name) VALUES (name);
			PERFORM pg_notify('event_notification', name);
			RETURN name;
		END
		$$;
	SQL
}

make_extension()
{
	make_orders "$1"
	script "$1" <<-SQL
		ALTER DATABASE $1 SET pg_notify_events.announce = $2;
		ALTER DATABASE $1 SET pg_notify_events.payload = $3;
	SQL
	script "$1" <<-'SQL'
		CREATE EXTENSION pg_notify_events;
		CREATE TRIGGER orders_created AFTER INSERT ON orders
			FOR EACH ROW EXECUTE FUNCTION notify_event('order_created');
		CREATE FUNCTION probe(name text) RETURNS text LANGUAGE plpgsql AS $$
		DECLARE
			id bigint := notify_event(name);
		BEGIN
			RETURN CASE current_setting('pg_notify_events.payload') WHEN 'id' THEN id::text ELSE name END;
		END
		$$;
	SQL
}

# note() reads the clock before it does anything else.
make_noting()
{
	script "$1" <<-'SQL'
		CREATE TABLE calls (id bigint, at timestamptz);
		CREATE FUNCTION note(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE
			began timestamptz := clock_timestamp();
		BEGIN
			INSERT INTO public.calls VALUES (e.id, began);
		END
		$$;
	SQL
}

make_pgq()
{
	make_orders "$1"
	script "$1" <<-'SQL'
		SET client_min_messages = warning;
		CREATE EXTENSION pgq;
		SELECT pgq.create_queue('events');
		SELECT pgq.register_consumer('events', 'bench');
		CREATE TRIGGER orders_created AFTER INSERT ON orders
			FOR EACH ROW EXECUTE FUNCTION pgq.jsontriga('events');
	SQL
}
