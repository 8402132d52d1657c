
# Without shared_preload_libraries, the extension installs, records and announces
# events, and reports what does not work.  Once preloaded, it handles the events
# that were recorded in the meantime.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('load', "shared_preload_libraries = ''");
my ($status, $out, $err);

($status, $out, $err) =
  $node->psql('postgres', 'CREATE EXTENSION pg_notify_events');
is($status, 0, 'CREATE EXTENSION without preload');
like(
	$err,
	qr/WARNING:  pg_notify_events is not preloaded.*HINT:  .*"shared_preload_libraries"/s,
	'CREATE EXTENSION warns');

# Emit and announce.
($status, $out, $err) = $node->psql(
	'postgres', q(
	LISTEN event_notification;
	SELECT notify_event('by_function', '{"a": 1}');
	INSERT INTO notification_events (event_name) VALUES ('by_insert');
	BEGIN;
	SELECT notify_event('rolled_back');
	ROLLBACK;
));
is($err, '', 'events are recorded');
is_deeply(
	[ $out =~ /Asynchronous notification "event_notification" with payload "(.*?)"/g ],
	[ 'by_function', 'by_insert' ],
	'events are announced, and rolled back ones are not');
is( $node->safe_psql(
		'postgres', 'SELECT event_name, event_data FROM notification_events ORDER BY id'),
	"by_function|{\"a\": 1}\nby_insert|",
	'events are in the log');

# These functions need a worker.
foreach my $command (
	'CALL wait_for_event_handlers()',
	'SELECT reset_event_stats()')
{
	($status, $out, $err) = $node->psql('postgres', $command);
	is($status, 3, "$command fails");
	like(
		$err,
		qr/ERROR:  .* needs the background workers of pg_notify_events.*HINT:  .*"shared_preload_libraries"/s,
		"$command says why");
}
make_recorder($node, 'postgres');
($status, $out, $err) = $node->psql('postgres',
	q(SELECT create_event_handler('record', 'record', start_from => 'beginning')));
is($status, 0, 'create_event_handler works');
like($err, qr/WARNING:  .*preload.*HINT:/s, 'create_event_handler warns');

is($node->safe_psql('postgres', 'SELECT count(*) FROM event_worker_stats'),
	'0', 'no workers in event_worker_stats');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_stats'),
	'0', 'no figures in event_stats');
is( $node->safe_psql(
		'postgres', 'SELECT handler, delivered, pending, calls FROM event_handler_stats'),
	'record|0|2|0',
	'event_handler_stats shows what a handler would have to do');

# Once preloaded, the handler gets the events recorded before.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries',
	"'pg_notify_events'");
$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('preloaded')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', 'true', 'delivered once preloaded');
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'),
	'3', 'delivered all events');

# Without preload again: nothing breaks, and the extension can be dropped.
$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('after')));
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'),
	'3', 'nobody handles without preload');
$node->safe_psql('postgres', 'DROP EXTENSION pg_notify_events CASCADE');

$node->stop;
done_testing();
