
# What wait_for_event_handlers() and wait_for_events() promise. Done means done, also
# while the crash guard is at work. What can never be done is an error at once. A timeout
# says why. A standby and a pipeline are refused. The memory of a session that waits for
# long does not grow.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('waiting');
$node->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--locale=C', '--no-sync' ]);
$node->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'pg_notify_events'
max_worker_processes = 16
max_logical_replication_workers = 0
));
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE tries;
	GRANT ALL ON SEQUENCE tries TO PUBLIC;
	CREATE FUNCTION blocked(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF e.event_name = 'terminate' AND nextval('public.tries') <= 2 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO public.seen (handler, id) VALUES ('blocked', e.id);
	END $$;
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is %', e.event_name; END $$;
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

sub wait_error
{
	my ($timeout) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "CALL wait_for_event_handlers('$timeout')");

	return $err;
}

# a session that holds the lock which "blocked" waits for
my $holder = $node->background_psql('postgres');
$holder->set_query_timer_restart;
sub block { $holder->query_safe('SELECT pg_advisory_lock(1)'); return; }
sub unblock { $holder->query_safe('SELECT pg_advisory_unlock(1)'); return; }

sub wait_for_block
{
	poll(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 'blocked');
	return;
}

sub clean_up
{
	$node->safe_psql('postgres',
		'SELECT drop_event_handler(name) FROM event_handlers; DELETE FROM notification_events; TRUNCATE seen; ALTER SEQUENCE tries RESTART');
	return;
}

#
# An attempt is under way that the crash guard has moved past
#

foreach my $ordered ('false', 'true')
{
	# An executor is lost, and so is its successor. The next one tries the event alone.
	block();
	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('h', 'blocked', owner => 'ann', timeout => '1 h', retry_delay => '1 h', ordered => $ordered);
		SELECT notify_event('terminate', NULL::jsonb)));
	wait_for_block();
	is($node->safe_psql('postgres', q(SELECT count(*) FROM _event_retries WHERE attempt_began_at IS NOT NULL)),
		'1', "ordered $ordered: the guard is at work");
	like(wait_error('300 ms'), qr/timeout while waiting for event handlers: "h"/, "ordered $ordered: the attempt is waited for");
	unblock();
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM seen)), '1', "ordered $ordered: done");

	# Here the executor that tries the event alone is lost as well, which makes the
	# attempt a failure.
	block();
	$node->safe_psql('postgres', q(SELECT notify_event('x', NULL::jsonb)));
	for (my $alone = 0; !$alone;)
	{
		wait_for_block();
		$alone = $node->safe_psql('postgres', q(SELECT count(*) FROM _event_retries WHERE attempt_began_at IS NOT NULL));
		$node->safe_psql('postgres',
			q(SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor'));
	}
	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', q(SELECT state, attempts FROM event_retries)), 'waiting|1', "ordered $ordered: parked");
	unblock();
	clean_up();
}

# An attempt on an event that was committed after the call is not waited for.
{
	my $offset = -s $node->logfile;

	$node->safe_psql(
		'postgres', q(
		SELECT create_event_handler('h', 'blocked', owner => 'ann', timeout => '1 h', retry_delay => '1 ms');
		SELECT create_event_handler('later', 'blocked', 'later', owner => 'bob', timeout => '1 h');
		SELECT notify_event('terminate', NULL::jsonb)));
	$node->wait_for_log(qr/is guarded/, $offset);
	wait_for_handlers($node, 'postgres');
	block();
	# The wait is for bob's handler. Ann's handler is at a later event by then.
	$node->safe_psql('postgres', q(SELECT notify_event('later', NULL::jsonb)));
	poll(q(SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 'both blocked');
	my $waiter = $node->background_psql('postgres');
	$waiter->set_query_timer_restart;
	$waiter->query_until(qr/start/, "\\echo start\nCALL wait_for_event_handlers('60 s');\n");
	poll(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL wait_for_event_handlers%' AND wait_event = 'Extension'), 'waits');
	unblock();
	$waiter->query_safe('SELECT 1');
	$waiter->quit;
	is($node->safe_psql('postgres', q(SELECT count(*) FROM seen)), '3', 'both are done when the wait ends');
	clean_up();
}

#
# Events of the future
#

$node->safe_psql('postgres', q(SELECT create_event_handler('h', 'record', 'x*', owner => 'ann')));
my $future = q(SET session_replication_role = replica;
	ALTER TABLE notification_events DISABLE TRIGGER ALL;
	INSERT INTO notification_events (id, event_name, txid) VALUES (nextval('notification_events_id_seq'), '%s', '%s');
	DO $$ DECLARE name text; BEGIN
		FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'notification_events'::regclass AND NOT tgisinternal LOOP
			EXECUTE format('ALTER TABLE notification_events ENABLE ALWAYS TRIGGER %%I', name);
		END LOOP;
	END $$);
foreach my $txid ('1000000', '18446744073709551000')
{
	$node->safe_psql('postgres', sprintf($future, 'y', $txid));
	is(wait_error('0'), '', "$txid: an event that nobody wants");
	$node->safe_psql('postgres', sprintf($future, 'x1', $txid));
	my $error = wait_error('60 s');
	like($error, qr/ERROR:  event handlers cannot come to all events/, "$txid: an event of the future");
	like($error, qr/DETAIL:  Event \d+ has the transaction id $txid, and the next one of this server is \d+/, "$txid: says which");
	$node->safe_psql('postgres', q(SELECT pause_event_handler('h')));
	is(wait_error('0'), '', "$txid: a handler that is paused");
	$node->safe_psql('postgres', q(SELECT resume_event_handler('h')));
	$node->safe_psql('postgres', q(DELETE FROM notification_events));
}
is(wait_error('10 s'), '', 'without them');
clean_up();

#
# A timeout says why
#

block();
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('slow', 'blocked', owner => 'ann', timeout => '1 h');
	SELECT notify_event('one', NULL::jsonb)));
wait_for_block();
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('outage', 'fail', owner => 'bob', start_from => 'beginning')));
like(wait_error('100 ms'), qr/DETAIL:  .*"slow" is running, and has had no error\./s, 'what has had no error');
unblock();
wait_for_handlers($node, 'postgres');
$node->safe_psql('postgres', q(SELECT alter_event_handler('slow', batch_size => 1, ordered => true)));
block();
$node->safe_psql('postgres', q(SELECT drop_event_handler('outage')));
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('held', 'fail', 'h*', owner => 'bob', ordered => true, retry_delay => '1 h');
	SELECT notify_event('hx', NULL::jsonb)));
poll(q(SELECT count(*) = 1 FROM event_retries WHERE handler = 'held'), 'failed');
$node->safe_psql('postgres', q(SELECT notify_event('hy', NULL::jsonb)));
like(
	wait_error('100 ms'),
	qr/DETAIL:  "held" is ready, its last error, at \d{4}-\S+ \S+: it is hx\n"slow" is running, and has had no error\./,
	'state and last error of each');
my ($status, $out, $err) = $node->psql('postgres', q(SET ROLE bob; CALL wait_for_event_handlers('100 ms')));
like($err, qr/"held", and 1 of another role.*it is hx/s, 'of those that one may see');
unlike($err, qr/slow/, 'and of no others');
unblock();
clean_up();

#
# A pipeline
#

foreach my $call (q(CALL wait_for_event_handlers('1 s')), q(CALL wait_for_events('c', '0')))
{
	my $script = $PostgreSQL::Test::Utils::tmp_check . '/pipeline.sql';

	$node->safe_psql('postgres', q(SELECT create_event_consumer('c', or_replace => true)));
	append_to_file($script, '');
	foreach my $behind (1, 0)
	{
		unlink $script;
		append_to_file($script,
			"\\startpipeline\n"
			  . ($behind ? "INSERT INTO notification_events (event_name) VALUES ('p');\n" : '')
			  . "$call;\n\\endpipeline\n");
		my $errors = '';
		IPC::Run::run(
			[ 'pgbench', '--no-vacuum', '-M', 'extended', '-t', '1', '-f', $script, '-d', $node->connstr('postgres') ],
			'>', '/dev/null', '2>', \$errors);
		if ($behind)
		{
			like($errors, qr/cannot run behind other statements of a pipeline/, "$call: refused in a pipeline");
			is($node->safe_psql('postgres', q(SELECT count(*) FROM notification_events WHERE event_name = 'p')),
				'0', "$call: commits nobody's statements");
		}
		else
		{
			unlike($errors, qr/ERROR/, "$call: alone in one");
		}
	}
}
$node->safe_psql('postgres', q(SELECT drop_event_consumer('c')));

#
# Memory
#

sub memory_of
{
	my ($pid) = @_;
	my $offset = -s $node->logfile;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log(qr/\[$pid\] \S* *LOG:  Grand total: \d+ bytes/, $offset);
	slurp_file($node->logfile, $offset) =~ /\[$pid\] \S* *LOG:  Grand total: (\d+) bytes/;
	return $1;
}

block();
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('h', 'blocked', 'blocked', owner => 'ann', timeout => '1 h');
	SELECT create_event_handler('many', 'record', 'many', owner => 'bob', batch_size => 1);
	SELECT create_event_consumer('c', 'never');
	SELECT notify_event('blocked', NULL::jsonb)));
wait_for_block();
foreach my $call (q(CALL wait_for_event_handlers('1 h')), q(CALL wait_for_events('c', '1 h')))
{
	my $waiter = $node->background_psql('postgres');
	$waiter->set_query_timer_restart;
	my $pid = $waiter->query_safe('SELECT pg_backend_pid()');
	$waiter->query_until(qr/start/, "\\echo start\n$call;\n");
	my @grown;
	foreach my $round (0 .. 2)
	{
		# Each commit of progress, or of an event, wakes the waiting session.
		$node->safe_psql('postgres',
			q(DO $$ BEGIN FOR i IN 1..500 LOOP PERFORM notify_event('many', NULL::jsonb); COMMIT; END LOOP; END $$));
		poll(q(SELECT count(*) = (SELECT count(*) FROM notification_events WHERE event_name = 'many') FROM seen WHERE handler = 'record'), 'handled');
		push @grown, memory_of($pid);
	}
	cmp_ok($grown[2] - $grown[1], '<', 100_000, "$call: does not grow (@grown)");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	eval { $waiter->quit };
}
unblock();
wait_for_handlers($node, 'postgres');
clean_up();
$holder->quit;

#
# A standby
#

$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('h', 'record', owner => 'ann');
	SELECT create_event_consumer('late')));
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
foreach my $command (
	q(CALL wait_for_event_handlers()),
	q(CALL wait_for_events('c')),
	q(SELECT create_event_handler('n', 'record')),
	q(SELECT create_event_handler('n', 'record', start_from => 'beginning')),
	q(SELECT create_event_handler('h', 'record', or_replace => true)),
	q(SELECT alter_event_handler('h')),
	q(SELECT drop_event_handler('h')),
	q(SELECT pause_event_handler('h')),
	q(SELECT resume_event_handler('h')),
	q(SELECT retry_dead_events('h')),
	q(SELECT discard_dead_events('h')),
	q(SELECT replay_events('h', 1)),
	q(SELECT create_event_consumer('n')),
	q(SELECT drop_event_consumer('c')),
	q(SELECT fetch_events('c')),
	q(SELECT ack_events('c')),
	q(SELECT retry_event('c', 1)),
	q(SELECT listen_event_channel('n')),
	q(SELECT unlisten_event_channel('n')),
	q(SELECT activate_events()))
{
	($status, $out, $err) = $standby->psql('postgres', $command);
	my ($function) = $command =~ /(\w+)\(/;
	like($err, qr/ERROR:  cannot execute $function\(\) during recovery/, "standby: $command");
}
is($standby->safe_psql('postgres', 'SELECT handler, pending FROM event_handler_stats'), 'h|', 'standby: figures');

# a transaction that began before the promotion
my $session = $standby->background_psql('postgres');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM event_handler_stats');
$standby->promote;
is($session->query_safe('SELECT handler, pending FROM event_handler_stats'), 'h|', 'promoted: figures by an old snapshot');
$session->quit;
$standby->safe_psql('postgres', q(SELECT notify_event('x', NULL::jsonb)));
wait_for_handlers($standby, 'postgres');
is($standby->safe_psql('postgres', q(SELECT count(*) FROM seen WHERE handler = 'record')), '1', 'promoted: handlers go on');

done_testing();
