
# There are too few background worker slots: the log says so once, the start is
# tried again, and no event is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the launcher takes the only slot
my $node = new_server('slots', 'max_worker_processes = 1');
my $complaint =
  qr/LOG:  out of background worker slots for an? (?:listener|executor) of pg_notify_events\n.*HINT:  .*"max_worker_processes"/;

# returns how often the log has the complaint since that offset
sub complaints
{
	my ($offset) = @_;

	return scalar(() = slurp_file($node->logfile, $offset) =~ /$complaint/g);
}

# waits until the launcher has tried again, which it does every 5 s
sub wait_for_launcher
{
	my ($database, $times) = @_;
	my $wakeups =
	  $node->safe_psql($database, q(SELECT wakeups FROM event_worker_stats WHERE kind = 'launcher'));

	$node->poll_query_until($database,
		"SELECT wakeups >= $wakeups + $times FROM event_worker_stats WHERE kind = 'launcher'")
	  or die "the launcher does not try again";
	return;
}

# There is no slot for a listener.
$node->wait_for_log($complaint);
pass('no slot for a listener: LOG with a hint');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('no listener') FROM generate_series(1, 10);
));
wait_for_launcher('postgres', 1);
is(complaints(0), 1, 'tried again, logged once');
is( $node->safe_psql('postgres', 'SELECT delivered, pending FROM event_handler_stats'),
	'0|10', 'events wait');

# There is a slot for the listener, but none for an executor.
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '2');
my $offset = -s $node->logfile;
$node->restart;
wait_for_listener($node, 'postgres');
$node->safe_psql('postgres',
	q(SELECT notify_event('no executor') FROM generate_series(1, 10)));
$node->wait_for_log($complaint, $offset);
wait_for_launcher('postgres', 1);
is(complaints($offset), 1, 'no slot for an executor: logged once');
is( $node->safe_psql('postgres', 'SELECT delivered, pending FROM event_handler_stats'),
	'0|20', 'events wait');

# There is a slot for one more listener, and another database takes it.
$node->safe_psql('postgres', q(SELECT pause_event_handler('record')));
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '3');
$node->restart;
wait_for_listener($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'other');
$offset = -s $node->logfile;
$node->safe_psql('postgres', q(SELECT resume_event_handler('record')));
$node->wait_for_log($complaint, $offset);
is( $node->safe_psql('postgres', 'SELECT delivered, pending FROM event_handler_stats'),
	'0|20', 'another database has the slot: events wait');

# That slot becomes free.
$node->safe_psql('other', 'DROP EXTENSION pg_notify_events');
wait_for_handlers($node, 'postgres');
is(complaints($offset), 1, 'a slot becomes free: logged once');
seen_is_log($node, 'postgres', 'record', 'true', 'a slot becomes free');
is($node->safe_psql('postgres', 'SELECT delivered, pending FROM event_handler_stats'),
	'20|0', 'all events were handled');

$node->stop;
done_testing();
