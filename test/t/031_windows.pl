
# A million events of one transaction are handled in bounded transactions and bounded
# memory, each once and in order.  The server restarts in the middle of it.  The test
# also checks what ends a batch: batch_size, batch_time, batch_bytes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# AddressSanitizer is slow, and memory usage says nothing with it: fewer events are
# enough
my $many = defined $ENV{ASAN_OPTIONS} ? 300_000 : 1_000_000;
my $shared_mb = 32;
my $node = new_server(
	'windows', 'log_statement = none',
	'autovacuum = off',
	"shared_buffers = ${shared_mb}MB",
	'max_wal_size = 4GB',
	'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'bob');
# Handlers record which events they were called for, in which transaction: a row for
# each call.
$node->safe_psql(
	'postgres', q(
	CREATE UNLOGGED TABLE arrays (xid xid8 DEFAULT pg_current_xact_id(), pid integer DEFAULT pg_backend_pid(),
		n bigint, first bigint, last bigint, total numeric);
	CREATE UNLOGGED TABLE rows (id bigint, xid xid8 DEFAULT pg_current_xact_id());
	GRANT SELECT, INSERT ON arrays, rows TO PUBLIC;
	CREATE FUNCTION take_array(events notification_events[]) RETURNS void LANGUAGE sql AS $$
		INSERT INTO arrays (n, first, last, total)
			SELECT count(*), min(id), max(id), sum(id) FROM unnest(events)
	$$;
	CREATE FUNCTION take_row(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO rows (id) VALUES (e.id); END $$;
	SELECT create_event_handler('array', 'take_array', 'bulk', owner => 'ann', batch_size => 10000);
	SELECT create_event_handler('row', 'take_row', 'bulk', owner => 'bob', batch_size => 2000);
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# In memory at once, these events would take 500 MB.
$node->safe_psql(
	'postgres', qq(
	INSERT INTO notification_events (event_name, event_data)
	SELECT 'bulk', jsonb_build_object('n', n, 'text', repeat('x', 200)) FROM generate_series(1, $many) n));
poll('SELECT count(*) >= 20 FROM arrays', 'twenty arrays');
poll('SELECT count(*) >= 20000 FROM rows', 'many rows');
my @executors = map { worker_pid($node, 'executor', 'postgres', $_) } qw(ann bob);
my @peaks = map { peak_memory($_) } @executors;
$node->restart;
# these events come after the window in any case
$node->safe_psql('postgres',
	q(INSERT INTO notification_events (event_name) SELECT 'bulk' FROM generate_series(1, 100)));
wait_for_handlers($node, 'postgres');
my $all = $many + 100;
@executors = map { worker_pid($node, 'executor', 'postgres', $_) } qw(ann bob);
push @peaks, map { peak_memory($_) } @executors;

SKIP:
{
	skip 'the memory of a server with AddressSanitizer tells nothing', scalar(@peaks) if defined $ENV{ASAN_OPTIONS};
	cmp_ok($_, '<', 150_000, 'memory of an executor in kB') foreach @peaks;
}
is( $node->safe_psql(
		'postgres', q(
		SELECT handler, delivered, failed, pending FROM event_handler_stats ORDER BY handler)),
	"array|$all|0|0\nrow|$all|0|0",
	'all are delivered');
is( $node->safe_psql(
		'postgres', q(
		SELECT sum(n) = l.count, sum(total) = l.sum, max(n), count(*) - count(DISTINCT xid),
			   bool_and(last - first + 1 = n)
		FROM arrays, (SELECT count(*), sum(id) FROM notification_events) l GROUP BY l.count, l.sum)),
	't|t|10000|0|t',
	'arrays: all events, batch_size, one for each transaction, neighbours');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM (SELECT first, lag(last) OVER (ORDER BY ctid) AS previous FROM arrays) a
		WHERE first <> previous + 1)),
	'0',
	'arrays: in order, without gaps or overlaps');
is( $node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), sum(id) = (SELECT sum(id) FROM notification_events) FROM rows'),
	"$all|$all|t", 'rows: each event once');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY ctid) AS previous FROM rows) r
		WHERE id <> previous + 1)),
	'0',
	'rows: in order');
my ($largest, $transactions) = split(
	/\|/,
	$node->safe_psql('postgres',
		'SELECT max(n), count(*) FROM (SELECT count(*) AS n FROM rows GROUP BY xid) r'));
cmp_ok($largest, '<=', 2000, "rows: at most batch_size in a transaction ($transactions of them)");

# batch_time: each call takes at least a fifth of it
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	TRUNCATE arrays, rows;
	CREATE FUNCTION take_slowly(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO rows (id) VALUES (e.id); SELECT pg_sleep(0.02) $$;
	SELECT create_event_handler('slow', 'take_slowly', 'slow', owner => 'ann', batch_size => 1000);
	INSERT INTO notification_events (event_name) SELECT 'slow' FROM generate_series(1, 40);
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT sum(n), max(n) <= 6, max(batches) = count(*)
		FROM (SELECT count(*) AS n FROM rows GROUP BY xid) r, event_handler_stats)),
	'40|t|t',
	'batch_time ends a batch');

# batch_bytes: events of 300 kB; the fourth exceeds 1 MB
$node->append_conf(
	'postgresql.conf', q(
	pg_notify_events.batch_bytes = '1MB'
	pg_notify_events.batch_time = '10min'
));
$node->restart;
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	TRUNCATE arrays, rows;
	SELECT create_event_handler('array', 'take_array', 'large', owner => 'ann');
	SELECT create_event_handler('row', 'take_row', 'large', owner => 'bob');
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'large', to_jsonb(repeat('x', 300 * 1024)) FROM generate_series(1, 40);
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql('postgres', 'SELECT sum(n), max(n), count(*) FROM arrays'),
	'40|4|10', 'batch_bytes ends a batch: arrays');
is( $node->safe_psql(
		'postgres',
		'SELECT sum(n), max(n), count(*) FROM (SELECT count(*) AS n FROM rows GROUP BY xid) r'),
	'40|4|10',
	'batch_bytes ends a batch: rows');

$node->stop;
done_testing();
