
# Exactly once: 8 connections emit 100,000 events at the same time.
#
# Seven of them run pgbench: single inserts, multi-row inserts, triggers, rolled
# back transactions and savepoints.  The eighth keeps one transaction open all the
# time and commits last.  Each writes the ids of its events into a ledger, in the
# same transaction.  In the end the handlers must have recorded exactly what is in
# the ledger, each event once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = 7;
my $rounds = 143;
my $per_round = 100;		# events of one run of the script below
my $seed = $ENV{TEST_SEED} // int(rand(2**31));
note "TEST_SEED=$seed";

my $node = new_server(
	'exact', 'log_statement = none',
	'max_wal_size = 4GB',
	'autovacuum_naptime = 1s',
	"pg_notify_events.batch_time = '20 ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE ledger (id bigint NOT NULL);

	CREATE TABLE orders (n integer);
	CREATE TRIGGER orders_rows AFTER INSERT ON orders
		FOR EACH ROW EXECUTE FUNCTION notify_event('order_row');
	CREATE TRIGGER orders_statement AFTER INSERT ON orders REFERENCING NEW TABLE AS n
		FOR EACH STATEMENT EXECUTE FUNCTION notify_event('order_table');
	-- the ids of these are known to nobody but the log
	CREATE FUNCTION keep_ledger() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ledger VALUES (new.id); RETURN NULL; END $$;
	CREATE TRIGGER keep_ledger AFTER INSERT ON notification_events
		FOR EACH ROW WHEN (new.event_name ^@ 'order_') EXECUTE FUNCTION keep_ledger();

	CREATE FUNCTION record_array(e notification_events[]) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) SELECT 'array', id FROM unnest(e) $$;
	CREATE FUNCTION record_filtered(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('filtered', e.id); END $$;
	CREATE FUNCTION record_glob(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('glob', e.id); END $$;
));
# The handler does its work, and then fails on the first attempt for one event in
# 50.  The seed selects these events.
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION record_flaky(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('flaky', e.id);
		IF hashint8extended(e.id, $seed) % 50 = 0 AND
			NOT EXISTS (SELECT FROM public.event_retries WHERE handler = 'flaky' AND event_id = e.id)
		THEN
			RAISE 'event % fails the first time', e.id;
		END IF;
	END \$\$;
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT create_event_handler('array', 'record_array', 'm*', owner => 'ann', batch_size => 77);
	SELECT create_event_handler('filtered', 'record_filtered', filter => '\$.n % 7 == 0', owner => 'bob');
	SELECT create_event_handler('glob', 'record_glob', '*_s?ngl*', owner => 'bob');
	SELECT create_event_handler('flaky', 'record_flaky', '*_single', owner => 'bob', retry_delay => '50 ms');
));

my $script = "$PostgreSQL::Test::Utils::tmp_check/exact.sql";
append_to_file(
	$script, q(
	\set n random(1, 1000)
	-- 5 single events
	WITH e AS (INSERT INTO notification_events (event_name, event_data)
		VALUES ('a_single', jsonb_build_object('n', :n)) RETURNING id)
	INSERT INTO ledger SELECT id FROM e;
	INSERT INTO ledger SELECT notify_event('b_single', jsonb_build_object('n', :n + 1));
	INSERT INTO ledger SELECT notify_event('b_single', jsonb_build_object('n', :n + 2));
	INSERT INTO ledger SELECT notify_event('b_single', '{"n": "no number"}'::text);
	INSERT INTO ledger SELECT notify_event('b_single');
	-- none
	BEGIN;
	INSERT INTO ledger SELECT notify_event('rolled_back', '{"n": 7}'::text) FROM generate_series(1, 3);
	ROLLBACK;
	-- 3 of 6
	BEGIN;
	INSERT INTO ledger SELECT notify_event('savepoint', '{"n": 14}'::text);
	SAVEPOINT a;
	INSERT INTO ledger SELECT notify_event('savepoint_gone', '{"n": 14}'::text) FROM generate_series(1, 3);
	ROLLBACK TO a;
	INSERT INTO ledger SELECT notify_event('savepoint', '{"n": 15}'::text);
	SAVEPOINT b;
	INSERT INTO ledger SELECT notify_event('savepoint', '{"n": 21}'::text);
	RELEASE b;
	COMMIT;
	-- 88 in one statement
	WITH e AS (INSERT INTO notification_events (event_name, event_data)
		SELECT 'multi', jsonb_build_object('n', :n + i) FROM generate_series(1, 88) i RETURNING id)
	INSERT INTO ledger SELECT id FROM e;
	-- 4 by triggers
	INSERT INTO orders VALUES (:n), (:n + 1);
));

# This transaction commits last.
my $open = $node->background_psql('postgres');
my $open_events = 0;
my $some_more = q(
	WITH e AS (INSERT INTO notification_events (event_name, event_data)
		SELECT 'my_single', jsonb_build_object('n', i) FROM generate_series(1, 10) i RETURNING id)
	INSERT INTO ledger SELECT id FROM e);
$open->query_safe('BEGIN');
$open->query_safe($some_more);
$open_events += 10;

my $pgbench = IPC::Run::start(
	[
		'pgbench', '--no-vacuum', '--client', $clients, '--jobs', 2,
		'--transactions', $rounds, '--random-seed', $seed, '--file', $script,
		'-d', $node->connstr('postgres')
	],
	'>', \my $out, '2>', \my $err);
while ($pgbench->pumpable && $open_events < 500)
{
	# emit under savepoints, and roll back every other one
	$open->query_safe('SAVEPOINT s');
	$open->query_safe($some_more);
	$open->query_safe('ROLLBACK TO s');
	$open->query_safe($some_more);
	$open->query_safe('RELEASE s');
	$open_events += 10;
	$pgbench->pump_nb;
}
ok($pgbench->finish, 'seven connections') or diag $err;

# First all events but those of the open transaction are handled, then these.
my $committed = $clients * $rounds * $per_round;
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT count(*) FROM seen WHERE handler = 'record')),
	$committed, 'an open transaction delays its own events and no others');
$open->query_safe('COMMIT');
$open->quit;
$committed += $open_events;
cmp_ok($committed, '>=', 100_000, "$committed events");
wait_for_handlers($node, 'postgres');
$node->poll_query_until('postgres',
	'SELECT count(*) = 0 FROM event_retries')
  or die "retries do not end";

my $difference = q(
	SELECT (SELECT count(*) FROM (SELECT id FROM ledger EXCEPT ALL SELECT id FROM notification_events) a),
		   (SELECT count(*) FROM (SELECT id FROM notification_events EXCEPT ALL SELECT id FROM ledger) b),
		   (SELECT count(*) FROM ledger));
is($node->safe_psql('postgres', $difference),
	"0|0|$committed", 'the log is what its writers have written');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM (
			(SELECT id FROM ledger EXCEPT ALL SELECT id FROM seen WHERE handler = 'record')
			UNION ALL
			(SELECT id FROM seen WHERE handler = 'record' EXCEPT ALL SELECT id FROM ledger)) d)),
	'0',
	'a handler has had each of them once');

my %matched = (
	record => q(true),
	array => q(event_name LIKE 'm%'),
	filtered => q(jsonb_typeof(event_data -> 'n') = 'number' AND (event_data ->> 'n')::integer % 7 = 0),
	glob => q(event_name IN ('a_single', 'b_single', 'my_single')),
	flaky => q(event_name IN ('a_single', 'b_single', 'my_single')),);
foreach my $handler (sort keys %matched)
{
	seen_is_log($node, 'postgres', $handler, $matched{$handler}, $handler);
	my ($delivered, $seen) = split(
		/\|/,
		$node->safe_psql(
			'postgres', qq(
			SELECT delivered, (SELECT count(*) FROM seen s WHERE s.handler = h.handler)
			FROM event_handler_stats h WHERE handler = '$handler')));
	is($delivered, $seen, "$handler: delivered is what was recorded");
	cmp_ok($seen, '>', 5 * $rounds, "$handler: $seen events");
}
is( $node->safe_psql(
		'postgres', qq(
		SELECT count(*) = h.failed AND h.failed = h.retried AND h.failed > 0
		FROM notification_events e, event_handler_stats h
		WHERE h.handler = 'flaky' AND e.event_name LIKE '%\\_single'
		AND hashint8extended(e.id, $seed) % 50 = 0 GROUP BY h.failed, h.retried)),
	't',
	'failed and retried are what has failed');
is( $node->safe_psql(
		'postgres', q(SELECT sum(emitted) FROM event_stats)),
	$committed,
	'event_stats has counted all of them');

$node->stop;
done_testing();
