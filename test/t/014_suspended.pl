
# A handler that cannot run at all is suspended, and uses up no attempts.  It goes on
# by itself when the cause is fixed, whether its executor is running or not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('suspended', 'pg_notify_events.announce = off',
	"pg_notify_events.naptime = '200 ms'");

$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('postgres', 'REVOKE CONNECT ON DATABASE shop FROM PUBLIC');
$node->safe_psql('shop', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'shop');
make_owner($node, 'shop', 'ann', 'bob');
my $definition = $node->safe_psql('shop',
	q(SELECT pg_get_functiondef('record(notification_events)'::regprocedure)));
$node->safe_psql(
	'shop', q(
	GRANT CONNECT ON DATABASE shop TO ann;
	REVOKE EXECUTE ON FUNCTION record FROM PUBLIC;
	GRANT EXECUTE ON FUNCTION record TO ann;
	SELECT create_event_handler('record', 'record', owner => 'ann');
));

my @causes = (
	[
		'no LOGIN',
		'ALTER ROLE ann NOLOGIN',
		'ALTER ROLE ann LOGIN'
	],
	[
		'no CONNECT',
		'REVOKE CONNECT ON DATABASE shop FROM ann',
		'GRANT CONNECT ON DATABASE shop TO ann'
	],
	[
		'no SELECT',
		'REVOKE SELECT ON notification_events FROM ann',
		'GRANT SELECT ON notification_events TO ann'
	],
	[
		'no EXECUTE',
		'REVOKE EXECUTE ON FUNCTION record FROM ann',
		'GRANT EXECUTE ON FUNCTION record TO ann'
	],
	[
		'no function',
		'DROP FUNCTION record',
		"$definition; REVOKE EXECUTE ON FUNCTION record FROM PUBLIC; GRANT EXECUTE ON FUNCTION record TO ann"
	],
	[
		'function of another owner',
		'ALTER FUNCTION record OWNER TO bob',
		'ALTER FUNCTION record OWNER TO postgres; GRANT EXECUTE ON FUNCTION record TO ann'
	],
	[
		'strict function',
		'ALTER FUNCTION record STRICT',
		'ALTER FUNCTION record CALLED ON NULL INPUT'
	],
	[
		'superuser',
		'ALTER ROLE ann SUPERUSER; ALTER SYSTEM SET pg_notify_events.superuser_handlers = off; SELECT pg_reload_conf()',
		'ALTER SYSTEM RESET pg_notify_events.superuser_handlers; SELECT pg_reload_conf(); ALTER ROLE ann NOSUPERUSER'
	],);
my $delivered = 0;
my $stats = 'SELECT %s FROM event_handler_stats';

foreach my $present ('with', 'without')
{
	if ($present eq 'without')
	{
		$node->safe_psql(
			'postgres', q(
			ALTER SYSTEM SET pg_notify_events.executor_idle_timeout = '20 ms';
			SELECT pg_reload_conf();
		));
	}
	else
	{
		$node->safe_psql('shop', q(SELECT notify_event('warm-up')));
		$delivered++;
		wait_for_handlers($node, 'shop');
	}
	foreach my $cause (@causes)
	{
		my ($name, $break, $mend) = @$cause;

		$name = "$present an executor, $name";
		if ($present eq 'without')
		{
			$node->poll_query_until(
				'shop', q(
				SELECT count(*) = 0 FROM pg_stat_activity
				WHERE backend_type = 'pg_notify_events executor'))
			  or die "executor does not leave";
		}
		my $offset = -s $node->logfile;
		$node->safe_psql('shop', $break);
		ok( $node->poll_query_until(
				'shop', sprintf($stats, q(state = 'suspended' AND suspended_reason <> ''))),
			"$name: suspended");
		$node->safe_psql('shop', q(SELECT notify_event('waits')));
		$node->wait_for_log(
			qr/LOG:  event handler "record" is suspended: .*\n.*HINT:/, $offset);
		wait_for_handlers($node, 'shop');
		is($node->safe_psql('shop', sprintf($stats, 'delivered, failed, waiting, pending')),
			"$delivered|0|0|1", "$name: the event waits");
		$node->safe_psql('shop', $mend);
		$delivered++;
		ok( $node->poll_query_until(
				'shop', sprintf($stats, "delivered = $delivered AND state <> 'suspended'")),
			"$name: goes on by itself");
	}
}
seen_is_log($node, 'shop', 'record', 'true', 'nothing is lost');
is($node->safe_psql('shop', sprintf($stats, 'failed')),
	'0', 'nothing has failed');

# Its owner is renamed, or dropped.
$node->safe_psql('shop', q(ALTER ROLE ann RENAME TO annie; SELECT notify_event('renamed')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'owner renamed');
is($node->safe_psql('shop', sprintf($stats, 'owner')),
	'annie', 'owner renamed');
$node->safe_psql('shop', 'DROP OWNED BY annie; DROP ROLE annie');
$node->safe_psql('shop', q(SELECT notify_event('dropped')));
like(
	$node->safe_psql('shop', sprintf($stats, 'state, suspended_reason')),
	qr/^suspended\|the role that owned the handler, oid \d+, was dropped$/,
	'owner dropped');
$node->safe_psql('shop', q(GRANT CONNECT ON DATABASE shop TO bob; GRANT EXECUTE ON FUNCTION record TO bob));
$node->safe_psql('shop', q(SELECT alter_event_handler('record', owner => 'bob')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'another owner goes on');

$node->stop;
done_testing();
