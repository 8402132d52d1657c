
# Executors: which role owns their sessions, what the server shows of them, and how
# owners take turns if there are more of them than max_executors.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'executors',
	'pg_notify_events.max_executors = 2',
	'log_statement = none');
my @owners = qw(ann bob carl dora ed);

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', @owners);
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION record_as_me(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) VALUES (session_user, e.id) $$;
	CREATE FUNCTION sometimes(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN
			IF NOT EXISTS (SELECT FROM public.event_retries WHERE event_id = e.id) THEN
				RAISE 'not yet';
			END IF;
		END $$;
));

# five owners, two executor slots
$node->safe_psql('postgres',
	"SELECT create_event_handler('of_$_', 'record_as_me', owner => '$_')")
  foreach @owners;
my $most = 0;
foreach my $round (1 .. 3)
{
	$node->safe_psql('postgres',
		"SELECT notify_event('round $round') FROM generate_series(1, 20)");
	my $done;
	do
	{
		my $result = $node->safe_psql(
			'postgres', q(
			SELECT (SELECT count(*) FROM pg_stat_activity
					WHERE backend_type = 'pg_notify_events executor'),
				   (SELECT sum(pending) = 0 FROM event_handler_stats)));
		my $running;
		($running, $done) = split(/\|/, $result);
		$most = $running if $running > $most;
	} until $done eq 't';
}
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', $_, 'true', "five owners, two places: $_")
  foreach @owners;
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'),
	'300', 'all events of all owners were handled');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM seen WHERE by_role <> handler'),
	'0', 'each by its owner');
is($most, 2, 'never more executors than places');
my $longest = $node->safe_psql('postgres',
	'SELECT max(extract(epoch FROM s.at - e.created_at)) FROM seen s JOIN notification_events e USING (id)'
);
cmp_ok($longest, '<', 4,
	"nobody waits for a place that somebody idles on ($longest s)");

# What the server shows.
is( $node->safe_psql(
		'postgres', q(
		SELECT DISTINCT backend_type, datname, wait_event_type
		FROM pg_stat_activity WHERE backend_type LIKE 'pg\_notify\_events %'
		ORDER BY backend_type)
	),
	join("\n",
		'pg_notify_events executor|postgres|Extension',
		'pg_notify_events launcher||Extension',
		'pg_notify_events listener|postgres|Extension'),
	'pg_stat_activity shows the workers');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM pg_stat_activity a JOIN event_worker_stats w USING (pid)
		WHERE a.backend_type = 'pg_notify_events ' || w.kind
		AND a.datname IS NOT DISTINCT FROM w.database
		AND (w.kind <> 'executor' OR a.usename = w.owner)
		AND w.state IN ('idle', 'listening') AND a.state = 'idle' AND a.query <> '')),
	'4',
	'event_worker_stats agrees');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('sometimes', 'sometimes', owner => 'ann', retry_delay => '50 ms');
	SELECT notify_event('fails once');
));
$node->poll_query_until('postgres',
	q(SELECT delivered = 1 FROM event_handler_stats WHERE handler = 'sometimes'));
$node->poll_query_until(
	'postgres', q(
	SELECT count(*) = 4 FROM pg_stat_user_tables
	WHERE relname = 'notification_events' AND n_tup_ins = 61
	OR relname = '_event_handler_progress' AND n_tup_upd >= 15
	OR relname = '_event_handler_failures' AND n_tup_ins = 1
	OR relname = '_event_retries' AND n_tup_ins = 1 AND n_tup_del = 1));
is( $node->safe_psql(
		'postgres', q(
		SELECT relname, n_tup_ins, n_tup_upd >= 15, n_tup_del FROM pg_stat_user_tables
		WHERE n_tup_ins > 0 AND relname ~ 'event' ORDER BY relname COLLATE "C")
	),
	join("\n",
		'_event_announcer|1|f|0',
		'_event_handler_failures|1|f|0',
		'_event_handler_progress|6|t|0',
		'_event_handlers|6|f|0',
		'_event_install|1|f|0',
		'_event_retries|1|f|1',
		'notification_events|61|f|0'),
	'autovacuum can see what happens to the tables');

# A busy executor gives way once another owner has waited for 5 s, and goes on
# later.  There is one executor slot; ann is busy for 8 s, bob has one event.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	TRUNCATE seen;
	ALTER SYSTEM SET pg_notify_events.max_executors = 1;
));
# the restart makes sure that bob's earlier executor is gone
$node->restart;
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION slow(e notification_events) RETURNS void LANGUAGE sql AS $$
		INSERT INTO public.seen (handler, id) VALUES ('slow', e.id);
		SELECT pg_sleep(0.2);
	$$;
	SELECT create_event_handler('slow', 'slow', 'slow', owner => 'ann', batch_size => 1);
	SELECT create_event_handler('quick', 'record', 'quick', owner => 'bob');
	SELECT notify_event('slow') FROM generate_series(1, 40);
));
$node->poll_query_until('postgres',
	q(SELECT count(*) > 0 FROM seen WHERE handler = 'slow'));
$node->safe_psql('postgres', q(SELECT notify_event('quick')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'slow', q(event_name = 'slow'),
	'the busy owner loses nothing');
seen_is_log($node, 'postgres', 'record', q(event_name = 'quick'),
	'the waiting owner gets its turn');
my $waited = $node->safe_psql(
	'postgres', q(
	SELECT extract(epoch FROM s.at - e.created_at)
	FROM seen s JOIN notification_events e USING (id) WHERE handler = 'record'));
cmp_ok($waited, '>', 4.9, "a busy executor has its grace ($waited s)");
is( $node->safe_psql(
		'postgres', q(
		SELECT max(s.at) > (SELECT q.at FROM seen q WHERE q.handler = 'record')
		FROM seen s WHERE handler = 'slow')),
	't',
	'and gives way before it is through');

# An idle executor gives way at once.
$node->safe_psql('postgres', q(SELECT notify_event('quick')));
$node->poll_query_until('postgres',
	q(SELECT count(*) = 2 FROM seen WHERE handler = 'record'));
$waited = $node->safe_psql(
	'postgres', q(
	SELECT extract(epoch FROM s.at - e.created_at)
	FROM seen s JOIN notification_events e USING (id) WHERE handler = 'record'
	ORDER BY id DESC LIMIT 1));
cmp_ok($waited, '<', 4, "an idle executor leaves at once ($waited s)");

# pg_notify_events.executor_idle_timeout
$node->safe_psql(
	'postgres', q(
	ALTER SYSTEM SET pg_notify_events.executor_idle_timeout = '100 ms';
	SELECT pg_reload_conf();
	SELECT notify_event('quick');
));
$node->poll_query_until('postgres',
	q(SELECT count(*) = 3 FROM seen WHERE handler = 'record'));
ok( $node->poll_query_until(
		'postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
	),
	'an executor without work leaves');
$node->safe_psql('postgres', q(SELECT notify_event('quick')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', q(event_name = 'quick'),
	'and comes back');

$node->stop;
done_testing();
