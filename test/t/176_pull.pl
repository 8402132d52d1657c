
# fetch_events() returns the same events however it is called: in small batches and in
# large ones, with and without row security and a filter, inside a window and across its
# end, whatever happens between two fetches. It does not wait for a flush of WAL that its
# events do not need.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'pull', 'autovacuum = off', 'wal_level = minimal', 'max_wal_senders = 0',
	"wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'",
	"pg_notify_events.announce = off", "pg_notify_events.naptime = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	GRANT EXECUTE ON FUNCTION create_event_consumer TO ann, bob;
	CREATE TABLE got (n bigint GENERATED ALWAYS AS IDENTITY, batch int, id bigint, txid xid8, event_name text, x int);
	CREATE FUNCTION take(consumer text, max_events int, batch int DEFAULT 0) RETURNS bigint LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO got (batch, id, txid, event_name, x)
			SELECT batch, f.id, f.txid, f.event_name, (f.event_data->>'x')::int FROM fetch_events(consumer, max_events) f;
		RETURN ack_events(consumer);
	END $$;
	CREATE PROCEDURE take_all(consumer text, max_events int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. 100000 LOOP
			EXIT WHEN take(consumer, max_events, i) = 0;
			COMMIT;
		END LOOP;
	END $$;
	-- whether what was taken is what a query finds: each event once, by id
	CREATE FUNCTION took(wanted text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		result text;
	BEGIN
		EXECUTE format('WITH w AS (SELECT id, txid FROM notification_events WHERE %s)
			SELECT concat_ws(%L, (SELECT count(*) FROM w),
				CASE WHEN EXISTS (SELECT FROM w EXCEPT SELECT FROM got) THEN %L END,
				CASE WHEN (SELECT array_agg((id, txid)::text ORDER BY id) FROM w) IS DISTINCT FROM
						  (SELECT array_agg((id, txid)::text ORDER BY n) FROM got) THEN %L ELSE %L END)',
			wanted, ' ', 'lost', 'other', 'same') INTO result;
		TRUNCATE got;
		RETURN result;
	END $$));

# Run take_all with a new consumer, and check what it took.
sub takes
{
	my ($max_events, $arguments, $wanted, $name) = @_;

	$node->safe_psql('postgres', "SELECT create_event_consumer('c', start_from => 'beginning'$arguments)");
	$node->safe_psql('postgres', "CALL take_all('c', $max_events)");
	like($node->safe_psql('postgres', qq(SELECT took(\$\$$wanted\$\$))), qr/^[1-9]\d* same$/, "$name, $max_events at a time");
	is($node->safe_psql('postgres', q(SELECT pending, batch FROM event_consumer_stats WHERE consumer = 'c')), '0|0', '... and nothing is left');
	$node->safe_psql('postgres', q(SELECT drop_event_consumer('c')));
	return;
}

#
# All events, in batches of all sizes
#
$node->safe_psql(
	'postgres', q(
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'n' || i % 7, jsonb_build_object('x', i % 11) FROM generate_series(1, 2500) i;
	SELECT count(notify_event('n' || i % 7, jsonb_build_object('x', i % 11))) FROM generate_series(1, 100) i;
	-- rows that are not where they were, or not there any more
	UPDATE notification_events SET created_at = now() WHERE id % 50 = 0;
	DELETE FROM notification_events WHERE id % 70 = 0));
foreach my $max_events (1000, 10000, 31, 32, 33, 7)
{
	takes($max_events, '', 'true', 'all');
	takes($max_events, q(, event_name => 'n3'), q(event_name = 'n3'), 'a name');
	takes($max_events, q(, filter => '$.x > 5'), q((event_data->>'x')::int > 5), 'a filter');
	takes($max_events, q(, event_name => 'n?', filter => '$.x == 1'), q(event_data->>'x' = '1'), 'both');
}
$node->safe_psql(
	'postgres', q(
	CREATE POLICY ann ON notification_events TO ann USING (event_name <> 'n3' AND id % 3 <> 0);
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY));
foreach my $max_events (1000, 33, 7)
{
	takes($max_events, q(, owner => 'ann'), q(event_name <> 'n3' AND id % 3 <> 0), 'row security');
	takes($max_events, q(, owner => 'ann', filter => '$.x > 5'),
		q(event_name <> 'n3' AND id % 3 <> 0 AND (event_data->>'x')::int > 5), 'row security and a filter');
}
is($node->safe_psql('postgres', q(
	SELECT create_event_consumer('blind', owner => 'bob', start_from => 'beginning');
	SELECT count(*) FROM fetch_events('blind', 100))), "\n0", 'one who sees no row gets none');
$node->safe_psql('postgres', q(
	ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
	DROP POLICY ann ON notification_events;
	SELECT drop_event_consumer('blind')));
# a column that older rows have no value for, and a dropped one
$node->safe_psql('postgres', q(
	ALTER TABLE notification_events ADD extra int, ADD more text DEFAULT 'more';
	ALTER TABLE notification_events DROP extra;
	SELECT count(notify_event('new columns')) FROM generate_series(1, 3);
	SELECT create_event_consumer('c', start_from => 'beginning')));
is($node->safe_psql('postgres', q(SELECT count(*), count(more), min(more), count(txid) FROM fetch_events('c', 10000))),
	$node->safe_psql('postgres', q(SELECT count(*), count(*), 'more', count(*) FROM notification_events)), 'a column that was added');
$node->safe_psql('postgres', q(SELECT drop_event_consumer('c')));

#
# What happens between two fetches of a session
#
$node->safe_psql('postgres', q(
	TRUNCATE notification_events;
	SELECT count(notify_event('go', jsonb_build_object('x', i))) FROM generate_series(1, 40) i;
	SELECT create_event_consumer('c', start_from => 'beginning')));
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $take = sub { return $session->query_safe(q(SELECT take('c', 5); SELECT string_agg(x::text, ' ' ORDER BY n) FROM got; TRUNCATE got)) };
is($take->(), "5\n1 2 3 4 5", 'the first ones');
is($node->safe_psql('postgres', q(SELECT take('c', 3); TRUNCATE got)), '3', 'another session takes some');
is($take->(), "5\n9 10 11 12 13", '... then those behind them');
$session->query_safe(q(BEGIN; SELECT take('c', 5); ROLLBACK));
is($take->(), "5\n14 15 16 17 18", 'a fetch that was rolled back');
$session->query_safe(q(BEGIN; SAVEPOINT s; SELECT take('c', 2); ROLLBACK TO s; SELECT take('c', 1); COMMIT; TRUNCATE got));
is($take->(), "5\n20 21 22 23 24", '... to a savepoint');
$node->safe_psql('postgres', q(DELETE FROM notification_events WHERE (event_data->>'x')::int IN (26, 27)));
is($take->(), "5\n25 28 29 30 31", 'events that are gone');
$node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('c', 2); SELECT retry_event('c', min(id)) FROM fetch_events('c')));
is($take->(), "1\n33", 'what is left of the batch of another one');
is($take->(), "5\n32 34 35 36 37", 'what was handed back comes first');
$node->safe_psql('postgres', q(
	BEGIN; SELECT drop_event_consumer('c'), create_event_consumer('c', start_from => 'beginning', filter => '$.x < 4'); COMMIT));
is($take->(), "3\n1 2 3", 'another consumer of the name');
$node->safe_psql('postgres', q(
	TRUNCATE notification_events RESTART IDENTITY;
	SELECT count(notify_event('go', jsonb_build_object('x', -i))) FROM generate_series(1, 3) i));
is($take->(), "3\n-1 -2 -3", 'ids that returned');
$node->safe_psql('postgres', q(
	SELECT count(notify_event('go', jsonb_build_object('x', i))) FROM generate_series(1, 3) i;
	SELECT create_event_consumer('c', or_replace => true, owner => 'bob')));
$session->query_safe('SET ROLE ann');
$session->{stderr} = '';
$session->query(q(SELECT fetch_events('c')));
like($session->{stderr}, qr/must be owner of event consumer "c"/, 'who is its owner no more gets nothing');
$session->{stderr} = '';
$session->query_safe('RESET ROLE');
is($take->(), "3\n1 2 3", 'the others do');
$node->safe_psql('postgres', q(SELECT drop_event_consumer('c')));

#
# Batches as they are stored: ids and transactions of all sizes and in all orders
#
$node->safe_psql('postgres', q(
	TRUNCATE notification_events;
	SELECT create_event_consumer('c');
	INSERT INTO notification_events (id, event_name)
		SELECT i, 'go' FROM unnest(ARRAY[-9000000000000000000, -5, 0, 1, 2, 127, 128, 129, 16384, 9000000000]) i ORDER BY random();
	INSERT INTO notification_events (id, event_name) SELECT i, 'go' FROM unnest(ARRAY[-4, 3, 9000000001]) i;
	INSERT INTO notification_events (id, event_name) SELECT i, 'go' FROM unnest(ARRAY[-3, 4, 9000000002]) i;
	INSERT INTO notification_events (id, event_name) SELECT i, 'go' FROM unnest(ARRAY[-2, 5, 9000000003]) i));
my $all = $node->safe_psql('postgres', q(SELECT array_agg(id ORDER BY id) FROM notification_events));
foreach my $turn ('first', 'again')
{
	is($node->safe_psql('postgres', q(SELECT array_agg(id ORDER BY id) FROM fetch_events('c'))), $all, "extreme ids: fetched $turn");
}
is($node->safe_psql('postgres', q(SELECT ack_events('c', 4); SELECT array_agg(id ORDER BY id) FROM fetch_events('c'))),
	"10\n{5,127,128,129,16384,9000000000,9000000001,9000000002,9000000003}", 'acknowledged in part');
$session->query(q(SELECT retry_event('c', 128); SELECT ack_events('c')));
is($node->safe_psql('postgres', q(SELECT id FROM fetch_events('c'))), '128', 'one handed back');
$node->safe_psql('postgres', q(SELECT ack_events('c'); SELECT drop_event_consumer('c')));
# A batch that can be kept in the row is not stored out of line.
$node->safe_psql('postgres', q(
	INSERT INTO notification_events (event_name) SELECT 'go' FROM generate_series(1, 10000);
	SELECT create_event_consumer('c', start_from => 'beginning');
	SELECT count(*) FROM fetch_events('c', 10000)));
is($node->safe_psql('postgres', q(
	SELECT batch_length, pg_column_size(p.*) < 1000 FROM _event_consumer_progress p WHERE consumer = 'c')), '10000|t', 'a large batch takes little room');
# A restore may bring any value.
$node->safe_psql('postgres', q(
	CREATE TEMPORARY TABLE c AS TABLE _event_consumers;
	CREATE TEMPORARY TABLE p AS TABLE _event_consumer_progress;
	UPDATE c SET name = 'damaged'; UPDATE p SET consumer = 'damaged', batch = '\x02028001';
	INSERT INTO _event_consumers SELECT * FROM c; INSERT INTO _event_consumer_progress SELECT * FROM p));
my ($status, $out, $err) = $node->psql('postgres', q(SELECT ack_events('damaged')));
like($err, qr/ERROR:  event consumer "damaged" is dormant/, 'a damaged batch that was restored');
$node->safe_psql('postgres', q(SELECT drop_event_consumer('damaged'), drop_event_consumer('c')));

# A batch in which events that are found later come before earlier ones: a window ends,
# and a transaction with lower ids has committed behind it.
$session->query_safe(q(BEGIN; SELECT count(notify_event('late')) FROM generate_series(1, 3)));
$node->safe_psql('postgres', q(
	SELECT create_event_consumer('c');
	SELECT count(notify_event('early ' || n)) FROM generate_series(1, 5) n;
	SELECT count(*) FROM fetch_events('c', 2);
	SELECT ack_events('c')));
$session->query_safe('COMMIT');
is($node->safe_psql('postgres', q(
	SELECT string_agg(event_name, ' '), array_agg(id) = array_agg(id ORDER BY id) FROM fetch_events('c', 100);
	SELECT count(*) FROM fetch_events('c', 100);
	SELECT ack_events('c'))), "late late late early 3 early 4 early 5|t\n6\n6", 'two windows in one batch, by id');
$node->safe_psql('postgres', q(SELECT drop_event_consumer('c')));
$session->quit;

#
# Flushes
#
$node->stop;
$node->start;
$node->safe_psql('postgres', q(
	TRUNCATE notification_events;
	CREATE TABLE noise (t text);
	CREATE FUNCTION flushed() RETURNS pg_lsn LANGUAGE sql AS 'SELECT pg_current_wal_flush_lsn()'));
my $other = $node->background_psql('postgres');
$other->query_safe('BEGIN');
# fetch_flushes(SYNCHRONOUS_COMMIT of the writer): whether a fetch flushed WAL that others
# have just written; its own commit does not wait for a flush
sub fetch_flushes
{
	my ($synchronous_commit) = @_;

	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_consumer('f');
		SET synchronous_commit = $synchronous_commit;
		SELECT notify_event('go')));
	$other->query_safe(q(INSERT INTO noise VALUES ('others write, too')));
	my ($before, $after, $end) = split /\|/, (
		split /\n/,
		$node->safe_psql(
			'postgres', qq(
			SET synchronous_commit = off;
			SELECT flushed() AS before \\gset
			SELECT count(*) AS n FROM fetch_events('f') \\gset
			SELECT :'before', flushed(), :n;
			SELECT ack_events('f'), drop_event_consumer('f') \\g /dev/null
			)))[-1];

	die "nothing was fetched" if $end ne '1';
	return $before ne $after;
}
# The WAL writer may flush at any moment as well, but not at this moment in each
# of the tries.
ok((grep { fetch_flushes('off') } 1 .. 5) > 0, 'an event whose commit waited for no flush is flushed before it is fetched');
ok((grep { !fetch_flushes('on') } 1 .. 5) > 0, 'one whose commit did wait needs no flush');
$other->quit;

$node->stop;
done_testing();
