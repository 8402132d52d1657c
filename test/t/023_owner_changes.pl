
# Owners of objects change while handlers run.  A role that is no longer a superuser
# keeps none of its rights.  Nobody can replace a handler's function by a function of
# another role, even in a schema that it owns.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('owner_changes', 'log_statement = none',
	"pg_notify_events.naptime = '200 ms'",
	"pg_notify_events.batch_time = '1 min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'su', 'victim', 'attacker');
$node->safe_psql(
	'postgres', q(
	ALTER ROLE su SUPERUSER;
	GRANT CREATE ON DATABASE postgres TO attacker;
	CREATE TABLE ran (
		what text,
		id bigint,
		became text,
		pid integer NOT NULL DEFAULT pg_backend_pid(),
		by_role name NOT NULL DEFAULT current_user
	);
	GRANT SELECT, INSERT ON ran TO PUBLIC;
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# run SQL as a role
sub as_role
{
	my ($role, $sql) = @_;

	$node->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
	return;
}

# A call of a handler waits for this advisory lock.
my $gate = $node->background_psql('postgres');

sub close_gate
{
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	return;
}

sub wait_at_gate
{
	poll(
		q(SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_notify_events executor' AND wait_event = 'advisory'),
		'the handler waits at the gate');
	return;
}

sub open_gate
{
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	return;
}

# A superuser becomes an ordinary role: in the middle of a batch, which ends with the
# rights it began with, and while its executor idles.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION become(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		became text := 'no';
	BEGIN
		IF e.event_name = 'gate' THEN
			PERFORM pg_advisory_xact_lock_shared(1);
		END IF;
		BEGIN
			EXECUTE 'SET SESSION AUTHORIZATION postgres';
			became := session_user || ' ' || current_setting('is_superuser');
			EXECUTE 'RESET SESSION AUTHORIZATION';
		EXCEPTION WHEN insufficient_privilege THEN
			NULL;
		END;
		INSERT INTO ran (what, id, became) VALUES (session_user, e.id, became);
	END $$;
	SELECT create_event_handler('become', 'become', owner => 'su', batch_size => 1);
	SELECT notify_event('superuser');
));
wait_for_handlers($node, 'postgres');
close_gate();
$node->safe_psql('postgres', q(SELECT notify_event('gate'); SELECT notify_event('behind')));
wait_at_gate();
$node->safe_psql('postgres', 'ALTER ROLE su NOSUPERUSER');
open_gate();
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT e.event_name, r.what, r.became FROM ran r JOIN notification_events e USING (id) ORDER BY id)
	),
	"superuser|su|postgres on\ngate|su|postgres on\nbehind|su|no",
	'NOSUPERUSER during a batch: the next one cannot become a superuser');
is( $node->safe_psql(
		'postgres', q(SELECT count(DISTINCT pid), (SELECT count(*) FROM event_retries) FROM ran)),
	'2|0',
	'because it is a new session');
$node->safe_psql('postgres',
	q(ALTER ROLE su SUPERUSER; SELECT notify_event('again')));
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', 'ALTER ROLE su NOSUPERUSER');
$node->safe_psql('postgres', q(SELECT notify_event('idle')));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT e.event_name, r.became FROM ran r JOIN notification_events e USING (id)
		WHERE e.event_name IN ('again', 'idle') ORDER BY id)),
	"again|postgres on\nidle|no",
	'the same while its executor idles');
$node->safe_psql('postgres',
	q(SELECT drop_event_handler('become'); TRUNCATE ran));

# The attacker owns the schema.  The victim owns a function in it, and a handler that
# calls this function.
sub make_function
{
	as_role(
		'victim', q(
		CREATE OR REPLACE FUNCTION s.f(name text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF name = 'gate' THEN
				PERFORM pg_advisory_xact_lock_shared(1);
			END IF;
			INSERT INTO public.ran (what, id) VALUES ('real', (data ->> 'n')::bigint);
		END $$));
	return;
}

# creates functions of the attacker with a similar signature in a new schema "s"
sub squat
{
	as_role(
		'attacker', q(
		ALTER SCHEMA s RENAME TO s2;
		CREATE SCHEMA s;
		GRANT USAGE ON SCHEMA s TO victim;
		CREATE FUNCTION s.f(text, jsonb) RETURNS void LANGUAGE sql AS
			$$ INSERT INTO public.ran (what) VALUES ('squatter') $$;
		CREATE FUNCTION s.f(text, anyelement) RETURNS void LANGUAGE sql AS
			$$ INSERT INTO public.ran (what) VALUES ('squatter') $$;
	));
	return;
}

sub restore
{
	as_role('attacker', 'DROP SCHEMA s CASCADE; ALTER SCHEMA s2 RENAME TO s');
	return;
}

# emits numbered events, the first of them with this name
my $emitted = 0;

sub emit
{
	my ($first, $count) = @_;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name, event_data)
		SELECT CASE n WHEN 1 THEN '$first' ELSE 'next' END, jsonb_build_object('n', $emitted + n)
		FROM generate_series(1, $count) n));
	$emitted += $count;
	return;
}

sub wait_for_state
{
	my ($state) = @_;

	poll("SELECT state = '$state' FROM event_handler_stats", "handler is $state");
	return;
}

sub suspended_reason
{
	wait_for_state('suspended');
	return $node->safe_psql('postgres',
		'SELECT suspended_reason, failed FROM event_handler_stats');
}

# returns which function ran, as which role, how often, for how many events
sub ran
{
	return $node->safe_psql('postgres',
		'SELECT what, by_role, count(*), count(DISTINCT id) FROM ran GROUP BY 1, 2 ORDER BY 1, 2');
}

as_role('attacker',
	'CREATE SCHEMA s; GRANT USAGE, CREATE ON SCHEMA s TO victim');
make_function();
as_role('victim', q(SELECT create_event_handler('h', 's.f', batch_size => 5)));

emit('first', 1);
wait_for_handlers($node, 'postgres');
is(ran(), 'real|victim|1|1', 'the handler runs');

# Another schema gets that name in the middle of a batch.
close_gate();
emit('gate', 10);
wait_at_gate();
squat();
open_gate();
is(suspended_reason(), 'function s.f belongs to role "attacker", which may not become role "victim"|0',
	'the schema is replaced during a batch: suspended after it');
is(ran(), 'real|victim|6|6',
	'the real function was called for the whole batch');
restore();
wait_for_handlers($node, 'postgres');
is(ran(), 'real|victim|11|11', 'goes on by itself, nothing is lost');

# The same between the check of the function and its first call.  There the executor
# locks its progress row, and a lock on the table makes it wait.
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN');
$blocker->query_safe('LOCK TABLE _event_handler_progress IN ACCESS EXCLUSIVE MODE');
emit('next', 10);
poll(
	q(SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
	WHERE a.backend_type = 'pg_notify_events executor' AND a.usename = 'victim' AND NOT l.granted
	AND l.relation = '_event_handler_progress'::regclass),
	'the executor waits');
squat();
$blocker->query_safe('COMMIT');
is(suspended_reason(), 'function s.f belongs to role "attacker", which may not become role "victim"|0',
	'the schema is replaced before the first call: suspended');
unlike(ran(), qr/squatter/, 'the other function is not called');
restore();
wait_for_handlers($node, 'postgres');
is(ran(), 'real|victim|21|21', 'nothing is lost');

# The schema's owner may drop the function, but the drop waits for the batch.
close_gate();
emit('gate', 10);
wait_at_gate();
my $function =
  $node->safe_psql('postgres', q(SELECT 's.f(text, jsonb)'::regprocedure::oid));
my $dropper =
  $node->background_psql('postgres', extra_params => [ '-U', 'attacker' ]);
$dropper->query_until(qr/begins/, "\\echo begins\nDROP FUNCTION s.f(text, jsonb);\n");
poll(
	qq(SELECT NOT EXISTS (SELECT FROM pg_proc WHERE oid = $function) OR
	EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'object'
	AND classid = 'pg_proc'::regclass AND objid = $function)),
	'DROP FUNCTION waits or is done');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_proc WHERE oid = $function"),
	'1', 'DROP FUNCTION waits for the batch');
open_gate();
$dropper->query_safe('SELECT 1');
is( suspended_reason(),
	'function s.f does not exist with the signature that the handler was created for|0',
	'suspended without its function');
is(ran(), 'real|victim|26|26', 'the batch was finished');
as_role('attacker',
	q(CREATE FUNCTION s.f(text, jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.ran (what) VALUES ('squatter') $$)
);
poll(
	q(SELECT suspended_reason = 'function s.f belongs to role "attacker", which may not become role "victim"' FROM event_handler_stats),
	'the function of the attacker');
as_role('attacker', 'DROP FUNCTION s.f(text, jsonb)');
make_function();
wait_for_handlers($node, 'postgres');
is(ran(), 'real|victim|31|31',
	'the function is created again: goes on by itself, nothing is lost');
is( $node->safe_psql(
		'postgres', 'SELECT delivered, failed, pending FROM event_handler_stats'),
	'31|0|0',
	'no attempt was burnt');

$_->quit foreach ($gate, $blocker, $dropper);
$node->stop;
done_testing();
