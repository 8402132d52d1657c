
# A handler without an executor, whose events are rare.  The listener does not look
# through all other events again and again: if there are many of them, it has an
# executor started that stores the handler's position.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('quiet', 'pg_notify_events.announce = off',
	"pg_notify_events.executor_idle_timeout = '50 ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
$node->safe_psql('postgres', q(SELECT create_event_handler('record', 'record', event_name => 'rare')));
my $start = $node->safe_psql('postgres', 'SELECT cursor FROM _event_handler_progress');

# few events: not worth an executor
$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) SELECT 'common' FROM generate_series(1, 100)));
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) SELECT 'common' FROM generate_series(1, 20000)));
ok( $node->poll_query_until(
		'postgres', qq(
		SELECT pg_visible_in_snapshot(e.txid, p.cursor)
		FROM _event_handler_progress p, (SELECT max(txid) AS txid FROM notification_events) e)),
	'the position is stored past many events of others');
isnt($node->safe_psql('postgres', 'SELECT cursor FROM _event_handler_progress'), $start, 'it moved');

# an event that comes after that is found
$node->safe_psql('postgres', q(SELECT notify_event('common'), notify_event('rare'), notify_event('common')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', q(event_name = 'rare'), 'the rare event');

$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('rare')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', q(event_name = 'rare'), 'and after a restart');

$node->stop;
done_testing();
