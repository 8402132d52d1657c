
# An event that ends the process that handles it is found although its handler uses
# temporary tables: the server removes those with a commit when the process ends.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('deadly_temporary', 'log_statement = none');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION work(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('work', e.id);
		CREATE TEMPORARY TABLE IF NOT EXISTS ids (id bigint);
		INSERT INTO ids VALUES (e.id);
		IF e.event_name = 'deadly' THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
	END $$;
	SELECT create_event_handler('work', 'work', owner => 'ann', max_attempts => 2,
		retry_delay => '10 ms', max_retry_delay => '10 ms');
));

# A session has temporary tables to remove only after it has committed some.
$node->safe_psql('postgres', q(SELECT notify_event('good')));
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', q(
	INSERT INTO notification_events (event_name)
	SELECT CASE n WHEN 4 THEN 'deadly' ELSE 'good' END FROM generate_series(1, 8) n));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM event_retries WHERE state = 'dead' AND attempts = 2))
  or die 'the event never dies';
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'work', q(event_name = 'good'), 'others');
is($node->safe_psql('postgres', 'SELECT l.event_name, r.state, r.attempts FROM event_retries r JOIN notification_events l ON l.id = r.event_id'),
	'deadly|dead|2', 'it has had its attempts');
my @deaths = slurp_file($node->logfile) =~ /executor FATAL:  terminating/g;
is(@deaths, 4, 'and the first two deaths were enough to try it alone');
$node->stop;
done_testing();
