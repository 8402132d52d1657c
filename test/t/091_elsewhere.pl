
# What the pages say about events that get to another place: a subscriber of
# logical replication, a client with a narrower encoding, a restored database.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'elsewhere',
	'wal_level = logical',
	'max_wal_senders = 5',
	'max_replication_slots = 5',
	'max_logical_replication_workers = 4',
	'max_worker_processes = 20');

# subscribe(PUBLICATION, OPTIONS): the database "subscriber" to "origin".  Both are
# on the same server, so the slot has to be made first.
sub subscribe
{
	my ($name, $options) = @_;

	$node->safe_psql('origin', "SELECT pg_create_logical_replication_slot('$name', 'pgoutput')");
	$node->safe_psql('subscriber', "CREATE SUBSCRIPTION $name CONNECTION '@{[$node->connstr('origin') =~ s/'//gr]}'
		PUBLICATION $name WITH (create_slot = false, slot_name = '$name'$options)");
	$node->wait_for_subscription_sync($node, $name, 'subscriber');
	return;
}

# events_are(DATABASE, WHICH, EXPECTED, NAME): a test of the names and operations,
# sorted, of the events that the condition WHICH selects
sub events_are
{
	my ($database, $which, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	return is(
		$node->safe_psql($database, "SELECT string_agg(event_name || ' ' || (event_data ->> 'op'), ', ' ORDER BY event_name, id)
			FROM notification_events WHERE $which"),
		$expected, $name);
}

#
# A subscriber
#
foreach my $database ('origin', 'subscriber')
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql(
		$database, q(
		CREATE EXTENSION pg_notify_events;
		CREATE TABLE orders (id int PRIMARY KEY, state text);
		CREATE TRIGGER row_plain AFTER INSERT OR UPDATE OR DELETE ON orders
			FOR EACH ROW EXECUTE FUNCTION notify_event('row_plain');
		CREATE TRIGGER row_replica AFTER INSERT OR UPDATE OR DELETE ON orders
			FOR EACH ROW EXECUTE FUNCTION notify_event('row_replica');
		CREATE TRIGGER row_always AFTER INSERT OR UPDATE OR DELETE ON orders
			FOR EACH ROW EXECUTE FUNCTION notify_event('row_always');
		CREATE TRIGGER statement_always AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON orders
			FOR EACH STATEMENT EXECUTE FUNCTION notify_event('statement_always');
		ALTER TABLE orders ENABLE REPLICA TRIGGER row_replica;
		ALTER TABLE orders ENABLE ALWAYS TRIGGER row_always;
		ALTER TABLE orders ENABLE ALWAYS TRIGGER statement_always;));
	wait_for_listener($node, $database);
}
$node->safe_psql('origin', q(INSERT INTO orders VALUES (1, 'copied'); CREATE PUBLICATION orders FOR TABLE orders));
subscribe('orders', '');
events_are('subscriber', 'true', 'row_always INSERT, row_replica INSERT, statement_always INSERT',
	'the initial copy fires row and statement triggers');

$node->safe_psql('origin', q(
	INSERT INTO orders VALUES (2, 'new');
	UPDATE orders SET state = 'paid' WHERE id = 1;
	DELETE FROM orders WHERE id = 1));
$node->wait_for_catchup('orders');
events_are('subscriber', 'id > 3', 'row_always INSERT, row_always UPDATE, row_always DELETE, '
	  . 'row_replica INSERT, row_replica UPDATE, row_replica DELETE', 'replicated changes fire row triggers only');
$node->safe_psql('origin', 'TRUNCATE orders');
$node->wait_for_catchup('orders');
events_are('subscriber', 'id > 9', 'statement_always TRUNCATE', 'TRUNCATE fires statement triggers');
is($node->safe_psql('origin', q(SELECT string_agg(DISTINCT event_name, ', ' ORDER BY event_name) FROM notification_events)),
	'row_always, row_plain, statement_always', 'on the publisher ordinary triggers fire, and none that is for replicas');
$node->safe_psql('subscriber', 'DROP SUBSCRIPTION orders');

#
# The log itself
#
$node->safe_psql(
	'subscriber', q(
	CREATE TABLE handled (name text, origin_txid xid8);
	CREATE FUNCTION handle(event notification_events) RETURNS void LANGUAGE sql
		AS 'INSERT INTO public.handled VALUES (event.event_name, event.origin_txid)';
	SELECT create_event_handler('handle', 'handle', event_name => 'replicated')));
$node->safe_psql('origin', 'CREATE PUBLICATION log FOR TABLE notification_events');
subscribe('log', ', copy_data = false');
my ($id, $txid) = split /\|/, $node->safe_psql('origin',
	q(WITH e AS (SELECT notify_event('replicated') AS id) SELECT id, pg_current_xact_id() FROM e));
$node->wait_for_catchup('log');
wait_for_handlers($node, 'subscriber');
is($node->safe_psql('subscriber', q(SELECT id, origin_txid, txid <> origin_txid, announce FROM notification_events
	WHERE event_name = 'replicated')),
	"$id|$txid|t|f", 'a replicated event keeps its id, and its transaction beside that of the subscriber, and is not announced again');
is($node->safe_psql('subscriber', 'SELECT * FROM handled'), "replicated|$txid", 'it is handled there');
$node->safe_psql('subscriber', 'DROP SUBSCRIPTION log');

#
# A client with a narrower encoding
#
sub with_encoding
{
	my ($encoding, $sql) = @_;
	local $ENV{PGCLIENTENCODING} = $encoding;
	my ($status, $out, $err) = $node->psql('origin', $sql);

	return ($status, $out, $err);
}

my $name = q(U&'\65e5\672c');
$node->safe_psql('origin', "SELECT create_event_consumer('narrow'); SELECT notify_event($name)");
foreach my $round ('a fetch', 'the next one, too,')
{
	my ($status, undef, $err) = with_encoding('LATIN1', q(SELECT event_name FROM fetch_events('narrow')));

	isnt($status, 0, "$round fails for a client that cannot hold a name");
	like($err, qr/has no equivalent in encoding "LATIN1"/, "$round says why");
}
is($node->safe_psql('origin', q(SELECT state FROM event_consumer_stats)), 'ready', 'what failed has opened no batch');
my (undef, $fetched) = with_encoding('UTF8', q(SELECT event_name FROM fetch_events('narrow')));
is($fetched, "\xe6\x97\xa5\xe6\x9c\xac", 'a client with the encoding of the database fetches it');

my ($status, $out, $err) = with_encoding('LATIN1', qq(
	LISTEN event_notification;
	SET pg_notify_events.announce = direct;
	SELECT notify_event($name);
	SELECT 1));
unlike($out, qr/Asynchronous notification/, 'a client that listens gets no notification that it cannot hold');
like($err, qr/has no equivalent in encoding "LATIN1"/, 'but is told of it');
($status, $out, $err) = with_encoding('LATIN1', qq(
	LISTEN event_notification;
	SET pg_notify_events.announce = direct;
	SET pg_notify_events.payload = id;
	SELECT notify_event($name);
	SELECT 1));
is($status, 0, 'an id can be held by each client');
like($out, qr/Asynchronous notification/, 'and is notified');

#
# A restored database
#
my $dump = "$PostgreSQL::Test::Utils::tmp_check/conditions.sql";
$node->safe_psql('postgres', 'CREATE DATABASE conditions');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->safe_psql(
	'conditions', q(
	CREATE EXTENSION pg_notify_events;
	CREATE SCHEMA extensions;
	CREATE EXTENSION hstore SCHEMA extensions;
	CREATE TABLE profiles (id int PRIMARY KEY, tags extensions.hstore);
	SET search_path = public, extensions;
	CREATE TRIGGER as_distinct AFTER UPDATE ON profiles FOR EACH ROW
		WHEN (OLD.tags IS DISTINCT FROM NEW.tags) EXECUTE FUNCTION notify_event();
	CREATE TRIGGER as_operator AFTER UPDATE ON profiles FOR EACH ROW
		WHEN (OLD.tags <> NEW.tags) EXECUTE FUNCTION notify_event();
	CREATE TRIGGER as_row AFTER UPDATE ON profiles FOR EACH ROW
		WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION notify_event();
	CREATE TRIGGER as_text AFTER UPDATE ON profiles FOR EACH ROW
		WHEN (OLD.tags::text IS DISTINCT FROM NEW.tags::text) EXECUTE FUNCTION notify_event();));
$node->command_ok([ 'pg_dump', '--file', $dump, '--dbname', $node->connstr('conditions') ], 'dumped');
(undef, undef, $err) = $node->psql('restored', slurp_file($dump), on_error_stop => 0);
like($err, qr/operator does not exist: extensions\.hstore = extensions\.hstore/, 'a restore does not find an operator that is not named');
is($node->safe_psql('restored', q(SELECT string_agg(tgname, ', ' ORDER BY tgname) FROM pg_trigger
	WHERE tgrelid = 'profiles'::regclass)),
	'as_operator, as_row, as_text', 'the other triggers are restored');

$node->stop;
done_testing();
