
# Two-phase commit: an event of a prepared transaction is handled when COMMIT
# PREPARED makes it visible, also if other events were handled before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'prepared',
	'max_prepared_transactions = 10');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE orders (n integer);
	CREATE TRIGGER orders_notify AFTER INSERT ON orders
		FOR EACH ROW EXECUTE FUNCTION notify_event('order');
	SELECT create_event_handler('record', 'record', owner => 'ann');
));

# prepares a transaction that records two events
sub prepare
{
	my ($name) = @_;

	$node->safe_psql(
		'postgres', qq(
		BEGIN;
		SELECT notify_event('in $name');
		INSERT INTO orders VALUES (1);
		PREPARE TRANSACTION '$name';
	));
	return;
}

sub seen
{
	return $node->safe_psql('postgres', 'SELECT count(*) FROM seen');
}

prepare($_) foreach qw(first second undone);
$node->safe_psql('postgres', q(SELECT notify_event('meanwhile')));
wait_for_handlers($node, 'postgres');
is(seen(), '1', 'events of prepared transactions are not handled');

$node->safe_psql('postgres', q(ROLLBACK PREPARED 'undone'));
my $committed_at = $node->safe_psql('postgres',
	q(COMMIT PREPARED 'second'; SELECT clock_timestamp()));
$node->poll_query_until('postgres', 'SELECT count(*) = 3 FROM seen')
  or die "not handled at all";
my $taken = $node->safe_psql('postgres',
	"SELECT extract(epoch FROM max(at) - '$committed_at') FROM seen");
cmp_ok($taken, '<', 5,
	"COMMIT PREPARED: handled within naptime, nobody asks for it ($taken s)");
wait_for_handlers($node, 'postgres');
is(seen(), '3', 'ROLLBACK PREPARED: gone');

# The same if the listener looks for another reason: an executor that stops wakes
# the listener, but does not wake the other executor.
make_owner($node, 'postgres', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION ignore(e notification_events) RETURNS void LANGUAGE sql AS 'SELECT';
	SELECT create_event_handler('of_bob', 'ignore', 'bob', owner => 'bob');
	SELECT notify_event('bob');
));
wait_for_handlers($node, 'postgres');
worker_pid($node, 'executor', 'postgres', 'bob');
prepare('fourth');
$committed_at = $node->safe_psql(
	'postgres', q(
	COMMIT PREPARED 'fourth';
	SELECT clock_timestamp() FROM pg_stat_activity,
		LATERAL (SELECT pg_terminate_backend(pid)) AS t
		WHERE backend_type = 'pg_notify_events executor' AND usename = 'bob';
));
$node->poll_query_until('postgres', 'SELECT count(*) = 6 FROM seen')
  or die "not handled at all";
$taken = $node->safe_psql('postgres',
	"SELECT extract(epoch FROM max(at) - '$committed_at') FROM seen");
cmp_ok($taken, '<', 5,
	"COMMIT PREPARED while an executor leaves: within naptime ($taken s)");

# One transaction stays prepared while the server restarts.
prepare('third');
$node->safe_psql('postgres', q(SELECT notify_event('meanwhile')));
$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('meanwhile')));
wait_for_handlers($node, 'postgres');
is(seen(), '8', 'others are handled across a restart');
$node->safe_psql('postgres', q(COMMIT PREPARED 'first'));
wait_for_handlers($node, 'postgres');
is(seen(), '10', 'prepared before and committed after a restart');

# One transaction stays prepared while the server crashes.
$node->stop('immediate');
$node->start;
$node->safe_psql('postgres', q(COMMIT PREPARED 'third'));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', 'true', 'all of them in the end');
is(seen(), '12', 'none is left');

# PostgreSQL refuses to prepare a transaction that has executed NOTIFY itself.
my ($status, $out, $err) = $node->psql(
	'postgres', q(
	SET pg_notify_events.announce = direct;
	BEGIN;
	SELECT notify_event('direct');
	PREPARE TRANSACTION 'direct';
));
like(
	$err,
	qr/cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY/,
	'announce = direct');

$node->stop;
done_testing();
