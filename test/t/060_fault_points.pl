
# Fault points: the server or a process fails at chosen points of the code, once
# at each.  Afterwards every committed event has been handled exactly once.  Only
# builds made for this test have fault points (src/base/fault.c).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_server('faults', 'restart_after_crash = on');
my $faults = $node->data_dir . '/pg_notify_events.faults';

mkdir $faults or die "mkdir $faults: $!";
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');

# A handler whose seventh event fails the first time.
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE failures;
	GRANT ALL ON failures TO PUBLIC;
	CREATE FUNCTION once(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('once', e.id);
		IF e.event_name = 'event 7' AND nextval('public.failures') <= 2 THEN
			RAISE 'the first times it fails';
		END IF;
	END $$;
	CREATE FUNCTION all_at_once(e notification_events[]) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) SELECT 'array', id FROM unnest(e) $$;
));

# until_true(TEXT, SUB): calls SUB until it returns true, or dies
sub until_true
{
	my ($what, $answer) = @_;

	foreach (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if $answer->();
		usleep(10_000);
	}
	die "never: $what";
}

# wait_for(CONDITION): like poll_query_until, across crashes of the server
sub wait_for
{
	my ($condition) = @_;

	until_true(
		$condition,
		sub {
			my ($result, $stdout) =
			  $node->psql('postgres', "SELECT $condition");
			return defined $stdout && $stdout eq 't';
		});
	return;
}

# set_fault(PLACE, WHAT): WHAT happens to the next process that reaches PLACE
sub set_fault
{
	my ($place, $what) = @_;

	append_to_file("$faults/$place.new", $what);
	rename("$faults/$place.new", "$faults/$place") or die "rename: $!";
	return;
}

sub wait_for_hit
{
	my ($place) = @_;

	until_true("fault $place", sub { -e "$faults/$place.hit" });
	return;
}

sub end_fault
{
	my ($place) = @_;

	unlink("$faults/$place.hit") or die "unlink: $!";
	return;
}

sub start_over
{
	wait_for('true');
	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler(name) FROM event_handlers;
		TRUNCATE seen;
		DELETE FROM notification_events;
		SELECT setval('failures', 1, false);
		SELECT create_event_handler('once', 'once', owner => 'ann', batch_size => 5, retry_delay => '10 ms', max_retry_delay => '10 ms');
		SELECT create_event_handler('array', 'all_at_once', owner => 'ann', batch_size => 7);
		SELECT create_event_handler('record', 'record', owner => 'bob', ordered => true);
	));
	return;
}

# The server may crash before or after the statement: repeats it until all of its
# events are there.
sub emit
{
	until_true(
		'30 events',
		sub {
			my ($status, $count) =
			  $node->psql('postgres', 'SELECT count(*) FROM notification_events');
			return 0 if $status != 0;
			return 1 if $count == 30;
			$node->psql('postgres',
				"SELECT count(notify_event('event ' || i)) FROM generate_series(1, 30) i"
			);
			return 0;
		});
	return;
}

# all_is_well(NAME): a test that all events are delivered in the end, once each
sub all_is_well
{
	my ($name) = @_;

	wait_for('bool_and(delivered = 30 AND waiting = 0) FROM event_handler_stats');
	foreach my $handler ('once', 'array', 'record')
	{
		seen_is_log($node, 'postgres', $handler, 'true', "$name: $handler");
	}
	return;
}

# Fault points of the executor: after it has set its owner token, after it has
# read a window, before and after a call, after the commit, before it records a
# failure, and between the charge of an attempt and the attempt.
foreach my $place (
	'after-token', 'after-window-read', 'before-call',
	'after-call', 'after-commit', 'before-failure-commit',
	'after-charge')
{
	foreach my $what ('error', 'fatal', 'crash')
	{
		start_over();
		set_fault($place, $what);
		emit();
		wait_for_hit($place);
		all_is_well("$what at $place");
		end_fault($place);
	}
}

# An executor that stops still has to release its owner token.
foreach my $what ('error', 'fatal', 'crash')
{
	start_over();
	emit();
	all_is_well("before $what at before-release");
	set_fault('before-release', $what);
	$node->psql('postgres',
		q(SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
	);
	wait_for_hit('before-release');
	wait_for('true');
	$node->safe_psql('postgres', 'TRUNCATE seen; DELETE FROM notification_events');
	emit();
	wait_for('bool_and(delivered = 60 AND waiting = 0) FROM event_handler_stats');
	seen_is_log($node, 'postgres', $_, 'true', "$what at before-release: $_")
	  foreach ('once', 'array', 'record');
	end_fault('before-release');
}

# The listener fails after a look, the launcher before it starts an executor.
foreach my $what ('error', 'fatal', 'crash')
{
	start_over();
	set_fault('after-look', $what);
	emit();
	wait_for_hit('after-look');
	all_is_well("$what at after-look");
	end_fault('after-look');

	start_over();
	$node->safe_psql('postgres',
		q(SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
	);
	$node->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
	) or die "executors stay";
	set_fault('before-start', $what);
	emit();
	wait_for_hit('before-start');
	all_is_well("$what at before-start");
	end_fault('before-start');
}

# The writer is killed after its commit, before it wakes the workers.
start_over();
set_fault('before-ring', 'crash');
emit();
wait_for_hit('before-ring');
all_is_well('crash at before-ring');
end_fault('before-ring');

# The writer hangs there: the workers' poll finds the events without a wakeup.
start_over();
wait_for_handlers($node, 'postgres');
set_fault('before-ring', 'wait');
my ($stdout, $stderr) = ('', '');
my $writer = IPC::Run::start(
	[
		'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		"SELECT count(notify_event('event ' || i)) FROM generate_series(1, 30) i"
	],
	'>', \$stdout, '2>', \$stderr);
wait_for_hit('before-ring');
all_is_well('nobody rings');
end_fault('before-ring');
$writer->finish;
is("$stdout$stderr", "30\n", 'the writer has committed');

# An attempt has failed, and the handler is paused before the failure is recorded.
# The record says that the attempt has failed.
start_over();
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	CREATE FUNCTION fails(e notification_events) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it fails'; END $$;
	SELECT create_event_handler('fails', 'record', 'e', owner => 'ann', max_attempts => 1);
	SELECT notify_event('e');
));
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', q(SELECT alter_event_handler('fails', function => 'fails')));
set_fault('before-record', 'wait');
$node->safe_psql('postgres', q(SELECT replay_events('fails', 1)));
wait_for_hit('before-record');
$node->safe_psql('postgres', q(SELECT pause_event_handler('fails')));
end_fault('before-record');
wait_for('count(*) = 1 FROM event_retries WHERE last_error IS NOT NULL');
is($node->safe_psql('postgres', 'SELECT state, attempts, last_error FROM event_retries'),
	'dead|1|it fails', 'a failure is recorded though the handler was paused');

# A handler gets a new owner, whose executor is about to read its definitions.
# This executor must not go back to a position before what the executor of the
# former owner has done.
start_over();
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	SELECT create_event_handler('record', 'record', 'e', owner => 'ann');
	SELECT create_event_handler('own', 'record', 'own', owner => 'bob');
	SELECT notify_event('own'), notify_event('e');
));
wait_for('count(*) = 2 FROM seen');
wait_for_handlers($node, 'postgres');
my $ann = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($ann)");
wait_for("count(*) = 0 FROM pg_stat_activity WHERE pid = $ann");
set_fault('before-load', 'wait');
$node->safe_psql('postgres',
	q(SELECT create_event_handler('other', 'record', 'none', owner => 'bob')));
wait_for_hit('before-load');
$node->safe_psql('postgres', q(SELECT notify_event('e')));
wait_for('count(*) = 3 FROM seen');
set_fault('before-ring', 'wait');
my $giver = IPC::Run::start(
	[
		'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		q(SELECT alter_event_handler('record', owner => 'bob'))
	]);
wait_for_hit('before-ring');
# It has also read its next window when the change releases the handler.
$ann = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($ann)");
wait_for("count(*) = 0 FROM pg_stat_activity WHERE pid = $ann");
set_fault('after-window-read', 'wait');
end_fault('before-load');
wait_for_hit('after-window-read');
$node->safe_psql('postgres', q(SELECT notify_event('e')));
set_fault('after-window-read', 'wait');
end_fault('after-window-read');
wait_for_hit('after-window-read');
end_fault('before-ring');
$giver->finish;
end_fault('after-window-read');
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', 'true', 'a handler changes hands');

# A copied database is activated, and that fails before the commit.
foreach my $what ('error', 'crash')
{
	start_over();
	$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_notify_events.databases = copy; SELECT pg_reload_conf()');
	wait_for_no_workers($node, 'postgres');
	emit();
	$node->safe_psql('postgres', 'DROP DATABASE IF EXISTS copy');
	$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
	set_fault('activated', $what);
	$node->psql('copy', 'SELECT activate_events()');
	wait_for_hit('activated');
	wait_for('true');
	is( $node->safe_psql(
			'copy', 'SELECT string_agg(DISTINCT state, $$,$$) FROM event_handler_stats'
		),
		'dormant',
		"$what at activated: still dormant");
	is($node->safe_psql('copy', 'SELECT count(*) FROM seen'),
		'0', "$what at activated: nothing was called");
	end_fault('activated');
	is($node->safe_psql('copy', 'SELECT activate_events()'),
		'3', "$what at activated: and then woken");
	$node->poll_query_until('copy',
		'SELECT bool_and(delivered = 30 AND waiting = 0) FROM event_handler_stats'
	) or die "the copy does not work";
	seen_is_log($node, 'copy', $_, 'true', "$what at activated: $_")
	  foreach ('once', 'array', 'record');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_notify_events.databases; SELECT pg_reload_conf()');
	all_is_well("$what at activated: the original");
}

# The transaction that makes an event of a notification fails before its commit.
# The notification is not lost by that.  It is lost with its listener, and then
# it is counted as dropped.
start_over();
$node->safe_psql('postgres', q(SELECT listen_event_channel('bridged')));
wait_for(q(state = 'listening' FROM event_channel_stats));
set_fault('bridging', 'error');
$node->safe_psql('postgres', q(NOTIFY bridged, '1'));
wait_for_hit('bridging');
$node->safe_psql('postgres', q(NOTIFY bridged, '2'));
wait_for(q(count(*) >= 2 FROM notification_events WHERE event_name = 'bridged'));
end_fault('bridging');
is( $node->safe_psql('postgres',
		q(SELECT string_agg(event_data::text, ' ' ORDER BY id) FROM notification_events WHERE event_name = 'bridged')),
	'1 2', 'error at bridging: both become events, once and in order');
set_fault('bridging', 'fatal');
$node->safe_psql('postgres', q(NOTIFY bridged, '3'));
wait_for_hit('bridging');
end_fault('bridging');
wait_for(q(state = 'starting' FROM event_channel_stats));
wait_for(q(state = 'listening' FROM event_channel_stats));
is( $node->safe_psql('postgres', q(SELECT notifications, dropped FROM event_channel_stats)),
	'3|1', 'fatal at bridging: what the listener had is counted as dropped');
$node->safe_psql('postgres', q(NOTIFY bridged, '4'));
wait_for(q(count(*) >= 3 FROM notification_events WHERE event_name = 'bridged'));
is( $node->safe_psql('postgres',
		q(SELECT string_agg(event_data::text, ' ' ORDER BY id) FROM notification_events WHERE event_name = 'bridged')),
	'1 2 4', 'fatal at bridging: its successor goes on');

$node->stop;
done_testing();
