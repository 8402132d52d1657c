
# The recipe that this extension comes from: its client works unchanged, and a
# database that was built by the recipe migrates with its rows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'python3 with psycopg2 is needed'
  if system('python3', '-c', 'import psycopg2') != 0;

my $client_program = "$FindBin::RealBin/../clients/recipe_listener.py";
my $node = new_server('recipe');

# Start the client, which listens.
sub start_client
{
	my ($database) = @_;
	my %client = (out => '', err => '');

	$client{timer} =
	  IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$client{run} = IPC::Run::start(
		[
			'python3', $client_program,
			$node->connstr($database) . ' application_name=recipe'
		],
		'>', \$client{out}, '2>', \$client{err}, $client{timer});
	$node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'recipe'
		AND datname = '$database' AND query = 'LISTEN event_notification' AND state = 'idle'))
	  or die "the client does not listen: $client{err}";
	return \%client;
}

# Wait until the client has printed this last line; returns all that it has printed.
sub read_client
{
	my ($client, $last) = @_;

	ok( pump_until(
			$client->{run}, $client->{timer}, \$client->{out}, qr/^\Q$last\E\n/m),
		"the client prints $last")
	  or diag $client->{err};
	return delete_out($client);
}

sub delete_out
{
	my ($client) = @_;
	my $out = $client->{out};

	$client->{out} = '';
	return $out;
}

sub stop_client
{
	my ($client) = @_;

	$client->{run}->kill_kill(grace => 5);
	return;
}

#
# A new database: table, trigger, client.
#
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql(
	'fresh', q(
	CREATE EXTENSION pg_notify_events;
	CREATE TABLE orders (id serial PRIMARY KEY, product text);
	CREATE TRIGGER order_created AFTER INSERT ON orders
		FOR EACH ROW EXECUTE FUNCTION notify_event('order_created');
));
my $client = start_client('fresh');
$node->safe_psql('fresh', q(INSERT INTO orders (product) VALUES ('apple')));
is( read_client($client, 'event_notification - order_created'),
	"event_notification - order_created\n",
	'a row inserted into a table with the trigger');

# The client does not hear a rolled back event.  It hears the recipe's own INSERT and
# NOTIFY.
$node->safe_psql(
	'fresh', q(
	BEGIN;
	SELECT notify_event('rolled_back');
	ROLLBACK;
	INSERT INTO notification_events (event_name, event_data) VALUES ('plain_insert', '{"a": 1}');
	NOTIFY event_notification, 'by_hand';
));
is( join("\n", sort split(/\n/, read_client($client, 'event_notification - by_hand'))),
	"event_notification - by_hand\nevent_notification - plain_insert",
	'plain INSERT and NOTIFY');
stop_client($client);

#
# A database built by the recipe, in the only form that PostgreSQL accepts: the
# trigger's arguments come in TG_ARGV.
#
$node->safe_psql('postgres', 'CREATE DATABASE old');
$node->safe_psql(
	'old', q(
	CREATE TABLE notification_events (
		id serial PRIMARY KEY,
		event_name varchar(100) NOT NULL,
		event_data jsonb,
		created_at timestamptz DEFAULT now()
	);
	CREATE FUNCTION notify_event() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO notification_events (event_name, event_data) VALUES (TG_ARGV[0], to_jsonb(NEW));
		PERFORM pg_notify('event_notification', TG_ARGV[0]);
		RETURN NEW;
	END $$;
	CREATE TABLE orders (id serial PRIMARY KEY, product text);
	CREATE TRIGGER order_created AFTER INSERT ON orders
		FOR EACH ROW EXECUTE FUNCTION notify_event('order_created');
	INSERT INTO orders (product) VALUES ('apple'), ('plum'), ('pear');
	INSERT INTO notification_events (event_name, event_data, created_at)
		VALUES ('no_data', NULL, '2020-02-02 02:02:02+00');
));
$client = start_client('old');
$node->safe_psql('old', q(INSERT INTO orders (product) VALUES ('fig')));
is( read_client($client, 'event_notification - order_created'),
	"event_notification - order_created\n",
	'before the move');
my $rows = q(SELECT event_name, event_data, created_at FROM %s ORDER BY id);
my $before = $node->safe_psql('old', sprintf($rows, 'notification_events'));

# CREATE EXTENSION fails if the old table was not moved away.
my ($status, $out, $err) =
  $node->psql('old', 'CREATE EXTENSION pg_notify_events');
is($status, 3, 'CREATE EXTENSION refuses where the table exists');
like(
	$err,
	qr/ERROR:  \w+ public\.notification_events exists already.*HINT:  .*RENAME/s,
	'and says what to do');

# The migration, as in doc/migrating.md
$node->safe_psql(
	'old', q(
	BEGIN;
	ALTER TABLE notification_events RENAME TO old_notification_events;
	ALTER INDEX notification_events_pkey RENAME TO old_notification_events_pkey;
	ALTER SEQUENCE notification_events_id_seq RENAME TO old_notification_events_id_seq;
	DROP TRIGGER order_created ON orders;
	DROP FUNCTION notify_event();
	CREATE EXTENSION pg_notify_events;
	INSERT INTO notification_events (event_name, event_data, created_at)
		SELECT event_name, event_data, created_at FROM old_notification_events ORDER BY id;
	CREATE TRIGGER order_created AFTER INSERT ON orders
		FOR EACH ROW EXECUTE FUNCTION notify_event('order_created');
	COMMIT;
));
is($node->safe_psql('old', sprintf($rows, 'notification_events')),
	$before, 'all rows have moved, in their order');
is($node->safe_psql('old', 'SELECT count(*) FROM notification_events'),
	'5', 'five of them');

# The same client is still connected and hears the next events.  A handler also gets
# the rows from before the migration.
$node->safe_psql('old', 'DROP TABLE old_notification_events');
make_recorder($node, 'old');
make_owner($node, 'old', 'ann');
$node->safe_psql(
	'old', q(
	SELECT create_event_handler('record', 'record', owner => 'ann', start_from => 'beginning');
	INSERT INTO orders (product) VALUES ('quince');
	NOTIFY event_notification, 'last';
));
my %heard =
  map { $_ => 1 } split(/\n/, read_client($client, 'event_notification - last'));
ok($heard{'event_notification - order_created'}, 'the client hears of new orders');
stop_client($client);
wait_for_handlers($node, 'old');
seen_is_log($node, 'old', 'record', 'true', 'a handler gets old and new events');
is( $node->safe_psql(
		'old', q(
		SELECT event_data #>> '{new,product}' FROM notification_events ORDER BY id DESC LIMIT 1)),
	'quince',
	'the new trigger records the row');

$node->stop;
done_testing();
