
# Events that end the process which handles them: each attempt is charged, the
# event dies after max_attempts, and all others are handled exactly once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# a handler's function that segfaults
my $module = "$PostgreSQL::Test::Utils::tmp_check/deadly.so";
my ($include) = run_command([ 'pg_config', '--includedir-server' ]);
system_or_bail('gcc', '-shared', '-fPIC', '-O1', "-I$include", '-o', $module,
	"$FindBin::RealBin/lib/deadly.c");

my $node = new_server('deadly', 'restart_after_crash = on');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION die_of(text) RETURNS void LANGUAGE c STRICT AS '$module', 'die_of';
	CREATE FUNCTION see(by text, e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES (by, e.id);
		IF e.event_name = 'terminate' THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		ELSIF e.event_name LIKE 'die of %' THEN
			PERFORM public.die_of(substr(e.event_name, 8));
		ELSIF e.event_name = 'fail, then terminate' THEN
			IF (SELECT r.last_error IS NULL FROM public.event_retries r WHERE r.event_id = e.id) IS NOT FALSE THEN
				RAISE 'failed';
			END IF;
			PERFORM pg_terminate_backend(pg_backend_pid());
		ELSIF e.event_name = 'deaf' THEN
			LOOP
				BEGIN
					PERFORM pg_sleep(60);
				EXCEPTION WHEN query_canceled THEN
					-- does not want to hear it
				END;
			END LOOP;
		END IF;
	END \$\$;
	CREATE FUNCTION one(e notification_events) RETURNS void LANGUAGE sql AS \$\$ SELECT public.see('one', e) \$\$;
	CREATE FUNCTION many(e notification_events[]) RETURNS void LANGUAGE sql AS \$\$ SELECT public.see('many', i) FROM unnest(e) AS i \$\$;
	CREATE FUNCTION other(e notification_events) RETURNS void LANGUAGE sql AS
		\$\$ INSERT INTO public.seen (handler, id) VALUES ('other', e.id) \$\$;
));

# wait_for(CONDITION): like poll_query_until, across crashes of the server
sub wait_for
{
	my ($condition) = @_;

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my ($result, $stdout) = $node->psql('postgres', "SELECT $condition");
		return if defined $stdout && $stdout eq 't';
		usleep(100_000);
	}
	die "never: $condition";
}

# in_log(PATTERN, OFFSET): how often a line of the server log matches
sub in_log
{
	my ($pattern, $offset) = @_;
	my @matches = slurp_file($node->logfile, $offset) =~ /$pattern/g;

	return scalar(@matches);
}

sub log_size
{
	return -s $node->logfile;
}

sub start_over
{
	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler(name) FROM event_handlers;
		TRUNCATE seen;
		DELETE FROM notification_events;
	));
	return;
}

# run(EVENT, FUNCTION, MAX_ATTEMPTS, OPTIONS): emits 41 events, one of them
# deadly, and waits until its handler and another one have handled them all.
# Returns the offset in the log.
sub run
{
	my ($event, $function, $max_attempts, $options) = @_;
	my $offset = log_size();

	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('deadly', '$function', owner => 'ann', max_attempts => $max_attempts,
			retry_delay => '50 ms', max_retry_delay => '50 ms', $options);
		SELECT create_event_handler('other', 'other', owner => 'bob');
	));
	# the server may crash before the client has disconnected
	$node->psql('postgres',
		"SELECT count(notify_event(CASE i WHEN 17 THEN '$event' ELSE 'event ' || i END)) FROM generate_series(1, 41) i"
	);
	wait_for(
		"bool_and(delivered = CASE handler WHEN 'deadly' THEN 40 ELSE 41 END) AND sum(dead) = 1 FROM event_handler_stats"
	);
	is( $node->safe_psql(
			'postgres',
			q(SELECT e.event_name, r.state, r.attempts, r.last_error, r.last_sqlstate FROM event_retries r JOIN notification_events e ON e.id = r.event_id)
		),
		"$event|dead|$max_attempts|the process that ran the attempt ended|57P02",
		"$event ($function): dies after max_attempts");
	seen_is_log($node, 'postgres', $function, "event_name <> '$event'",
		"$event: its handler");
	seen_is_log($node, 'postgres', 'other', 'true', "$event: another handler");
	return $offset;
}

# FATAL: only the executor ends
foreach my $function ('one', 'many')
{
	my $offset = run('terminate', $function, 3, 'batch_size => 20');

	# The first time the executor is lost with a whole batch, the second time with
	# a group of it.  Neither tells which event was the cause.
	is( in_log(
			qr/executor FATAL:  terminating background worker "pg_notify_events executor" due to administrator command/,
			$offset),
		5,
		"$function: has ended max_attempts + 2 executors");
	is( $node->safe_psql(
			'postgres', 'SELECT last_error FROM event_worker_stats WHERE owner = $$ann$$'
		),
		'ended while it ran event handler "deadly"',
		"$function: event_worker_stats tells");
	start_over();
}

# the server crashes
my $offset = run('die of segfault', 'one', 2, 'batch_size => 20');
is(in_log(qr/was terminated by signal 11/, $offset),
	4, 'has crashed the server max_attempts + 2 times');
start_over();
$offset = run('die of kill', 'many', 1, 'batch_size => 20');
is(in_log(qr/was terminated by signal 9/, $offset),
	3, 'has been killed max_attempts + 2 times');
start_over();
$offset = run('die of exit', 'one', 1, 'batch_size => 20');
start_over();

# a call that returns before its process ends
$offset = log_size();
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION die_late(notification_events) RETURNS void LANGUAGE c AS '$module', 'die_late';
	SELECT create_event_handler('deadly', 'die_late', owner => 'ann', max_attempts => 2,
		retry_delay => '50 ms', max_retry_delay => '50 ms', batch_size => 20);
	SELECT count(notify_event(CASE i WHEN 17 THEN 'die late' ELSE 'event ' || i END)) FROM generate_series(1, 41) i;
));
wait_for("delivered = 40 AND dead = 1 FROM event_handler_stats WHERE handler = 'deadly'");
is(in_log(qr/executor FATAL:  terminating/, $offset), 4, 'a call that ends before its process does');
start_over();

# The filter refuses many events before the deadly one.  They do not move the
# stored position.
$offset = log_size();
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('deadly', 'one', owner => 'ann', max_attempts => 2, filter => '$.wanted == true',
		retry_delay => '50 ms', max_retry_delay => '50 ms', batch_size => 100);
	INSERT INTO notification_events (event_name) SELECT 'refused' FROM generate_series(1, 20000);
	INSERT INTO notification_events (event_name, event_data) VALUES ('terminate', '{"wanted": true}'), ('after', '{"wanted": true}');
));
wait_for("delivered = 1 AND dead = 1 FROM event_handler_stats WHERE handler = 'deadly'");
is(in_log(qr/executor FATAL:  terminating/, $offset), 4, 'behind 20000 refused events');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '1', 'which are on no list');
start_over();

# an ordered handler, and one event per batch
$offset = run('terminate', 'one', 2, 'ordered => true, batch_size => 1');
is( $node->safe_psql(
		'postgres',
		"SELECT array_agg(id ORDER BY at) = array_agg(id ORDER BY id) FROM seen WHERE handler = 'one'"
	),
	't',
	'ordered: in order');
start_over();

# a first attempt that fails, and a second one that kills
$offset = run('fail, then terminate', 'one', 3, 'batch_size => 20');
is(in_log(qr/executor FATAL:  terminating/, $offset),
	2, 'a retry that kills is counted each time');
start_over();

# a call that catches query_canceled is ended a second past its timeout
$offset = run('deaf', 'one', 1, "batch_size => 20, timeout => '200 ms'");
is( in_log(
		qr/LOG:  a call of event handler "deadly" did not end at its timeout/,
		$offset),
	3,
	'a call that does not end');
is( $node->safe_psql(
		'postgres', 'SELECT last_error FROM event_worker_stats WHERE owner = $$ann$$'
	),
	'a call of event handler "deadly" did not end at its timeout',
	'event_worker_stats tells');

# The crash guard ends when the events that were there have been handled.
$node->safe_psql('postgres', q(SELECT alter_event_handler('deadly', timeout => '30 s')));
$node->safe_psql('postgres',
	"SELECT count(notify_event('more ' || i)) FROM generate_series(1, 6000) i"
);
wait_for(
	"delivered = 6040 FROM event_handler_stats WHERE handler = 'deadly'");
is( in_log(
		qr/event handler "deadly" goes on with whole batches/, $offset),
	1,
	'goes on with whole batches');
seen_is_log($node, 'postgres', 'one', "event_name <> 'deaf'", 'guarded');

# After an orderly restart no handler is guarded.
$offset = log_size();
$node->restart;
$node->safe_psql('postgres', "SELECT notify_event('after')");
wait_for(
	"delivered = 6041 FROM event_handler_stats WHERE handler = 'deadly'");
is(in_log(qr/is guarded/, $offset), 0, 'an orderly restart');

# Nor is a handler guarded after a change of its definition or owner, after a
# pause, or when it is dropped and created again.
foreach my $change (
	"alter_event_handler('deadly', batch_size => 19)",
	"alter_event_handler('deadly', owner => 'bob')",
	"alter_event_handler('deadly', owner => 'ann')",
	"pause_event_handler('deadly'), resume_event_handler('deadly')",
	"drop_event_handler('deadly'), create_event_handler('deadly', 'one', owner => 'ann', batch_size => 20, max_attempts => 1)"
  )
{
	$node->safe_psql('postgres', "SELECT $change");
	$node->safe_psql('postgres', "SELECT notify_event('after')");
	wait_for_handlers($node, 'postgres');
	$node->safe_psql('postgres', "SELECT $change") if $change =~ /batch_size => 19|pause/;
	$node->restart;
	$node->safe_psql('postgres', "SELECT notify_event('after')");
	wait_for_handlers($node, 'postgres');
	is(in_log(qr/is guarded/, $offset), 0, "not guarded after $change");
}
seen_is_log($node, 'postgres', 'one', "event_name <> 'deaf'", 'changes');

# An executor that is terminated outside of a call is not lost, even if it is
# busy: here it waits for a lock to process a retry.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE mended (at timestamptz);
	GRANT SELECT ON mended TO bob;
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF NOT EXISTS (SELECT FROM public.mended) THEN
			RAISE 'failed';
		END IF;
	END $$;
	SELECT create_event_handler('failing', 'fail', 'fail', owner => 'bob', retry_delay => '100 ms', max_retry_delay => '100 ms');
));
$node->safe_psql('postgres', "SELECT notify_event('fail')");
wait_for("waiting = 1 FROM event_handler_stats WHERE handler = 'failing'");
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE _event_retries');
my $waiting = "FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' AND usename = 'bob' AND wait_event_type = 'Lock'";
wait_for("count(*) = 1 $waiting");
my $terminated = $node->safe_psql('postgres', "SELECT pid $waiting");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($terminated, 60000)");
$locker->query_safe('COMMIT');
$locker->quit;
$node->safe_psql('postgres', 'INSERT INTO mended VALUES (now())');
wait_for("delivered = 1 FROM event_handler_stats WHERE handler = 'failing'");
isnt(worker_pid($node, 'executor', 'postgres', 'bob'), $terminated, 'terminated while it waits');
is(in_log(qr/is guarded/, $offset), 0, 'that is no loss');
$node->safe_psql('postgres', "SELECT drop_event_handler('failing')");

# A process that is stopped by SIGSTOP past the timeout of its call is cancelled
# and not ended.  The call is retried again and again, as a timeout may come just
# before the signal.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION slow(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_lock_shared(1);
		PERFORM pg_advisory_unlock_shared(1);
	END $$;
	SELECT create_event_handler('slow', 'slow', 'slow', owner => 'bob', timeout => '2 s', max_attempts => 1000,
		retry_delay => '10 ms', max_retry_delay => '10 ms');
));
my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', "SELECT notify_event('slow')");
my $bob = worker_pid($node, 'executor', 'postgres', 'bob');
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
  or die 'is not called';
kill('STOP', $bob) or die "kill: $!";
usleep(4_500_000);
kill('CONT', $bob) or die "kill: $!";
wait_for("failed > 0 FROM event_handler_stats WHERE handler = 'slow'");
is($node->safe_psql('postgres', 'SELECT last_sqlstate FROM event_retries WHERE handler = $$slow$$'),
	'57014', 'a process that was stopped: the call is cancelled');
is(worker_pid($node, 'executor', 'postgres', 'bob'), $bob, 'and the process goes on');
$gate->quit;
$node->safe_psql('postgres', "SELECT drop_event_handler('slow')");
wait_for_handlers($node, 'postgres');
my $delivered = $node->safe_psql('postgres',
	"SELECT delivered FROM event_handler_stats WHERE handler = 'deadly'");

# After a crash the handler is guarded even if it was idle, until the events that
# were there have been handled.
$offset = log_size();
$node->stop('immediate');
$node->start;
$node->safe_psql('postgres', "SELECT notify_event('after')");
wait_for(
	"delivered = $delivered + 1 FROM event_handler_stats WHERE handler = 'deadly'");
is( in_log(qr/event handler "deadly" is guarded/, $offset),
	1, 'after a crash: guarded');
$node->safe_psql('postgres', "SELECT notify_event('after')");
wait_for(
	"delivered = $delivered + 2 FROM event_handler_stats WHERE handler = 'deadly'");
is(in_log(qr/event handler "deadly" goes on with whole batches/, $offset),
	1, 'until it is over');
$node->restart;
is( $node->safe_psql(
		'postgres',
		"SELECT owner_token, guarded_events, tried_upto FROM _event_handler_progress WHERE handler = 'deadly'"
	),
	'|0|',
	'and nothing is left of it');
seen_is_log($node, 'postgres', 'one', "event_name <> 'deaf'", 'guarded');

$node->stop;
done_testing();
