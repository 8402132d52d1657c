
# A handler drops, pauses or alters itself.  What it does to its session must not
# reach the next batch.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('self', 'log_statement = none',
	"pg_notify_events.batch_time = '1 min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob', 'carl');
$node->safe_psql(
	'postgres', q(
	GRANT bob TO ann;
	CREATE FUNCTION drop_self(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen (handler, id) VALUES ('drops', e.id);
		PERFORM drop_event_handler(name) FROM event_handlers WHERE name = 'drops';
	END $$;
	CREATE FUNCTION drop_self_twice(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen (handler, id) VALUES ('drops_twice', e.id);
		PERFORM drop_event_handler('drops_twice');
	END $$;
	CREATE FUNCTION pause_self(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen (handler, id) VALUES ('pauses', e.id);
		IF e.event_name = 'pause' THEN
			PERFORM pause_event_handler('pauses');
		END IF;
	END $$;
	CREATE FUNCTION alter_self(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen (handler, id) VALUES ('alters', e.id);
		PERFORM alter_event_handler('alters', batch_size => (SELECT batch_size + 1 FROM event_handlers WHERE name = 'alters'));
	END $$;
	CREATE FUNCTION replace_self(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen (handler, id) VALUES ('replaces', e.id);
		PERFORM drop_event_handler('replaces');
		PERFORM create_event_handler('replaces', 'replace_self', 'replace*', batch_size => 1);
	END $$;
));

sub seen
{
	my ($handler) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*), count(DISTINCT id) FROM seen WHERE handler = '$handler'");
}

sub stats
{
	my ($handler, $columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM event_handler_stats WHERE handler = '$handler'");
}

# A handler drops itself: in a batch of one event, and in a batch of several events.
# Then a second attempt in the same batch is an error, and the batch is done again.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('drops', 'drop_self', 'drop', owner => 'ann', batch_size => 1);
	INSERT INTO notification_events (event_name) SELECT 'drop' FROM generate_series(1, 3);
));
wait_for_handlers($node, 'postgres');
is(seen('drops'), '1|1', 'a handler drops itself: not called again');
is(stats('drops', 'state'), '', 'it is gone');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('drops', 'drop_self', 'drop', owner => 'ann');
	INSERT INTO notification_events (event_name) SELECT 'drop' FROM generate_series(1, 3);
));
wait_for_handlers($node, 'postgres');
is(seen('drops'), '4|4', 'dropped in a batch: the batch is committed');
is(stats('drops', 'state'), '', 'it is gone');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('drops_twice', 'drop_self_twice', 'drop', owner => 'ann');
	INSERT INTO notification_events (event_name) SELECT 'drop' FROM generate_series(1, 3);
));
wait_for_handlers($node, 'postgres');
is(seen('drops_twice'), '1|1',
	'dropped, with an error behind it: the events before that are done');
is(stats('drops_twice', 'state'), '', 'it is gone');
is($node->safe_psql('postgres', 'SELECT count(*) FROM _event_retries'),
	'0', 'nothing is left of it');

# A handler pauses itself.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('pauses', 'pause_self', 'pause*', owner => 'ann', batch_size => 2);
	INSERT INTO notification_events (event_name)
		SELECT CASE n WHEN 3 THEN 'pause' ELSE 'pauses' END FROM generate_series(1, 6) n;
));
wait_for_handlers($node, 'postgres');
is(stats('pauses', 'state, delivered, failed, pending'),
	'paused|4|0|2', 'a handler pauses itself: after that batch');
$node->safe_psql('postgres', q(SELECT resume_event_handler('pauses')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'pauses', q(event_name LIKE 'pause%'), 'resumed');

# A handler alters itself; another one replaces itself.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('alters', 'alter_self', 'alter', owner => 'ann', batch_size => 1);
	INSERT INTO notification_events (event_name) SELECT 'alter' FROM generate_series(1, 20) n;
));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'alters', q(event_name = 'alter'), 'a handler alters itself');
is(stats('alters', 'delivered, failed'), '20|0', 'and goes on');
is($node->safe_psql('postgres', q(SELECT batch_size FROM event_handlers WHERE name = 'alters')),
	'21', 'with what it has set');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('replaces', 'replace_self', 'replace', owner => 'ann', batch_size => 1);
	SELECT notify_event('replace');
));
wait_for_handlers($node, 'postgres');
is(seen('replaces'), '1|1', 'a handler replaces itself');
is(stats('replaces', 'state'), 'ready', 'by a new one');
$node->safe_psql('postgres', q(SELECT notify_event('replaced')));
wait_for_handlers($node, 'postgres');
is(seen('replaces'), '2|2', 'which gets what comes later');

# A handler changes its session in all these ways.  Each batch first checks what it
# finds.
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE numbers;
	GRANT USAGE ON SEQUENCE numbers TO ann;
	CREATE TABLE found (id bigint, what text);
	GRANT INSERT ON found TO PUBLIC;
	CREATE FUNCTION litter(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		current_number text;
	BEGIN
		BEGIN
			current_number := currval('public.numbers');
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			current_number := 'none';
		END;
		INSERT INTO public.found VALUES (e.id, concat_ws(' ',
			'user', session_user, current_user,
			'work_mem', current_setting('work_mem'),
			'path', current_setting('search_path'),
			'mine', coalesce(nullif(current_setting('my.setting', true), ''), 'none'),
			'isolation', current_setting('default_transaction_isolation'),
			'tables', (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
			'statements', (SELECT count(*) FROM pg_prepared_statements),
			'cursors', (SELECT count(*) FROM pg_cursors WHERE is_holdable),
			'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
			'number', current_number));

		CREATE TEMP TABLE litter (id bigint PRIMARY KEY, t text);
		INSERT INTO litter SELECT n, repeat(n::text, 5000) FROM generate_series(1, 20) n;
		CREATE TEMP VIEW litter_view AS SELECT * FROM litter;
		EXECUTE 'PREPARE litter_statement AS SELECT * FROM litter';
		EXECUTE 'DECLARE litter_cursor CURSOR WITH HOLD FOR SELECT * FROM litter';
		PERFORM pg_advisory_lock(4711), pg_advisory_lock_shared(1, 2), nextval('public.numbers');
		SET work_mem = '77MB';
		PERFORM set_config('my.setting', 'litter', false);
		SET default_transaction_isolation = 'serializable';
		SET search_path = pg_catalog;
		SET ROLE bob;
	END $$;
	CREATE FUNCTION listen(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('listens', e.id);
		IF e.event_data ->> 'n' = '2' THEN
			LISTEN somewhere;
		END IF;
	END $$;
	SELECT create_event_handler('litters', 'litter', 'litter', owner => 'ann', batch_size => 1);
	SELECT create_event_handler('listens', 'listen', 'litter', owner => 'carl', max_attempts => 1);
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'litter', jsonb_build_object('n', n) FROM generate_series(1, 6) n;
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql('postgres', 'SELECT what, count(*) FROM found GROUP BY what'),
	'user ann ann work_mem 4MB path "$user", public mine none isolation read committed '
	  . 'tables 0 statements 0 cursors 0 locks 0 number none|6',
	'each batch finds a fresh session');
is(stats('litters', 'delivered, failed'), '6|0', 'and succeeds');
is( $node->safe_psql(
		'postgres', q(
		SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
			   (SELECT count(*) FROM pg_class WHERE relpersistence = 't'))
	),
	'0|0',
	'nothing is left behind');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT pid) FROM seen WHERE by_role = \'ann\''),
	'1', 'it is one session');

# LISTEN is an error of the event that tries it.
is(stats('listens', 'delivered, failed, dead'), '5|1|1', 'LISTEN fails');
is( $node->safe_psql(
		'postgres', q(
		SELECT l.event_data ->> 'n', r.state, r.last_sqlstate, r.last_error
		FROM event_retries r JOIN notification_events l ON l.id = r.event_id)
	),
	'2|dead|0A000|cannot execute LISTEN within a background process',
	'for the event that does it');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM event_worker_stats WHERE last_error IS NOT NULL'),
	'0',
	'no worker failed');

$node->stop;
done_testing();
