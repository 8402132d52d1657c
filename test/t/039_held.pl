
# A session holds a snapshot, so no version of a progress row can be removed.  An
# executor then writes fewer versions, and does not search for the row among the dead
# ones.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_server(
	'held', 'log_statement = none',
	'autovacuum = off',
	'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION take(e notification_events) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
	SELECT create_event_handler('take', 'take', owner => 'ann');
));
my $emit = $node->basedir . '/emit.sql';
append_to_file($emit, "SELECT notify_event('new');\n");

# Emit events one by one for this many seconds.  Returns the number of batches, the
# seconds that they took, and how often the row was looked up by its name.
sub batches_in
{
	my ($seconds) = @_;
	my $sql = q(
		SELECT (SELECT sum(batches) FROM event_handler_stats), idx_scan
		FROM pg_stat_user_indexes WHERE indexrelname = '_event_handler_progress_pkey');
	wait_for_handlers($node, 'postgres');
	my @before = split(/\|/, $node->safe_psql('postgres', $sql));
	my $start = time();

	$node->command_ok(
		[ 'pgbench', '-n', '-c', 4, '-T', $seconds, '-f', $emit, '-h', $node->host, '-p', $node->port, 'postgres' ],
		'events one by one');
	wait_for_handlers($node, 'postgres');
	my $elapsed = time() - $start;
	my @after = split(/\|/, $node->safe_psql('postgres', $sql));
	return ($after[0] - $before[0], $elapsed, $after[1] - $before[1]);
}

# write as many versions as are allowed before the executor is throttled
my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM notification_events');
my $kept = 0;
foreach my $try (1 .. 30)
{
	my ($batches) = batches_in(1);
	$kept += $batches;
	last if $kept > 700;
}
cmp_ok($kept, '>', 700, 'many versions are kept');

my ($batches, $elapsed, $lookups) = batches_in(4);
my $most = int(100 * $elapsed) + 20;
cmp_ok($batches, '<=', $most, "while they are, a batch every 10 ms ($batches, at most $most)");
cmp_ok($lookups, '<=', 20, "the row is not looked up each time ($lookups times)");
is($node->safe_psql('postgres', 'SELECT sum(delivered) = (SELECT count(*) FROM notification_events) FROM event_handler_stats'),
	't', 'all events are delivered');

# a backlog is not throttled: the batches are full, one after the other
$node->safe_psql('postgres', q(SELECT alter_event_handler('take', batch_size => 1)));
my $start = time();
$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) SELECT 'new' FROM generate_series(1, 1000)));
wait_for_handlers($node, 'postgres');
$elapsed = time() - $start;
cmp_ok($elapsed, '<', 10, "nor is a backlog: 1000 batches in $elapsed s");
$node->safe_psql('postgres', q(SELECT alter_event_handler('take', batch_size => 1000)));

# When the snapshot is gone, the throttle ends.  One event after the other reaches the
# handler faster than one batch every 10 ms.
$holder->query_safe('COMMIT');
$holder->quit;
$node->safe_psql('postgres', q(SELECT notify_event('new')));
my $free = 0;
foreach my $try (1 .. 10)
{
	($batches, $elapsed) = batches_in(3);
	$free = $batches > 100 * $elapsed + 20;
	last if $free;
}
ok($free, "afterwards more are allowed ($batches in $elapsed s)");

$node->stop;
done_testing();
