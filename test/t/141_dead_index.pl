
# An index of the log that is being dropped concurrently is no longer maintained, though
# it still has its name: nothing is read through it, and no event is lost. The workers
# wait, say so, and go on with any index that serves.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('dead_index', 'log_statement = none', 'autovacuum = off');
my $no_index = qr/table "notification_events" has no valid index on \(txid\)/;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
$node->safe_psql('postgres',
	q(SELECT create_event_handler('record', 'record'), create_event_consumer('c')));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# seen_once(NAME): each event was handled once
sub seen_once
{
	my ($name) = @_;

	wait_for_handlers($node, 'postgres');
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*), count(*) FILTER (WHERE (SELECT count(*) FROM seen s WHERE s.id = l.id) <> 1)
			FROM notification_events l)) =~ s/^\d+\|//r,
		'0',
		"$name: each event is handled once");
	return;
}

# make_dead(INDEX, STATEMENT): run DROP or REINDEX CONCURRENTLY up to the moment when the
# index is dead and the statement waits for a session that has a lock on the log. Returns
# the two sessions.
sub make_dead
{
	my ($index, $statement) = @_;
	my $first = $node->background_psql('postgres');
	my $second = $node->background_psql('postgres');
	my $ddl = $node->background_psql('postgres', on_error_stop => 0);

	# A lock that is taken before the index is declared invalid keeps it from being dead.
	$first->query_safe('BEGIN; LOCK TABLE notification_events IN ACCESS SHARE MODE');
	$ddl->query_until(qr/begins/, "\\echo begins\n$statement;\n");
	poll("SELECT count(*) > 0 FROM pg_index WHERE indrelid = 'notification_events'::regclass AND NOT indisvalid",
		'there is an index that is not valid');
	# A lock that is taken now keeps it from being removed.
	$second->query_safe('BEGIN; LOCK TABLE notification_events IN ACCESS SHARE MODE');
	$first->query_safe('COMMIT');
	poll("SELECT count(*) > 0 FROM pg_index WHERE indrelid = 'notification_events'::regclass AND NOT indislive",
		'an index is dead');
	$first->quit;
	return ($second, $ddl);
}

# An event that is emitted first, and committed while the index is dead. The cursor must
# not pass the events that are emitted meanwhile.
{
	my $emitter = $node->background_psql('postgres');

	$emitter->query_safe(q(BEGIN; SELECT pg_current_xact_id()));
	my $log = -s $node->logfile;
	my ($holder, $ddl) = make_dead('notification_events_txid_idx', 'DROP INDEX CONCURRENTLY notification_events_txid_idx');

	$node->safe_psql('postgres', q(SELECT notify_event('while dead')));
	$emitter->query_safe(q(SELECT notify_event('before'); COMMIT));
	$node->wait_for_log($no_index, $log);
	my ($status, $out, $err) = $node->psql('postgres', q(SELECT count(*) FROM fetch_events('c')));
	like($err, qr/ERROR:  $no_index.*HINT:  CREATE INDEX ON public\.notification_events \(txid\)/s,
		'a consumer is told');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen s JOIN notification_events l USING (id) WHERE event_name = \'while dead\''),
		'0', 'nothing is read meanwhile');
	poll(q(SELECT count(*) > 0 FROM event_worker_stats WHERE last_error LIKE '%has no valid index on (txid)%'),
		'the workers say so');
	$holder->query_safe('COMMIT');
	$ddl->query_safe('SELECT 1');
	$_->quit foreach $emitter, $holder, $ddl;
	$node->safe_psql('postgres', q(SELECT notify_event('afterwards')));
	# The index has another name and one more column, and serves all the same.
	$node->safe_psql('postgres', 'CREATE INDEX mine ON notification_events (txid, event_name)');
	seen_once('DROP INDEX CONCURRENTLY');
}

# An index on id that could not be built has no rows, though it stands before the primary
# key in the server's list. Rows are looked up by id through the primary key, and nothing
# has to wait.
{
	my ($status, $out, $err) = $node->psql(
		'postgres', q(
		CREATE FUNCTION fails(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE 'fails'; END $$;
		CREATE INDEX CONCURRENTLY invalid_by_id ON notification_events (id, fails(id));
	));
	like($err, qr/ERROR:  fails/, 'an index on id cannot be built');
	$node->safe_psql(
		'postgres', q(
		ALTER TABLE notification_events DROP CONSTRAINT notification_events_pkey;
		ALTER TABLE notification_events ADD PRIMARY KEY (id)));
	is($node->safe_psql('postgres', q(SELECT 'invalid_by_id'::regclass::oid < 'notification_events_pkey'::regclass::oid)),
		't', 'and comes first');

	my $id = $node->safe_psql('postgres', q(SELECT notify_event('x')));
	is($node->safe_psql('postgres', "SELECT count(*) FROM event_delivery_status($id) WHERE name = 'record'"), '1',
		'an event is found by its id');
	$node->safe_psql(
		'postgres', q(
		CREATE FUNCTION at_second(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF NOT EXISTS (SELECT FROM event_retries WHERE event_id = e.id AND handler = 'at_second') THEN
				RAISE 'not yet';
			END IF;
			INSERT INTO public.seen VALUES ('at_second', e.id);
		END $$;
		SELECT create_event_handler('at_second', 'at_second', 'twice', retry_delay => '1 ms');
		SELECT notify_event('twice')));
	poll(q(SELECT count(*) = 1 FROM seen WHERE handler = 'at_second'), 'the second attempt');
	pass('a retry finds its event');
	$node->safe_psql('postgres', q(SELECT drop_event_handler('at_second'); DELETE FROM seen WHERE handler = 'at_second'; DROP INDEX invalid_by_id));
	seen_once('an invalid index on id');
}
is( $node->safe_psql('postgres', q(SELECT string_agg(status, ' ') FROM notification_events l, event_delivery_status(l.id) s WHERE s.name = 'record' AND s.status <> 'delivered')),
	'', 'and each is listed as delivered');

# REINDEX CONCURRENTLY gives the name to the new index.
my ($holder, $ddl) = make_dead('mine', 'REINDEX INDEX CONCURRENTLY mine');
$node->safe_psql('postgres', q(SELECT notify_event('while dead')));
seen_once('REINDEX CONCURRENTLY');
$holder->query_safe('COMMIT');
$ddl->query_safe('SELECT 1');
$_->quit foreach $holder, $ddl;
$node->safe_psql('postgres', q(SELECT notify_event('afterwards')));
seen_once('after REINDEX CONCURRENTLY');

# An index that failed to be built, a partial one, a hash index and one in descending
# order: none of them serves.
my $log = -s $node->logfile;
my (undef, undef, $err) = $node->psql(
	'postgres', q(
	CREATE FUNCTION fails(xid8) RETURNS xid8 IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE 'fails'; END $$;
	CREATE INDEX CONCURRENTLY invalid ON notification_events (txid, fails(txid));
));
like($err, qr/ERROR:  fails/, 'an index cannot be built');
$node->safe_psql(
	'postgres', q(
	BEGIN;
	DROP INDEX mine;
	CREATE INDEX partial ON notification_events (txid) WHERE event_name = 'a';
	CREATE INDEX hashed ON notification_events USING hash (txid);
	CREATE INDEX descending ON notification_events (txid DESC);
	COMMIT;
	SELECT notify_event('a'), notify_event('b');
));
is($node->safe_psql('postgres', q(SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid WHERE i.indrelid = 'notification_events'::regclass)),
	'descending hashed invalid notification_events_pkey partial', 'there are others');
$node->wait_for_log($no_index, $log);
$node->safe_psql('postgres', 'CREATE INDEX CONCURRENTLY ON notification_events (txid)');
seen_once('an index that somebody has made');

# An index that does not serve snapshots which are older than itself: of an updated row it
# has the new version only. A session with such a snapshot gets an error, and the workers
# wait, though the index is valid.
$node->safe_psql('postgres', 'DROP INDEX partial, hashed, descending, invalid');
my $id = $node->safe_psql('postgres', q(SELECT notify_event('moved')));
seen_once('before an index that has the new versions only');
my $old = $node->background_psql('postgres', on_error_stop => 0);
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id(); SAVEPOINT s');
$log = -s $node->logfile;
$node->safe_psql(
	'postgres', qq(
	BEGIN;
	ALTER TABLE notification_events DROP CONSTRAINT notification_events_pkey;
	DROP INDEX notification_events_txid_idx;
	UPDATE notification_events SET id = id + 1000 WHERE id = $id;
	ALTER TABLE notification_events ADD PRIMARY KEY (id);
	CREATE INDEX ON notification_events (txid);
	SELECT notify_event('while older snapshots are there');
	COMMIT;
));
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_index WHERE indrelid = 'notification_events'::regclass AND indcheckxmin AND indisvalid)),
	'2', 'indexes that are valid and do not serve older snapshots');
$old->query("SELECT count(*) FROM event_delivery_status($id);");
like($old->{stderr}, qr/has no valid index on \(id\)/, 'who has an older snapshot is told');
$node->wait_for_log($no_index, $log);
is($node->safe_psql('postgres', q(SELECT count(*) FROM seen s JOIN notification_events l USING (id) WHERE event_name LIKE 'while older%')),
	'0', 'nothing is read meanwhile');
$old->query('ROLLBACK;');
$old->quit;
$node->safe_psql('postgres', "UPDATE notification_events SET id = $id WHERE event_name = 'moved'");
seen_once('when the older snapshots are gone');

# The indexes of an internal table: retries go on while one is rebuilt.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION failing(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF (SELECT count(*) FROM seen WHERE handler = 'open') = 0 THEN
			RAISE 'not yet';
		END IF;
	END $$;
	SELECT create_event_handler('failing', 'failing', 'late', retry_delay => '50 ms', max_retry_delay => '100 ms', max_attempts => 100000);
	SELECT create_event_handler('held', 'failing', 'late', ordered => true, retry_delay => '50 ms', max_retry_delay => '100 ms', max_attempts => 100000);
	SELECT notify_event('late');
));
poll(q(SELECT count(*) = 2 FROM event_retries WHERE state = 'waiting'), 'two retries');
$node->safe_psql('postgres', "REINDEX TABLE CONCURRENTLY _event_retries");
$node->safe_psql('postgres', q(INSERT INTO seen VALUES ('open', 0)));
poll('SELECT count(*) = 0 FROM event_retries', 'the retries succeed');
pass('retries go on with indexes that were made again');

$node->stop;
done_testing();
