
# A table or an index of the extension is missing for a moment: executors wait, say so,
# and go on. A worker that stops in good order at such a moment, or while the rows are
# locked, leaves nothing behind that would make the next one work guarded.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('not_found', "pg_notify_events.naptime = '200 ms'",
	"pg_notify_events.executor_idle_timeout = '1 h'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql('postgres', q(SELECT create_event_handler('h', 'record', owner => 'ann')));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# an executor that has handled an event and is idle
sub idle_executor
{
	$node->safe_psql('postgres', q(SELECT notify_event('e', null)));
	wait_for_handlers($node, 'postgres');
	poll(q(SELECT count(*) = 1 FROM event_worker_stats WHERE kind = 'executor' AND state = 'idle'), 'idle');
	return worker_pid($node, 'executor', 'postgres', 'ann');
}

sub wait_for_end
{
	my ($pid) = @_;

	poll("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid", 'the executor ends');
	return;
}

# The database is no longer to be served, and then is again.
sub be_dismissed
{
	my ($pid) = @_;

	configure($node, databases => "'nowhere'");
	wait_for_end($pid);
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_notify_events.databases');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return;
}

sub be_terminated
{
	my ($pid) = @_;

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
	wait_for_end($pid);
	return;
}

my $index = $node->safe_psql('postgres',
	q(SELECT pg_get_indexdef('notification_events_txid_idx'::regclass)));
my %absent = (
	'no index on txid' => [ 'DROP INDEX notification_events_txid_idx', $index ],
	'renamed index' => [
		'ALTER INDEX notification_events_txid_idx RENAME TO renamed',
		'ALTER INDEX renamed RENAME TO notification_events_txid_idx' ],
	'renamed log' => [
		'ALTER TABLE notification_events RENAME TO renamed',
		'ALTER TABLE renamed RENAME TO notification_events' ],
	# The log's definition changes as well, so that all workers look again.
	'table that is no member of the extension' => [
		'ALTER EXTENSION pg_notify_events DROP TABLE _event_announcer; ALTER TABLE notification_events SET (autovacuum_enabled = off)',
		'ALTER EXTENSION pg_notify_events ADD TABLE _event_announcer' ],
);
my %leave = ('dismissed' => \&be_dismissed, 'terminated' => \&be_terminated);

foreach my $what (sort keys %absent)
{
	my ($take, $give) = @{ $absent{$what} };

	foreach my $how (sort keys %leave)
	{
		my $offset = -s $node->logfile;
		my $pid = idle_executor();

		$node->safe_psql('postgres', $take);
		$leave{$how}->($pid);
		$node->safe_psql('postgres', $give);
		isnt(idle_executor(), $pid, "$what, $how: the next one");
		unlike(slurp_file($node->logfile, $offset), qr/is guarded/, "$what, $how: not guarded");
	}
}

# An executor that has something to do meanwhile waits.
foreach my $what ('no index on txid', 'table that is no member of the extension')
{
	my ($take, $give) = @{ $absent{$what} };
	my $offset = -s $node->logfile;
	my $pid = idle_executor();

	# The rows exist already, but cannot be seen yet.
	$node->safe_psql('postgres', "BEGIN; SELECT notify_event('e', null); $take; COMMIT");
	poll(qq(SELECT count(*) = 1 FROM event_worker_stats WHERE kind = '$_' AND state = 'backing off' AND last_error <> ''),
		"$what: the $_ says what it waits for")
	  foreach qw(executor listener);
	is(worker_pid($node, 'executor', 'postgres', 'ann'), $pid, "$what: the executor stays");
	$node->safe_psql('postgres', $give);
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'record', 'true', "$what: it goes on");
	is(worker_pid($node, 'executor', 'postgres', 'ann'), $pid, "$what: and is the same");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded/, "$what: not guarded");
}

# Another session has locked the rows.
my $session = $node->background_psql('postgres');
foreach my $how (sort keys %leave)
{
	my $offset = -s $node->logfile;
	my $pid = idle_executor();
	$session->query_safe('BEGIN; SELECT FROM _event_handler_progress FOR UPDATE');
	$leave{$how}->($pid);
	$session->query_safe('COMMIT');
	isnt(idle_executor(), $pid, "locked row, $how: the next one");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded/, "locked row, $how: not guarded");
}

# An executor that is terminated in a call counts as lost, whatever others have
# recorded before.
my $offset = -s $node->logfile;
$node->safe_psql('postgres', q(
	CREATE OR REPLACE FUNCTION record(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN
			PERFORM pg_advisory_xact_lock_shared(1);
			INSERT INTO public.seen (handler, id) VALUES ('record', e.id);
		END $$));
$session->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', q(SELECT notify_event('e', null)));
poll(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 'the call waits');
my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
$session->query_safe('SELECT pg_advisory_unlock(1)');
wait_for_handlers($node, 'postgres');
like(slurp_file($node->logfile, $offset), qr/is guarded/, 'ended in a call: guarded');
seen_is_log($node, 'postgres', 'record', 'true', 'each event once');

$session->quit;
$node->stop;
done_testing();
