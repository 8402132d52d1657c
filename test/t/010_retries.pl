
# Events that fail are retried on schedule, by a deadline and not by a poll
# (naptime is an hour).  Also timeouts, and cancelled executors.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# far above any delay here, even on a slow machine, and far below naptime
my $limit = $PostgreSQL::Test::Utils::timeout_default / 2;
my $node = new_server(
	'retries',
	"pg_notify_events.naptime = '1h'",
	'pg_notify_events.announce = off',
	'log_statement = none');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
# The handler fails {"fail": n} times.  What it inserts is rolled back; only log
# lines and counters of a failed attempt remain.  A retry finds the number of past
# attempts in event_retries.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION record_stubborn(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		before integer := coalesce((SELECT r.attempts - 1 FROM public.event_retries r WHERE r.event_id = e.id), 0);
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('stubborn', e.id);
		IF before < (e.event_data ->> 'fail')::integer THEN
			RAISE 'attempt % of event %', before + 1, e.event_name USING ERRCODE = 'AB123';
		END IF;
	END $$;
));

sub stats
{
	my ($handler, $columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM event_handler_stats WHERE handler = '$handler'");
}

sub wait_for_stats
{
	my ($handler, $condition) = @_;

	$node->poll_query_until('postgres',
		"SELECT $condition FROM event_handler_stats WHERE handler = '$handler'")
	  or die "never: $condition";
	return;
}

# returns the seconds between an event and its success
sub taken
{
	my ($event_name) = @_;

	return $node->safe_psql(
		'postgres', qq(
		SELECT extract(epoch FROM s.at - e.created_at)
		FROM seen s JOIN notification_events e USING (id) WHERE e.event_name = '$event_name'));
}

# Three failures: the delays are 200, 400 and 800 ms, each shortened by up to a
# quarter.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('stubborn', 'record_stubborn', owner => 'ann', retry_delay => '200 ms');
	SELECT notify_event('first', '{"fail": 3}'::jsonb);
));
wait_for_stats('stubborn', 'delivered = 1');
is(stats('stubborn', 'delivered, failed, retried, waiting, dead, last_error'),
	'1|3|1|0|0|attempt 3 of event first', 'succeeds with the fourth attempt');
my $taken = taken('first');
cmp_ok($taken, '>', 1.04, "delays are kept ($taken s)");
cmp_ok($taken, '<', $limit, "delays are not a matter of naptime ($taken s)");
seen_is_log($node, 'postgres', 'stubborn', 'true',
	'failed attempts leave nothing behind');

# Other events do not wait for the failed one; max_retry_delay.
$node->safe_psql(
	'postgres', q(
	SELECT alter_event_handler('stubborn', retry_delay => '1 s', max_retry_delay => '1 s');
	SELECT notify_event('second', '{"fail": 2}'::jsonb);
	SELECT notify_event('third', '{"fail": 0}'::jsonb);
));
wait_for_stats('stubborn', 'delivered = 3');
is( $node->safe_psql(
		'postgres', q(
		SELECT event_name FROM seen JOIN notification_events USING (id) ORDER BY seen.at)),
	"first\nthird\nsecond",
	'others go on meanwhile');
$taken = taken('second');
cmp_ok($taken, '>', 1.5, "delays are kept ($taken s)");
cmp_ok($taken, '<', $limit, "delays are limited ($taken s)");

# The executor has stopped meanwhile.  The listener has another one started in time,
# and it does so after a restart, too.
$node->safe_psql(
	'postgres', q(
	ALTER SYSTEM SET pg_notify_events.executor_idle_timeout = '50 ms';
	SELECT pg_reload_conf();
	SELECT notify_event('alone', '{"fail": 1}'::jsonb);
));
wait_for_stats('stubborn', 'waiting = 1 OR delivered = 4');
$node->poll_query_until('postgres',
	q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor')
) or die "executor does not leave";
wait_for_stats('stubborn', 'delivered = 4');
$taken = taken('alone');
cmp_ok($taken, '<', $limit, "without an executor ($taken s)");

$node->safe_psql(
	'postgres', q(
	SELECT alter_event_handler('stubborn', retry_delay => '2 s', max_retry_delay => '2 s');
	SELECT notify_event('restart', '{"fail": 1}'::jsonb);
));
wait_for_stats('stubborn', 'waiting = 1 OR delivered = 5');
$node->restart;
wait_for_stats('stubborn', 'delivered = 5');
$taken = taken('restart');
cmp_ok($taken, '<', $limit, "across a restart ($taken s)");
seen_is_log($node, 'postgres', 'stubborn', 'true', 'all of them in the end');
$node->safe_psql(
	'postgres', q(
	ALTER SYSTEM RESET pg_notify_events.executor_idle_timeout;
	SELECT pg_reload_conf();
	SELECT drop_event_handler('stubborn');
	TRUNCATE seen;
));

# max_attempts
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('stubborn', 'record_stubborn', owner => 'ann', retry_delay => '50 ms', max_attempts => 3);
	SELECT notify_event('hopeless', '{"fail": 1000}'::jsonb);
	SELECT notify_event('good', '{"fail": 0}'::jsonb);
));
wait_for_stats('stubborn', 'dead = 1');
is( $node->safe_psql(
		'postgres',
		'SELECT handler, state, attempts, next_attempt_at IS NULL, last_error, last_sqlstate FROM event_retries'
	),
	'stubborn|dead|3|t|attempt 3 of event hopeless|AB123',
	'dead after max_attempts');
is(stats('stubborn', 'delivered, failed, retried, waiting, dead, pending'),
	'1|3|0|0|1|0', 'and nothing else is');
$node->safe_psql('postgres', q(SELECT drop_event_handler('stubborn')));

# An ordered handler waits for a failed event.
$node->safe_psql(
	'postgres', q(
	TRUNCATE seen;
	SELECT create_event_handler('stubborn', 'record_stubborn', owner => 'ann', retry_delay => '100 ms', ordered => true);
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'ordered', jsonb_build_object('fail', CASE WHEN i % 4 = 0 THEN 2 ELSE 0 END)
		FROM generate_series(1, 10) AS i;
));
wait_for_stats('stubborn', 'delivered = 10');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY at, ctid) AS previous FROM seen) s
		WHERE previous >= id)),
	'0',
	'an ordered handler keeps the order');
seen_is_log($node, 'postgres', 'stubborn', q(event_name = 'ordered'), 'ordered');
$node->safe_psql('postgres', q(SELECT drop_event_handler('stubborn')));

# timeout: in a call, in the filter, at commit
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION snore(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('snore', e.id);
		PERFORM pg_sleep((e.event_data ->> 'sleep')::float8);
	END $$;
	CREATE FUNCTION spin(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN LOOP END LOOP; END $$;
	CREATE TABLE deferred (id bigint);
	GRANT INSERT ON deferred TO ann;
	CREATE FUNCTION snore_at_commit() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER snore_at_commit AFTER INSERT ON deferred
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION snore_at_commit();
	CREATE FUNCTION defer(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.deferred VALUES (e.id) $$;
	SELECT create_event_handler(name, name, 'slow', owner => 'ann', timeout => '300 ms', max_attempts => 1)
		FROM unnest('{snore,spin,defer}'::text[]) AS name;
	SELECT notify_event('slow', '{"sleep": 0}'::jsonb);
	SELECT notify_event('slow', '{"sleep": 600}'::jsonb);
	SELECT notify_event('slow', '{"sleep": 0}'::jsonb);
));
wait_for_stats('snore', 'delivered = 2 AND dead = 1');
wait_for_stats('spin', 'dead = 3');
wait_for_stats('defer', 'dead = 3');
is( $node->safe_psql(
		'postgres', q(
		SELECT DISTINCT handler, last_sqlstate, last_error, last_error_at - created_at < '1 min'
		FROM event_retries JOIN notification_events ON id = event_id
		WHERE handler IN ('snore', 'spin', 'defer') ORDER BY handler)
	),
	join("\n",
		map { "$_|57014|canceling statement due to statement timeout|t" }
		  qw(defer snore spin)),
	'timeout: in calls and at commit');
seen_is_log($node, 'postgres', 'snore',
	q(event_name = 'slow' AND event_data ->> 'sleep' = '0'), 'timeout: others');
$node->safe_psql('postgres',
	q(SELECT drop_event_handler(name) FROM event_handlers; TRUNCATE seen));

# A timeout applies to each call, not to the batch.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('snore', 'snore', 'nap', owner => 'ann', timeout => '1 s');
	ALTER SYSTEM SET pg_notify_events.batch_time = '1 min';
	SELECT pg_reload_conf();
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'nap', '{"sleep": 0.3}' FROM generate_series(1, 6);
));
wait_for_stats('snore', 'delivered = 6');
# the first batch may still have ended by the previous setting
is(stats('snore', 'failed, batches <= 2'),
	'0|t', 'timeout is for a call, not for a batch');
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('snore');
	ALTER SYSTEM RESET pg_notify_events.batch_time;
	SELECT pg_reload_conf();
));

# pg_cancel_backend() on an idle executor fails no event.  On an executor that runs
# a handler it costs one attempt at most.
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE calls;
	GRANT USAGE ON SEQUENCE calls TO ann;
	CREATE FUNCTION snore_once(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('once', e.id);
		IF e.event_name = 'cancel 2' AND nextval('public.calls') = 1 THEN
			PERFORM pg_sleep(600);
		END IF;
	END $$;
	SELECT create_event_handler('once', 'snore_once', 'cancel*', owner => 'ann', timeout => '10 min', retry_delay => '100 ms');
	SELECT notify_event('cancel 1');
));
wait_for_stats('once', 'delivered = 1');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
$node->poll_query_until('postgres',
	"SELECT state = 'idle' FROM event_worker_stats WHERE pid = $executor")
  or die "executor does not idle";
$node->safe_psql('postgres', "SELECT pg_cancel_backend($executor)");
$node->safe_psql('postgres', q(SELECT notify_event('cancel 2')));
$node->poll_query_until('postgres', 'SELECT is_called FROM calls')
  or die "handler does not run";
is(stats('once', 'failed'), '0', 'an idle executor is cancelled in vain');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($executor)");
wait_for_stats('once', 'delivered = 2');
cmp_ok(stats('once', 'failed'),
	'<=', 1, 'a call that is cancelled is tried again');
seen_is_log($node, 'postgres', 'once', q(event_name LIKE 'cancel%'), 'cancelled');
is(worker_pid($node, 'executor', 'postgres', 'ann'),
	$executor, 'the executor goes on');

$node->stop;
done_testing();
