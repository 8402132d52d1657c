
# What workers read in the log: new events, once for all handlers of an owner, by
# index.  The statistics of the table do not matter, nor does the age of an open
# transaction.  Workers write nothing if nothing matches.
#
# The counters are those of the server, for all processes together.  While they are
# taken, none of the test's own statements reads the log.  So the test does not use
# wait_for_event_handlers() for that, because it reads the log, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $old = 200_000;
my $node = new_server(
	'reads',
	'log_statement = none',
	'autovacuum = off',
	'max_wal_size = 4GB',
	'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');

my $marks = 0;

# Wait until an executor has read the log to its end and has reported its reads.  Each
# call emits an event for the handler "record", and the executor looks this event up.
sub wait_for_mark
{
	$marks++;
	$node->safe_psql('postgres', q(SELECT notify_event('mark')));
	$node->poll_query_until('postgres', "SELECT count(*) = $marks FROM seen")
	  or die "mark $marks is not handled";
	return;
}

# Returns the reads so far: entries of the index on txid, entries of the primary key,
# and sequential scans.
sub reads
{
	return split(
		/\|/,
		$node->safe_psql(
			'postgres', q(
			SELECT (SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'notification_events_txid_idx'),
				   (SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'notification_events_pkey'),
				   (SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'notification_events')
		)));
}

# Returns the reads for this many events of this many transactions: the average per
# event by each index, and the number of sequential scans.  Executor and listener
# report their counters when they become idle.
sub reads_for
{
	my ($count, $transactions) = @_;

	wait_for_mark();
	my @before = settled_reads();
	$node->safe_psql('postgres',
		"INSERT INTO notification_events (event_name) SELECT 'new' FROM generate_series(1, $count / $transactions);\n"
		  x $transactions);
	wait_for_mark();
	my @after = settled_reads($before[0] + $count + 1, $before[1]);
	return (
		($after[0] - $before[0]) / $count,
		($after[1] - $before[1]) / $count,
		$after[2] - $before[2]);
}

# Returns the counters once they no longer change and have reached these minimums.
# By then the workers have reported all their reads.
sub settled_reads
{
	my ($txid_reads, $pkey_reads) = @_;
	my @last = (-1, -1, -1);

	foreach my $try (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my @now = reads();
		my $idle = $node->safe_psql('postgres',
			q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind <> 'launcher' AND state NOT IN ('idle', 'listening')));

		return @now
		  if $idle eq 't' && "@now" eq "@last"
		  && $now[0] >= ($txid_reads // 0)
		  && $now[1] >= ($pkey_reads // 0);
		@last = @now;
	}
	die "reading does not end";
}

sub check_reads
{
	my ($name, $count, $transactions) = @_;
	my ($by_txid, $by_id, $scans) = reads_for($count, $transactions // 1);

	cmp_ok($by_txid, '<', 4, "$name: an event is looked up $by_txid times by txid");
	cmp_ok($by_id, '<', 0.5, "$name: and $by_id times by id");
	is($scans, '0', "$name: no sequential scan");
	return;
}

# The log is empty when it is analyzed.  Then it fills with events that match no
# handler.
$node->safe_psql('postgres', 'VACUUM ANALYZE notification_events');
$node->safe_psql('postgres',
	"INSERT INTO notification_events (event_name, event_data) SELECT 'old', '{}' FROM generate_series(1, $old)");
$node->safe_psql('postgres', q(SELECT create_event_handler('record', 'record', 'mark', owner => 'ann')));
is( $node->safe_psql('postgres', q(SELECT reltuples FROM pg_class WHERE relname = 'notification_events')),
	'0', 'statistics of an empty log');
check_reads('statistics of when it was empty', 1000);
$node->safe_psql('postgres', 'ANALYZE notification_events');
check_reads('fresh statistics', 1000);
check_reads('many transactions', 1000, 100);
$node->safe_psql(
	'postgres', q(
	UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0 WHERE relname LIKE 'notification\_events%';
	DELETE FROM pg_statistic WHERE starelid = 'notification_events'::regclass;
));
$node->restart;
check_reads('no statistics', 1000);
$node->safe_psql('postgres', 'DELETE FROM notification_events');
check_reads('all is deleted, no vacuum', 1000);
$node->safe_psql('postgres', 'VACUUM ANALYZE notification_events');
check_reads('vacuumed', 1000);

# An open transaction with an event: its age does not matter.
my $open = $node->background_psql('postgres');
$open->query_safe(q(BEGIN; SELECT notify_event('mark')));
check_reads("open transaction, $_", 1000, 10) foreach (1 .. 5);
# An open transaction with many events, under savepoints
my $second = $node->background_psql('postgres');
$second->query_safe(
	q(BEGIN; SAVEPOINT a; SELECT count(notify_event('mark')) FROM generate_series(1, 100); ROLLBACK TO a;
	  SAVEPOINT b; SELECT count(notify_event('mark')) FROM generate_series(1, 10); RELEASE b));
check_reads('two open transactions', 1000, 10);
$open->query_safe('COMMIT');
$marks++;
check_reads('one is committed', 1000, 10);
$second->query_safe('COMMIT');
$marks += 10;
check_reads('and the other', 1000, 10);
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id) FROM seen'),
	"$marks|$marks", 'their events were delivered');
$_->quit foreach ($open, $second);

# Ten handlers match nothing, ten match everything.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('nothing ' || n, 'record', 'nothing', owner => 'ann') FROM generate_series(1, 10) n));
check_reads('ten more handlers that want nothing', 500);
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION take(name text, data jsonb) RETURNS void LANGUAGE sql AS '';
	SELECT create_event_handler('all ' || n, 'take', owner => 'ann') FROM generate_series(1, 10) n));
check_reads('ten more handlers that want everything', 500);

# A handler that got nothing writes nothing, except for a position now and then.
my $sql = q(SELECT ctid, xmin FROM _event_handler_progress WHERE handler ^@ 'nothing' ORDER BY handler);
my $rounds = 30;
my $changes = 0;
my $start = time();
my @rows = split(/\n/, $node->safe_psql('postgres', $sql));
foreach my $round (1 .. $rounds)
{
	$node->safe_psql('postgres', q(SELECT notify_event('new')));
	wait_for_mark();
	my @now = split(/\n/, $node->safe_psql('postgres', $sql));
	$changes += grep { $now[$_] ne $rows[$_] } (0 .. 9);
	@rows = @now;
}
my $allowed = 10 * (1 + int((time() - $start) / 5));
cmp_ok($changes, '<=', $allowed,
	"no match, nothing written ($changes of " . 10 * $rounds . " times, at most $allowed)");
is( $node->safe_psql(
		'postgres', q(
		SELECT sum(delivered), sum(failed) FROM event_handler_stats WHERE handler ^@ 'nothing')),
	'0|0',
	'and nothing delivered');
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT bool_and(pg_visible_in_snapshot(e.txid, p.cursor))
		FROM _event_handler_progress p, (SELECT max(txid) AS txid FROM notification_events) e
		WHERE p.handler ^@ 'nothing')),
	't',
	'until somebody waits for it');

$node->stop;
done_testing();
