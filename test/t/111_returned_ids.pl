
# An id that is used again, after TRUNCATE ... RESTART IDENTITY or setval(),
# belongs to another event.  Records about the former event do not apply to the
# new one, and each is delivered once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('returned_ids', "pg_notify_events.naptime = '100 ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	ALTER TABLE seen ADD name text;
	-- fails with the SQLSTATE that follows "bad", as long as mended has no row
	CREATE TABLE mended (yes integer);
	GRANT SELECT ON mended TO ann;
	CREATE FUNCTION work(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF e.event_name LIKE 'bad%' AND NOT EXISTS (SELECT FROM public.mended) THEN
			RAISE EXCEPTION 'failed on purpose' USING ERRCODE = split_part(e.event_name, ' ', 2);
		END IF;
		INSERT INTO public.seen (handler, id, name) VALUES ('work', e.id, e.event_name);
	END $$;
	CREATE FUNCTION wait_at_gate(e notification_events) RETURNS void LANGUAGE sql AS
		$$ SELECT pg_advisory_xact_lock_shared(1) $$;
	CREATE FUNCTION seen() RETURNS text LANGUAGE sql AS
		$$ SELECT string_agg(id || ' ' || name, ', ' ORDER BY id, name) FROM seen $$;
	CREATE FUNCTION status(event bigint) RETURNS text LANGUAGE sql AS
		$$ SELECT string_agg(name || ' ' || status || coalesce(' ' || attempts, ''), ', ' ORDER BY name) FROM event_delivery_status(event) $$;
	CREATE FUNCTION fetched(consumer text) RETURNS text LANGUAGE sql AS
		$$ SELECT string_agg(id || ' ' || event_name, ', ' ORDER BY id) FROM fetch_events(consumer) $$));

my %returns = (
	'TRUNCATE' => 'TRUNCATE notification_events RESTART IDENTITY',
	'setval()' => q(DELETE FROM notification_events; SELECT setval('notification_events_id_seq', 1, false)));

my $session = $node->background_psql('postgres');

sub sql
{
	my ($sql) = @_;

	return $session->query_safe("$sql;");
}

sub wait_for_all
{
	return sql("CALL wait_for_event_handlers('${PostgreSQL::Test::Utils::timeout_default} s')");
}

# emits events with these names in one transaction
sub emit
{
	return sql('SELECT ' . join(', ', map { "notify_event('$_')" } @_));
}

# empties the log, makes 1 the next id, and drops all handlers and consumers
sub anew
{
	sql(q(SELECT drop_event_handler(name) FROM event_handlers;
		SELECT drop_event_consumer(name) FROM event_consumers;
		TRUNCATE notification_events RESTART IDENTITY;
		TRUNCATE seen, mended));
	return;
}

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

foreach my $how (sort keys %returns)
{
	my $return = $returns{$how};

	# a dead event
	anew();
	sql(q(SELECT create_event_handler('h', 'work', owner => 'ann', max_attempts => 1)));
	emit('bad 22000', 'good');
	wait_for_all();
	is(sql('SELECT status(1)'), 'h dead 1', "$how: an event is dead");
	sql($return);
	sql('TRUNCATE seen');
	emit('new', 'also new');
	wait_for_all();
	is(sql('SELECT seen()'), '1 new, 2 also new', '... those that come are delivered');
	is(sql('SELECT status(1)'), 'h delivered', '... and not dead');
	is(sql(q(SELECT retry_dead_events('h'))), '1', '... and what is dead is tried again');
	poll(q(SELECT count(*) = 0 FROM event_retries WHERE state = 'waiting'), 'tried again');
	is(sql('SELECT seen()'), '1 new, 2 also new', '... is not those');
	is( sql('SELECT event_id, state, last_error FROM event_retries'),
		'1|discarded|the event was deleted from notification_events',
		'... but was deleted');

	# a waiting event, and another one with the same id that fails, too
	anew();
	sql(q(SELECT create_event_handler('h', 'work', owner => 'ann', retry_delay => '1 h', max_attempts => 3)));
	emit('bad 22000');
	wait_for_all();
	is(sql('SELECT status(1)'), 'h waiting 1', "$how: an event waits");
	sql($return);
	emit('new');
	wait_for_all();
	is(sql('SELECT status(1)'), 'h delivered', '... another one does not');
	sql($return);
	emit('bad 22001');
	wait_for_all();
	is(sql('SELECT status(1)'), 'h waiting 1', '... and a third one waits for itself');
	is( sql('SELECT event_id, state, attempts, last_sqlstate FROM event_retries ORDER BY last_error_at'),
		"1|waiting|1|22000\n1|waiting|1|22001",
		'... beside the first');
	is( sql('SELECT count(*), count(DISTINCT t.event_txid), count(e.txid) FROM event_retries t
		LEFT JOIN notification_events e ON e.id = t.event_id AND e.txid = t.event_txid'),
		'2|2|1', '... and the view tells them apart');
	is(sql(q(SELECT replay_events('h', 1))), '0', 'what waits is not replayed');
	sql($return);
	emit('new');
	wait_for_all();
	is(sql(q(SELECT replay_events('h', 1))), '1', 'what only has an id of one that waits is replayed');
	poll(q(SELECT count(*) = 3 FROM seen), 'replayed');
	is(sql('SELECT seen()'), '1 new, 1 new, 1 new', '... once');
	is(sql('SELECT status(1)'), 'h delivered', '... and that was all');

	# an event that a back-off has deferred; the end of the back-off charges it
	anew();
	sql(q(SELECT create_event_handler('h', 'work', owner => 'ann', retry_delay => '200 ms', max_retry_delay => '200 ms')));
	emit('bad 53100');
	poll(q(SELECT status(1) = 'h waiting 0'), 'parked');
	sql($return);
	emit('new');
	wait_for_all();
	poll(q(SELECT count(*) = 0 FROM event_retries WHERE state = 'waiting'), 'what was parked is gone');
	is(sql('SELECT seen()'), '1 new', "$how: another event than the one that was parked");
	is(sql('SELECT status(1)'), 'h delivered', '... is delivered');

	# an ordered handler held by an event that is gone
	anew();
	sql(q(SELECT create_event_handler('h', 'work', owner => 'ann', ordered => true, retry_delay => '200 ms', max_retry_delay => '200 ms')));
	emit('bad 22000');
	poll(q(SELECT count(*) = 1 FROM event_retries), 'it fails');
	sql($return);
	emit('new', 'bad 22000');
	poll(q(SELECT status(2) LIKE 'h waiting%'), 'it goes on');
	is(sql('SELECT seen()'), '1 new', "$how: an ordered handler is not held by what is gone");
	sql('INSERT INTO mended VALUES (1)');
	poll(q(SELECT count(*) = 2 FROM seen), 'it succeeds');
	is(sql('SELECT status(1), status(2)'), 'h delivered|h delivered', '... but by what is there');

	# a consumer's open batch: all of its ids return, or some, or more
	foreach my $names ([ 'new 1', 'new 2' ], ['new 1'], [ 'new 1', 'new 2', 'new 3' ])
	{
		my $i = 0;
		my $expected = join(', ', map { ++$i . " $_" } @$names);

		anew();
		sql(q(SELECT create_event_consumer('c')));
		emit('old 1', 'old 2');
		is(sql(q(SELECT fetched('c'))), '1 old 1, 2 old 2', "$how: a batch is open");
		sql($return);
		emit(@$names);
		is(sql('SELECT status(1)'), 'c pending', '... others are pending');
		is(sql(q(SELECT fetched('c'))), $expected, '... are fetched');
		is(sql(q(SELECT fetched('c'))), $expected, '... and again');
		is(sql('SELECT status(1)'), 'c pending', '... pending until');
		is(sql(q(SELECT ack_events('c'))), scalar(@$names), '... acknowledged');
		is(sql(q(SELECT fetched('c'))), '', '... and that is all');
		is(sql('SELECT status(1)'), 'c delivered', '... delivered');
	}

	# open batches of a consumer that wants the new event, and of one that does not
	anew();
	sql(q(SELECT create_event_consumer('c'), create_event_consumer('d', 'old*')));
	emit('old');
	is(sql(q(SELECT fetched('c'), fetched('d'))), '1 old|1 old', "$how: two have an event");
	sql($return);
	emit('new');
	is(sql('SELECT status(1)'), 'c pending, d not matched', '... of the new one they have nothing');
	is(sql(q(SELECT ack_events('c', 1), ack_events('d', 1))), '1|1', '... the old batches are acknowledged');
	is(sql('SELECT status(1)'), 'c pending, d not matched', '... and that is not the new event');
	is(sql(q(SELECT fetched('c'), fetched('d'))), '1 new|', '... which is fetched then');

	# an event that was handed back
	foreach my $delay ('0', '1 h')
	{
		anew();
		sql(q(SELECT create_event_consumer('c')));
		emit('old 1', 'old 2');
		sql(q(SELECT fetched('c')));
		sql(qq(SELECT retry_event('c', 1, '$delay'), retry_event('c', 2, '$delay')));
		is(sql('SELECT status(1)'), 'c waiting 1', "$how: handed back for $delay");
		sql($return);
		emit('new 1', 'new 2');
		is(sql('SELECT status(1)'), 'c pending', '... another event was not');
		is(sql(q(SELECT fetched('c'))), '1 new 1, 2 new 2', '... and is fetched');
		is(sql('SELECT status(1)'), 'c pending', '... and still was not');
		sql(q(SELECT retry_event('c', 1), ack_events('c')));
		is(sql('SELECT status(1), status(2)'), 'c waiting 1|c delivered', '... but is now');
		is(sql(q(SELECT fetched('c'))), '1 new 1', '... fetched again');
		sql(q(SELECT ack_events('c')));
		is(sql(q(SELECT fetched('c'))), '', '... and that is all');
	}

	# Both an event and a former one with the same id were handed back and are due.
	# The age of the former one does not matter.
	foreach my $gone ('3', '3, 4', '1000000000', '3, 1000000000')
	{
		anew();
		sql(q(SELECT create_event_consumer('c')));
		emit('old 1', 'old 2', 'old 3');
		sql($return);
		emit('new 1', 'new 2', 'new 3');
		sql(q(SELECT fetched('c')));
		sql(qq(INSERT INTO _event_consumer_retries (consumer, event_id, event_txid, attempts, next_attempt_at)
			SELECT 'c', i, t::text::xid8, 1, now() FROM generate_series(1, 3) i, unnest(ARRAY[$gone]) t));
		sql(q(SELECT retry_event('c', 1), retry_event('c', 2), ack_events('c', 3)));
		is(sql(q(SELECT fetched('c'))), '1 new 1, 2 new 2', "$how: handed back, as was another one ($gone)");
		is(sql(q(SELECT fetched('c'))), '1 new 1, 2 new 2', '... again');
		is(sql(q(SELECT ack_events('c'))), '2', '... acknowledged');
		is(sql(q(SELECT fetched('c'))), '', '... and that is all');
		is(sql(q(SELECT count(*) FROM _event_consumer_retries)), '0', '... nothing is left of those that are gone');
	}
}

# An executor has read a window, and the ids return before it gets to the events.
# Two handlers share the window; the first waits at a gate.
foreach my $batch_size (1, 1000)
{
	my $gate = $node->background_psql('postgres');

	anew();
	sql(qq(SELECT create_event_handler('first', 'wait_at_gate', owner => 'ann'),
		create_event_handler('second', 'work', owner => 'ann', batch_size => $batch_size)));
	wait_for_all();
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	emit('old 1', 'old 2', 'old 3');
	poll(
		q(SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_notify_events executor' AND usename = 'ann' AND wait_event = 'advisory'),
		'the first handler waits at the gate');
	sql($returns{'setval()'});
	emit('new 1', 'new 2', 'new 3');
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	wait_for_all();
	is(sql('SELECT seen()'), '1 new 1, 2 new 2, 3 new 3', "a window that was read before, batches of $batch_size");
	is(sql(q(SELECT delivered FROM event_handler_stats WHERE handler = 'second')), '3', '... none is counted twice');
	$gate->quit;
}

# A restored event has another transaction id than its record.  In a copy both
# have the same.
anew();
sql(q(SELECT create_event_handler('h', 'work', owner => 'ann', max_attempts => 1), create_event_consumer('c')));
emit('bad 22000', 'good');
wait_for_all();
sql(q(SELECT fetched('c'); SELECT retry_event('c', 2, '1 h')));
is(sql('SELECT status(1), status(2)'), 'c pending, h dead 1|c waiting 1, h delivered', 'before a dump');
my $dump = PostgreSQL::Test::Utils::tempdir . '/dump';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump');
$node->safe_psql('template1', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'restore');
is($node->safe_psql('restored', 'SELECT status(1), status(2)'), 'c dormant, h dead 1|c waiting 1, h dormant', 'after a restore');
is($node->safe_psql('restored', q(SELECT batch <> '' FROM _event_consumer_progress)), 't', 'an open batch is restored');
$session->quit;
$node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE true');
wait_for_no_workers($node, 'postgres');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
$node->safe_psql('template1', 'ALTER DATABASE postgres IS_TEMPLATE false');
$node->safe_psql('copy', 'SELECT activate_events()');
is($node->safe_psql('copy', 'SELECT status(1), status(2)'), 'c pending, h dead 1|c waiting 1, h delivered', 'in a copy');
is($node->safe_psql('copy', q(SELECT fetched('c'))), '1 bad 22000', '... the open batch is that of the original');

$node->stop;
done_testing();
