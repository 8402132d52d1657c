
# What a look at the statistics costs: the number of rows of the log that one query looks
# at is bounded, however many definitions there are and however many events wait for them.
# What it shows is exact, or is said not to be.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# the events that a look counts, and the rows that it may look at in total
my $counted = 100_000;
my $bound = 3 * $counted;

my $node = new_server('pending', 'max_prepared_transactions = 10', 'pg_notify_events.announce = off', 'autovacuum = off');

sub sql
{
	my ($statements) = @_;

	return $node->safe_psql('postgres', $statements);
}

# rows(QUERY, [TABLE]): the number of index entries of the table (by default the log) that
# the query has looked at
sub rows
{
	my ($query, $table) = @_;
	my @lines;

	$table //= 'notification_events';
	@lines = split /\n/, sql("
		BEGIN;
		$query;
		SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index
		WHERE indrelid = '$table'::regclass");

	return $lines[-1];
}

my $all_handlers = 'SELECT count(pending), min(oldest_pending_at) FROM event_handler_stats';
my $all_consumers = 'SELECT count(pending), min(oldest_pending_at) FROM event_consumer_stats';

# create_paused(NAME, EVENT_NAME): create a handler that does not move
sub create_paused
{
	my ($name, $event_name) = @_;

	sql("BEGIN;
		SELECT create_event_handler('$name', 'ignore', event_name => '$event_name');
		SELECT pause_event_handler('$name');
		COMMIT");
	return;
}

# emit(COUNT, [NAME, [TRANSACTIONS]]): emit COUNT events, in the order of their times
sub emit
{
	my ($count, $name, $transactions) = @_;

	$name //= 'other';
	$transactions //= $count > 1000 ? $count / 1000 : 1;
	sql("DO \$\$ BEGIN
		FOR i IN 1 .. $transactions LOOP
			INSERT INTO notification_events (event_name, created_at)
			SELECT '$name', clock_timestamp() FROM generate_series(1, $count / $transactions);
			COMMIT;
		END LOOP;
	END \$\$");
	return;
}

sub first_of
{
	my ($name) = @_;

	return sql("SELECT min(created_at) FROM notification_events WHERE event_name = '$name'");
}

sub pending
{
	my ($handler) = @_;

	return sql("SELECT pending, pending_is_exact, oldest_pending_at FROM event_handler_stats WHERE handler = '$handler'");
}

# The views show for each definition what a look at every event shows.
sub is_right
{
	my ($name) = @_;
	my $expected = q(
		SELECT d.name, count(e.id), true, min(e.created_at)
		FROM _event_%1$ss d
		JOIN _event_%1$s_progress p ON p.%1$s = d.name
		LEFT JOIN notification_events e ON
			e.event_name LIKE replace(d.event_name, '*', '%%') AND
			pg_visible_in_snapshot(e.txid, pg_current_snapshot()) AND
			NOT pg_visible_in_snapshot(e.txid, p.cursor) AND
			NOT COALESCE(pg_visible_in_snapshot(e.txid, p.window) AND e.id <= p.last_id, false)
		GROUP BY d.name ORDER BY d.name COLLATE "C");
	my $seen = q(
		SELECT %1$s, pending, pending_is_exact, oldest_pending_at
		FROM event_%1$s_stats ORDER BY %1$s COLLATE "C");

	is(sql(sprintf $seen, $_), sql(sprintf $expected, $_), "$name: ${_}s") foreach 'handler', 'consumer';
	return;
}

sql('CREATE EXTENSION pg_notify_events');
sql(q(CREATE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT'));

#
# Few events: the statistics are exact, in whatever order transactions commit
#
sub prepare
{
	my ($name) = @_;

	sql("BEGIN;
		SELECT notify_event('some $name') FROM generate_series(1, 3);
		SELECT notify_event('other $name');
		PREPARE TRANSACTION '$name'");
	return;
}

sub commit_prepared
{
	sql("COMMIT PREPARED '$_[0]'");
	return;
}

sub define
{
	my ($name) = @_;

	create_paused("$name all", '*');
	create_paused("$name some", 'some *');
	create_paused("$name none", 'nothing');
	sql("SELECT create_event_consumer('$name consumer', event_name => 'some*')");
	return;
}

define('a');
is_right('nothing happened');
prepare('p1');
emit(3, 'some event');
define('b');
prepare('p2');
emit(2, 'some event');
commit_prepared('p1');
define('c');
is_right('a transaction ended before another one');
emit(1);
prepare('p3');
define('d');
commit_prepared('p3');
is_right('others are still running');
emit(2000);
commit_prepared('p2');
is_right('one ended behind many');
sql("BEGIN; SELECT notify_event('some event') FROM generate_series(1, 5); ROLLBACK");
sql("DELETE FROM notification_events WHERE id IN (SELECT id FROM notification_events ORDER BY id LIMIT 2)");
is_right('some are gone');

# positions inside a window
sql("SELECT create_event_consumer('inside $_', event_name => 'some*', start_from => 'beginning');
	SELECT fetch_events('inside $_', $_); SELECT ack_events('inside $_')")
  foreach 1, 4, 7;
is_right('inside a window');
emit(2, 'some event');
is_right('and events behind it');

# The transaction's own events do not count, and the events that it deletes are gone.
is( sql("BEGIN;
	SELECT count(notify_event('some event')) FROM generate_series(1, 5);
	DELETE FROM notification_events WHERE event_name = 'other';
	SELECT pending, pending_is_exact FROM event_handler_stats WHERE handler = 'd all';
	ROLLBACK"),
	"5\n10|t",
	'in a transaction that writes events');
# The same function is called by one statement after the other.
is( sql(q(
	CREATE FUNCTION looks() RETURNS SETOF bigint LANGUAGE plpgsql AS $$
	DECLARE
		figures record;
	BEGIN
		FOR i IN 1 .. 3 LOOP
			figures := _handler_statistics('d all');
			RETURN NEXT figures.pending;
			DELETE FROM notification_events WHERE id = (SELECT max(id) FROM notification_events);
		END LOOP;
	END $$;
	BEGIN;
	SELECT string_agg(looks::text, ' ') FROM looks();
	ROLLBACK)),
	'2010 2009 2008',
	'in statements of a function');

# a new name for each event
emit(1, 'first name');
create_paused('names', 'name *');
sql("INSERT INTO notification_events (event_name) SELECT 'name ' || i FROM generate_series(1, 12000) i");
create_paused('last names', 'name *');
sql("INSERT INTO notification_events (event_name) SELECT 'name ' || i FROM generate_series(11001, 14000) i");
is_right('many names');
sql("SELECT drop_event_handler(name) FROM event_handlers; SELECT drop_event_consumer(name) FROM event_consumers");

#
# Many events
#
foreach my $i (1 .. 10)
{
	create_paused("rare $i", 'rare');
	sql("SELECT create_event_consumer('rare $i', event_name => 'rare')");
}
emit(3, 'rare');
my $first_rare = first_of('rare');
emit(150_000);
emit(1, 'rare');
create_paused('late', 'late');
emit(2, 'late');

my $one = rows("SELECT pending FROM event_handler_stats WHERE handler = 'rare 1'");
cmp_ok($one, '<=', $bound, 'rows for one definition');
cmp_ok(rows($all_handlers), '<=', $one + 100, 'rows for ten at the same place');
$one = rows("SELECT pending FROM event_consumer_stats WHERE consumer = 'rare 1'");
cmp_ok($one, '<=', $bound, 'rows for one consumer');
cmp_ok(rows($all_consumers), '<=', $one + 100, 'rows for ten consumers');
is(pending('rare 1'), "4|f|$first_rare", 'what is at both ends was seen');
is(pending('rare 10'), "4|f|$first_rare", 'and so for all who stand there');
is( sql("SELECT DISTINCT pending, pending_is_exact, oldest_pending_at FROM event_handler_stats WHERE handler LIKE 'rare%'"),
	"4|f|$first_rare",
	'when one looks at all of them');
is( sql("SELECT DISTINCT pending, pending_is_exact, oldest_pending_at FROM event_consumer_stats"),
	"4|f|$first_rare",
	'consumers, too');
is(pending('late'), '2|t|' . first_of('late'), 'one that stands near is exact');
is( sql("SELECT pending, pending_is_exact, oldest_pending_at FROM event_handler_stats WHERE handler = 'late' OR handler LIKE 'rare%' ORDER BY handler LIMIT 1"),
	'2|t|' . first_of('late'),
	'with the others, too');
cmp_ok(rows("SELECT pending FROM event_handler_stats WHERE handler = 'late'"), '<', 100, 'and costs what waits for it');

# handlers at many positions
foreach my $i (1 .. 25)
{
	emit(2000);
	create_paused("place $i", 'rare');
}
emit(110_000);
cmp_ok(rows($all_handlers), '<=', $bound, 'rows for many at different places');
is(sql("SELECT count(*) FROM event_handler_stats WHERE handler LIKE 'place%' AND pending = 0 AND NOT pending_is_exact"),
	25, 'there may be more than nothing');

# All events wait.
create_paused('all', '*');
my $first_id = 1 + sql('SELECT max(id) FROM notification_events');
emit($counted);
is( pending('all'),
	"$counted|t|" . sql("SELECT created_at FROM notification_events WHERE id = $first_id"),
	'as many as are counted');
emit(1000);
is( pending('all'),
	"$counted|f|" . sql("SELECT created_at FROM notification_events WHERE id = $first_id"),
	'one thousand more');

# all in one transaction
create_paused('bulk', '*');
sql("INSERT INTO notification_events (event_name) SELECT 'bulk' FROM generate_series(1, 150000)");
is(pending('bulk'), "$counted|f|" . first_of('bulk'), 'all in one transaction');
cmp_ok(rows($all_handlers), '<=', $bound, 'rows of one transaction');

# inside a window of many
sql("SELECT create_event_consumer('inside', start_from => 'beginning')");
my $last = sql("SELECT max(id) FROM fetch_events('inside', 50); SELECT ack_events('inside')");
($last) = split /\n/, $last;
sql("UPDATE notification_events SET created_at = '2020-01-01' WHERE id <= $last;
	UPDATE notification_events SET created_at = '2020-01-02' WHERE id = $last + 1");
is( sql("SELECT pending >= 99000, pending_is_exact, oldest_pending_at FROM event_consumer_stats WHERE consumer = 'inside'"),
	"t|f|" . sql("SELECT '2020-01-02'::timestamptz"),
	'inside a window of many');
cmp_ok(rows($all_consumers), '<=', $bound, 'rows of a window');

# rows that are not visible to anybody
sql("BEGIN; INSERT INTO notification_events (event_name) SELECT 'none' FROM generate_series(1, 350000); ROLLBACK");
cmp_ok(rows($all_handlers), '<=', $bound, 'rows that nobody sees');
cmp_ok(rows($all_consumers), '<=', $bound, 'rows that nobody sees, for consumers');

# a transaction that was running when a cursor was taken, long ago
prepare('long');
create_paused('since long', 'some *');
emit(150_000);
commit_prepared('long');
is(pending('since long'), '3|f|' . first_of('some long'), 'of a transaction that was running then');
cmp_ok(rows($all_handlers), '<=', $bound, 'rows with such a transaction');

#
# The count of failed events has the same bound
#
my $failed = 120_000;
sql("INSERT INTO _event_retries (handler, event_id, event_txid, state, attempts, next_attempt_at)
	SELECT 'all', (row_number() OVER ())::bigint, '3', state, 0, CASE state WHEN 'waiting' THEN now() END
	FROM unnest(ARRAY['waiting', 'dead', 'discarded']) state, generate_series(1, $failed);
	INSERT INTO _event_consumer_retries (consumer, event_id, event_txid, attempts, next_attempt_at)
	SELECT 'inside', i, '3', 1, now() FROM generate_series(1, $failed) i;
	VACUUM ANALYZE _event_retries, _event_consumer_retries");
is(sql("SELECT waiting, dead FROM event_handler_stats WHERE handler = 'all'"), "$counted|$counted", 'retries of a handler');
is(sql("SELECT waiting FROM event_consumer_stats WHERE consumer = 'inside'"), $counted, 'of a consumer');
cmp_ok(rows('SELECT sum(waiting), sum(dead) FROM event_handler_stats', '_event_retries'), '<=', $bound, 'rows of retries');
cmp_ok(rows('SELECT sum(waiting) FROM event_consumer_stats', '_event_consumer_retries'), '<=', $bound, 'rows of retries of consumers');
$one = rows("SELECT sum(dead) FROM event_handler_stats", '_event_retries');
sql("INSERT INTO _event_retries (handler, event_id, event_txid, state, attempts) SELECT 'late', i, '3', 'discarded', 0 FROM generate_series(1, $failed) i");
cmp_ok(rows("SELECT sum(dead) FROM event_handler_stats", '_event_retries'), '<', $one + 1000, 'what was given up is not looked at');

done_testing();
