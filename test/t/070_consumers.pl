
# Consumers.  A session that waits for events is woken by whatever makes some
# fetchable, and blocks no other session.  A session that polls writes nothing.  A
# session that holds a fetch open blocks no other one.  Copies of a database, a
# standby, a server without the workers.
#
# A session that waits looks again once a second in any case, so what wakes it
# shows in how soon it wakes.  The tests take the fastest of some rounds, as a
# single one may take long on a busy machine.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use List::Util qw(min);
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = 3;
my $soon = 0.3;					# s
my $node = new_server(
	'consumers',
	"autovacuum = off",
	"wal_level = replica",
	"max_wal_senders = 4",
	"pg_notify_events.naptime = '1min'");
my ($status, $out, $err);

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');
make_recorder($node, 'postgres');
wait_for_listener($node, 'postgres');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_consumer('c', 'go*', '$.n > 0');
	CREATE FUNCTION go(n integer DEFAULT 1) RETURNS bigint LANGUAGE sql AS
		$$ SELECT notify_event('go', jsonb_build_object('n', n)) $$;
	CREATE FUNCTION now_s() RETURNS numeric LANGUAGE sql AS
		$$ SELECT extract(epoch FROM clock_timestamp()) $$));

my $waiter = $node->background_psql('postgres', on_error_stop => 0);
my $waiter_pid = $waiter->query_safe('SELECT pg_backend_pid()');
my $session = $node->background_psql('postgres');

# Starts a wait of the waiter, and returns when it sleeps.
sub start_waiting
{
	my ($timeout, $consumer) = @_;

	$consumer //= 'c';
	$waiter->query_until(qr/begins/,
		"\\echo begins\nCALL wait_for_events('$consumer', '$timeout');\nSELECT 'woke ' || now_s();\n");
	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $waiter_pid")
	  or die "the waiter does not sleep";
	return;
}

# Waits for the end of the waiter's wait; returns the time at which it woke.
sub waited
{
	my $answer = $waiter->query_safe('SELECT 1');

	$answer =~ /woke ([\d.]+)/ or die "no answer from the waiter: $answer";
	return $1;
}

# Fetches and acknowledges all events of the consumer.
sub take
{
	$node->safe_psql('postgres',
		q(SELECT count(*) FROM fetch_events('c', 10000); SELECT ack_events('c')));
	return;
}

# wakes(NAME, SETUP, CAUSE): a test that a waiter, asleep after the statements of
# SETUP, wakes up soon after those of CAUSE.  The last one of these returns the
# time.
sub wakes
{
	my ($name, $setup, $cause) = @_;
	my @latencies;

	foreach (1 .. $rounds)
	{
		$session->query_safe($setup);
		start_waiting('5 min');
		my $at = (split /\n/, $session->query_safe($cause))[-1];
		push @latencies, waited() - $at;
		cmp_ok($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))),
			'>', 0, "$name: there is something to fetch");
		$node->safe_psql('postgres', q(SELECT ack_events('c')));
		take();
	}
	cmp_ok(min(@latencies), '<', $soon, sprintf("$name wakes (fastest after %.3f s)", min(@latencies)));
	cmp_ok(min(@latencies), '>', -0.1, "$name: not before it");
	return;
}

#
# What wakes a waiter
#
wakes('an event', 'SELECT 1', 'SELECT go(); SELECT now_s()');
wakes('an acknowledgement, where there is more',
	q(SELECT go(); SELECT go(); SELECT count(*) FROM fetch_events('c', 1, '1 h')),
	q(SELECT ack_events('c'); SELECT now_s()));
wakes('an event that is handed back, as it was all of the batch',
	q(SELECT go(); SELECT count(*) FROM fetch_events('c', 1, '1 h')),
	q(SELECT retry_event('c', max(id)) FROM notification_events; SELECT now_s()));
wakes('the end of a transaction that had fetched and acknowledged',
	q(SELECT go(); SELECT go(); BEGIN; SELECT count(*) FROM fetch_events('c', 1); SELECT ack_events('c')),
	q(COMMIT; SELECT now_s()));
wakes('a fetch that is rolled back',
	q(SELECT go(); BEGIN; SELECT count(*) FROM fetch_events('c', 1)),
	q(ROLLBACK; SELECT now_s()));
wakes('another definition',
	q(SELECT create_event_consumer('c', 'gone', or_replace => true); SELECT go()),
	q(SELECT create_event_consumer('c', 'go*', '$.n > 0', or_replace => true); SELECT now_s()));
wakes('the end of a lease',
	q(SELECT go(); SELECT count(*) FROM fetch_events('c', 1, '1500 ms')),
	q(SELECT extract(epoch FROM leased_until) FROM event_consumer_stats WHERE consumer = 'c'));
wakes('the time for a retry',
	q(SELECT go(); SELECT count(*) FROM fetch_events('c', 1); SELECT retry_event('c', max(id), '1500 ms') FROM notification_events),
	q(SELECT extract(epoch FROM next_attempt_at) FROM event_delivery_status((SELECT max(id) FROM notification_events))));

# A session that is killed releases the consumer, and so wakes the waiter, too.
{
	my $killed = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $killed->query_safe('SELECT pg_backend_pid()');

	$killed->query_safe(q(SELECT go(); BEGIN; SELECT count(*) FROM fetch_events('c')));
	start_waiting('5 min');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	waited();
	pass('a session that is terminated wakes');
	$killed->{run}->finish;
	take();
}

#
# What does not wake it
#
sub sleeps_on
{
	my ($name, $setup, $cause, $consumer) = @_;

	$consumer //= 'c';
	$session->query_safe($setup);
	my $began = $session->query_safe('SELECT now_s()');
	start_waiting('1500 ms', $consumer);
	$session->query_safe($cause);
	cmp_ok(waited(), '>=', $began + 1.5, "$name does not wake");
	return;
}

sleeps_on('an event of another name, or that the filter refuses',
	'SELECT 1', q(SELECT notify_event('else'); SELECT go(0)));
sleeps_on('an event while a lease is running',
	q(SELECT go(); SELECT count(*) FROM fetch_events('c', 1, '1 h')), 'SELECT go()');
$node->safe_psql('postgres', q(SELECT ack_events('c')));
sleeps_on('an event while another session has the consumer',
	q(BEGIN; SELECT count(*) FROM fetch_events('c')), 'SELECT 1; SELECT 2');
$session->query_safe(q(SELECT ack_events('c'); COMMIT));
$session->query_safe(q(
	SELECT create_event_consumer('hidden', owner => 'ann');
	CREATE POLICY ann ON notification_events TO ann USING (event_name = 'seen');
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY));
sleeps_on('an event that row security hides', 'SELECT 1', 'SELECT go(0)', 'hidden');
start_waiting('5 min', 'hidden');
$session->query_safe(q(SELECT notify_event('seen')));
waited();
is( $node->safe_psql('postgres', q(SELECT event_name FROM fetch_events('hidden'))),
	'seen', 'one that it does not hide does');
$session->query_safe(q(
	ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
	DROP POLICY ann ON notification_events;
	SELECT drop_event_consumer('hidden')));

# A timeout of 0 does not wait.
my $before = $session->query_safe('SELECT now_s()');
$node->safe_psql('postgres', q(CALL wait_for_events('c', '0')));
cmp_ok($session->query_safe('SELECT now_s()') - $before, '<', 60, 'timeout 0 only looks');

#
# A session that waits blocks no other session
#
start_waiting('5 min');
is( $node->safe_psql(
		'postgres', qq(
		SELECT backend_xmin IS NULL, backend_xid IS NULL,
			(SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND locktype <> 'virtualxid')
		FROM pg_stat_activity a WHERE pid = $waiter_pid)),
	't|t|0',
	'who waits holds no snapshot and no lock');
$node->safe_psql(
	'postgres', q(
	SET lock_timeout = '1min';
	BEGIN;
	LOCK TABLE notification_events, _event_consumers, _event_consumer_progress, _event_consumer_retries;
	COMMIT));
pass('nor is it in the way of a lock');
# Several sessions wait at once, and there are more events than sessions.  Each
# takes one, unless it finds that another session is just taking one.
my @others = map { $node->background_psql('postgres') } 1 .. 3;
$_->query_until(
	qr/begins/, qq(\\echo begins
	CALL wait_for_events('c', '5 min');
	BEGIN;
	SELECT count(*) FROM fetch_events('c', 1);
	SELECT ack_events('c');
	COMMIT;
)) foreach @others;
$session->query_safe('SELECT count(go()) FROM generate_series(1, 5)');
waited();
my $taken = 0;
foreach (@others)
{
	my ($fetched, $acknowledged) = split /\n/, $_->query_safe('SELECT 1');

	is($fetched, $acknowledged, 'one of several that wait wakes up');
	$taken += $fetched;
	$_->quit;
}
cmp_ok($taken, '>', 0, 'of whom at least one gets an event');
take();

# The session goes on after a cancel.
start_waiting('5 min');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($waiter_pid)");
$waiter->query('SELECT 1');
like($waiter->{stderr}, qr/canceling statement due to user request/, 'a wait can be canceled');
$waiter->{stderr} = '';

#
# An open fetch blocks nothing but its own consumer
#
$node->safe_psql(
	'postgres', q(
	GRANT SELECT ON notification_events TO ann;
	SELECT create_event_consumer('other', 'go*');
	SELECT create_event_handler('record', 'record', 'go*', owner => 'ann');
	SELECT go()));
my $listen = $node->background_psql('postgres');
$listen->query_safe('LISTEN event_notification');
$session->query_safe(q(BEGIN; SELECT count(*) FROM fetch_events('c')));
foreach my $n (1 .. 3)
{
	my $id = $node->safe_psql('postgres', 'SELECT go()');

	wait_for_handlers($node, 'postgres');
	is($node->safe_psql('postgres', "SELECT count(*) FROM seen WHERE id = $id"),
		'1', "a handler gets event $n while a fetch is open");
	is( $node->safe_psql('postgres', "SELECT max(id) FROM fetch_events('other')"),
		$id, 'and so does another consumer');
	$node->safe_psql('postgres', q(SELECT ack_events('other')));
	like($listen->query('SELECT 1'), qr/Asynchronous notification/, 'and who listens');
}
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))),
	'0', 'its own consumer is taken');
$session->query_safe(q(SELECT ack_events('c'); COMMIT));
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))), '3', 'then it is not');
$node->safe_psql('postgres', q(SELECT ack_events('c'); SELECT drop_event_handler('record')));
$listen->quit;

#
# A session that polls writes nothing
#
$node->safe_psql('postgres', q(ALTER SYSTEM SET pg_notify_events.naptime = '1s'));
$node->reload;
$node->poll_query_until(
	'postgres', q(
	SELECT bool_and(pg_visible_in_snapshot(txid::text::xid8, cursor)) FROM notification_events, _event_announcer)
) or die "the listener does not store its position";
my $result = $node->safe_psql(
	'postgres', q(
	CREATE FUNCTION poll(consumer text) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN PERFORM fetch_events(consumer, 100, '1 h'); END $$;
	SELECT notify_event('else') FROM generate_series(1, 100);
	CHECKPOINT;
	SELECT pg_current_wal_insert_lsn() AS lsn \gset before_
	SELECT count(poll('c')), count(poll('other')) FROM generate_series(1, 500);
	CALL wait_for_events('c', '1500 ms');
	SELECT pg_current_wal_insert_lsn() - :'before_lsn'));
my $wal = (split /\n/, $result)[-1];
cmp_ok($wal, '<', 1000, "who polls an idle consumer, or waits for it, writes nothing ($wal bytes)");

#
# A batch ends at about batch_bytes, and does not shrink when it is fetched again
#
$node->safe_psql(
	'postgres', q(
	SELECT notify_event('go', jsonb_build_object('n', 1, 'data', repeat('x', 50000))) FROM generate_series(1, 5)));
$node->safe_psql('postgres', q(ALTER SYSTEM SET pg_notify_events.batch_bytes = '120kB'));
$node->reload;
ok($node->poll_query_until('postgres', q(SELECT current_setting('pg_notify_events.batch_bytes') = '120kB')), 'batch_bytes is set');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))), '3', 'a batch ends at batch_bytes');
$node->safe_psql('postgres', q(ALTER SYSTEM SET pg_notify_events.batch_bytes = '64kB'));
$node->reload;
ok($node->poll_query_until('postgres', q(SELECT current_setting('pg_notify_events.batch_bytes') = '64kB')), 'batch_bytes is smaller');
is( $node->safe_psql('postgres', q(SELECT count(*), sum(length(event_data ->> 'data')) FROM fetch_events('c'))),
	'3|150000', 'the open batch is not');
is($node->safe_psql('postgres', q(SELECT ack_events('c'))), '3', 'all of it is acknowledged');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))), '2', 'the next batch');
$node->safe_psql('postgres', q(SELECT ack_events('c')));

#
# A prepared transaction holds the consumer until it is committed
#
$node->append_conf('postgresql.conf', "max_prepared_transactions = 2\npg_notify_events.announce = off");
$_->quit foreach ($waiter, $session);
$node->restart;
$node->safe_psql(
	'postgres', q(
	SELECT go();
	BEGIN;
	INSERT INTO seen (handler, id) SELECT 'prepared', id FROM fetch_events('c');
	SELECT ack_events('c');
	PREPARE TRANSACTION 'fetch'));
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))),
	'0', 'a prepared transaction has the consumer');
$node->restart('immediate');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))),
	'0', 'after a crash, too');
$waiter = $node->background_psql('postgres');
$waiter_pid = $waiter->query_safe('SELECT pg_backend_pid()');
$node->safe_psql('postgres', 'SELECT go()');
start_waiting('5 min');
$node->safe_psql('postgres', q(COMMIT PREPARED 'fetch'));
waited();
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c'))),
	'1', 'committed, it lets go of it');
is($node->safe_psql('postgres', q(SELECT count(*) FROM seen WHERE handler = 'prepared')),
	'1', 'its effects are there');
$node->safe_psql('postgres', q(SELECT ack_events('c')));
$waiter->quit;

#
# Copies
#
$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql(
	'shop', q(
	CREATE EXTENSION pg_notify_events;
	SELECT create_event_consumer('c'), create_event_consumer('late');
	SELECT notify_event(n) FROM unnest(ARRAY['acknowledged', 'in the batch', 'handed back', 'ahead']) n;
	SELECT event_name FROM fetch_events('c', 1);
	SELECT ack_events('c');
	SELECT event_name FROM fetch_events('c', 2, '1 h');
	SELECT retry_event('c', max(id)) FROM notification_events WHERE event_name = 'handed back'));
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
is( $node->safe_psql('copy', q(SELECT consumer, state, leased_until FROM event_consumer_stats ORDER BY consumer)),
	"c|dormant|\nlate|dormant|", 'consumers of a copy are dormant');
($status, $out, $err) = $node->psql('copy', q(SELECT fetch_events('c')));
like($err, qr/ERROR:  event consumer "c" is dormant.*HINT:  .*activate_events/s, 'nothing is fetched there');
($status, $out, $err) = $node->psql('copy', q(CALL wait_for_events('c')));
like($err, qr/ERROR:  event consumer "c" is dormant/, 'and nothing waited for');
is($node->safe_psql('shop', q(SELECT state FROM event_consumer_stats WHERE consumer = 'c')),
	'leased', 'those of the original are not dormant');
is($node->safe_psql('copy', 'SELECT activate_events()'), '2', 'activate_events() wakes them');
is( $node->safe_psql('copy', q(SELECT event_name FROM fetch_events('c'))),
	'in the batch', 'the open batch is there, without the lease');
is($node->safe_psql('shop', q(SELECT count(*) FROM fetch_events('c'))), '0', 'the lease of the original goes on');
is( $node->safe_psql('copy', q(SELECT ack_events('c'); SELECT event_name FROM fetch_events('c'))),
	"1\nhanded back\nahead", 'then what is left, once');

my $dump = "$PostgreSQL::Test::Utils::tmp_check/shop.sql";
$node->command_ok([ 'pg_dump', '-d', $node->connstr('shop'), '-f', $dump ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'restore');
is( $node->safe_psql(
		'restored', q(
		SELECT consumer, state, fetched, acknowledged, waiting, batch FROM event_consumer_stats ORDER BY consumer)),
	"c|dormant|3|1|1|1\nlate|dormant|0|0|0|0",
	'restored consumers are dormant');
($status, $out, $err) = $node->psql('restored', q(SELECT fetch_events('c')));
like($err, qr/ERROR:  event consumer "c" is dormant/, 'nothing is fetched for them');
($status, $out, $err) = $node->psql('restored', 'SELECT activate_events()');
like($err, qr/WARNING:  2 restored event consumers stay dormant/, 'activate_events() says so');
$node->safe_psql('restored', q(SELECT drop_event_consumer('c'), create_event_consumer('c', start_from => 'beginning')));
is($node->safe_psql('restored', q(SELECT count(*) FROM fetch_events('c'))), '4', 'dropped and created, one works');

#
# A standby
#
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
foreach my $command (
	q(SELECT fetch_events('c')),
	q(SELECT ack_events('c')),
	q(SELECT retry_event('c', 1)),
	q(CALL wait_for_events('c')))
{
	($status, $out, $err) = $standby->psql('shop', $command);
	like($err, qr/ERROR:  cannot execute \w+\(\) during recovery/, "standby: $command");
}
is( $standby->safe_psql('shop', q(SELECT consumer, state, batch, pending FROM event_consumer_stats ORDER BY consumer)),
	"c|leased|1|\nlate|ready|0|", 'a standby shows the figures');
$standby->stop;

#
# Without the workers everything but waiting works
#
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is( $node->safe_psql(
		'shop', q(
		SELECT create_event_consumer('plain');
		SELECT notify_event('plain') > 0;
		SELECT event_name FROM fetch_events('plain');
		SELECT ack_events('plain'))),
	"\nt\nplain\n1",
	'without the workers events are fetched');
($status, $out, $err) = $node->psql('shop', q(CALL wait_for_events('plain')));
like($err, qr/ERROR:  wait_for_events\(\) needs the background workers.*HINT/s, 'but not waited for');

$node->stop;
done_testing();
