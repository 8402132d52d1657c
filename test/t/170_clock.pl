
# The clock is set back and forth by an hour. Everything that is kept in memory goes on as
# if it had not been. Only what is kept in tables may come an hour late.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant HOUR => 3600;

# The test can set the clock of the server, but of no other program.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $clock = "$dir/clock";
my $ahead = 0;

sub set_clock
{
	my ($seconds) = @_;

	$ahead += $seconds;
	open(my $file, '+<', $clock) or die "$clock: $!";
	syswrite($file, pack('q', $ahead)) == 8 or die "$clock: $!";
	close($file);
	return;
}

append_to_file($clock, pack('q', 0));
system_or_bail('gcc', '-shared', '-fPIC', '-O2', '-o', "$dir/settable_clock.so",
	"$FindBin::RealBin/lib/settable_clock.c");

my $node;
{
	local $ENV{LD_PRELOAD} = preload("$dir/settable_clock.so");
	local $ENV{SETTABLE_CLOCK} = $clock;
	$node = new_server('clock', 'log_statement = none', 'pg_notify_events.max_executors = 4');
}

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob', 'cay', 'dan');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE trouble (a text);
	GRANT SELECT ON trouble TO PUBLIC;
	CREATE FUNCTION record_for_bob(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('bob', e.id); END $$;
	CREATE FUNCTION record_or_fail(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN
			IF EXISTS (SELECT FROM public.trouble) THEN RAISE disk_full; END IF;
			INSERT INTO public.seen (handler, id) VALUES ('cay', e.id);
		END $$;
	CREATE FUNCTION take_time(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN
			PERFORM pg_advisory_xact_lock(1);
			PERFORM pg_advisory_xact_lock(2);
			FOR i IN 1 .. (e.event_data->>'tenths')::int LOOP PERFORM pg_sleep(0.1); END LOOP;
			INSERT INTO public.seen (handler, id) VALUES ('dan', e.id);
		END $$;
	SELECT create_event_handler('ann', 'record', 'any', owner => 'ann');
	SELECT create_event_handler('bob', 'record_for_bob', 'for bob', owner => 'bob');
	SELECT create_event_handler('cay', 'record_or_fail', 'for cay', owner => 'cay');
	SELECT create_event_handler('dan', 'take_time', 'for dan', owner => 'dan', timeout => '15 s', max_attempts => 1);
	SELECT create_event_consumer('consumer', 'nothing');
	SELECT listen_event_channel('channel');
));
wait_for_listener($node, 'postgres');
my $session = $node->background_psql('postgres');

sub poll
{
	my ($sql, $what) = @_;

	ok($node->poll_query_until('postgres', $sql), $what);
	return;
}

sub emit
{
	my ($name, $data) = @_;

	return $node->safe_psql('postgres', defined $data ? "SELECT notify_event('$name', '$data')" : "SELECT notify_event('$name')");
}

sub is_handled
{
	my ($id, $what) = @_;

	poll("SELECT count(*) = 1 FROM seen WHERE id = $id", $what);
	return;
}

sub is_in_state
{
	my ($handler, $state) = @_;

	$node->poll_query_until('postgres', "SELECT state = '$state' FROM event_handler_stats WHERE handler = '$handler'")
	  or die "$handler is not $state";
	return;
}

sub check_all
{
	my ($shift, $how) = @_;

	# databases
	$node->safe_psql('postgres', 'CREATE DATABASE served');
	$node->safe_psql('served', 'CREATE EXTENSION pg_notify_events');
	wait_for_listener($node, 'served');
	set_clock($shift);
	is($node->safe_psql('postgres', q(SELECT abs(extract(epoch FROM clock_timestamp())) - ) . (time() + $ahead) . ' BETWEEN -60 AND 60'),
		't', "the clock is set $how");
	is($node->psql('postgres', 'CREATE DATABASE copy TEMPLATE served'), 0, "$how: a template");
	wait_for_listener($node, 'served');
	set_clock(-$shift);
	set_clock($shift);
	is($node->psql('postgres', 'ALTER DATABASE served RENAME TO renamed'), 0, "$how: another name");
	set_clock($shift);
	wait_for_listener($node, 'renamed');
	set_clock($shift);
	is($node->psql('postgres', 'DROP DATABASE renamed'), 0, "$how: dropped");
	is($node->psql('postgres', 'DROP DATABASE copy'), 0, "$how: the copy, too");

	# delivery, and announcements
	my $announced = $node->safe_psql('postgres', 'SELECT sum(announced) FROM event_stats') || 0;
	set_clock($shift);
	is_handled(emit('any'), "$how: an event is handled");
	poll("SELECT sum(announced) > $announced FROM event_stats", "$how: it is announced");

	# a handler that is mended
	$node->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION record_for_bob FROM PUBLIC');
	my $id = emit('for bob');
	is_in_state('bob', 'suspended');
	my $offset = -s $node->logfile;
	set_clock($shift);
	$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION record_for_bob TO PUBLIC');
	is_handled($id, "$how: a mended handler goes on");

	# an outage: a further event is the trial
	$node->safe_psql('postgres', 'INSERT INTO trouble VALUES (1)');
	emit('for cay');
	is_in_state('cay', 'backing off');
	set_clock($shift);
	$node->safe_psql('postgres', 'DELETE FROM trouble');
	is_handled(emit('for cay'), "$how: an outage ends");
	is_in_state('cay', 'ready');

	# a channel that is mended
	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION foreign_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
		CREATE TRIGGER foreign_one BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION foreign_trigger();
		NOTIFY channel, '1';
	));
	$node->poll_query_until('postgres', q(SELECT state <> 'listening' FROM event_channel_stats)) or die 'not suspended';
	set_clock($shift);
	$node->safe_psql('postgres', 'DROP TRIGGER foreign_one ON notification_events; DROP FUNCTION foreign_trigger()');
	poll(q(SELECT count(*) = 1 FROM notification_events WHERE event_name = 'channel'), "$how: a mended channel goes on");
	$node->safe_psql('postgres', q(DELETE FROM notification_events WHERE event_name = 'channel'));

	# workers that have failed and back off
	$node->safe_psql('postgres', 'ALTER TABLE _event_handler_progress RENAME TO away');
	$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) VALUES ('any')));
	poll(q(SELECT bool_and(state = 'backing off') AND count(*) > 1 FROM event_worker_stats
		WHERE database = 'postgres' AND (kind = 'listener' OR owner = 'ann')), "$how: workers back off");
	set_clock($shift);
	$node->safe_psql('postgres', 'ALTER TABLE away RENAME TO _event_handler_progress');
	is_handled(emit('any'), "$how: they go on");
	wait_for_listener($node, 'postgres');

	# An executor that is lost is started again.
	my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	set_clock($shift);
	is_handled(emit('any'), "$how: an executor is started again");

	# an executor that idles
	configure($node, executor_idle_timeout => "'1 s'");
	set_clock($shift);
	$id = emit('any');
	is_handled($id, "$how: an executor works");
	set_clock($shift);
	poll(q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind = 'executor'), "$how: it leaves when it has idled");
	configure($node, executor_idle_timeout => 0);

	# a client that waits
	$session->query_until(qr/begin/, "\\echo begin\nCALL wait_for_events('consumer', '2 s');\n\\echo end\n");
	set_clock($shift);
	$session->query_until(qr/end/, "\n");
	pass("$how: a client has waited");
	return;
}

# set_in_call(SECONDS, TENTHS): set the clock during a call, which then goes on for TENTHS
# tenths of a second; returns its event
sub set_in_call
{
	my ($seconds, $tenths) = @_;

	$session->query_safe('SELECT pg_advisory_lock(2)');
	my $id = emit('for dan', qq({"tenths": $tenths}));
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 1))
	  or die 'no call';
	set_clock($seconds);
	$session->query_safe('SELECT pg_advisory_unlock(2)');
	return $id;
}

check_all(-HOUR(), 'back');
check_all(HOUR(), 'forward');

# A call's timeout does not change.
my $id = set_in_call(-HOUR(), 36000);
poll("SELECT state = 'dead' AND last_error LIKE '%statement timeout' FROM event_retries WHERE event_id = $id",
	'back: a call ends at its timeout');
$id = set_in_call(HOUR(), 10);
wait_for_handlers($node, 'postgres');
is_handled($id, 'forward: and not before');
is($node->safe_psql('postgres', "SELECT count(*) FROM event_retries WHERE event_id = $id"), 0, 'forward: it has not failed');
$id = set_in_call(HOUR(), 36000);
poll("SELECT state = 'dead' AND last_error LIKE '%statement timeout' FROM event_retries WHERE event_id = $id",
	'forward: a call ends at its timeout');

$session->quit;
$node->stop;
done_testing();
