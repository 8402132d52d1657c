
# A handler finds its events by their names, and gets the events that exist when it is
# called.  The test has many names, names in any order, deleted events, and policies
# that fail.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# more names than a window can tell apart (name_set.c)
my $names = 12_000;
my $node = new_server(
	'names', 'log_statement = none',
	'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE calls (n serial, handler text, event_name text, id bigint);
	GRANT ALL ON calls, calls_n_seq TO ann;
	DO $$
	DECLARE
		handler text;
		pattern text;
	BEGIN
		FOR handler, pattern IN VALUES ('all', '*'), ('first', 'n 1'), ('late', 'n 11999'), ('some', 'n ?7*'), ('none', 'm *'), ('x', 'x'), ('y', 'y'), ('z', 'z')
		LOOP
			EXECUTE format('CREATE FUNCTION %I(e notification_events) RETURNS void LANGUAGE sql AS
				$f$ INSERT INTO calls (handler, event_name, id) VALUES (%L, e.event_name, e.id) $f$', 'take_' || handler, handler);
			PERFORM create_event_handler(handler, 'take_' || handler, pattern, owner => 'ann');
		END LOOP;
	END $$;
));

# Compare the events that each handler got with the events that match its pattern.
# All must have come in order.
sub check_calls
{
	my ($what) = @_;

	wait_for_handlers($node, 'postgres');
	is( $node->safe_psql(
			'postgres', q(
			WITH expected AS (
				SELECT h.name AS handler, e.event_name, e.id FROM event_handlers h, notification_events e
					WHERE e.event_name ~ ('^' || replace(replace(h.event_name, '?', '.'), '*', '.*') || '$'))
			SELECT (SELECT count(*) > 0 FROM calls),
				   (SELECT count(*) FROM (TABLE expected EXCEPT ALL SELECT handler, event_name, id FROM calls) missing),
				   (SELECT count(*) FROM (SELECT handler, event_name, id FROM calls EXCEPT ALL TABLE expected) unexpected),
				   (SELECT count(*) FROM (SELECT id, lag(id) OVER (PARTITION BY handler ORDER BY n) AS previous FROM calls) c
						WHERE id <= previous))),
		't|0|0|0',
		$what);
	$node->safe_psql('postgres', 'TRUNCATE calls, notification_events');
	return;
}

# Windows with a few names, with some, and with very many; each name comes twice
$node->safe_psql('postgres',
	"INSERT INTO notification_events (event_name) SELECT 'n ' || i % $_ FROM generate_series(1, 2 * $_) AS i"),
  check_calls("$_ names")
  foreach (2, 7, 8, 9, 100, $names);

# The ids of two transactions interleave, but one transaction is read after the other.
my $first = $node->background_psql('postgres');
$first->query_safe(q(BEGIN; SELECT notify_event('x')));
$node->safe_psql(
	'postgres', q(
	SELECT pause_event_handler(name) FROM event_handlers;
	SELECT notify_event('y');
));
$first->query_safe(q(SELECT notify_event('z'); COMMIT));
$first->quit;
$node->safe_psql('postgres', q(SELECT resume_event_handler(name) FROM event_handlers));
check_calls('ids between each other');

# The first of three events is being handled when the second one is deleted.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers WHERE name <> 'all';
	SELECT alter_event_handler('all', batch_size => 1);
	CREATE OR REPLACE FUNCTION take_all(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO calls (handler, event_name, id) VALUES ('all', e.event_name, e.id);
		IF e.event_name = 'slow' THEN
			PERFORM pg_advisory_xact_lock(1);
		END IF;
	END $$;
));
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres',
	q(INSERT INTO notification_events (event_name) VALUES ('slow'), ('deleted'), ('stays')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
  or die "nobody waits";
$node->safe_psql('postgres', q(DELETE FROM notification_events WHERE event_name = 'deleted'));
$holder->query_safe('SELECT pg_advisory_unlock(1)');
$holder->quit;
check_calls('who comes to an event that was deleted passes it');

# A policy that fails is not the events' fault: they are not charged with it, and the
# owner's other handlers go on.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE broken (broken boolean);
	INSERT INTO broken VALUES (true);
	GRANT SELECT ON broken TO ann;
	CREATE FUNCTION may_see(name text) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		IF name <> 'other' AND (SELECT b.broken FROM public.broken b) THEN
			RAISE 'the policy is broken';
		END IF;
		RETURN name <> 'secret';
	END $$;
	CREATE POLICY events ON notification_events FOR SELECT USING (may_see(event_name));
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	INSERT INTO notification_events (event_name) VALUES ('one'), ('secret'), ('two');
	CREATE FUNCTION take_other(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO calls (handler, event_name, id) VALUES ('other', e.event_name, e.id) $$;
	SELECT create_event_handler('other', 'take_other', 'other', owner => 'ann');
));
$node->poll_query_until('postgres',
	q(SELECT last_error = 'the policy is broken' FROM event_worker_stats WHERE kind = 'executor'))
  or die "the policy does not fail";
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '0', 'a policy that fails: nothing is charged');
$node->safe_psql('postgres', q(SELECT notify_event('other')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM calls WHERE handler = 'other'))
  or die "the other handler has no turn";
$node->safe_psql('postgres', 'UPDATE broken SET broken = false');
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT string_agg(event_name, ' ' ORDER BY n) FROM calls WHERE handler = 'all' AND event_name <> 'other')),
	'one two', 'when it works again, what it lets pass is delivered');

# When a policy catches an error, all holds on cancels end.  The timeout of the call
# still works, and the process stays.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	CREATE OR REPLACE FUNCTION may_see(name text) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		RETURN name::integer > 0;
	EXCEPTION WHEN others THEN
		RETURN true;
	END $$;
	CREATE FUNCTION sleep(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_sleep(60); END $$;
	SELECT create_event_handler('sleeps', 'sleep', 'sleep', owner => 'ann', timeout => '200 ms', max_attempts => 1);
));
my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', q(SELECT notify_event('sleep')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM event_retries WHERE state = 'dead'))
  or die "the call does not end";
is($node->safe_psql('postgres', 'SELECT last_sqlstate FROM event_retries'), '57014', 'its timeout has ended the call');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $pid, 'and its process goes on');

$node->stop;
done_testing();
