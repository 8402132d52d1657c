
# How long a handler's code can keep its executor, and with that an executor slot: no
# longer than max_handler_timeout, whatever the handler's timeout says, and no longer than
# until the handler is dropped. Both hold as well if a policy on the log takes the time. A
# call that is ended in this way is charged to nobody.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('handler_timeouts', 'log_statement = none', 'max_prepared_transactions = 2');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION sleep(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(1000) $$;
	CREATE FUNCTION sleep_first(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('sleep_first', e.id);
		IF (SELECT count(*) FROM public.calm) = 0 THEN PERFORM pg_sleep(1000); END IF;
	END $$;
	CREATE TABLE calm (n integer);
	GRANT SELECT ON calm TO PUBLIC;
	CREATE FUNCTION sleep_many(e notification_events[]) RETURNS void LANGUAGE sql AS $$ SELECT pg_sleep(1000) $$;
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	CREATE FUNCTION deaf(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			BEGIN
				PERFORM pg_sleep(1000);
			EXCEPTION WHEN query_canceled THEN
				-- does not want to hear it
			END;
		END LOOP;
	END $$;
	CREATE TABLE late (n integer);
	GRANT INSERT ON late TO PUBLIC;
	CREATE FUNCTION sleep_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1000); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep_late();
	CREATE FUNCTION write_late(e notification_events) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.late VALUES (1) $$;
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# Wait until ann's executor sleeps in a handler's code.
sub wait_for_sleep
{
	poll(
		q(SELECT count(*) = 1 FROM pg_stat_activity
		  WHERE backend_type = 'pg_notify_events executor' AND usename = 'ann' AND wait_event = 'PgSleep'),
		'asleep');
	return;
}

# The drop does not wait for the handler's call, which would last as long as its timeout.
sub drop_it
{
	$node->safe_psql('postgres', q(SET statement_timeout = '1min'; SELECT drop_event_handler('h')));
	return;
}

sub clean_up
{
	$node->safe_psql('postgres',
		q(SET statement_timeout = '1min'; SELECT drop_event_handler(name) FROM event_handlers; DELETE FROM notification_events; TRUNCATE seen));
	return;
}

#
# The longest timeout that counts
#

is($node->safe_psql('postgres', 'SHOW pg_notify_events.max_handler_timeout'), '1h', 'an hour');
configure($node, max_handler_timeout => "'300ms'");
foreach my $function ('sleep', 'sleep_many', 'write_late')
{
	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('h', '$function', owner => 'ann', timeout => '24 days', max_attempts => 1);
		SELECT notify_event('x', NULL::jsonb)));
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', 'SELECT state, last_sqlstate FROM event_retries'),
		'dead|57014', "$function: a timeout of 24 days ends");
	is($node->safe_psql('postgres', 'SELECT timeout FROM event_handlers'),
		'576:00:00', "$function: and stays as it was given");
	clean_up();
}
# In a filter, in a retry. The data have enough elements to make the filter last long, but
# few enough that it checks often for a cancel.
my $some = has_assertions($node) ? 2_000 : 5_000;
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('h', 'record', owner => 'ann', timeout => '24 days', max_attempts => 2, retry_delay => '1 ms',
		filter => '!exists($[*] ? (@ == -$[*]))');
	SELECT notify_event('x', (SELECT jsonb_agg(n) FROM generate_series(1, SOME) n))) =~ s/SOME/$some/r);
poll(q(SELECT count(*) = 1 FROM event_retries WHERE state = 'dead' AND attempts = 2 AND last_sqlstate = '57014'), 'dead');
pass('a filter, at the first attempt and at the second');
clean_up();
configure($node, max_handler_timeout => "'1h'");

#
# A drop ends the call
#

foreach my $function ('sleep', 'sleep_many', 'write_late', 'deaf')
{
	my $offset = -s $node->logfile;

	# Another handler of the same owner, which has the executor's owner token, too.
	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('other', 'record', 'other', owner => 'ann');
		SELECT notify_event('other', NULL::jsonb)));
	wait_for_handlers($node, 'postgres');
	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('h', '$function', 'x', owner => 'ann', timeout => '24 days');
		SELECT notify_event('x', NULL::jsonb)));
	wait_for_sleep();
	drop_it();
	is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '0', "$function: dropped");
	$node->safe_psql('postgres', q(SELECT notify_event('other', NULL::jsonb)));
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'record', q(event_name = 'other'), "$function: the other handler goes on");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded|cannot clean|is suspended|cannot be read|failed for event/,
		"$function: nobody suffers for it");
	clean_up();
}

# A filter, before the handler is called for the first time and in a retry. The data have
# so many elements that the filter lasts longer than the test.
my $many = has_assertions($node) ? 5_000 : 100_000;
my $emit = "SELECT notify_event('x', (SELECT jsonb_agg(n) FROM generate_series(1, $many) n))";
foreach my $case ('batch', 'retry')
{
	my $offset = -s $node->logfile;

	$node->safe_psql('postgres', q(SELECT create_event_handler('other', 'record', 'other', owner => 'ann')));
	$node->safe_psql('postgres', q(SELECT create_event_handler('h', 'fail', 'x', owner => 'ann', timeout => '24 days', max_attempts => 1)));
	if ($case eq 'retry')
	{
		$node->safe_psql('postgres', $emit);
		wait_for_handlers($node, 'postgres');
		$offset = -s $node->logfile;
	}
	$node->safe_psql('postgres', q(SELECT alter_event_handler('h', 'record', filter => '!exists($[*] ? (@ == -$[*]))')));
	$node->safe_psql('postgres', $case eq 'retry' ? q(SELECT retry_dead_events('h')) : $emit);
	poll(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'event handler h: 1 events%'), 'at work');
	drop_it();
	$node->safe_psql('postgres', q(SELECT notify_event('other', NULL::jsonb)));
	poll(q(SELECT count(*) = 1 FROM seen), "$case: the other one");
	pass("a filter, $case: the other handler goes on");
	unlike(slurp_file($node->logfile, $offset), qr/is guarded|cannot clean|is suspended|cannot be read|failed for event/,
		"a filter, $case: nobody suffers for it");
	clean_up();
}

# in a retry
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('h', 'fail', owner => 'ann', timeout => '24 days', max_attempts => 1);
	SELECT notify_event('x', NULL::jsonb)));
wait_for_handlers($node, 'postgres');
$node->safe_psql(
	'postgres', q(
	SELECT alter_event_handler('h', 'sleep', max_attempts => 5);
	SELECT retry_dead_events('h')));
wait_for_sleep();
drop_it();
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '0', 'in a retry');

#
# A drop that is rolled back
#

foreach my $retried (0, 1)
{
	my $how = $retried ? 'retry' : 'batch';
	my $offset = -s $node->logfile;
	my $session = $node->background_psql('postgres');

	clean_up();
	$node->safe_psql('postgres', 'TRUNCATE calm');
	$node->safe_psql(
		'postgres', q(
		SELECT create_event_handler('h', 'fail', 'x', owner => 'ann', timeout => '24 days', max_attempts => 1);
		SELECT notify_event('x', NULL::jsonb)));
	wait_for_handlers($node, 'postgres');
	$node->safe_psql('postgres', q(SELECT alter_event_handler('h', 'sleep_first', max_attempts => 1, batch_size => 10)));
	$node->safe_psql('postgres', $retried ? q(SELECT retry_dead_events('h')) : q(
		SELECT discard_dead_events('h');
		DELETE FROM notification_events;
		SELECT notify_event('x', NULL::jsonb) FROM generate_series(1, 3)));
	wait_for_sleep();
	$session->query_safe(q(SET statement_timeout = '1min'; BEGIN));
	$session->query_safe(q(SELECT drop_event_handler('h')));
	# What executors do meanwhile waits for nobody.
	$node->safe_psql(
		'postgres', q(
		SELECT create_event_handler('other', 'record', 'other', owner => 'ann');
		SELECT notify_event('other', NULL::jsonb)));
	poll(q(SELECT count(*) = 1 FROM seen WHERE handler = 'record'), 'the other one');
	$node->safe_psql('postgres', 'INSERT INTO calm VALUES (1)');
	$session->query_safe('ROLLBACK');
	$session->quit;
	poll(q(SELECT count(*) = (SELECT count(*) FROM notification_events WHERE event_name = 'x')
		   FROM seen WHERE handler = 'sleep_first'), 'all of them');
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'sleep_first', q(event_name = 'x'), "$how: the handler goes on");
	is($node->safe_psql('postgres', q(SELECT count(*) FROM event_retries WHERE state <> 'discarded')), '0',
		"$how: nothing was charged, though one attempt was all there was");
}
clean_up();

#
# The handler's timeout applies to a policy that sleeps
#

$node->safe_psql(
	'postgres', q(
	CREATE TABLE slow (role name);
	GRANT SELECT ON slow TO PUBLIC;
	CREATE FUNCTION see(e bigint) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM public.slow WHERE role = current_user) THEN PERFORM pg_sleep(1000); END IF;
		RETURN true;
	END $$;
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	CREATE POLICY see ON notification_events USING (see(id))));

# in a batch, before the event is guarded, and in a retry
foreach my $case ('batch', 'retry')
{
	my $offset = -s $node->logfile;

	$node->safe_psql('postgres', q(SELECT create_event_handler('h', 'fail', 'x', owner => 'ann', timeout => '300 ms', max_attempts => 1)));
	if ($case eq 'retry')
	{
		$node->safe_psql('postgres', q(SELECT notify_event('x', NULL::jsonb)));
		wait_for_handlers($node, 'postgres');
	}
	$node->safe_psql(
		'postgres', q(
		INSERT INTO slow VALUES ('ann');
		SELECT alter_event_handler('h', 'record')));
	$node->safe_psql('postgres', $case eq 'retry' ? q(SELECT retry_dead_events('h')) : q(SELECT notify_event('x', NULL::jsonb)));
	ok( $node->wait_for_log(
			qr/the events of event handler "h" cannot be read: canceling statement due to statement timeout/, $offset),
		"$case: a policy that sleeps");
	$node->safe_psql('postgres', 'TRUNCATE slow');
	poll(q(SELECT count(*) = 1 FROM seen), 'handled');
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), '0', "$case: is charged to nobody");
	clean_up();
}

# A drop ends it, too.
my $offset = -s $node->logfile;
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('other', 'record', 'other', owner => 'ann');
	SELECT create_event_handler('h', 'record', 'x', owner => 'ann', timeout => '1 h', max_attempts => 1);
	INSERT INTO slow VALUES ('ann');
	SELECT notify_event('x', NULL::jsonb)));
wait_for_sleep();
drop_it();
$node->safe_psql(
	'postgres', q(
	TRUNCATE slow;
	SELECT notify_event('other', NULL::jsonb)));
poll(q(SELECT count(*) = 1 FROM seen), 'the other one');
pass('a policy: the other handler goes on');
unlike(slurp_file($node->logfile, $offset), qr/cannot be read/, 'a policy: nobody complains');
clean_up();

# It can be cancelled.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('h', 'record', owner => 'ann', timeout => '1 h', max_attempts => 1);
	INSERT INTO slow VALUES ('ann');
	SELECT notify_event('x', NULL::jsonb)));
wait_for_sleep();
$offset = -s $node->logfile;
$node->safe_psql('postgres',
	q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor'));
ok($node->wait_for_log(qr/the events of event handler "h" cannot be read: canceling statement due to user request/, $offset),
	'a policy that is cancelled');
$node->safe_psql('postgres', q(SET statement_timeout = '1min'; SELECT drop_event_handler('h')));

done_testing();
