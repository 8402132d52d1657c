
# A worker that has nothing to do sleeps: the listener wakes up only for what is
# due, and an idle server writes nothing.
#
# The pg_sleep() in queries here does not wait for anything: it is the time that is
# measured.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('idle', 'autovacuum = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN IF e.event_name = 'bad' THEN RAISE 'bad'; END IF; END $$;
	SELECT create_event_handler('fails', 'fail', '*d', owner => 'bob', retry_delay => '10 s');
	SELECT create_event_handler('idle_' || n, 'record', owner => 'ann') FROM generate_series(1, 10) n;
	SELECT notify_event('bad');
));
wait_for_handlers($node, 'postgres');

# While no executor serves the owner, the listener keeps the time when the retry is
# due.  Then an event starts an executor, which keeps that time itself.
$node->restart;
wait_for_listener($node, 'postgres');
$node->safe_psql('postgres', q(SELECT notify_event('good')));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT attempts FROM event_retries'),
	'1', 'the retry is not due yet');
my $executor = worker_pid($node, 'executor', 'postgres', 'bob');
$node->poll_query_until('postgres', 'SELECT attempts = 2 FROM event_retries')
  or die "no retry";
is(worker_pid($node, 'executor', 'postgres', 'bob'),
	$executor, 'the executor did it');

my $sql;
my $wakeups = $node->safe_psql(
	'postgres', q(
	CREATE TEMP TABLE before AS SELECT wakeups FROM event_worker_stats WHERE kind = 'listener';
	SELECT pg_sleep(2) IS NULL;
	SELECT w.wakeups - b.wakeups FROM event_worker_stats w, before b WHERE w.kind = 'listener';
));
$wakeups =~ s/.*\n//s;
cmp_ok($wakeups, '<=', 10,
	"a listener does not spin after a retry was due ($wakeups wake-ups in 2 s)");

# When all is handled and stored, nothing happens.
$node->safe_psql('postgres', q(SELECT drop_event_handler('fails')));
wait_for_handlers($node, 'postgres');
$node->poll_query_until(
	'postgres', q(
	SELECT bool_and(pg_visible_in_snapshot(txid::text::xid8, cursor)) FROM notification_events, _event_announcer)
) or die "the listener does not store its position";
my $result = $node->safe_psql(
	'postgres', q(
	CHECKPOINT;
	SELECT pg_current_wal_insert_lsn() AS lsn,
		   (SELECT sum(wakeups) FROM event_worker_stats) AS wakeups,
		   (SELECT sum(wakeups) FROM event_worker_stats WHERE kind = 'executor') AS executors \gset before_
	SELECT pg_sleep(3) IS NULL;
	SELECT pg_current_wal_insert_lsn() - :'before_lsn',
		   (SELECT sum(wakeups) FROM event_worker_stats) - :before_wakeups,
		   (SELECT sum(wakeups) FROM event_worker_stats WHERE kind = 'executor') - :before_executors;
));
my ($wal, $all, $executors) = split(/\|/, (split(/\n/, $result))[-1]);
cmp_ok($wal, '<', 1000, "an idle server writes nothing ($wal bytes in 3 s)");
cmp_ok($all, '<=', 9, "and hardly wakes up ($all times in 3 s)");
cmp_ok($executors, '<=', 1,
	"its executors do not wake up at all ($executors times in 3 s)");
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*), min(delivered), max(delivered) FROM event_handler_stats WHERE state = 'ready')
	),
	'10|2|2',
	'its handlers have done all there was');

# A session waits for a slow handler: that keeps no other process awake.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION snore(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(2) $$;
	SELECT create_event_handler('snore', 'snore', 'long', owner => 'bob');
));
wait_for_handlers($node, 'postgres');
$sql = q(
	SELECT sum(wakeups) FILTER (WHERE kind = 'listener') AS listener,
		   sum(wakeups) FILTER (WHERE owner = 'ann') AS idle
	FROM event_worker_stats \gset before_
	SELECT notify_event('long');
	CALL wait_for_event_handlers();
	SELECT sum(wakeups) FILTER (WHERE kind = 'listener') - :before_listener,
		   sum(wakeups) FILTER (WHERE owner = 'ann') - :before_idle
	FROM event_worker_stats;
);
my ($listener, $idle) =
  split(/\|/, (split(/\n/, $node->safe_psql('postgres', $sql)))[-1]);
cmp_ok($listener, '<', 100,
	"wait_for_event_handlers() keeps no listener awake ($listener wake-ups in 2 s)");
cmp_ok($idle, '<', 100,
	"nor an idle executor ($idle wake-ups in 2 s)");

$node->stop;
done_testing();
