
# The cleanup of the session after a batch may have to wait for another session's
# lock: an object that is dropped with a temporary object need not be temporary.  A
# cancel ends that wait, and so do the handler's timeout and the end of the process.
# The batch stays committed, and no event is blamed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('discard', 'log_statement = none', 'pg_notify_events.max_executors = 1');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
# a temporary function's drop also drops the trigger on a table that uses it
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION hang(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('hang', e.id);
		IF e.event_name = 'bad' THEN
			CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
			CREATE TRIGGER t BEFORE UPDATE ON public.own FOR EACH ROW EXECUTE FUNCTION pg_temp.f();
		END IF;
	END $$;
	SET ROLE ann;
	CREATE TABLE own (a integer);
	RESET ROLE;
	SELECT create_event_handler('hang', 'hang', owner => 'ann', batch_size => 1, timeout => '1 s');
	SELECT create_event_handler('record', 'record', 'other', owner => 'bob');
));
my $client = $node->background_psql('postgres');

sub poll
{
	my ($sql, $what) = @_;

	return $node->poll_query_until('postgres', $sql) || die "never: $what";
}

# takes a lock that is compatible with CREATE TRIGGER, but not with DROP TRIGGER
sub hang
{
	$client->query_safe('BEGIN; LOCK TABLE own IN ACCESS SHARE MODE');
	$node->safe_psql('postgres',
		q(INSERT INTO notification_events (event_name) VALUES ('good'), ('bad'), ('good')));
	poll(
		q(SELECT count(*) = 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'own'::regclass
		AND backend_type = 'pg_notify_events executor'), 'the executor waits');
	return;
}

sub check_all
{
	my ($name) = @_;

	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'hang', 'true', "$name: each event once");
	seen_is_log($node, 'postgres', 'record', q(event_name = 'other'), "$name: other owners");
	is($node->safe_psql('postgres', 'SELECT sum(failed) FROM event_handler_stats'),
		'0', "$name: no event has failed");
	return;
}

# a cancel ends the wait
hang();
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($executor)");
$client->query_safe('COMMIT');
check_all('cancelled');

# the timeout ends it: the client keeps its lock, and the only executor slot is wanted
hang();
$node->safe_psql('postgres', q(SELECT notify_event('other')));
ok( $node->poll_query_until(
		'postgres', q(SELECT count(*) = 1 FROM seen WHERE handler = 'record')),
	'nobody keeps the only place for ever');
$client->query_safe('COMMIT');
check_all('timeout');

# the end of the process ends it: no event is blamed
my $offset = -s $node->logfile;
hang();
$executor = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($executor)");
$client->query_safe('COMMIT');
check_all('terminated');
isnt(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'terminated');
unlike(slurp_file($node->logfile, $offset), qr/is guarded/, 'that is no loss');

$client->quit;
$node->stop;
done_testing();
