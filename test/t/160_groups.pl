
# After a loss a handler works in groups, and event by event only in a group in which it
# was lost. This tests what a loss costs that no event is to blame for; how often an event
# ends its process, wherever it stands; and what happens to a group whose executor ends in
# good order, or whose rows vanish.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $group_size = 64;
# No batch is cut short.
my $node = new_server('groups', "pg_notify_events.batch_time = '1 min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');

# Each call records what it finds: the last event of its group, and the attempts that are
# under way. An event "terminate" ends its process the first times, as often as the
# sequence was set to; after that it waits for a lock.
$node->safe_psql(
	'postgres', q(
	GRANT SELECT ON _event_handler_progress, _event_retries TO ann;
	CREATE SEQUENCE left_to_die MINVALUE -1000 MAXVALUE 1000 INCREMENT -1 START 1000;
	GRANT ALL ON SEQUENCE left_to_die TO ann;
	CREATE TABLE seen (handler text, id bigint, at timestamptz DEFAULT clock_timestamp(), tried_upto text, attempts bigint);
	GRANT ALL ON seen TO ann;
	CREATE FUNCTION see(by text, e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id, tried_upto, attempts)
		SELECT by, e.id, to_jsonb(p)->>'tried_upto',
			(SELECT count(*) FROM public._event_retries r WHERE r.handler = by AND r.attempt_began_at IS NOT NULL)
		FROM public._event_handler_progress p WHERE p.handler = by;
		IF e.event_name = 'terminate' THEN
			IF nextval('public.left_to_die') > 0 THEN
				PERFORM pg_terminate_backend(pg_backend_pid());
			END IF;
			PERFORM setval('public.left_to_die', 1);
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
	END $$;
	CREATE FUNCTION one(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.see('h', e) $$;
	CREATE FUNCTION many(e notification_events[]) RETURNS void LANGUAGE sql AS $$ SELECT public.see('h', i) FROM unnest(e) AS i $$;
));

# the session that keeps "terminate" waiting
my $holder;

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

sub in_log
{
	my ($pattern, $offset) = @_;
	my @matches = slurp_file($node->logfile, $offset) =~ /$pattern/g;

	return scalar(@matches);
}

# emit(COUNT, PLACE): emit COUNT events; the one at PLACE is "terminate"
sub emit
{
	my ($count, $place) = @_;

	$node->safe_psql('postgres',
		"INSERT INTO notification_events (event_name) SELECT CASE i WHEN $place THEN 'terminate' ELSE 'e' END FROM generate_series(1, $count) i ORDER BY i");
	return;
}

# start_over(DEATHS, OPTIONS): create a new handler
sub start_over
{
	my ($deaths, $options) = @_;

	$node->safe_psql(
		'postgres', qq(
		SELECT drop_event_handler(name) FROM event_handlers;
		DELETE FROM notification_events;
		TRUNCATE seen;
		SELECT setval('left_to_die', $deaths + 1);
		SELECT create_event_handler('h', owner => 'ann', retry_delay => '10 ms', max_retry_delay => '10 ms', timeout => '1 h', $options);
	));
	return;
}

sub wait_for_call
{
	poll(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 'the call waits');
	return;
}

# stop(): stop the server in good order and start it again with no workers;
# serve() starts them
sub stop
{
	$node->stop('fast');
	eval { $holder->quit };
	$node->append_conf('postgresql.conf', 'pg_notify_events.enabled = off');
	$node->start;
	return;
}

sub serve
{
	$node->append_conf('postgresql.conf', 'pg_notify_events.enabled = on');
	$node->reload;
	return;
}

# The server is lost in a call that did not cause the loss.
foreach my $handler ("'one'", "'many', batch_size => 500", "'one', batch_size => 1")
{
	my $events = 1000;
	my $offset = -s $node->logfile;

	start_over(0, "function => $handler");
	$holder = $node->background_psql('postgres');
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	emit($events, 1);
	wait_for_call();
	$node->stop('immediate');
	eval { $holder->quit };
	$node->start;
	wait_for_handlers($node, 'postgres');
	is(in_log(qr/"h" is guarded/, $offset), 1, "$handler: a loss");
	is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id) FROM seen'),
		"$events|$events", "$handler: all events, once");
	is($node->safe_psql('postgres', 'SELECT sum(attempts) FROM seen'), '0', "$handler: no attempt is recorded");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen WHERE tried_upto IS NULL'),
		'0', "$handler: all are in groups");
	cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT tried_upto) FROM seen'),
		'<=', $events / $group_size + 1, "$handler: of which there are few");

	# Events that come later belong to no group.
	emit(10, 0);
	wait_for_handlers($node, 'postgres');
	emit(10, 0);
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres',
			'SELECT count(*) FROM seen WHERE tried_upto IS NOT NULL AND id > (SELECT max(id) - 10 FROM notification_events)'),
		'0', "$handler: and that is all");
}

# A deadly event, at several places.
foreach my $case (
	[ 1, "'one'" ], [ 64, "'one', ordered => true" ], [ 65, "'one'" ], [ 130, "'one', batch_size => 1" ],
	[ 100, "'many', batch_size => 50" ])
{
	my ($place, $handler) = @$case;
	my $name = "at $place of 130, $handler";
	my $offset = -s $node->logfile;

	start_over(100, "function => $handler, max_attempts => 1");
	emit(130, $place);
	poll(q(SELECT delivered = 129 AND dead = 1 FROM event_handler_stats), $name);
	is(in_log(qr/executor FATAL:  terminating/, $offset), 3, "$name: max_attempts + 2 deaths");
	is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id) FROM seen'), '129|129', "$name: the others, once");
	cmp_ok($node->safe_psql('postgres', 'SELECT sum(attempts) FROM seen'),
		'<=', $group_size, "$name: those of its group went one by one, at most");
}

my $recorded = q(SELECT owner_token IS NOT NULL, guarded_events > 0, tried_upto - (SELECT min(id) FROM notification_events) + 1
	FROM _event_handler_progress);

# The server is stopped in a call of a group. This is not a loss.
foreach my $handler ("'one', batch_size => 150", "'many', batch_size => 150")
{
	start_over(1, "function => $handler");
	$holder = $node->background_psql('postgres');
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	emit(200, 100);
	wait_for_call();
	is($node->safe_psql('postgres', $recorded), 't|t|128', "$handler: the group is recorded");
	my $offset = -s $node->logfile;
	stop();
	is($node->safe_psql('postgres', $recorded), 'f|t|', "$handler: stopped: the rest of care is kept, the group is not");
	serve();
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), sum(attempts) FROM seen'),
		'200|200|0', "$handler: all, once, no attempt is recorded");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen WHERE tried_upto IS NULL'),
		'0', "$handler: all in groups");
	is(in_log(qr/is guarded/, $offset), 0, "$handler: that is no loss");
}

# The server is stopped in an attempt on one event of a group, and rows of the
# group vanish.
start_over(2, "function => 'one', max_attempts => 2");
$holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
emit(200, 100);
wait_for_call();
is($node->safe_psql('postgres', $recorded), 't|t|128', 'an attempt: the group is recorded');
my $attempts = q(SELECT state, attempts, attempt_began_at IS NOT NULL FROM _event_retries);
is($node->safe_psql('postgres', $attempts), 'waiting|1|t', 'and the attempt is');
$node->safe_psql('postgres',
	q(DELETE FROM notification_events WHERE id - (SELECT min(id) FROM notification_events) + 1 IN (101, 110, 128)));
my $offset = -s $node->logfile;
stop();
is($node->safe_psql('postgres', $attempts), 'waiting|0|f', 'stopped: the attempt is given back');
is($node->safe_psql('postgres', $recorded), 'f|t|128', 'the rest of care and of the group is kept');
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', batch_size => 7)));
serve();
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id) FROM seen'), '197|197', 'all that are there, once');
is($node->safe_psql('postgres', 'SELECT sum(attempts) FROM seen'),
	$group_size - 3, 'the events of the group went one by one');
is(in_log(qr/is guarded/, $offset), 0, 'that is no loss');
is($node->safe_psql('postgres', 'SELECT count(*) FROM _event_retries'), '0', 'and nobody is charged');

$node->stop;
done_testing();
