
# Nothing waits for a poll.  With naptime at a minute, an event reaches its handler
# at once: on an idle server, after a restart, and from handler to handler.
#
# The test avoids what else would wake the workers: announcements, and
# wait_for_event_handlers().

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# far above the usual latency, far below the poll interval
my $limit = 5;
my $events = 0;
my $node = new_server(
	'latency',
	"pg_notify_events.naptime = '1min'",
	'pg_notify_events.announce = off');

# Wait until all events are recorded, and check how long the slowest one took.
sub check_latency
{
	my ($new, $name) = @_;

	$events += $new;
	$node->poll_query_until('postgres', 'SELECT count(*) FROM seen', $events)
	  or die "$name: not handled at all";
	my $slowest = $node->safe_psql(
		'postgres', qq(
		SELECT max(extract(epoch FROM at - created_at))
		FROM (SELECT s.at, e.created_at FROM seen s JOIN notification_events e USING (id)
			  ORDER BY id DESC LIMIT $new) AS s));
	cmp_ok($slowest, '<', $limit, "$name: $slowest s");
	return;
}

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
wait_for_listener($node, 'postgres');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', 'e*', owner => 'ann');
	CREATE TABLE items (item integer);
	CREATE TRIGGER items_notify AFTER INSERT ON items
		FOR EACH ROW EXECUTE FUNCTION notify_event('e_trigger');
));

# First there is no executor yet, then an idle one.
$node->safe_psql('postgres', q(SELECT notify_event('e_first')));
check_latency(1, 'first event');
foreach my $n (1 .. 20)
{
	$node->safe_psql('postgres', q(SELECT notify_event('e_again')));
	$events++;
	$node->poll_query_until('postgres', 'SELECT count(*) FROM seen', $events)
	  or die "event $n is not handled at all";
}
is( $node->safe_psql(
		'postgres', qq(
		SELECT count(*) FROM seen s JOIN notification_events e USING (id)
		WHERE s.at - e.created_at < '$limit s')),
	$events,
	'20 events in a row');

# All ways to record an event
$node->safe_psql('postgres',
	q(INSERT INTO notification_events (event_name) VALUES ('e_insert')));
check_latency(1, 'plain INSERT');
$node->safe_psql('postgres', q(INSERT INTO items VALUES (1)));
check_latency(1, 'trigger');
$node->safe_psql('postgres',
	q(COPY notification_events (event_name) FROM STDIN;
e_copy
\.
));
check_latency(1, 'COPY');
$node->safe_psql(
	'postgres', q(
	BEGIN;
	SAVEPOINT s;
	SELECT notify_event('e_undone');
	ROLLBACK TO s;
	SELECT notify_event('e_kept');
	COMMIT;
));
check_latency(1, 'transaction with a savepoint');
$node->safe_psql(
	'postgres', q(
	SET pg_notify_events.announce = direct;
	SELECT notify_event('e_announced');
));
check_latency(1, 'event that is announced');
$node->safe_psql(
	'postgres', q(
	DO $$ BEGIN
		FOR i IN 1 .. 5 LOOP
			PERFORM notify_event('e_do');
			COMMIT;
		END LOOP;
	END $$));
check_latency(5, 'procedure that commits');

# Definitions: a new handler that finds events waiting, and a resumed one
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('late', 'record', 'late', owner => 'bob', start_from => 'beginning');
	SELECT pause_event_handler('late');
	SELECT notify_event('late');
	SELECT resume_event_handler('late');
));
check_latency(1, 'resumed handler');
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('late');
	SELECT notify_event('late');
));
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('late', 'record', 'late', owner => 'bob', start_from => 'beginning')
));
$events++;
check_latency(1, 'new handler that starts from the beginning');

# From a handler to another one, of the same owner and of another owner
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION pass_on(event_name text, event_data jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.notify_event('e_passed_on');
		PERFORM public.notify_event('late');
	END $$;
	SELECT create_event_handler('pass_on', 'pass_on', 'start', owner => 'ann');
	SELECT notify_event('start');
));
check_latency(2, 'event of a handler');

# An executor has stopped.
$node->safe_psql(
	'postgres', q(
	ALTER SYSTEM SET pg_notify_events.executor_idle_timeout = '50 ms';
	SELECT pg_reload_conf();
));
$node->poll_query_until('postgres',
	q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
) or die "executors do not leave";
foreach my $n (1 .. 5)
{
	$node->safe_psql('postgres', q(SELECT notify_event('e_cold')));
	check_latency(1, "no executor, $n");
	$node->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
	) or die "executors do not leave";
}

# The server was down.
$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('e_restart')));
check_latency(1, 'first event after a restart');
$node->restart;
wait_for_listener($node, 'postgres');
$node->safe_psql('postgres', q(SELECT notify_event('e_restart')));
check_latency(1, 'first event when the listener waits already');

$node->stop;
done_testing();
