
# A stop of the server is not a loss, whatever failed before or fails then: the failure of
# an attempt could not be recorded, so that the attempt is repeated and not counted; or
# positions cannot be stored in time, or owner tokens cannot be removed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('stop', 'log_statement = none');
my $faults = $node->data_dir . '/pg_notify_events.faults';

mkdir $faults or die "mkdir $faults: $!";
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');

# "fail" fails twice; "wait" waits for a lock
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE fails;
	GRANT ALL ON fails TO PUBLIC;
	CREATE FUNCTION call(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('h', e.id);
		IF e.event_name = 'fail' AND nextval('public.fails') <= 2 THEN
			RAISE 'it fails';
		ELSIF e.event_name = 'wait' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
	END $$;
	SELECT create_event_handler('h', 'call', owner => 'ann', max_attempts => 3, timeout => '1 h',
		retry_delay => '100 ms', max_retry_delay => '100 ms');
));

# The failure of its first attempt is recorded, that of the second one is not.
append_to_file("$faults/before-record", 'error');
$node->safe_psql('postgres', q(SELECT notify_event('fail')));
wait_for_handlers($node, 'postgres');
ok($node->poll_query_until('postgres', q(SELECT delivered = 1 FROM event_handler_stats)), 'an event is handled at last');
ok(-e "$faults/before-record.hit", 'a failure could not be recorded');
is($node->safe_psql('postgres', q(SELECT failed FROM event_handler_stats)), '1', 'another one was');

my $holder = $node->background_psql('postgres');
my $offset = -s $node->logfile;

$holder->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', q(SELECT notify_event('wait')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
  or die 'no call';
$node->stop('fast');
eval { $holder->quit };
$node->start;
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'h', 'true', 'all events');
unlike(slurp_file($node->logfile, $offset), qr/is guarded/, 'a stop in a call later is no loss');

# The stop is no loss either if the executor is idle and fails to remove its owner tokens.
$node->poll_query_until('postgres', q(SELECT state = 'idle' FROM event_worker_stats WHERE kind = 'executor'))
  or die 'the executor is busy';
append_to_file("$faults/before-release", 'error');
$node->restart;
ok(-e "$faults/before-release.hit", 'marks cannot be taken');
$node->safe_psql('postgres', q(SELECT notify_event('after')));
wait_for_handlers($node, 'postgres');
unlike(slurp_file($node->logfile, $offset), qr/is guarded/, 'nor is a stop then');

# Nor is it if an executor has stopped before, and could not store positions.
append_to_file("$faults/before-store", 'error');
configure($node, executor_idle_timeout => "'100 ms'");
$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind = 'executor'))
  or die 'the executor stays';
ok(-e "$faults/before-store.hit", 'positions cannot be stored');
is($node->safe_psql('postgres', 'SELECT count(*) FROM _event_handler_progress WHERE owner_token IS NOT NULL'),
	'0', 'the marks are taken all the same');
$node->restart;
$node->safe_psql('postgres', q(SELECT notify_event('after')));
wait_for_handlers($node, 'postgres');
unlike(slurp_file($node->logfile, $offset), qr/is guarded/, 'nor is a stop after that');

$node->stop;
done_testing();
