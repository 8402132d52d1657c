
# If something outside ends a call, only that event fails.  This may be the handler's
# timeout: in a long query, in a filter, or in a wait for a lock.  It may be a cancel:
# in the call, after it, or at commit.  It may be a deadlock with a client.  Timeout
# and cancel also end an endless recording of events.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('cancel', 'log_statement = none', "deadlock_timeout = '50ms'",
	"pg_notify_events.batch_time = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# emits count events in one transaction: number bad_n is "bad", the others are "good"
sub emit
{
	my ($count, $bad_n, $bad_data) = @_;

	$bad_data //= 'null';
	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name, event_data)
		SELECT CASE n WHEN $bad_n THEN 'bad' ELSE 'good' END,
			   CASE n WHEN $bad_n THEN $bad_data ELSE '[1]'::jsonb END
		FROM generate_series(1, $count) n));
	return;
}

# Remove handlers and events before the next part.
sub clean_up
{
	$node->safe_psql('postgres',
		'SELECT drop_event_handler(name) FROM event_handlers; DELETE FROM notification_events; TRUNCATE seen');
	return;
}

# returns state, SQLSTATE and name of each failed event
sub failed
{
	return $node->safe_psql(
		'postgres', q(
		SELECT l.event_name, r.state, r.last_sqlstate
		FROM event_retries r JOIN notification_events l ON l.id = r.event_id ORDER BY r.event_id));
}

#
# The timeout
#

# in a query that takes very long
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION query(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('query', e.id);
		IF e.event_name = 'bad' THEN
			PERFORM count(*) FROM generate_series(1, 30000) a, generate_series(1, 1000000) b;
		END IF;
	END $$;
	SELECT create_event_handler('query', 'query', owner => 'ann', timeout => '300 ms', max_attempts => 1);
));
emit(10, 5);
wait_for_handlers($node, 'postgres');
is(failed(), 'bad|dead|57014', 'timeout in a long query');
seen_is_log($node, 'postgres', 'query', q(event_name = 'good'), 'others');
clean_up();

# in a filter that compares each element with every other one
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', owner => 'ann', timeout => '300 ms', max_attempts => 1,
		filter => '!exists($[*] ? (@ == -$[*]))');
));
my $elements = has_assertions($node) ? 2_000 : 5_000;
emit(10, 5, "(SELECT jsonb_agg(i) FROM generate_series(1, $elements) i)");
wait_for_handlers($node, 'postgres');
is(failed(), 'bad|dead|57014', 'timeout in a filter');
seen_is_log($node, 'postgres', 'record', q(event_name = 'good'), 'others');
clean_up();

# in a filter that is one long regular expression
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', owner => 'ann', timeout => '300 ms', max_attempts => 1,
		filter => '$ like_regex "^(a+)(a+)(a+)(a+)\\\\1\\\\2\\\\3\\\\4$" || $[*] == 1');
));
emit(10, 5, q(to_jsonb(repeat('a', 1001))));
wait_for_handlers($node, 'postgres');
is(failed(), 'bad|dead|57014', 'timeout in a regular expression');
seen_is_log($node, 'postgres', 'record', q(event_name = 'good'), 'others');
clean_up();

# in a wait for a lock of another session: events fail until that session is done
my $client = $node->background_psql('postgres');
my $client_pid = $client->query_safe('SELECT pg_backend_pid()');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE accounts (name text PRIMARY KEY, n bigint DEFAULT 0);
	INSERT INTO accounts VALUES ('good'), ('bad'), ('other');
	GRANT SELECT, UPDATE ON accounts TO PUBLIC;
	CREATE FUNCTION book(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('book', e.id);
		UPDATE accounts SET n = n + 1 WHERE name = e.event_name;
	END $$;
	CREATE FUNCTION book_impatiently(e notification_events) RETURNS void LANGUAGE plpgsql
		SET lock_timeout = '100ms' AS $$ BEGIN PERFORM book(e); END $$;
));
foreach my $function (qw(book book_impatiently))
{
	my $sqlstate = $function eq 'book' ? '57014' : '55P03';

	$client->query_safe(q(BEGIN; UPDATE accounts SET n = 0; UPDATE accounts SET n = 100 WHERE name = 'bad'));
	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('book', '$function', 'bad', owner => 'ann', timeout => '300 ms',
			max_attempts => 1000, retry_delay => '100 ms', max_retry_delay => '200 ms')));
	emit(10, 5);
	poll('SELECT count(*) > 0 FROM event_retries', 'the lock is not waited for any longer');
	is(failed(), "bad|waiting|$sqlstate", "$function: a lock is not to be had");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), '0', "$function: undone");
	$client->query_safe('COMMIT');
	poll('SELECT count(*) = 0 FROM event_retries', 'a retry succeeds');
	seen_is_log($node, 'postgres', 'book', q(event_name = 'bad'), "$function: a retry succeeds");
	is($node->safe_psql('postgres', q(SELECT n FROM accounts WHERE name = 'bad')),
		'101', "$function: with effect, once");
	clean_up();
}

#
# A cancel
#

# Bad events wait at the gate, either in the call or in a trigger at commit.  The
# sequence counts these waits.
my $gate = $node->background_psql('postgres');
my $visits = 0;
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE visits;
	GRANT ALL ON SEQUENCE visits TO PUBLIC;
	CREATE FUNCTION gate() RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN PERFORM nextval('visits'); PERFORM pg_advisory_xact_lock_shared(1); END $$;
	CREATE FUNCTION wait_in_call(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('wait_in_call', e.id);
		IF e.event_name = 'bad' THEN
			PERFORM gate();
		END IF;
	END $$;
	CREATE FUNCTION wait_in_array(l notification_events[]) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) SELECT 'wait_in_array', id FROM unnest(l);
		IF 'bad' IN (SELECT event_name FROM unnest(l)) THEN
			PERFORM gate();
		END IF;
	END $$;

	CREATE TABLE deferred (name text);
	GRANT INSERT ON deferred TO PUBLIC;
	CREATE FUNCTION trigger_gate() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM gate(); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW WHEN (new.name = 'bad') EXECUTE FUNCTION trigger_gate();
	CREATE FUNCTION wait_at_commit(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('wait_at_commit', e.id);
		INSERT INTO deferred VALUES (e.event_name);
	END $$;
));

# Wait until the executor is at the gate again.
sub wait_at_gate
{
	$visits++;
	poll(
		qq(SELECT last_value >= $visits AND is_called AND EXISTS (
			SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted) FROM visits),
		"visit $visits at the gate");
	return;
}

sub at_gate_or_failed
{
	poll(
		qq(SELECT (last_value > $visits AND EXISTS (
			SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) OR EXISTS (SELECT FROM event_retries)
		FROM visits),
		'the gate or the failure');
	return $node->safe_psql('postgres', 'SELECT count(*) = 0 FROM event_retries') eq 't';
}

foreach my $function (qw(wait_in_call wait_in_array wait_at_commit))
{
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql('postgres',
		"SELECT create_event_handler('wait', '$function', owner => 'ann', timeout => '10 min', retry_delay => '1 s')"
	);
	emit(8, 4);
	# cancel once per attempt; in the last attempt the event is alone
	my $cancels = 0;
	while (at_gate_or_failed())
	{
		wait_at_gate();
		$node->safe_psql('postgres',
			q(SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted));
		$cancels++;
	}
	is(failed(), 'bad|waiting|57014', "$function: fails after $cancels cancels");
	poll('SELECT count(*) >= 7 FROM seen', 'the others');
	seen_is_log($node, 'postgres', $function, q(event_name = 'good'), "$function: others");

	# the cancel does not affect the next events, and the retry succeeds
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	emit(8, 0);
	poll('SELECT count(*) = 0 FROM event_retries', 'the retry');
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', $function, 'true', "$function: all of them in the end");
	is( $node->safe_psql(
			'postgres', 'SELECT delivered, failed, retried FROM event_handler_stats'),
		'16|1|1',
		"$function: nothing else has failed");
	$visits = $node->safe_psql('postgres', 'SELECT last_value FROM visits');
	clean_up();
}

# A cancel that comes when the call is almost over does not fail the next event.  The
# function's last action is to evaluate its return value, which sends the cancel.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION cancel_self(e notification_events) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('cancel_self', e.id);
		RETURN CASE WHEN e.event_name = 'bad' THEN pg_cancel_backend(pg_backend_pid()) END;
	END $$;
	SELECT create_event_handler('cancel_self', 'cancel_self', owner => 'ann', max_attempts => 1);
));
emit(20, 7);
emit(20, 20);
emit(20, 1);
wait_for_handlers($node, 'postgres');
unlike(failed(), qr/good/, 'a late cancel: no other event has failed');
seen_is_log($node, 'postgres', 'cancel_self',
	q(id NOT IN (SELECT event_id FROM event_retries)), 'a late cancel: others');
clean_up();

# Many cancels hit the executor at any point, also between calls.  No event is lost
# or doubled, and the executor goes on.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION dawdle(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('dawdle', e.id);
		PERFORM pg_sleep(0.0005);
	END $$;
	SELECT create_event_handler('dawdle', 'dawdle', owner => 'ann', batch_size => 20, max_attempts => 1000,
		retry_delay => '10 ms', max_retry_delay => '100 ms');
));
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
foreach my $round (1 .. 5)
{
	emit(100, 0);
	$node->safe_psql(
		'postgres', qq(
		DO \$\$ BEGIN
			FOR i IN 1 .. 100 LOOP
				PERFORM pg_cancel_backend($executor), pg_sleep(random() * 0.004);
			END LOOP;
		END \$\$));
}
poll(q(SELECT delivered = 500 FROM event_handler_stats WHERE handler = 'dawdle'),
	'all are delivered');
seen_is_log($node, 'postgres', 'dawdle', 'true', 'a storm of cancels');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'),
	'0', 'nothing is left to be retried');
clean_up();

#
# A deadlock
#

# The handler has locked one row and wants the other.  The client has locked that
# other row and wants the first.  The client does not look for deadlocks, so the
# handler's transaction is the one that ends.
$node->safe_psql(
	'postgres', q(
	UPDATE accounts SET n = 0;
	CREATE FUNCTION transfer(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('transfer', e.id);
		UPDATE accounts SET n = n - 1 WHERE name = e.event_name;
		IF e.event_name = 'bad' THEN
			PERFORM gate();
		END IF;
		UPDATE accounts SET n = n + 1 WHERE name = 'other';
	END $$;
	SELECT create_event_handler('transfer', 'transfer', 'bad', owner => 'ann', timeout => '10 min',
		retry_delay => '50 ms', batch_size => 5);
	SELECT create_event_handler('record', 'record', owner => 'ann');
));
$gate->query_safe('SELECT pg_advisory_lock(1)');
$client->query_safe(
	q(SET deadlock_timeout = '1h'; BEGIN; UPDATE accounts SET n = n + 1000 WHERE name = 'other'));
emit(10, 5);
wait_at_gate();
$client->query_until(qr/begins/, "\\echo begins\nUPDATE accounts SET n = n + 1000 WHERE name = 'bad';\n");
poll(qq(SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $client_pid),
	'the client waits for the handler');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$client->query_safe('COMMIT');
poll(q(SELECT delivered = 1 FROM event_handler_stats WHERE handler = 'transfer'),
	'it is delivered in the end');
poll(q(SELECT deadlocks >= 1 FROM pg_stat_database WHERE datname = 'postgres'), 'a deadlock');
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT name, n FROM accounts ORDER BY name'),
	"bad|999\ngood|0\nother|1001", 'deadlock: delivered in the end, with effect, once');
seen_is_log($node, 'postgres', 'transfer', q(event_name = 'bad'), 'deadlock');
seen_is_log($node, 'postgres', 'record', 'true', 'other handlers');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'),
	'0', 'nothing is left to be retried');

is( $node->safe_psql(
		'postgres', q(SELECT kind, last_error FROM event_worker_stats WHERE last_error <> 'canceling statement due to user request')),
	'',
	'no worker had another error of its own');

#
# Triggers that record events
#

# Each event records another one; only notify_event() is at work.  The triggers are on
# the log, and the listener complains about them, so this part comes last.
clean_up();
$node->safe_psql(
	'postgres', q(
	CREATE CONSTRAINT TRIGGER endless AFTER INSERT ON notification_events DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW WHEN (NEW.event_name = 'endless') EXECUTE FUNCTION notify_event('endless', '1');
	CREATE FUNCTION begin_endless(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('begin_endless', e.id);
		IF e.event_name = 'bad' THEN
			PERFORM public.notify_event('endless', '1'::jsonb);
		END IF;
	END $$;
	SELECT create_event_handler('begin_endless', 'begin_endless', owner => 'ann', timeout => '300 ms', max_attempts => 1);
));
emit(10, 5);
wait_for_handlers($node, 'postgres');
is(failed(), 'bad|dead|57014', 'timeout in triggers that record events');
seen_is_log($node, 'postgres', 'begin_endless', q(event_name = 'good'), 'others');
clean_up();

my $endless = $node->background_psql('postgres', on_error_stop => 0);
my $endless_pid = $endless->query_safe('SELECT pg_backend_pid()');
my $log_sequence = q(pg_get_serial_sequence('notification_events', 'id')::regclass);
my $last_id = $node->safe_psql('postgres', "SELECT pg_sequence_last_value($log_sequence)");
$endless->query_until(qr/begins/, "\\echo begins\nSELECT notify_event('endless', '1'::jsonb);\n");
poll("SELECT pg_sequence_last_value($log_sequence) > $last_id + 100", 'many events');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($endless_pid)");
$endless->query('SELECT 1');
like($endless->{stderr}, qr/canceling statement due to user request/, 'triggers that record events are cancelled');
$endless->quit;
is($node->safe_psql('postgres', 'SELECT count(*) FROM notification_events'), '0', 'nothing is left of them');
$node->safe_psql('postgres', 'DROP TRIGGER endless ON notification_events');

$_->quit foreach ($gate, $client);
$node->stop;
done_testing();
