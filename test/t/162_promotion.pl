
# A promotion is not a loss. What executors of the old primary had begun is done by those
# of the new one, and an attempt that was under way is not charged.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('old_primary');
$primary->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--locale=C', '--no-sync' ]);
$primary->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'pg_notify_events'
max_worker_processes = 16
));
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($primary, 'postgres');
make_owner($primary, 'postgres', 'ann', 'bob');
$primary->safe_psql(
	'postgres', q(
	CREATE TABLE holds (name text PRIMARY KEY);
	INSERT INTO holds VALUES ('fresh'), ('retried'), ('batch');
	CREATE SEQUENCE deaths;
	GRANT ALL ON holds, deaths TO ann, bob;
	-- waits where the row of "holds" is locked that has the handler's name
	CREATE FUNCTION wait(by text, e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES (by, e.id);
		IF by = 'fresh' AND nextval('public.deaths') <= 2 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
		IF by = 'retried' AND NOT EXISTS (SELECT FROM public._event_retries WHERE event_id = e.id) THEN
			RAISE 'fails once';
		END IF;
		PERFORM FROM public.holds h WHERE h.name = by AND e.event_name <> 'nothing' FOR UPDATE;
	END $$;
	GRANT SELECT ON _event_retries TO ann, bob;
	CREATE FUNCTION fresh(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.wait('fresh', e) $$;
	CREATE FUNCTION retried(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.wait('retried', e) $$;
	CREATE FUNCTION batch(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.wait('batch', e) $$;
	CREATE ROLE carl LOGIN IN ROLE ann;
	GRANT ALL ON holds, deaths TO carl;
	SELECT create_event_handler('fresh', 'fresh', 'fresh', owner => 'ann', max_attempts => 2, retry_delay => '1 h', timeout => '1 h');
	SELECT create_event_handler('retried', 'retried', 'retried', owner => 'bob', max_attempts => 2, retry_delay => '100 ms', max_retry_delay => '100 ms', timeout => '1 h');
	SELECT create_event_handler('batch', 'batch', owner => 'carl', timeout => '1 h');
	SELECT notify_event('nothing');
));
wait_for_handlers($primary, 'postgres');

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('new_primary');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# three calls that wait: on a single event, on a retry, on a batch
my $holder = $primary->background_psql('postgres');
$holder->query_safe('BEGIN; SELECT FROM holds FOR UPDATE');
$primary->safe_psql('postgres', q(SELECT notify_event('fresh'), notify_event('retried'), notify_event('batch')));
$primary->poll_query_until('postgres',
	q(SELECT count(*) = 3 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' AND wait_event_type = 'Lock'))
  or die 'the calls do not wait';
my $attempts = q(SELECT handler, attempts, attempt_began_at IS NOT NULL FROM _event_retries ORDER BY handler);
is($primary->safe_psql('postgres', $attempts), "fresh|1|t\nretried|2|t", 'attempts are under way');
$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');
$primary->wait_for_catchup('new_primary', 'replay');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM _event_handler_progress WHERE owner_token IS NOT NULL'),
	'3', 'the standby has their marks');
$primary->stop('immediate');
eval { $holder->quit };

my $offset = -s $standby->logfile;
$standby->promote;
wait_for_listener($standby, 'postgres');
# This happens at once, though the delay of one is an hour and nothing else happens.
$standby->poll_query_until('postgres', q(SELECT count(*) = 0 FROM _event_retries WHERE state = 'waiting'))
  or die 'they stay: ' . $standby->safe_psql('postgres', 'TABLE _event_retries');
wait_for_handlers($standby, 'postgres');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM _event_retries'), '0', 'no attempt was lost, none stays');
seen_is_log($standby, 'postgres', 'fresh', q(event_name = 'fresh'), 'an event that went alone');
seen_is_log($standby, 'postgres', 'retried', q(event_name = 'retried'), 'a retry');
seen_is_log($standby, 'postgres', 'batch', 'true', 'a batch');
unlike(slurp_file($standby->logfile, $offset), qr/is guarded/, 'it is no loss');
is($standby->safe_psql('postgres', q(SELECT count(*) FROM _event_handler_progress WHERE owner_token >> 32 = 2)),
	'3', 'and marks are of the new timeline');

$standby->stop;
done_testing();
