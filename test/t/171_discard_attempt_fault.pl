
# The session cannot be cleaned after an attempt that was counted. The attempt is recorded
# before the executor stops. If the executor is terminated meanwhile, an attempt that has
# succeeded is not a loss.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('discard_attempt', 'log_statement = none');
my $faults = $node->data_dir . '/pg_notify_events.faults';

mkdir $faults or die "mkdir $faults: $!";
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');

# "fail" fails each time, and breaks the cleaning after its second attempt. "hang" fails
# once; after that it leaves a trigger that is dropped when the session is cleaned.
$node->safe_psql(
	'postgres', qq(
	CREATE SEQUENCE fails;
	CREATE SEQUENCE hangs;
	GRANT ALL ON fails, hangs TO PUBLIC;
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		IF nextval('public.fails') = 2 THEN
			COPY (SELECT 'error') TO '$faults/before-discard';
		END IF;
		RAISE 'attempt %', lastval();
	END \$\$;
	CREATE FUNCTION hang(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		IF nextval('public.hangs') = 1 THEN
			RAISE 'the first time it fails';
		END IF;
		INSERT INTO public.seen (handler, id) VALUES ('hang', e.id);
		CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
		CREATE TRIGGER t BEFORE UPDATE ON public.own FOR EACH ROW EXECUTE FUNCTION pg_temp.f();
	END \$\$;
	SET ROLE ann;
	CREATE TABLE own (a integer);
	RESET ROLE;
	SELECT create_event_handler('fail', 'fail', 'fail', max_attempts => 3, retry_delay => '100 ms');
	SELECT create_event_handler('hang', 'hang', 'hang', owner => 'ann', retry_delay => '100 ms');
));

# an attempt that failed
$node->safe_psql('postgres', q(SELECT notify_event('fail')));
ok($node->poll_query_until('postgres', q(SELECT state = 'dead' FROM event_retries WHERE handler = 'fail')), 'an event dies');
ok(-e "$faults/before-discard.hit", 'a session could not be cleaned');
is($node->safe_psql('postgres', q(SELECT attempts, last_error FROM event_retries WHERE handler = 'fail')),
	'3|attempt 3', 'after as many attempts as it may have');
is($node->safe_psql('postgres', q(SELECT failed FROM event_handler_stats WHERE handler = 'fail')),
	'3', 'each of which is recorded');

# an attempt that succeeded; the lock does not conflict with CREATE TRIGGER, but does with
# DROP TRIGGER
my $client = $node->background_psql('postgres');
my $offset = -s $node->logfile;

$client->query_safe('BEGIN; LOCK TABLE own IN ACCESS SHARE MODE');
$node->safe_psql('postgres', q(SELECT notify_event('hang')));
$node->poll_query_until(
	'postgres', q(SELECT count(*) = 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
	WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'own'::regclass
	AND backend_type = 'pg_notify_events executor')) or die 'the executor does not wait';
is($node->safe_psql('postgres', q(SELECT count(*) FROM seen)), '1', 'an event is handled at its second attempt');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($executor)");
$client->query_safe('COMMIT');
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', q(SELECT notify_event('hang')));
wait_for_handlers($node, 'postgres');
isnt(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, 'its executor is terminated');
unlike(slurp_file($node->logfile, $offset), qr/is guarded/, 'that is no loss');

$client->quit;
$node->stop;
done_testing();
