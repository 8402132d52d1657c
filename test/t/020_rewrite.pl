
# The log is rewritten while handlers work on it.  An executor that has events in
# memory reads them again in their new shape.  A retry that waited for the rewrite
# finds its event.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('rewrite', 'log_statement = none', 'autovacuum = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'bob');
# Three handlers of ann, one of each shape, share a window of 60 events; a batch is
# 10 events.  The handler of bob fails while the table "switch" says so.  All of
# them wait at the gate, an advisory lock.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE switch (failing boolean NOT NULL);
	CREATE TABLE recorded (handler text, id bigint, event jsonb, data text);
	INSERT INTO switch VALUES (true);
	GRANT SELECT ON switch TO PUBLIC;
	GRANT SELECT, INSERT ON recorded TO PUBLIC;

	CREATE FUNCTION pass_gate() RETURNS void LANGUAGE sql AS
		$$ SELECT pg_advisory_xact_lock_shared(1) $$;
	CREATE FUNCTION record_row(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pass_gate();
		INSERT INTO recorded VALUES ('row', e.id, to_jsonb(e) - 'event_data', md5(e.event_data::text));
	END $$;
	CREATE FUNCTION record_array(e notification_events[]) RETURNS void LANGUAGE sql AS $$
		SELECT pass_gate();
		INSERT INTO recorded
			SELECT 'array', l.id, to_jsonb(l) - 'event_data', md5(l.event_data::text) FROM unnest(e) l;
	$$;
	CREATE FUNCTION record_pair(name text, data jsonb) RETURNS void LANGUAGE sql AS $$
		SELECT pass_gate();
		INSERT INTO recorded VALUES ('pair', (data ->> 'n')::bigint, NULL, md5(data::text));
	$$;
	CREATE FUNCTION record_late(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF (SELECT failing FROM switch) THEN
			RAISE 'not yet';
		END IF;
		PERFORM pass_gate();
		INSERT INTO recorded VALUES ('late', e.id, to_jsonb(e) - 'event_data', md5(e.event_data::text));
	END $$;
	SELECT create_event_handler(shape, 'record_' || shape, owner => 'ann', batch_size => 10)
		FROM unnest('{row,array,pair}'::text[]) shape;
	SELECT create_event_handler('late', 'record_late', 'late', owner => 'bob', max_attempts => 1000,
		retry_delay => '50 ms', max_retry_delay => '100 ms');
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

my $gate = $node->background_psql('postgres');
my $ddl = $node->background_psql('postgres');
my $round = 0;

# Execute one DDL command.  If it locks the whole table (locks), it waits for batches.
sub rewrite
{
	my ($command, $locks) = @_;

	$round++;
	# 60 events, some with out-of-line data; the handler "late" fails for 20 of them
	$node->safe_psql('postgres', 'UPDATE switch SET failing = true');
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name, event_data)
		SELECT CASE WHEN n % 3 = 0 THEN 'late' ELSE 'other' END,
			   jsonb_build_object('n', $round * 1000 + n, 'text',
				(SELECT string_agg(md5(random()::text), '')
				 FROM generate_series(1, CASE WHEN n % 5 = 0 THEN 300 ELSE 1 END) WHERE n > 0))
		FROM generate_series(1, 60) n));
	poll(q(SELECT count(*) = 20 FROM event_retries WHERE handler = 'late' AND state = 'waiting'),
		'20 failures');

	# make all retries due at once
	$node->safe_psql('postgres',
		q(SELECT pause_event_handler('late'); UPDATE switch SET failing = false));
	poll('SELECT bool_and(next_attempt_at < clock_timestamp()) FROM event_retries',
		'all retries are due');
	$node->safe_psql('postgres', q(SELECT resume_event_handler('late')));

	# both executors are in a batch, and it is not their last one
	poll(
		q(SELECT count(*) = 2 FROM pg_stat_activity
		WHERE backend_type = 'pg_notify_events executor' AND wait_event = 'advisory'),
		'both executors wait at the gate');
	if ($locks)
	{
		$ddl->query_until(qr/begins/, "\\echo begins\n$command;\n");
		poll(
			q(SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
			AND relation = 'notification_events'::regclass),
			"$command waits");
	}
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	$ddl->query_safe($locks ? 'SELECT 1' : $command);
	wait_for_handlers($node, 'postgres');
	poll('SELECT count(*) = 0 FROM event_retries', 'all retries succeed')
	  if $node->safe_psql('postgres',
		q(SELECT count(*) = 0 FROM event_retries WHERE state <> 'waiting')) eq 't';

	is($node->safe_psql('postgres', 'SELECT state, count(*) FROM event_retries GROUP BY state'),
		'', "$command: nothing is discarded or dead");
	foreach my $handler (qw(row array pair late))
	{
		my $id = $handler eq 'pair' ? q((l.event_data ->> 'n')::bigint) : 'l.id';
		my $condition = $handler eq 'late' ? q(l.event_name = 'late') : 'true';

		# ignore a column that the event did not have yet when it was handled
		is( $node->safe_psql(
				'postgres', qq(
				SELECT count(*) FILTER (WHERE r.id IS NULL) AS missing,
					   count(*) - count(DISTINCT l.id) AS doubled,
					   count(*) FILTER (WHERE r.data <> md5(l.event_data::text)) AS bad_data,
					   count(*) FILTER (WHERE NOT to_jsonb(l) \@> r.event - 'u' - 'n') AS bad_row,
					   count(*) FILTER (WHERE l.id > 60 * ($round - 1) AND r.event ? 'n' AND
						r.event ->> 'n' IS DISTINCT FROM to_jsonb(l) ->> 'n') AS bad_n,
					   count(*) FILTER (WHERE l.id > 60 * ($round - 1) AND r.event ? 'u' AND to_jsonb(l) ? 'u' AND
						r.event ->> 'u' IS DISTINCT FROM to_jsonb(l) ->> 'u') AS bad_u
				FROM notification_events l
				LEFT JOIN recorded r ON r.handler = '$handler' AND r.id = $id
				WHERE $condition)),
			'0|0|0|0|0|0',
			"$command: handler $handler: missing, doubled, wrong data");
	}
	return;
}

rewrite('ALTER TABLE notification_events ADD COLUMN u uuid DEFAULT gen_random_uuid()', 1);
is( $node->safe_psql(
		'postgres', q(
		SELECT handler, count(*) FILTER (WHERE event ? 'u') > 40, count(*) FILTER (WHERE event ? 'u') < count(*)
		FROM recorded WHERE handler IN ('row', 'array') GROUP BY handler ORDER BY handler)),
	"array|t|t\nrow|t|f",
	'events were handled before and after the rewrite');
rewrite('ALTER TABLE notification_events ADD COLUMN n integer DEFAULT 7', 1);
rewrite('ALTER TABLE notification_events ALTER COLUMN n TYPE text', 1);
rewrite('ALTER TABLE notification_events DROP COLUMN u', 1);
rewrite('VACUUM FULL notification_events', 1);
rewrite('CLUSTER notification_events USING notification_events_pkey', 1);
rewrite('REINDEX TABLE notification_events', 0);

is( $node->safe_psql(
		'postgres', q(
		SELECT handler, delivered, pending, waiting, dead FROM event_handler_stats ORDER BY handler)),
	"array|420|0|0|0\nlate|140|0|0|0\npair|420|0|0|0\nrow|420|0|0|0",
	'all is counted');
is( $node->safe_psql(
		'postgres', q(SELECT handler, failed FROM event_handler_stats WHERE failed > 0 AND handler <> 'late')),
	'',
	'nobody else has failed');
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC:|TRAP:/,
	'nothing crashed');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM event_worker_stats WHERE last_error IS NOT NULL'),
	'0',
	'no worker failed');

$gate->quit;
$ddl->quit;
$node->stop;
done_testing();
