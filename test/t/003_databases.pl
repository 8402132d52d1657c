
# Databases are dropped, renamed, copied and switched off.  The workers do not block
# these commands, and go on to serve the databases that are to be served.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('databases');
my ($status, $out, $err);

# Create a served database with two handlers.  The first has run, so its executor
# idles there.  The second is paused and has an event pending.
sub make_database
{
	my ($database) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	make_recorder($node, $database);
	make_owner($node, $database, 'ann', 'bob');
	$node->safe_psql(
		$database, q(
		CREATE FUNCTION record_late(e notification_events[]) RETURNS void LANGUAGE sql AS
			$$ INSERT INTO public.seen (handler, id) SELECT 'late', id FROM unnest(e) $$;
		SELECT create_event_handler('record', 'record', owner => 'ann');
		SELECT create_event_handler('late', 'record_late', owner => 'bob');
		SELECT notify_event('first');
	));
	wait_for_handlers($node, $database);
	$node->safe_psql(
		$database, q(
		SELECT pause_event_handler('late');
		SELECT notify_event('second');
		SELECT notify_event('third');
	));
	wait_for_handlers($node, $database);
	is( $node->safe_psql(
			$database,
			'SELECT handler, count(*) FROM seen GROUP BY handler ORDER BY handler'),
		"late|1\nrecord|3",
		"handlers run in $database");
	return;
}

# Two databases with the same owner at once: each has its own workers.
make_database('shop');
make_database('lab');
is( $node->safe_psql(
		'postgres', q(
		SELECT datname, backend_type, usename FROM pg_stat_activity
		WHERE backend_type LIKE 'pg\_notify\_events %' ORDER BY datname, backend_type, usename)
	),
	join("\n",
		'lab|pg_notify_events executor|ann',
		'lab|pg_notify_events executor|bob',
		'lab|pg_notify_events listener|postgres',
		'shop|pg_notify_events executor|ann',
		'shop|pg_notify_events executor|bob',
		'shop|pg_notify_events listener|postgres',
		'|pg_notify_events launcher|postgres'),
	'workers of two databases');
is( $node->safe_psql(
		'lab', q(
		SELECT database, kind, owner, pid IS NOT NULL FROM event_worker_stats
		ORDER BY database, kind, owner)
	),
	join("\n",
		'lab|executor|ann|t',
		'lab|executor|bob|t',
		'lab|listener||t',
		'shop|executor|ann|t',
		'shop|executor|bob|t',
		'shop|listener||t',
		'|launcher||t'),
	'event_worker_stats shows the workers of the cluster');

# ALTER DATABASE RENAME
$node->safe_psql('postgres', 'ALTER DATABASE lab RENAME TO study');
pass('RENAME of a served database');
$node->safe_psql('study', q(SELECT notify_event('renamed')));
wait_for_handlers($node, 'study');
seen_is_log($node, 'study', 'record', 'true', 'under the new name');
wait_for_listener($node, 'study');

# CREATE DATABASE ... TEMPLATE
my $offset = -s $node->logfile;
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
pass('CREATE DATABASE with a served TEMPLATE');
my $listener = wait_for_listener($node, 'copy');
pass('the copy is served');
$node->wait_for_log(
	qr/\[$listener\] pg_notify_events listener WARNING:  event handler "record" is dormant/,
	$offset);
pass('the dormant handler is worth a WARNING');
is( $node->safe_psql(
		'copy', 'SELECT handler, state FROM event_handler_stats ORDER BY handler'),
	"late|dormant\nrecord|dormant",
	'handlers of a copy are dormant');
is( $node->safe_psql(
		'shop', 'SELECT handler, state FROM event_handler_stats ORDER BY handler'),
	"late|paused\nrecord|ready",
	'those of the original are not');

# Emit an event in each database; the handlers of the copy do not run.
$node->safe_psql('copy', q(SELECT notify_event('in the copy')));
$node->safe_psql('shop', q(SELECT notify_event('in the original')));
wait_for_handlers($node, 'copy');
wait_for_handlers($node, 'shop');
is( $node->safe_psql(
		'copy',
		'SELECT handler, count(*) FROM seen GROUP BY handler ORDER BY handler'),
	"late|1\nrecord|3",
	'a dormant handler is not called');
is(scalar(worker_pids($node, 'executor', 'copy')),
	0, 'nobody runs handlers in the copy');

($status, $out, $err) = $node->psql('copy', 'SELECT activate_events()',
	extra_params => [ '-U', 'ann' ]);
isnt($status, 0, 'activate_events() is not for everybody');
is($node->safe_psql('copy', 'SELECT activate_events()'),
	'2', 'activate_events() wakes both handlers');
$node->safe_psql('copy', q(SELECT notify_event('after activation')));
wait_for_handlers($node, 'copy');
seen_is_log($node, 'copy', 'record', 'true',
	'delivered stays delivered, the rest comes once');
is( $node->safe_psql(
		'copy', 'SELECT handler, state FROM event_handler_stats ORDER BY handler'),
	"late|paused\nrecord|ready",
	'a paused handler wakes up paused');
$node->safe_psql('copy', q(SELECT resume_event_handler('late')));
wait_for_handlers($node, 'copy');
seen_is_log($node, 'copy', 'late', 'true',
	'what was pending when the copy was made comes once');
is($node->safe_psql('copy', 'SELECT activate_events()'),
	'0', 'activate_events() once is enough');

$node->safe_psql('shop', q(SELECT resume_event_handler('late')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', $_, 'true', "original, handler $_")
  foreach qw(record late);
is($node->safe_psql('shop', 'SELECT count(*) FROM notification_events'),
	'4', 'the events of the copy are its own');

# DROP DATABASE, with idle executors and with a busy one
$node->safe_psql('postgres', 'DROP DATABASE study');
pass('DROP of a served database');
$node->safe_psql(
	'copy', q(
	CREATE FUNCTION snore(e notification_events) RETURNS void LANGUAGE sql AS
		$$ SELECT pg_sleep(1.5) $$;
	SELECT create_event_handler('snore', 'snore', owner => 'ann', batch_size => 1);
	SELECT notify_event('snore') FROM generate_series(1, 20);
));
$node->poll_query_until(
	'copy', q(
	SELECT state = 'running' FROM event_handler_stats WHERE handler = 'snore'))
  or die "handler does not run";
$node->safe_psql('postgres', 'DROP DATABASE copy');
pass('DROP of a database whose handler is running');
is($node->safe_psql('shop', 'SELECT DISTINCT database FROM event_worker_stats ORDER BY 1'),
	"shop\n", 'nothing is left of dropped databases');

# A new database that gets the name of a dropped one
make_database('study');

# pg_notify_events.enabled
sub set_and_reload
{
	my ($setting, $value) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET $setting = $value");
	$node->reload;
	return;
}

set_and_reload('pg_notify_events.enabled', 'off');
ok(wait_for_no_workers($node, $_), "enabled = off: no worker in $_")
  foreach qw(shop study);
is( $node->safe_psql('shop', 'SELECT kind, pid IS NOT NULL FROM event_worker_stats'),
	'launcher|t', 'enabled = off: only the launcher is left');
$node->safe_psql($_, q(SELECT notify_event('switched off')))
  foreach qw(shop study);
is( $node->safe_psql(
		'shop', q(SELECT pending FROM event_handler_stats WHERE handler = 'record')),
	'1', 'enabled = off: events wait');
set_and_reload('pg_notify_events.enabled', 'on');
foreach my $database (qw(shop study))
{
	wait_for_handlers($node, $database);
	seen_is_log($node, $database, 'record', 'true', "enabled again: $database");
}

# pg_notify_events.databases
set_and_reload('pg_notify_events.databases', q('"study", none_of_that_name'));
ok(wait_for_no_workers($node, 'shop'),
	'databases: those that are not named are left alone');
$node->safe_psql($_, q(SELECT notify_event('some are served')))
  foreach qw(shop study);
wait_for_handlers($node, 'study');
seen_is_log($node, 'study', 'record', 'true',
	'databases: the one that is named is served');
is( $node->safe_psql(
		'shop', q(SELECT pending FROM event_handler_stats WHERE handler = 'record')),
	'1', 'databases: events of the others wait');
set_and_reload('pg_notify_events.databases', q('*'));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'databases: all again');

# A database that accepts no connections is left alone, and served again later.
$node->safe_psql('postgres', 'ALTER DATABASE shop ALLOW_CONNECTIONS off');
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
ok(wait_for_no_workers($node, 'shop'),
	'workers leave a database that takes no connections');
$node->safe_psql('postgres', 'ALTER DATABASE shop ALLOW_CONNECTIONS on');
$node->safe_psql('shop', q(SELECT notify_event('connections again')));
$node->reload;
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'connections again');

# The counters of a dropped database make room for others: two databases with this
# many names do not fit.
my $names = 600;
my $record_names = "SELECT notify_event('name ' || n) FROM generate_series(1, $names) AS n";
my $room = 0;

foreach my $database ('early', 'late')
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	# In the second database this fails until the launcher has noticed that the first
	# one is gone.
	for my $attempt (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$node->safe_psql($database, 'SELECT reset_event_stats()');
		$node->safe_psql($database, $record_names);
		$node->poll_query_until($database, "SELECT sum(emitted) = $names FROM event_stats")
		  or die 'they are not seen';
		$room = $node->safe_psql($database, "SELECT count(*) = $names FROM event_stats") eq 't';
		last if $room;
	}
	ok($room, "$database: all names have figures");
	$node->safe_psql('postgres', "DROP DATABASE $database");
}

# Many databases: the workers serve all of them right after the server has started.
foreach my $n (1 .. 5)
{
	$node->safe_psql('postgres', "CREATE DATABASE many_$n");
	$node->safe_psql("many_$n", 'CREATE EXTENSION pg_notify_events');
}
$node->restart;
$node->poll_query_until(
	'shop', q(
	SELECT count(*) = 7 FROM event_worker_stats WHERE kind = 'listener' AND state = 'listening')
) or die "not all databases are served";
my $slowest = $node->safe_psql(
	'shop', q(
	SELECT max(extract(epoch FROM started_at - pg_postmaster_start_time()))
	FROM event_worker_stats WHERE kind = 'listener'));
cmp_ok($slowest, '<', 10,
	"seven databases are served right from the start ($slowest s)");

$node->stop;
done_testing();
