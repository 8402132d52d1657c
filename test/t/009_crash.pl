
# Crashes: processes die at any time.  In the end the effects of each committed
# event are in the database exactly once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'crash',
	'restart_after_crash = on',
	'log_statement = none',
	"pg_notify_events.batch_time = '20 ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION record_array(e notification_events[]) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) SELECT 'array', id FROM unnest(e) $$;
	-- fails the first time for one event in 20
	CREATE FUNCTION record_flaky(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('flaky', e.id);
		IF e.id % 20 = 0 AND
			NOT EXISTS (SELECT FROM public.event_retries WHERE handler = 'flaky' AND event_id = e.id)
		THEN
			RAISE 'event % fails the first time', e.id;
		END IF;
	END $$;
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT create_event_handler('array', 'record_array', owner => 'bob', batch_size => 33);
	SELECT create_event_handler('flaky', 'record_flaky', owner => 'bob', retry_delay => '100 ms');
));

my $script = "$PostgreSQL::Test::Utils::tmp_check/crash.sql";
append_to_file(
	$script, q(
	INSERT INTO notification_events (event_name, event_data) VALUES ('single', '{"a": 1}');
	INSERT INTO notification_events (event_name) SELECT 'multi' FROM generate_series(1, 5);
	BEGIN;
	INSERT INTO notification_events (event_name) VALUES ('rolled back');
	ROLLBACK;
));

# Start four writers.  They write until they are told to stop or the server dies.
sub start_load
{
	return IPC::Run::start(
		[
			'pgbench', '--no-vacuum', '--client', 4, '--time', 600, '--file', $script,
			'-d', $node->connstr('postgres')
		],
		'>', '/dev/null', '2>', '/dev/null');
}

# Wait until each handler has handled this many more events.
sub wait_for_progress
{
	my ($more) = @_;
	my $counts = q(SELECT min(n) FROM (
		SELECT count(*) FILTER (WHERE handler = 'record') AS r,
			   count(*) FILTER (WHERE handler = 'array') AS a,
			   count(*) FILTER (WHERE handler = 'flaky') AS f FROM seen) s,
		LATERAL (VALUES (r), (a), (f)) AS v (n));
	my $now = $node->safe_psql('postgres', $counts);

	$node->poll_query_until('postgres', "SELECT ($counts) >= $now + $more")
	  or die "no progress";
	return;
}

sub check_all
{
	my ($name) = @_;

	wait_for_handlers($node, 'postgres');
	$node->poll_query_until('postgres',
		'SELECT count(*) = 0 FROM event_retries')
	  or die "retries do not end";
	seen_is_log($node, 'postgres', $_, 'true', "$name, $_")
	  foreach qw(record array flaky);
	is( $node->safe_psql(
			'postgres', q(
			SELECT handler FROM event_handler_stats h
			WHERE delivered <> (SELECT count(*) FROM seen s WHERE s.handler = h.handler))),
		'',
		"$name: delivered is what was recorded");
	return;
}

# A worker is killed.  The server goes down and recovers by itself.
foreach my $kind ('executor', 'listener', 'launcher')
{
	my $load = start_load();
	wait_for_progress(500);
	my $start = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
	crash_server($node, sub { (worker_pids($node, $kind))[0] });
	pass("kill -9 of the $kind");
	$load->finish;
	check_all("$kind killed");
	is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'),
		$start, 'the server has come back by itself');
}

# The whole server dies.
foreach my $round (1, 2)
{
	my $load = start_load();
	wait_for_progress(500);
	$node->stop('immediate');
	$load->finish;
	$node->start;
	check_all("immediate stop, round $round");
}

# A fast shutdown while everything is at work
{
	my $load = start_load();
	wait_for_progress(500);
	$node->restart;
	$load->finish;
	check_all('restart');
}

# pg_terminate_backend() on workers does not affect the writers.
{
	my $load = start_load();

	foreach my $kind ('executor', 'listener', 'launcher')
	{
		wait_for_progress(200);
		my @before = worker_pids($node, $kind);
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($_)")
		  foreach @before;
		$node->poll_query_until(
			'postgres', sprintf(
				q(SELECT count(*) = %d FROM pg_stat_activity
				  WHERE backend_type = 'pg_notify_events %s' AND pid NOT IN (%s)),
				scalar(@before), $kind, join(', ', @before)));
		pass("$kind: terminated, and comes back");
		ok($load->pumpable, 'writers go on');
	}
	wait_for_progress(200);
	$load->kill_kill(grace => 5);
	$node->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'))
	  or die "writers do not end";
	check_all('workers terminated');
}

# A worker is terminated inside a handler: the effects are gone, the event is not.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	CREATE FUNCTION snore(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('snore', e.id);
		PERFORM pg_sleep(CASE WHEN nextval('calls') = 1 THEN 600 ELSE 0 END);
	END $$;
	CREATE SEQUENCE calls;
	GRANT USAGE ON SEQUENCE calls TO ann;
	SELECT create_event_handler('snore', 'snore', 'snore', owner => 'ann', timeout => '10 min');
	SELECT notify_event('snore');
));
$node->poll_query_until('postgres',
	q(SELECT state = 'running' FROM event_handler_stats WHERE handler = 'snore'))
  or die "handler does not run";
$node->poll_query_until('postgres', 'SELECT is_called FROM calls')
  or die "handler does not run";
$node->safe_psql(
	'postgres', q(
	SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE backend_type = 'pg_notify_events executor' AND usename = 'ann'));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'snore', q(event_name = 'snore'),
	'executor terminated in a handler');
is( $node->safe_psql(
		'postgres',
		q(SELECT delivered, failed FROM event_handler_stats WHERE handler = 'snore')),
	'1|0',
	'which is no failure of the event');

$node->stop;
done_testing();
