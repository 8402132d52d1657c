
# A policy on the log ends the process that evaluates it for one event. That event becomes
# dead, like an event whose call ends the process, and all others are handled.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('deadly_policy');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION shows(name text) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		IF name = 'terminate' THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
		RETURN name <> 'hidden';
	END $$;
	CREATE POLICY ann ON notification_events FOR SELECT TO ann USING (shows(event_name));
	CREATE POLICY bob ON notification_events FOR SELECT TO bob USING (true);
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	CREATE FUNCTION one(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) VALUES ('one', e.id) $$;
	CREATE FUNCTION many(e notification_events[]) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) SELECT 'many', id FROM unnest(e) $$;
	CREATE FUNCTION other(e notification_events) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO public.seen (handler, id) VALUES ('other', e.id) $$;
));

foreach my $case ([ 'one', 'batch_size => 20' ], [ 'many', 'batch_size => 7' ], [ 'one', 'ordered => true, batch_size => 1' ])
{
	my ($function, $options) = @$case;
	my $what = "$function, $options";
	my $offset = -s $node->logfile;

	$node->safe_psql(
		'postgres', qq(
		SELECT drop_event_handler(name) FROM event_handlers;
		DELETE FROM notification_events;
		TRUNCATE seen;
		SELECT create_event_handler('deadly', '$function', owner => 'ann', max_attempts => 2,
			retry_delay => '50 ms', max_retry_delay => '50 ms', $options);
		SELECT create_event_handler('other', 'other', owner => 'bob');
		INSERT INTO notification_events (event_name)
		SELECT CASE WHEN i = 17 THEN 'terminate' WHEN i % 5 = 0 THEN 'hidden' ELSE 'e' END FROM generate_series(1, 41) i ORDER BY i;
	));
	ok($node->poll_query_until('postgres', q(SELECT delivered = 32 AND dead = 1 FROM event_handler_stats WHERE handler = 'deadly')),
		"$what: one is dead, the others are handled");
	wait_for_handlers($node, 'postgres');
	is(scalar(my @deaths = slurp_file($node->logfile, $offset) =~ /executor FATAL:  terminating/g),
		4, "$what: max_attempts + 2 deaths");
	is( $node->safe_psql('postgres',
			q(SELECT e.event_name, r.state, r.attempts, r.last_error FROM event_retries r JOIN notification_events e ON e.id = r.event_id)),
		'terminate|dead|2|the process that ran the attempt ended',
		"$what: nothing else is on the list");
	seen_is_log($node, 'postgres', $function, q(event_name = 'e'), "$what: its handler");
	seen_is_log($node, 'postgres', 'other', 'true', "$what: another one's");
}

$node->stop;
done_testing();
