
# Back-off: errors that the events do not cause make a handler back off.  After
# each delay it makes a trial with one event.  Events that were not tried are not
# charged.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('outage', "pg_notify_events.max_executors = 1");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');

# "weather" tells which handler fails on which events, and with which SQLSTATE.
# Sequences count the calls and keep the time of the last one, as no rollback
# resets them.  Delivered events are noted with the attempts in their retry row.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE weather (handler text, event_name text, sqlstate text);
	GRANT SELECT ON weather TO PUBLIC;
	CREATE SEQUENCE called MINVALUE 0 START 0;
	CREATE SEQUENCE called_at;
	GRANT ALL ON called, called_at TO PUBLIC;
	CREATE TABLE attempts (handler text, id bigint, n integer);
	GRANT SELECT, INSERT ON attempts TO PUBLIC;
	CREATE FUNCTION work(by text, e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		state text := (SELECT w.sqlstate FROM public.weather w WHERE w.handler = by AND e.event_name LIKE w.event_name);
	BEGIN
		PERFORM nextval('public.called'), setval('public.called_at', (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
		INSERT INTO public.seen (handler, id) VALUES (by, e.id);
		INSERT INTO public.attempts SELECT by, e.id, max(r.attempts) FROM public.event_retries r
			WHERE r.handler = by AND r.event_id = e.id;
		IF state IS NOT NULL THEN
			RAISE EXCEPTION 'it rains on %', e.event_name USING ERRCODE = state;
		END IF;
	END $$;
	CREATE FUNCTION first(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.work('first', e) $$;
	CREATE FUNCTION second(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.work('second', e) $$;
	CREATE FUNCTION in_array(e notification_events[]) RETURNS void LANGUAGE sql AS $$ SELECT public.work('first', i) FROM unnest(e) AS i $$;
));

sub figures
{
	my ($handler, $columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM event_handler_stats WHERE handler = '$handler'");
}

sub wait_for
{
	my ($condition) = @_;

	$node->poll_query_until('postgres', "SELECT $condition")
	  or die "never: $condition";
	return;
}

sub wait_for_figures
{
	my ($handler, $condition) = @_;

	wait_for("$condition FROM event_handler_stats WHERE handler = '$handler'");
	return;
}

sub start_over
{
	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler(name) FROM event_handlers;
		TRUNCATE weather, seen, attempts;
		DELETE FROM notification_events;
		SELECT setval('called', 0, false);
	));
	return;
}

# A full disk: every event of the handler fails.  Events that were tried are
# deferred and not charged; the others are not tried.
foreach my $function ('first', 'in_array')
{
	$node->safe_psql(
		'postgres', qq(
		INSERT INTO weather VALUES ('first', '%', '53100');
		SELECT create_event_handler('first', '$function', owner => 'ann', retry_delay => '100 ms', max_retry_delay => '200 ms');
		SELECT count(notify_event('event ' || i)) FROM generate_series(1, 50) i;
	));
	wait_for_figures('first', 'waiting >= 4');
	is(figures('first', 'state, delivered, dead'),
		'backing off|0|0', "$function: backing off");
	is( $node->safe_psql(
			'postgres',
			'SELECT string_agg(DISTINCT format($$%s %s %s$$, state, attempts, last_sqlstate), $$, $$) FROM event_retries'
		),
		'waiting 0 53100',
		"$function: no attempt is charged");
	is( $node->safe_psql(
			'postgres', q(
			SELECT bool_and(r.event_id = e.id) FROM
				(SELECT event_id, row_number() OVER (ORDER BY event_id) FROM event_retries) r JOIN
				(SELECT id, row_number() OVER (ORDER BY id) FROM notification_events) e USING (row_number))
		),
		't',
		"$function: each probe is the next event");
	$node->safe_psql('postgres', 'DELETE FROM weather');
	wait_for_figures('first', 'delivered = 50');
	like(figures('first', 'state, waiting, dead, pending, failed >= 4'),
		qr/^(ready|running)\|0\|0\|0\|t$/, "$function: over");
	seen_is_log($node, 'postgres', 'first', 'true', $function);
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*) >= 4, max(n), count(*) = (SELECT failed FROM event_handler_stats WHERE handler = 'first')
			FROM attempts WHERE n IS NOT NULL)
		),
		't|2|t',
		"$function: those that were tried were charged once, when another succeeded"
	);
	start_over();
}

# A single event with such an error is deferred, and dies in the end.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', 'poison', '58030');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '20 ms', max_retry_delay => '50 ms', max_attempts => 3);
	SELECT count(notify_event(CASE i WHEN 10 THEN 'poison' ELSE 'event ' || i END)) FROM generate_series(1, 30) i;
));
wait_for_figures('first', 'delivered = 29');
# each attempt after the first is charged when another event succeeds
foreach my $more (1 .. 5)
{
	last if figures('first', 'dead') eq '1';
	wait_for_figures('first', "state = 'backing off' OR dead = 1");
	$node->safe_psql('postgres', "SELECT notify_event('more')");
	wait_for_figures('first', "delivered = 29 + $more");
}
is( $node->safe_psql(
		'postgres',
		'SELECT state, attempts, last_sqlstate FROM event_retries'),
	'dead|3|58030',
	'a poison event dies');
seen_is_log($node, 'postgres', 'first', "event_name <> 'poison'",
	'the others');
start_over();

# A hundred different events fail in a row, with any error.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', 'AB123');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '1 h', batch_size => 10);
	SELECT count(notify_event('event ' || i)) FROM generate_series(1, 150) i;
));
wait_for_figures('first', "state = 'backing off'");
is( $node->safe_psql(
		'postgres',
		'SELECT count(*), min(attempts), max(attempts), max(last_sqlstate) FROM event_retries'
	),
	'100|1|1|AB123',
	'after a hundred no more are tried');
is(figures('first', 'pending, failed'),
	'50|100', 'the rest is not tried');
# a changed definition is tried at once
$node->safe_psql(
	'postgres', q(
	DELETE FROM weather;
	SELECT alter_event_handler('first', retry_delay => '100 ms');
));
wait_for_figures('first', 'delivered = 50');
is( $node->safe_psql(
		'postgres',
		'SELECT count(*), min(attempts), max(attempts) FROM event_retries'),
	'100|1|1',
	'those that had failed wait for their time');
start_over();

# The same with a success in between: fewer than a hundred fail in a row, so the
# handler does not back off.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', 'bad%', 'AB123');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '1 h', batch_size => 10);
	SELECT count(notify_event(CASE i WHEN 100 THEN 'good' ELSE 'bad ' || i END)) FROM generate_series(1, 150) i;
));
wait_for_figures('first', 'pending = 0');
is( $node->safe_psql(
		'postgres',
		'SELECT count(*), min(attempts), max(attempts) FROM event_retries'),
	'149|1|1',
	'not a hundred in a row');
start_over();

# Replayed events count as well, with the first attempt of the replay.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '1 h', max_attempts => 1);
	SELECT count(notify_event('event ' || i)) FROM generate_series(1, 150) i;
));
wait_for_figures('first', 'delivered = 150');
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', 'AB123');
	SELECT replay_events('first', 1);
));
wait_for_figures('first', "state = 'backing off'");
is( $node->safe_psql(
		'postgres',
		'SELECT state, count(*) FROM event_retries GROUP BY state ORDER BY state'),
	"dead|100\nwaiting|50",
	'replayed: after a hundred no more are tried');
start_over();

# A serialization failure is retried at once.  It counts as no failure if a retry
# succeeds; here the fourth call does.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION serialize(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('first', e.id);
		IF nextval('public.called') < 3 THEN
			RAISE EXCEPTION 'too late' USING ERRCODE = '40001';
		END IF;
	END $$;
	SELECT create_event_handler('first', 'serialize', owner => 'ann', retry_delay => '1 h');
	SELECT notify_event('one');
));
wait_for_figures('first', 'delivered = 1');
is(figures('first', 'failed, retried, waiting'),
	'0|0|0', 'a serialization failure is tried again at once');
seen_is_log($node, 'postgres', 'first', 'true', 'and done once');
start_over();
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', '40P01');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '1 h');
	SELECT notify_event('one');
));
wait_for_figures('first', "state = 'backing off'");
is($node->safe_psql('postgres', 'SELECT last_value FROM called'),
	'3', 'four times in all');
is($node->safe_psql('postgres', 'SELECT attempts FROM event_retries'),
	'0', 'and not charged');
start_over();

# A lock that the handler does not get
my $locker = $node->background_psql('postgres');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE locked (n integer);
	GRANT ALL ON locked TO ann;
	CREATE FUNCTION lock_it(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		LOCK TABLE public.locked IN ACCESS EXCLUSIVE MODE NOWAIT;
		INSERT INTO public.seen (handler, id) VALUES ('first', e.id);
	END $$;
));
$locker->query_safe('BEGIN; LOCK TABLE locked');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('first', 'lock_it', owner => 'ann', retry_delay => '100 ms', max_retry_delay => '100 ms');
	SELECT count(notify_event('event ' || i)) FROM generate_series(1, 10) i;
));
wait_for_figures('first', "state = 'backing off' AND waiting >= 2");
is($node->safe_psql('postgres', 'SELECT max(attempts) FROM event_retries'),
	'0', 'a lock that is not to be had is no attempt');
$locker->query_safe('COMMIT');
wait_for_figures('first', 'delivered = 10');
seen_is_log($node, 'postgres', 'first', 'true', 'after the lock');
$locker->quit;
start_over();

# An ordered handler has no next event to try: every trial after the first is
# charged.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', 'poison', '53200');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '50 ms', max_retry_delay => '50 ms', max_attempts => 3, ordered => true);
	SELECT count(notify_event(CASE i WHEN 5 THEN 'poison' ELSE 'event ' || i END)) FROM generate_series(1, 10) i;
));
wait_for_figures('first', 'delivered = 9');
is( $node->safe_psql(
		'postgres', 'SELECT state, attempts, last_sqlstate FROM event_retries'
	),
	'dead|3|53200',
	'ordered: the poison event dies');
is(figures('first', 'failed'), '4', 'ordered: the first failure was free');
like(figures('first', 'state'), qr/^(ready|running)$/, 'ordered: goes on');
is( $node->safe_psql(
		'postgres',
		'SELECT array_agg(id ORDER BY at) = array_agg(id ORDER BY id) FROM seen'),
	't',
	'ordered: in order');
start_over();

# Two owners share one executor slot, so the executor stops while its handler
# backs off.  The next executor keeps to the delay.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', '53100');
	SELECT create_event_handler('first', 'first', event_name => 'a%', owner => 'ann', retry_delay => '6 s');
	SELECT create_event_handler('second', 'second', event_name => 'b*', owner => 'bob');
	SELECT alter_event_handler('first', event_name => 'a*');
	SELECT notify_event('a 1');
));
wait_for_figures('first', "state = 'backing off'");
my $failed_at =
  $node->safe_psql('postgres', 'SELECT last_value FROM called_at');
my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT notify_event('b 1'), notify_event('a 2')");
wait_for_figures('second', 'delivered = 1');
is(scalar(worker_pids($node, 'executor', 'postgres', 'ann')),
	0, 'the executor has given its place up');
$node->safe_psql('postgres', "SELECT setval('called_at', 1)");
is(figures('first', 'state'), 'backing off', 'the handler still backs off');
wait_for('last_value > 1 FROM called_at');
my $delay = $node->safe_psql('postgres',
	"SELECT last_value - $failed_at FROM called_at");
cmp_ok($delay, '>=', 4500, "the next executor keeps to the delay ($delay ms)");
isnt(worker_pid($node, 'executor', 'postgres', 'ann'),
	$pid, 'and it is another one');

# An executor also charges events that an earlier executor has deferred.
$node->restart;
$node->safe_psql('postgres', 'DELETE FROM weather');
wait_for_figures('first', 'delivered = 2');
seen_is_log($node, 'postgres', 'first', "event_name LIKE 'a%'",
	'after a restart');
start_over();

# resume_event_handler() makes the handler try at once, also where no executor
# runs, and ends the back-off for all executors.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', '53100');
	SELECT create_event_handler('first', 'first', 'a*', owner => 'ann', retry_delay => '1 h');
	SELECT create_event_handler('second', 'second', 'b*', owner => 'bob');
	SELECT notify_event('a 1');
));
wait_for_figures('first', "state = 'backing off'");
$node->safe_psql('postgres', "SELECT notify_event('b 1')");
wait_for_figures('second', 'delivered = 1');
is(scalar(worker_pids($node, 'executor', 'postgres', 'ann')), 0, 'no executor');
$node->safe_psql('postgres', "DELETE FROM weather; SELECT resume_event_handler('first')");
wait_for_figures('first', 'delivered = 1');
like(figures('first', 'state'), qr/^(ready|running)$/, 'resumed');
start_over();

# A back-off ends in the executor of another owner than it began in.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '50 ms');
	SELECT notify_event('a 1');
));
wait_for_figures('first', 'delivered = 1');
$node->safe_psql('postgres', q(
	INSERT INTO weather VALUES ('first', '%', '53100');
	SELECT notify_event('a 2');
));
wait_for_figures('first', "state = 'backing off'");
$node->safe_psql('postgres', "DELETE FROM weather; SELECT alter_event_handler('first', owner => 'bob')");
wait_for_figures('first', 'delivered = 2');
$node->safe_psql('postgres', "SELECT alter_event_handler('first', owner => 'ann'), notify_event('a 3')");
wait_for_figures('first', 'delivered = 3');
like(figures('first', 'state'), qr/^(ready|running)$/, 'back at the first owner');
start_over();

# A back-off ends, too, when its events are gone.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', '53100');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '100 ms', max_retry_delay => '100 ms');
	SELECT notify_event('one');
));
wait_for_figures('first', "state = 'backing off'");
$node->safe_psql('postgres', 'DELETE FROM notification_events');
wait_for_figures('first', "state IN ('ready', 'running') AND waiting = 0");
is($node->safe_psql('postgres', 'SELECT state FROM event_retries'), 'discarded', 'nothing to probe with');
start_over();

# A reset of the statistics does not end a back-off.
$node->safe_psql(
	'postgres', q(
	INSERT INTO weather VALUES ('first', '%', '53100');
	SELECT create_event_handler('first', 'first', owner => 'ann', retry_delay => '1 h');
	SELECT notify_event('one');
));
wait_for_figures('first', "state = 'backing off'");
$node->safe_psql('postgres', 'SELECT reset_event_stats()');
is(figures('first', 'state'), 'backing off', 'reset_event_stats()');
# wait_for_event_handlers() does not take a handler that waits for its trial for
# done.
my ($result, $stdout, $stderr) = $node->psql('postgres',
	"SELECT notify_event('two'); CALL wait_for_event_handlers('1 ms')");
like(
	$stderr,
	qr/timeout while waiting for event handlers: "first"/,
	'wait_for_event_handlers() waits for the untried');

$node->stop;
done_testing();
