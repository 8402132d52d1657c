
# Statistics of many handlers: their number has no limit. If memory is short, statistics
# are null, and nothing else suffers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# more than the main segment of shared memory has room for
my $many = 1300;

# With segments in files, no segment can be created while the directory is not writable.
my $node = new_server(
	'many',
	'dynamic_shared_memory_type = mmap',
	'log_min_messages = debug1',
	'restart_after_crash = on');
my $segments = $node->data_dir . '/pg_dynshmem';

sub ask
{
	my ($columns) = @_;

	return $node->safe_psql('postgres', "SELECT $columns FROM event_handler_stats WHERE handler LIKE 'many %'");
}

sub emit
{
	my ($name) = @_;

	$node->safe_psql('postgres', "SELECT notify_event('$name')");
	wait_for_handlers($node, 'postgres');
	return;
}

# becomes(COLUMNS, EXPECTED, NAME): event_handler_stats eventually shows EXPECTED for
# COLUMNS. It may take a moment, because workers count after the commit.
sub becomes
{
	my ($columns, $expected, $name) = @_;

	$node->poll_query_until('postgres',
		"SELECT $columns FROM event_handler_stats WHERE handler LIKE 'many %'", $expected);
	is(ask($columns), $expected, $name);
	return;
}

# removed(OFFSET, WHAT): wait until the log says that the counters of WHAT were removed
sub removed
{
	my ($offset, $what) = @_;

	return $node->wait_for_log(qr/removed counters of $what/, $offset);
}

# used_memory(PID): bytes in the contexts that a process never frees
sub used_memory
{
	my ($pid) = @_;
	my $offset = -s $node->logfile;
	my $line = qr/\[$pid\].*level: 0; TopMemoryContext: .* (\d+) used/;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log($line, $offset);
	return slurp_file($node->logfile, $offset) =~ $line ? $1 : die 'no figures of memory';
}

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
	CREATE TABLE weather (sqlstate text);
	GRANT SELECT ON weather TO PUBLIC;
	CREATE FUNCTION rain(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM public.weather) THEN
			RAISE EXCEPTION 'it rains' USING ERRCODE = '57P03';
		END IF;
	END $$;
));

# This executor makes its first batch before memory is short, so that the test can see
# that it stays.
$node->safe_psql('postgres', q(SELECT create_event_handler('first', 'ignore', owner => 'ann')));
emit('first');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');

# No memory
chmod(0500, $segments) or die "chmod $segments: $!";
$node->safe_psql('postgres',
	"SELECT count(create_event_handler('many ' || i, 'ignore', owner => 'ann')) FROM generate_series(1, $many) i");
emit('without memory');
is(ask('sum(delivered)'), $many, 'no memory: all is delivered');
becomes('count(calls) BETWEEN 100 AND count(*) - 100', 't', 'no memory: some have figures, some have none');
is(ask('min(calls), max(calls)'), '1|1', 'no memory: nobody has wrong ones');
is( ask('bool_and((calls IS NULL) = ALL (ARRAY[batches IS NULL, total_time IS NULL, mean_time IS NULL,'
		  . ' max_time IS NULL, latency_p50 IS NULL, latency_p95 IS NULL, latency_p99 IS NULL]))'),
	't', 'no memory: it is all or nothing');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'no memory: the executor stays');
is( $node->safe_psql('postgres', 'SELECT count(last_error) FROM event_worker_stats'),
	'0', 'no memory: no worker has failed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '0', 'no memory: nothing is charged');
like(
	slurp_file($node->logfile),
	qr/statistics of event handlers are incomplete: could not/,
	'no memory: the log says so');
# A thousand failures leak no memory, nor do the next thousand.
my $before = used_memory($executor);
emit('again without memory');
cmp_ok(used_memory($executor) - $before, '<', 20_000, 'no memory: none is lost');
$node->safe_psql('postgres', 'SELECT reset_event_stats()');

# Memory again
my %others = map { $_ => 1 } glob("$segments/*");
chmod(0700, $segments) or die "chmod $segments: $!";
emit('with memory');
becomes('count(*), count(calls), min(calls), max(calls)', "$many|$many|1|1", 'memory: all have figures');
is(ask('count(latency_p50)'), $many, 'memory: and latencies');

# The memory exists, but cannot be reached for a while: neither by sessions that read
# statistics, nor by an executor that has not attached it yet.
$node->safe_psql('postgres', "SELECT pg_terminate_backend($executor, 60000)");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $executor")
  or die 'the executor stays';
my @new = grep { !$others{$_} } glob("$segments/*");
chmod(0000, @new) == @new && @new > 0 or die "chmod @new: $!";
my $reader = $node->background_psql('postgres');
like($reader->query_safe(q(SELECT count(calls) < count(*) FROM event_handler_stats WHERE handler LIKE 'many %')),
	qr/t/, 'out of reach: some have no figures');
emit('out of reach');
$executor = worker_pid($node, 'executor', 'postgres', 'ann');
chmod(0600, @new) == @new or die "chmod @new: $!";
is($reader->query_safe(q(SELECT count(calls) = count(*) FROM event_handler_stats WHERE handler LIKE 'many %')),
	't', 'within reach: the same session sees all of them');
$reader->quit;
$node->safe_psql('postgres', 'SELECT reset_event_stats()');
emit('within reach');
becomes('count(*), count(calls), min(calls), max(calls)', "$many|$many|1|1", 'within reach: all are counted');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'within reach: by the same executor');
is($node->safe_psql('postgres', 'SELECT reset_event_stats()'), '', 'a reset');
emit('once more');
becomes('count(*), count(calls), min(calls), max(calls)', "$many|$many|1|1", 'counted once more');
unlike(slurp_file($node->logfile), qr/leak: /, 'no segment is left to a transaction');

# The back-off state is kept for the last handler as for the first.
$node->safe_psql('postgres',
	q(SELECT create_event_handler('many rain', 'rain', event_name => 'rain', retry_delay => '1 h', owner => 'ann');
	INSERT INTO weather VALUES ('57P03'); SELECT notify_event('rain')));
$node->poll_query_until('postgres',
	q(SELECT state = 'backing off' FROM event_handler_stats WHERE handler = 'many rain'))
  or die 'it does not back off';
is( ask(q(count(*) FILTER (WHERE state = 'backing off'))),
	1, 'the last handler backs off');
wait_for_handlers($node, 'postgres');
becomes('sum(calls)', 2 * $many, 'all others were called');
$node->safe_psql('postgres', 'SELECT reset_event_stats()');
is(ask('count(calls), sum(calls), count(mean_time)'), ($many + 1) . '|0|0', 'a reset');
is(ask(q(count(*) FILTER (WHERE state = 'backing off'))), 1, 'a reset is no news of the weather');

# Dropped handlers leave no counters behind; other handlers lose none.
emit('another');
becomes('sum(calls)', $many, 'figures before some are dropped');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', q(
	BEGIN;
	SELECT count(drop_event_handler(name)) FROM event_handlers WHERE name LIKE 'many %0';
	SAVEPOINT s;
	SELECT count(drop_event_handler(name)) FROM event_handlers WHERE name LIKE 'many %1';
	ROLLBACK TO s;
	COMMIT;
));
ok(removed($offset, ($many / 10) . ' dropped event handlers'), 'of dropped handlers');
is(ask('count(*), sum(calls)'), ($many * 9 / 10 + 1) . '|' . $many * 9 / 10, 'and not of others');

# Nor does a database that loses the extension or is dropped.
foreach my $drop ('DROP EXTENSION pg_notify_events CASCADE', 'DROP DATABASE shop')
{
	$node->safe_psql('postgres', 'CREATE DATABASE shop')
	  if $node->safe_psql('postgres', q(SELECT count(*) FROM pg_database WHERE datname = 'shop')) eq '0';
	$node->safe_psql('shop', q(
		CREATE EXTENSION pg_notify_events;
		CREATE OR REPLACE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
		SELECT create_event_handler('a', 'ignore'), create_event_handler('b', 'ignore');
	));
	$node->safe_psql('shop', q(SELECT notify_event('x')));
	wait_for_handlers($node, 'shop');
	$node->poll_query_until('shop', 'SELECT sum(calls) = 2 FROM event_handler_stats')
	  or die 'the other database does not count';
	my $oid = $node->safe_psql('postgres', q(SELECT oid FROM pg_database WHERE datname = 'shop'));

	$offset = -s $node->logfile;
	$node->safe_psql($drop =~ /DATABASE/ ? 'postgres' : 'shop', $drop);
	ok(removed($offset, "2 event handlers of database $oid"), $drop);
}
is(ask('sum(calls)'), $many * 9 / 10, 'and not of other databases');

# After a crash the counters begin at zero.
crash_server($node, sub { return worker_pid($node, 'listener', 'postgres') });
is(ask('count(calls), sum(calls)'), ($many * 9 / 10 + 1) . '|0', 'after a crash');
emit('after a crash');
becomes('sum(calls)', $many * 9 / 10, 'counted after a crash');

$node->stop;
done_testing();
