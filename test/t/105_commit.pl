
# A commit that waits for a standby or for the disk is final.  Neither a handler's
# timeout nor a cancel ends the wait, and no event is blamed for it.  Before the
# commit, the timeout limits the deferred triggers and the wait for the lock that
# NOTIFY takes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the library blocks flushes of the WAL while the file "held" exists
my $library = "$PostgreSQL::Test::Utils::tmp_check/held_flush.so";
my $held = "$PostgreSQL::Test::Utils::tmp_check/held";
system_or_bail('gcc', '-shared', '-fPIC', '-O1', '-D_GNU_SOURCE', '-o', $library,
	"$FindBin::RealBin/lib/held_flush.c");

# Workers commit as the server is configured, and wait for the standby.  The
# test's own sessions do not.
$ENV{PGOPTIONS} = '-c synchronous_commit=off';
my $node;
{
	local $ENV{LD_PRELOAD} = preload($library);
	local $ENV{HELD_FLUSH} = $held;

	$node = new_server(
		'commit', 'log_statement = none', 'fsync = on', 'wal_sync_method = fdatasync', 'wal_level = replica', 'max_wal_senders = 2',
		'pg_notify_events.synchronous_commit = on');
}

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE waits ();
	CREATE TABLE deferred (name text);
	GRANT INSERT ON deferred TO PUBLIC;
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.name = 'slow at commit' THEN
			PERFORM pg_sleep(600);
		END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION at_commit();
	CREATE FUNCTION work(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('work', e.id);
		INSERT INTO public.deferred VALUES (e.event_name);
		IF e.event_name = 'makes temporary tables' THEN
			CREATE TEMPORARY TABLE temporary AS SELECT 1;
		ELSIF e.event_name = 'notifies' THEN
			PERFORM pg_notify('elsewhere', 'x');
		ELSIF e.event_name = 'fails' THEN
			RAISE 'failed';
		END IF;
	END $$;
	SELECT create_event_handler('work', 'work', owner => 'ann', timeout => '200 ms',
		retry_delay => '10 ms', max_attempts => 2);
	SELECT listen_event_channel('bridge', 'bridged');
));
wait_for_listener($node, 'postgres');

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

sub emit
{
	my ($name) = @_;

	return $node->safe_psql('postgres', "SELECT notify_event('$name')");
}

# hold_commits(HOW), let_commits_go(HOW): commits wait for a standby that is
# absent, or for the disk
sub hold_commits
{
	my ($how) = @_;

	if ($how eq 'disk')
	{
		append_to_file($held, '');
		return;
	}
	$node->safe_psql('postgres', q(ALTER SYSTEM SET synchronous_standby_names = 'nobody'));
	$node->reload;
	poll(q(SELECT current_setting('synchronous_standby_names') = 'nobody'), 'the setting');
	# The checkpointer tells the other processes.  Only then do commits wait.
	my $client = $node->background_psql('postgres');
	my $pid = $client->query_safe('SELECT pg_backend_pid()');
	$client->query_safe('SET synchronous_commit = on');
	$client->query_until(qr/begins/, "\\echo begins\nINSERT INTO waits DEFAULT VALUES;\n");
	poll("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid", 'commits wait');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	$client->quit;
	return;
}

sub let_commits_go
{
	my ($how) = @_;

	if ($how eq 'disk')
	{
		unlink($held) or die "$held: $!";
		return;
	}
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	return;
}

# wait_for_commit(PID, HOW, TIME): waits until the process waits in its commit and
# its transaction is older than TIME
sub wait_for_commit
{
	my ($pid, $how, $time) = @_;
	my $event = $how eq 'disk' ? q(IN ('WALSync', 'WALWrite')) : q(= 'SyncRep');

	poll(
		qq(SELECT wait_event $event AND clock_timestamp() - xact_start > '$time'
		FROM pg_stat_activity WHERE pid = $pid), "a commit that waits for the $how");
	return;
}

sub log_since
{
	my ($offset) = @_;

	return slurp_file($node->logfile, $offset);
}

# what no worker may log
my $blame =
  qr/pg_notify_events \w+ .*(?:canceling (?:the )?wait for synchronous replication|is guarded|was lost|terminating)/;

# a first event, before anything is held
emit('first');
wait_for_handlers($node, 'postgres');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');

foreach my $how (qw(standby disk))
{
	# A commit is also flushed, unasked, in a session that makes temporary tables.
	foreach my $name ('good', 'makes temporary tables')
	{
		my $offset = -s $node->logfile;

		hold_commits($how);
		emit($name);
		# long enough for the process to be ended, if the call were the cause
		wait_for_commit($executor, $how, '2.5 s');
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($executor)");
		wait_for_commit($executor, $how, '3 s');
		let_commits_go($how);
		wait_for_handlers($node, 'postgres');
		seen_is_log($node, 'postgres', 'work', 'true', "$how, $name");
		is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, "$how, $name: the same executor");
		is($node->safe_psql('postgres', q(SELECT count(*) FROM event_retries WHERE state <> 'discarded')),
			0, "$how, $name: no failure");
		unlike(log_since($offset), $blame, "$how, $name: no wait was cut short, nobody is to blame");
	}

	# The commit that records a failed attempt waits, too.
	my $offset = -s $node->logfile;
	hold_commits($how);
	emit('fails');
	wait_for_commit($executor, $how, '1 s');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($executor)");
	wait_for_commit($executor, $how, '1.5 s');
	let_commits_go($how);
	poll(q(SELECT count(*) = 1 FROM event_retries WHERE state = 'dead'), 'the event is dead');
	unlike(log_since($offset), $blame, "$how: the record of a failure");
	$node->safe_psql('postgres', q(SELECT discard_dead_events('work');
		DELETE FROM notification_events WHERE event_name = 'fails'));
}

# The listener waits for no standby: meanwhile it could not read notifications.
hold_commits('standby');
$node->safe_psql('postgres', q(NOTIFY bridge, '1'));
poll(q(SELECT count(*) = 1 FROM notification_events WHERE event_name = 'bridged'), 'it is an event');
let_commits_go('standby');
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'work', 'true', 'bridged');

# An executor that is terminated in this wait has done its work: no event is the
# cause.
{
	my $offset = -s $node->logfile;
	hold_commits('standby');
	emit('good');
	wait_for_commit($executor, 'standby', '0.5 s');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($executor, 60000)");
	let_commits_go('standby');
	emit('good');
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'work', 'true', 'terminated in a commit');
	unlike(log_since($offset), qr/is guarded/, 'nobody is blamed');
	$executor = worker_pid($node, 'executor', 'postgres', 'ann');
}

# Before the commit record is written, the timeout holds for deferred triggers
emit('slow at commit');
poll(q(SELECT count(*) = 1 FROM event_retries WHERE state = 'dead' AND last_sqlstate = '57014'),
	'the timeout of a deferred trigger');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'the same executor');

# and for the lock that NOTIFY takes: its holder waits for the standby.  No event
# is charged for that.
configure($node, synchronous_commit => 'off');
poll(q(SELECT current_setting('pg_notify_events.synchronous_commit') = 'off'), 'the setting');
emit('good');
wait_for_handlers($node, 'postgres');
hold_commits('standby');

# An executor whose setting is "off" does not wait for the standby.
emit('makes temporary tables');
emit('good');
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'work', q(event_name <> 'slow at commit'), 'no wait where none is asked for');

my $client = $node->background_psql('postgres');
my $client_pid = $client->query_safe('SELECT pg_backend_pid()');
$client->query_until(qr/begins/, q(\echo begins
SET synchronous_commit = on;
BEGIN;
INSERT INTO waits DEFAULT VALUES;
NOTIFY elsewhere;
COMMIT;
));
poll("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $client_pid", 'it has the lock');
my $offset = -s $node->logfile;
my $notifies = emit('notifies');
poll("SELECT count(*) = 1 FROM event_retries WHERE event_id = $notifies AND last_sqlstate = '55P03'",
	'the lock is not waited for any longer');
let_commits_go('standby');
emit('good');
poll(qq(SELECT count(*) = 0 FROM event_retries WHERE event_id = $notifies), 'a retry succeeds');
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'work', q(event_name <> 'slow at commit'), 'all others');
like(log_since($offset), qr/backs off after event $notifies failed/, 'that is a back-off');
unlike(log_since($offset), qr/failed for event $notifies/, 'which the event is not charged for');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'the same executor');

$client->quit;
$node->stop;
done_testing();
