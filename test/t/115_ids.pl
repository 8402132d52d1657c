
# Ids: no writer fails because of an id that another role has given, no role can
# use the ids up, and ids are drawn in the order of the changes, however the
# sequence is defined.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('ids', 'wal_level = logical', 'max_wal_senders = 4', 'max_logical_replication_workers = 4',
	'pg_notify_events.announce = off');
my $sequence = 'notification_events_id_seq';
my $max = '9223372036854775807';

# make_database(NAME): with the extension, a table whose changes are recorded, a
# role that writes events in each way, and one that may only INSERT into the log
sub make_database
{
	my ($name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql(
		$name, q(
		CREATE EXTENSION pg_notify_events;
		CREATE TABLE items (id integer PRIMARY KEY, v integer);
		CREATE TABLE rows (LIKE items INCLUDING ALL);
		CREATE TRIGGER each_row AFTER INSERT OR UPDATE ON items
			FOR EACH ROW EXECUTE FUNCTION notify_event('row');
		CREATE TRIGGER all_rows AFTER INSERT ON rows REFERENCING NEW TABLE AS new
			FOR EACH STATEMENT EXECUTE FUNCTION notify_event('statement');
		DO $$ BEGIN
			IF to_regrole('writer') IS NULL THEN CREATE ROLE writer LOGIN; CREATE ROLE giver LOGIN; END IF;
		END $$;
		GRANT INSERT (event_name, event_data) ON notification_events TO writer;
		GRANT EXECUTE ON FUNCTION notify_event(varchar, jsonb) TO writer;
		GRANT ALL ON items, rows TO writer;
		GRANT INSERT ON notification_events TO giver;
	));
	return;
}

# all ways to record events, one or several at a time
my $calls = 0;

sub ways
{
	my $first = 100 * ++$calls;
	my $last = $first + 2;

	return (
		q(SELECT notify_event('call')),
		q(INSERT INTO notification_events (event_name) VALUES ('plain')),
		q(INSERT INTO notification_events (event_name) SELECT 'plain' FROM generate_series(1, 3)),
		"INSERT INTO items SELECT g, 0 FROM generate_series($first, $last) g",
		"INSERT INTO rows SELECT g, 0 FROM generate_series($first, $last) g",
		q(COPY notification_events (event_name) FROM PROGRAM 'echo copied'));
}

# write_all(DATABASE, NAME): a test that each way works
sub write_all
{
	my ($database, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @ways = ways();
	my ($status, $out, $err) =
	  $node->psql($database, join(";\n", 'SET ROLE writer', @ways[ 0 .. 4 ], 'RESET ROLE', $ways[5]), on_error_stop => 0);

	return is($err, '', $name);
}

# try(DATABASE, ROLE, SQL): returns "done" or the server's messages
sub try
{
	my ($database, $role, $sql) = @_;
	my ($status, $out, $err) = $node->psql($database, "SET ROLE $role; $sql");

	return $status == 0 ? 'done' : $err =~ s/^psql:<stdin>:\d+: //gmr;
}

sub last_value
{
	my ($database) = @_;

	return $node->safe_psql($database, "SELECT last_value FROM $sequence");
}

# give(DATABASE, ROLE, IDS): inserts the rows, with ids, that the query IDS returns
sub give
{
	my ($database, $role, $ids) = @_;

	return try($database, $role, "INSERT INTO notification_events (id, event_name) $ids");
}

#
# Ids that are given in advance.
#
make_database('ahead');
is(give('ahead', 'giver', q(SELECT g, 'given' FROM generate_series(1, 5) g)), 'done', 'ids of a sequence that was never used');
write_all('ahead', 'behind them');
my $last = last_value('ahead');
is(give('ahead', 'giver', "SELECT $last + g, 'given' FROM generate_series(1, 40) g"), 'done', 'the next 40');
write_all('ahead', 'taken in advance');
$last = last_value('ahead');

my $open = $node->background_psql('ahead');
$open->query_safe('SET ROLE giver');
$open->query_safe('BEGIN');
$open->query_safe("INSERT INTO notification_events (id, event_name) SELECT $last + g, 'given' FROM generate_series(1, 20) g");
write_all('ahead', 'taken by a transaction that is open');
$open->query_safe('ROLLBACK');
cmp_ok(last_value('ahead'), '>', $last + 20, 'what the sequence has passed it has passed');
write_all('ahead', 'taken by one that was rolled back');
$last = last_value('ahead');
is(give('ahead', 'postgres', "SELECT $last + g, 'given' FROM generate_series(30, 1, -1) g"), 'done', 'the largest first');
write_all('ahead', 'taken from the largest on');
$last = last_value('ahead');
is( try('ahead', 'postgres', qq(COPY notification_events (id, event_name) FROM PROGRAM 'seq -f "%g\tcopied" @{[$last + 1]} @{[$last + 50]}')),
	'done', 'copied');
is(last_value('ahead'), $last + 50, 'the sequence is at the largest');
write_all('ahead', 'taken by COPY');

#
# What a role without a right on the sequence may not do.
#
my $refused = qr/^ERROR:  permission denied to give an event the id (-?\d+)\nDETAIL:  (.*)\nHINT:  .*"$sequence" granted\.$/m;
my $too_few = 'It would leave too few ids to others.';
my $passed = 'The sequence has passed it, so another event may have it.';
my $limit = 2**52;

$last = last_value('ahead');
foreach my $case (
	[ $max, $too_few ], [ $limit + 1, $too_few ], [ '4611686018427387904', $too_few ],
	[ $last, $passed ], [ $last - 1, $passed ], [ 1, $passed ])
{
	my ($id, $why) = @$case;

	give('ahead', 'giver', "VALUES ($id, 'given')") =~ $refused;
	is(join('|', $1 // '', $2 // ''), "$id|$why", "refused: $id");
}
is(last_value('ahead'), $last, 'nothing of that has moved the sequence');
is(give('ahead', 'giver', qq(VALUES (0, 'given'), (-1, 'given'), (-$max, 'given'))), 'done', 'ids that are never drawn');
is(last_value('ahead'), $last, 'they do not move it either');
is(give('ahead', 'giver', "VALUES ($limit, 'given')"), 'done', 'the highest one');
write_all('ahead', 'behind the highest one');
like(give('ahead', 'giver', "VALUES (" . (last_value('ahead') + 1) . ", 'given')"), $refused, 'and no higher one');
$node->safe_psql('ahead', "GRANT UPDATE ON SEQUENCE $sequence TO giver");
is(give('ahead', 'giver', "VALUES (" . ($limit - 1) . ", 'given'), ($limit + 1000, 'given')"), 'done', 'with UPDATE on the sequence');
write_all('ahead', 'behind that');
$node->safe_psql('ahead', "REVOKE UPDATE ON SEQUENCE $sequence FROM giver");
# a sequence with fewer numbers
$node->safe_psql('ahead', "TRUNCATE notification_events; ALTER SEQUENCE $sequence MAXVALUE 1000 RESTART");
like(give('ahead', 'giver', q(VALUES (501, 'given'))), $refused, 'half of a small sequence and one');
is(give('ahead', 'giver', q(VALUES (500, 'given'), (1001, 'given'))), 'done', 'half of it, and more than it has');
is(last_value('ahead'), 500, 'it is at the half');
write_all('ahead', 'with half of it left');
$node->safe_psql('ahead', "ALTER SEQUENCE $sequence NO MAXVALUE; SELECT setval('$sequence', 1000)");
write_all('ahead', 'over what was beyond its end');

#
# A sequence that is behind the ids of existing rows.
#
make_database('behind');
write_all('behind', 'at the start');
$node->safe_psql('behind', q(SELECT notify_event('x') FROM generate_series(1, 300)));
foreach my $to ("setval('$sequence', 1)", "setval('$sequence', 1, false)", "setval('$sequence', 100)")
{
	$node->safe_psql('behind', "SELECT $to");
	write_all('behind', "set back: $to");
}
# a session that has drawn ids before, and goes on in its transaction
$open = $node->background_psql('behind');
foreach my $begin ('BEGIN', 'SELECT 1')
{
	$open->query_safe($begin);
	$open->query_safe(q(SELECT notify_event('x')));
	$node->safe_psql('behind', "SELECT setval('$sequence', 5)");
	foreach my $way (ways())
	{
		is($open->query("$way;") =~ /ERROR.*/ ? $& : 'done', 'done', "set back behind $begin: $way");
		$node->safe_psql('behind', "SELECT setval('$sequence', 7)");
	}
	$open->query_safe('COMMIT') if $begin eq 'BEGIN';
}
# rows that were inserted without the trigger
my $copy = "INSERT INTO notification_events (id, event_name, txid) SELECT %s, 'copied', '3' FROM generate_series(1, 200) g";

$open->query_safe(q(SELECT notify_event('x')));
$last = last_value('behind');
$node->safe_psql(
	'behind', join(
		';', 'BEGIN', 'ALTER TABLE notification_events DISABLE TRIGGER ALL',
		sprintf($copy, "$last + g"),
		'ALTER TABLE notification_events ENABLE ALWAYS TRIGGER zz_notification_event_row', 'COMMIT'));
is($open->query(q(SELECT notify_event('x');)) =~ /ERROR.*/ ? $& : 'done', 'done', 'copied without the trigger');
write_all('behind', 'copied without the trigger');
# a single id far ahead blocks no writer
$last = last_value('behind');
is(give('behind', 'postgres', "VALUES ($max, 'given')"), 'done', 'the last id, given by a superuser');
like(try('behind', 'writer', q(SELECT notify_event('x'))), qr/reached maximum value of sequence/, 'no id is left');
$node->safe_psql('behind', "SELECT setval('$sequence', $last - 30)");
write_all('behind', 'set back to where ids are free');
cmp_ok(last_value('behind'), '<', $last + 100, 'it has not gone to the last one');
# ids are used again
$node->safe_psql('behind', 'TRUNCATE notification_events RESTART IDENTITY');
is($node->safe_psql('behind', q(SELECT notify_event('x'))), 1, 'TRUNCATE RESTART IDENTITY');
write_all('behind', 'behind it');
$open->quit;

#
# With INCREMENT BY, all ids keep the remainder of the first one.
#
make_database('steps');
$node->safe_psql('steps', "ALTER SEQUENCE $sequence INCREMENT BY 10 START 3 MINVALUE 3 RESTART");
is(give('steps', 'giver', q(VALUES (3, 'x'), (14, 'x'))), 'done', 'one that would be drawn next, one between');
is($node->safe_psql('steps', q(SELECT notify_event('x'))), 23, 'the next');
is(give('steps', 'giver', q(VALUES (53, 'x'), (59, 'x'))), 'done', 'two more');
is($node->safe_psql('steps', q(SELECT notify_event('x'))), 63, 'the next behind them');
is(give('steps', 'giver', q(VALUES (70, 'x'))), 'done', 'one that is never drawn');
$node->safe_psql('steps', "SELECT setval('$sequence', 13)");
is($node->safe_psql('steps', q(SELECT notify_event('x') FROM generate_series(1, 3))), "33\n43\n73", 'those that are free');
write_all('steps', 'more of them');
is($node->safe_psql('steps', q(SELECT count(*) FROM notification_events WHERE event_name <> 'x' AND id % 10 <> 3)), 0, 'all with their remainder');

#
# CACHE, and other sequences.
#
make_database('cache');
my @sessions = map { $node->background_psql('cache') } 1 .. 2;
$node->safe_psql('cache', 'INSERT INTO items VALUES (1, 0)');
foreach my $cache (1, 2, 50, 3)
{
	$node->safe_psql('cache', "TRUNCATE notification_events; ALTER SEQUENCE $sequence CACHE $cache");
	foreach my $n (1 .. 4)
	{
		foreach my $session (@sessions)
		{
			# leave numbers over in the session
			$session->query_safe("SELECT nextval('$sequence') FROM generate_series(1, $n)");
			$session->query_safe('UPDATE items SET v = v + 1 WHERE id = 1');
			$session->query_safe(q(WITH u AS (UPDATE items SET v = v + 1 WHERE id = 1 RETURNING v)
				INSERT INTO notification_events (event_name, event_data) SELECT 'plain', jsonb_build_object('new', u) FROM u));
		}
	}
	is( $node->safe_psql(
			'cache', q(
			SELECT count(*), count(*) FILTER (WHERE v < previous)
			FROM (SELECT v, lag(v) OVER (ORDER BY id) AS previous
				FROM (SELECT id, (event_data #>> '{new,v}')::integer AS v FROM notification_events
					WHERE event_name = 'row') e) o)),
		'16|0',
		"CACHE $cache: in the order of the changes");
	is( $node->safe_psql(
			'cache', q(
			SELECT count(*) FROM (SELECT v, lag(v) OVER (ORDER BY id) AS previous
				FROM (SELECT id, (event_data #>> '{new,v}')::integer AS v FROM notification_events
					WHERE event_name = 'plain') e) o WHERE v < previous)),
		'0',
		"CACHE $cache: and plain ones");
}
$_->quit foreach @sessions;
$last = last_value('cache');
is(give('cache', 'giver', "SELECT $last + g, 'given' FROM generate_series(1, 10) g"), 'done', 'given, with CACHE');
write_all('cache', 'with CACHE');
foreach my $case ([ 'INCREMENT BY -1', 'The sequence is descending.' ], [ 'CYCLE', 'The sequence cycles.' ])
{
	my ($option, $why) = @$case;

	$node->safe_psql('cache', "ALTER SEQUENCE $sequence $option");
	foreach my $way ((ways())[ 0, 1, 4 ], q(INSERT INTO notification_events (id, event_name) VALUES (-5, 'given')))
	{
		like(
			try('cache', $way =~ /given/ ? 'giver' : 'writer', $way),
			qr/^ERROR:  ids of events cannot come from sequence "$sequence"\nDETAIL:  \Q$why\E\nHINT:  .* INCREMENT BY 1 NO CYCLE\.$/m,
			"$option: $way");
	}
	$node->safe_psql('cache', "ALTER SEQUENCE $sequence INCREMENT BY 1 NO CYCLE");
	write_all('cache', "$option was taken back");
}
$node->safe_psql('cache', "ALTER SEQUENCE $sequence RENAME TO numbers");
write_all('cache', 'a sequence with another name');
$node->safe_psql('cache', 'ALTER EXTENSION pg_notify_events DROP SEQUENCE numbers; DROP SEQUENCE numbers');
like(try('cache', 'writer', q(SELECT notify_event('x'))), qr/^ERROR:  no sequence belongs to column id of table "notification_events"\nHINT: /m,
	'without a sequence');
$node->safe_psql('cache', q(CREATE SEQUENCE numbers OWNED BY notification_events.id));
write_all('cache', 'with one again');

#
# Rows that come from another database.
#
make_database('origin');
make_database('subscriber');
make_database('restored');
make_database('disabled');
$node->safe_psql('origin', q(SELECT notify_event('x') FROM generate_series(1, 120)));
write_all('origin', 'where rows come from');

# logical replication
$node->safe_psql('origin', q(CREATE PUBLICATION events FOR TABLE notification_events;
	SELECT pg_create_logical_replication_slot('events', 'pgoutput')));
$node->safe_psql('subscriber', "CREATE SUBSCRIPTION events CONNECTION '@{[$node->connstr('origin') =~ s/'//gr]}'
	PUBLICATION events WITH (create_slot = false, slot_name = 'events')");
$node->wait_for_subscription_sync($node, 'events', 'subscriber');
write_all('subscriber', 'behind the copy');
# the subscriber has taken these ids, so the publisher's ids go on behind them
$node->safe_psql('origin', "SELECT setval('$sequence', 1000)");
write_all('origin', 'the publisher goes on');
$node->poll_query_until('subscriber', 'SELECT max(id) > 1000 FROM notification_events') or die 'nothing is replicated';
write_all('subscriber', 'behind what was replicated');
$node->safe_psql('subscriber', 'DROP SUBSCRIPTION events');

# dumps of the data only
my $dump = $node->backup_dir . '/data.dump';

mkdir $node->backup_dir;
$node->safe_psql('origin', 'DELETE FROM items; DELETE FROM rows');
$node->command_ok([ 'pg_dump', '-Fc', '-a', '-t', 'notification_events', '-t', $sequence, '-f', $dump, 'origin' ], 'dump');
foreach my $case ([ 'restored', [] ], [ 'disabled', ['--disable-triggers'] ])
{
	my ($database, $options) = @$case;

	$node->command_ok([ 'pg_restore', @$options, '-d', $database, $dump ], "restore @$options");
	$node->safe_psql($database, 'ALTER TABLE notification_events ENABLE ALWAYS TRIGGER zz_notification_event_row');
	write_all($database, "behind it @$options");
	# events that are recorded after the rows and before the sequence are restored
	$node->safe_psql($database, q(SELECT notify_event('x') FROM generate_series(1, 100)));
	$node->safe_psql($database, "SELECT setval('$sequence', " . last_value('origin') . ')');
	write_all($database, "when events came before the sequence @$options");
}

#
# All at the same time: some sessions write, others give ids just ahead.  That may
# lose numbers that are drawn meanwhile, or meet ids that are about to be stored.
# Each writer's statement works, and each given id is stored or refused.
#
make_database('race');
my $scripts = $node->basedir;

append_to_file("$scripts/write.sql", join(
		'', "SET ROLE writer;\n", q(SELECT notify_event('call');), "\n",
		q(INSERT INTO notification_events (event_name) SELECT 'plain' FROM generate_series(1, 3);), "\n",
		"BEGIN;\nINSERT INTO rows SELECT g, 0 FROM generate_series(1, 1500) g;\nDELETE FROM rows;\nCOMMIT;\n"));
append_to_file("$scripts/write_few.sql", join(
		'', "SET ROLE writer;\n", map { "SELECT notify_event('call');\nINSERT INTO notification_events (event_name) VALUES ('plain');\n" } 1 .. 20));
$node->safe_psql(
	'race', q(
	ALTER TABLE rows DROP CONSTRAINT rows_pkey;
	-- ids around the last one that it has drawn itself
	CREATE PROCEDURE give_around(away integer) LANGUAGE plpgsql AS $$
	DECLARE
		given bigint;
	BEGIN
		FOR n IN 1 .. 50 LOOP
			BEGIN
				INSERT INTO notification_events (event_name) VALUES ('own') RETURNING id INTO given;
				INSERT INTO notification_events (id, event_name) VALUES (given + away, 'given');
			EXCEPTION WHEN insufficient_privilege OR unique_violation THEN NULL;
			END;
		END LOOP;
	END $$;
	GRANT SELECT (id) ON notification_events TO giver;
));
append_to_file("$scripts/give.sql", "SET ROLE giver;\n" . join('', map { "CALL give_around($_);\n" } 1, -1, 2, -7, 40, -40));
$node->command_ok(
	[
		'pgbench', '-n', '-c', '8', '-j', '2', '-t', '25', '-f', "$scripts/write.sql\@2", '-f', "$scripts/write_few.sql\@3",
		'-f', "$scripts/give.sql\@3", '-h', $node->host, '-p', $node->port, '-U', $ENV{PGUSER} // 'postgres', 'race'
	],
	'all at the same time');
is( $node->safe_psql('race', "SELECT max(id) <= (SELECT last_value FROM $sequence), count(*) FILTER (WHERE event_name = 'given') > 0 FROM notification_events"),
	't|t', 'the sequence is behind no row');

#
# After a crash no number is drawn twice, even if its row is gone.
#
make_database('crash');
is(give('crash', 'giver', q(VALUES (1, 'given'))), 'done', 'the first of all');
$node->safe_psql('crash', 'DELETE FROM notification_events');
is($node->safe_psql('crash', q(SELECT notify_event('x'))), 2, 'is not drawn though its row is gone');
foreach my $ahead (0, 1, 10, 100)
{
	$node->safe_psql('crash', q(SELECT notify_event('x')));
	$last = last_value('crash');
	is(give('crash', 'giver', "VALUES ($last + $ahead, 'given')"), 'done', "$ahead ahead") if $ahead > 0;
	my $drawn = $node->safe_psql('crash', q(SELECT max(notify_event('x')) FROM generate_series(1, 5)));
	is($drawn, $last + $ahead + 5, "$ahead ahead: drawn behind it");
	$node->safe_psql('crash', 'DELETE FROM notification_events');
	$node->stop('immediate');
	$node->start;
	cmp_ok($node->safe_psql('crash', q(SELECT notify_event('x'))), '>', $drawn, "$ahead ahead: a number behind all of them after a crash");
}

$node->stop;
done_testing();
