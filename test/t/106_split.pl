
# A batch that fails is split over several turns of its handler.  The owner's
# other handlers have their turns in between, whatever the kind of failure.
# Batches stay small where many events fail, and grow again where none does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('split', 'log_statement = none', "pg_notify_events.batch_time = '20ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	-- how often an event was worked on, rolled back or not
	CREATE SEQUENCE work;
	GRANT ALL ON SEQUENCE work TO PUBLIC;
	CREATE FUNCTION work(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('a', e.id);
		PERFORM pg_catalog.nextval('public.work'), pg_catalog.pg_sleep(0.001);
	END $$;

	CREATE TABLE deferred (name text);
	GRANT INSERT ON deferred TO PUBLIC;
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
	CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW WHEN (NEW.name = 'bad') EXECUTE FUNCTION refuse();

	CREATE FUNCTION fail_at_commit(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.work(e);
		INSERT INTO public.deferred VALUES (e.event_name);
	END $$;
	CREATE FUNCTION fail_in_call(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.work(e);
		IF e.event_name = 'bad' THEN
			RAISE 'failed';
		END IF;
	END $$;
	CREATE FUNCTION fail_all_at_once(l notification_events[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.work(e) FROM unnest(l) AS e;
		IF 'bad' IN (SELECT event_name FROM unnest(l)) THEN
			RAISE 'failed';
		END IF;
	END $$;

	-- what was left to do of the other handler's events when this one had its turn
	CREATE TABLE meanwhile (id bigint, ended bigint);
	GRANT INSERT ON meanwhile TO PUBLIC;
	CREATE FUNCTION other(e notification_events) RETURNS void LANGUAGE sql AS $$
		INSERT INTO public.meanwhile SELECT e.id,
			(SELECT count(*) FROM public.seen WHERE handler = 'a') + (SELECT count(*) FROM public.event_retries WHERE handler = 'a') $$;
	GRANT SELECT ON event_retries TO PUBLIC;
));

# emit(COUNT, CONDITION): COUNT events in one transaction, and one more for the
# other handler.  Event n is bad if the condition holds.
sub emit
{
	my ($count, $condition) = @_;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name)
		SELECT CASE WHEN $condition THEN 'bad' ELSE 'good' END FROM generate_series(1, $count) n
		UNION ALL SELECT 'other'));
	return;
}

my @cases = (
	# function, number of events, condition, the most events that may be processed
	[ 'fail_at_commit', 200, 'n % 2 = 0', 600 ],
	[ 'fail_at_commit', 90, 'true', 250 ],
	[ 'fail_in_call', 200, 'n % 2 = 0', 600 ],
	[ 'fail_in_call', 300, 'n = 299', 1200 ],
	[ 'fail_all_at_once', 200, 'n % 2 = 1', 1000 ],
	[ 'fail_all_at_once', 200, 'n = 200', 1000 ],);

foreach my $case (@cases)
{
	my ($function, $count, $condition, $max_work) = @$case;
	my $name = "$function, $condition";

	$node->safe_psql(
		'postgres', qq(
		SELECT setval('work', 1, false);
		SELECT create_event_handler('a', '$function', '*d', owner => 'ann', max_attempts => 1);
		SELECT create_event_handler('b', 'other', 'other', owner => 'ann')));
	emit($count, $condition);
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'a', q(event_name = 'good'), "$name: others");
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*) FROM notification_events l FULL JOIN event_retries r ON l.id = r.event_id AND r.state = 'dead'
			WHERE (l.event_name = 'bad') IS DISTINCT FROM (r.event_id IS NOT NULL))),
		0,
		"$name: just what is bad has failed");
	cmp_ok($node->safe_psql('postgres', 'SELECT ended FROM meanwhile'),
		'<', $count, "$name: the other handler had its turn meanwhile");
	cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM work'),
		'<=', $max_work, "$name: not much is done again");
	$node->safe_psql('postgres',
		'SELECT drop_event_handler(name) FROM event_handlers; DELETE FROM notification_events; TRUNCATE seen, meanwhile');
}

# After a while the batches are large again.  An ordered handler waits for the
# event that failed, and keeps the state of the split meanwhile.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION fail_once(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('a', e.id);
		IF e.event_name = 'bad' AND NOT EXISTS (SELECT FROM public.event_retries WHERE event_id = e.id AND attempts > 1) THEN
			INSERT INTO public.deferred VALUES (e.event_name);
		END IF;
	END $$;
	SELECT create_event_handler('a', 'fail_once', '*d', owner => 'ann', ordered => true, retry_delay => '10 ms');
));
configure($node, batch_time => q('10s'));
emit(5000, 'n IN (1, 5, 100, 1000)');
wait_for_handlers($node, 'postgres');
$node->poll_query_until('postgres', q(SELECT delivered = 5000 FROM event_handler_stats)) or die 'never: all delivered';
seen_is_log($node, 'postgres', 'a', q(event_name <> 'other'), 'ordered');
is($node->safe_psql('postgres', q(SELECT count(*) FROM (
		SELECT id < lag(id) OVER (ORDER BY at) AS wrong FROM seen) AS s WHERE wrong)),
	0, 'ordered: in order');
is($node->safe_psql('postgres', q(SELECT failed, retried FROM event_handler_stats)), '4|4', 'ordered: each failed once');
cmp_ok($node->safe_psql('postgres', 'SELECT batches FROM event_handler_stats'), '<', 500, 'batches grow again');

$node->stop;
done_testing();
