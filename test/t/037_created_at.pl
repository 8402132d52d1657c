
# Counters of events whose created_at was set by the user.  They are emitted like all
# others.  An event without a usable time has no latency.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('created_at', 'log_statement = none');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	INSERT INTO notification_events (event_name, created_at) VALUES
		('moved', now() - '1 year'::interval), ('none', NULL), ('never', 'infinity'), ('ever', '-infinity');
	INSERT INTO notification_events (event_name, created_at) VALUES ('marker', now() + '1 hour'::interval);
	INSERT INTO notification_events (id, event_name) VALUES (0, 'zero');
));
wait_for_handlers($node, 'postgres');
$node->poll_query_until('postgres', q(SELECT emitted = 1 FROM event_stats WHERE event_name = 'zero'))
  or die 'not counted';
is( $node->safe_psql('postgres', 'SELECT event_name, emitted, delivered FROM event_stats ORDER BY event_name'),
	join("\n", map { "$_|1|1" } qw(ever marker moved never none zero)),
	'all are emitted, once, as they are delivered');

# events with a normal latency, and events without a time
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('record');
	SELECT create_event_handler('record', 'record', owner => 'ann');
	INSERT INTO notification_events (event_name) SELECT 'now' FROM generate_series(1, 20);
	INSERT INTO notification_events (event_name, created_at) VALUES ('none', NULL), ('ever', '-infinity');
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql('postgres', 'SELECT latency_p99 < 3600000 FROM event_handler_stats'),
	't', 'no latency of events without a time');

# last_event_id can be any id, even 0
$node->safe_psql('postgres',
	q(DELETE FROM notification_events; INSERT INTO notification_events (id, event_name) VALUES (0, 'zero')));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT last_event_id FROM event_handler_stats'), '0', 'id 0');

$node->stop;
done_testing();
