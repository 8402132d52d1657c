
# Executor slots pass from one owner to another even if a session holds or awaits
# a lock on the log of one database, and even if an executor does not stop when it
# is requested to. The work that waits for the lock goes on when the lock is
# released, and no handler is guarded.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('log_locks', 'log_statement = none', 'pg_notify_events.max_executors = 1');

$node->safe_psql('postgres', 'CREATE DATABASE locked');
$node->safe_psql('postgres', 'CREATE DATABASE other');
foreach my $database ('locked', 'other')
{
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	wait_for_listener($node, $database);
	make_recorder($node, $database);
	make_owner($node, $database, 'ann', 'bob', 'cat');
	$node->safe_psql(
		$database, q(
		CREATE FUNCTION slow(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.seen (handler, id) VALUES ('slow', e.id);
			PERFORM pg_advisory_xact_lock_shared(1);
		END $$;
		CREATE FUNCTION fail_first(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF nextval('public.tries') = 1 THEN RAISE 'first'; END IF;
			INSERT INTO public.seen (handler, id) VALUES ('fail_first', e.id);
		END $$;
		CREATE SEQUENCE tries;
		GRANT ALL ON SEQUENCE tries TO PUBLIC));
}

sub executor_of
{
	my ($role) = @_;

	return "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' AND usename = '$role'";
}

# An executor waits for the lock, or has timed out waiting for it.
sub wait_for_waiter
{
	my ($offset) = @_;

	ok($node->wait_for_log(qr/executor ERROR:  canceling statement due to lock timeout/, $offset), 'an executor has waited for the lock');
	return;
}

# While the log of database "locked" is locked, an event is handled in the other database.
sub other_goes_on
{
	my ($what) = @_;

	$node->safe_psql('other', q(SELECT notify_event('x', NULL::jsonb)));
	wait_for_handlers($node, 'other');
	seen_is_log($node, 'other', 'record', 'true', $what);
	return;
}

$node->safe_psql('other', q(SELECT create_event_handler('o', 'record', owner => 'bob')));
$node->safe_psql('locked', q(SELECT create_event_handler('h', 'record', 'x', owner => 'ann')));

my $lock = 'BEGIN; LOCK TABLE notification_events IN ACCESS EXCLUSIVE MODE';
my $holder = $node->background_psql('locked');
my $reader = $node->background_psql('locked');
$_->set_query_timer_restart for $holder, $reader;

#
# An idle executor, which reads its definitions
#

foreach my $queued (0, 1)
{
	my $what = $queued ? 'a lock that is waited for' : 'a lock';
	my $offset = -s $node->logfile;

	$node->safe_psql('locked', q(SELECT notify_event('x', NULL::jsonb)));
	wait_for_handlers($node, 'locked');
	$node->poll_query_until('postgres', executor_of('ann')) or die 'no executor';
	if ($queued)
	{
		$reader->query_safe('BEGIN; SELECT count(*) FROM notification_events');
		$holder->query_until(qr/waits/, "\\echo waits\n$lock;\n");
		$node->poll_query_until('postgres',
			q(SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')) or die 'not queued';
	}
	else
	{
		$holder->query_safe($lock);
	}
	$node->safe_psql('locked', q(SELECT alter_event_handler('h', batch_size => 10)));
	wait_for_waiter($offset);
	other_goes_on("$what: the other owner gets the place");
	$reader->query_safe('ROLLBACK') if $queued;
	$holder->query_safe('ROLLBACK');
	$node->safe_psql('locked', q(SELECT notify_event('x', NULL::jsonb)));
	wait_for_handlers($node, 'locked');
	seen_is_log($node, 'locked', 'record', 'true', "$what: and gives it back");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded/, "$what: nothing is in doubt");
}

#
# In the middle of many batches, and of retries
#

$node->safe_psql('locked', q(SELECT drop_event_handler('h'); DELETE FROM notification_events; TRUNCATE seen));
foreach my $function ('slow', 'fail_first')
{
	my $offset = -s $node->logfile;
	my $blocker = $node->background_psql('locked');

	$blocker->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql(
		'locked', qq(
		SELECT create_event_handler('h', '$function', '$function', owner => 'ann', batch_size => 1, retry_delay => '2 s');
		SELECT notify_event('$function', NULL::jsonb) FROM generate_series(1, 5)));
	if ($function eq 'slow')
	{
		$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
		  or die 'not called';
		# The lock request waits for the current batch, and the next batch waits for
		# the request.
		$holder->query_until(qr/waits/, "\\echo waits\n$lock;\n");
		$node->poll_query_until('postgres',
			q(SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')) or die 'not queued';
	}
	else
	{
		$node->poll_query_until('locked', q(SELECT count(*) = 1 FROM event_retries)) or die 'has not failed';
		$holder->query_safe($lock);
	}
	$blocker->query_safe('SELECT pg_advisory_unlock(1)');
	$node->wait_for_log(qr/executor ERROR:  canceling statement due to lock timeout/, $offset);
	other_goes_on("$function: the other owner gets the place");
	$holder->query_safe('ROLLBACK');
	wait_for_handlers($node, 'locked');
	$node->poll_query_until('locked', q(SELECT count(*) = 0 FROM event_retries)) or die 'not retried';
	seen_is_log($node, 'locked', $function, "event_name = '$function'", "$function: all go on when the lock is gone");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded/, "$function: nothing is in doubt");
	$node->safe_psql('locked', q(SELECT drop_event_handler('h')));
	$blocker->quit;
}

# No executor slot is wanted: executors wait, and go on at once.
$node->safe_psql('locked', q(SELECT create_event_handler('h', 'record', 'x', owner => 'ann'); DELETE FROM notification_events; TRUNCATE seen));
$node->safe_psql('locked', q(SELECT notify_event('x', NULL::jsonb)));
wait_for_handlers($node, 'locked');
my $offset = -s $node->logfile;
$holder->query_safe("$lock; INSERT INTO notification_events (event_name) VALUES ('x')");
$node->safe_psql('locked', q(SELECT alter_event_handler('h', batch_size => 10)));
wait_for_waiter($offset);
$holder->query_safe('COMMIT');
$node->poll_query_until('locked', q(SELECT count(*) = 2 FROM seen)) or die 'not handled';
seen_is_log($node, 'locked', 'record', 'true', 'a lock that nobody minds');

#
# An executor that does not stop
#

configure($node, max_executors => 2);
$node->safe_psql('other', q(SELECT create_event_handler('c', 'record', 'none', owner => 'cat')));
$node->safe_psql('other', q(SELECT notify_event('none', NULL::jsonb)));
wait_for_handlers($node, 'other');
$node->poll_query_until('postgres',
	q(SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')) or die 'not two executors';
# It does not matter which owners have the slots: the executor that has idled longest is
# suspended by SIGSTOP.
my ($stopped) = split(/\n/, $node->safe_psql('postgres',
	q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' ORDER BY state_change)));
kill('STOP', $stopped);
my @absent = grep { $node->safe_psql('postgres', executor_of($_)) eq 'f' } 'ann', 'bob', 'cat';
is(scalar @absent, 1, 'one owner has no executor');
my ($database, $name) = $absent[0] eq 'ann' ? ('locked', 'x') : ('other', 'none');
$node->safe_psql($database, qq(SELECT notify_event('$name', NULL::jsonb)));
ok($node->poll_query_until('postgres', executor_of($absent[0])), 'another one leaves instead');
kill('CONT', $stopped);
wait_for_handlers($node, $_) for 'locked', 'other';

$holder->quit;
$reader->quit;
done_testing();
