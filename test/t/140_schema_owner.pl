
# The owner of the extension's schema, who need not be a superuser, replaces objects of
# the extension by its own while a statement of the extension waits for a lock. None of
# these runs with the rights of anybody else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('schema_owner', 'log_statement = none', 'autovacuum = off');

# The schema "public" belongs to the owner of the database.
$node->safe_psql(
	'postgres', q(
	CREATE ROLE eve LOGIN;
	CREATE DATABASE shop OWNER eve;
));
$node->safe_psql('shop', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'shop', 'app', 'bob');
$node->safe_psql(
	'shop', q(
	GRANT EXECUTE ON FUNCTION listen_event_channel, create_event_consumer TO app, bob;
	-- a decoy says who runs it: in the log, which no error takes back
	CREATE SCHEMA trap AUTHORIZATION eve;
	SET ROLE eve;
	GRANT USAGE ON SCHEMA trap TO PUBLIC;
	CREATE FUNCTION trap.spring(decoy text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		RAISE LOG 'decoy % is run by %', decoy, current_user;
		RETURN NULL;
	END $$;
	CREATE FUNCTION trap.spring() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM trap.spring(TG_TABLE_NAME);
		RETURN NULL;
	END $$;
	RESET ROLE;

	-- handlers and consumers of owners, some of them subject to row security
	CREATE SCHEMA work;
	GRANT USAGE ON SCHEMA work TO PUBLIC;
	CREATE TABLE work.seen (id bigint);
	GRANT INSERT, SELECT ON work.seen TO PUBLIC;
	CREATE FUNCTION work.record(e notification_events) RETURNS void LANGUAGE sql
		AS $$ INSERT INTO work.seen VALUES (e.id) $$;
	CREATE POLICY all_events ON notification_events USING (true);
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	SET ROLE app;
	SELECT listen_event_channel('x'), create_event_handler('h', 'work.record', 'h*'),
		create_event_consumer('c'), create_event_handler('other', 'work.record', 'other');
	SET ROLE bob;
	SELECT create_event_handler('bobs', 'work.record', 'b*'), create_event_consumer('bobs');
));
wait_for_handlers($node, 'shop');

# a schema "public" with a view for each table of the extension; each view has a trap for
# any read or write
my $decoys = q(
	ALTER SCHEMA public RENAME TO pub2;
	CREATE SCHEMA public;
	GRANT USAGE ON SCHEMA public TO PUBLIC;
	DO $$
	DECLARE
		t record;
	BEGIN
		FOR t IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'pub2'::regnamespace AND c.relkind = 'r'
		LOOP
			EXECUTE format('CREATE VIEW public.%I AS SELECT %s', t.relname,
				(SELECT string_agg(format('trap.spring(%L)::%s AS %I', t.relname, format_type(a.atttypid, a.atttypmod), a.attname), ', ' ORDER BY a.attnum)
				 FROM pg_attribute a
				 WHERE a.attrelid = format('pub2.%I', t.relname)::regclass AND a.attnum > 0 AND NOT a.attisdropped));
			EXECUTE format('CREATE TRIGGER spring INSTEAD OF INSERT OR UPDATE OR DELETE ON public.%I FOR EACH ROW EXECUTE FUNCTION trap.spring()', t.relname);
			EXECUTE format('GRANT ALL ON public.%I TO PUBLIC', t.relname);
		END LOOP;
	END $$;
);

# no_decoy(NAME, OFFSET): check that no decoy was run since OFFSET of the log
sub no_decoy
{
	my ($name, $offset) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(join("\n", slurp_file($node->logfile, $offset) =~ /decoy \w+ is run by \w+/g), '', $name);
	return;
}

# restore(): remove the decoys
sub restore
{
	$node->safe_psql(
		'shop',
		'DROP SCHEMA public CASCADE; ALTER SCHEMA pub2 RENAME TO public',
		extra_params => [ '-U', 'eve' ]);
	return;
}

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('shop', $sql) or die "never: $what";
	return;
}

# session(ROLE): open a session as that role
sub session
{
	return $node->background_psql('shop', on_error_stop => 0, extra_params => [ '-U', $_[0] ]);
}

# attack(NAME, TABLE, OTHER, ROLE, STATEMENT): ROLE runs STATEMENT, which waits for TABLE.
# Role eve is about to drop TABLE and OTHER, and waits for a session that has locked
# OTHER. She creates her decoys, then that session releases its lock and her drop goes on.
sub attack
{
	my ($name, $table, $other, $role, $statement) = @_;
	my $offset = -s $node->logfile;
	my $holder = session('postgres');
	my $dropper = session('eve');
	my $victim = session($role);

	$holder->query_safe("BEGIN; LOCK TABLE $other IN ACCESS SHARE MODE");
	$dropper->query_until(qr/begins/, "\\echo begins\nDROP TABLE public.$table, public.$other;\n");
	poll("SELECT count(*) > 0 FROM pg_locks WHERE relation = '$table'::regclass AND granted AND mode = 'AccessExclusiveLock'",
		'eve has the first table');
	$victim->query_until(qr/begins/, "\\echo begins\n$statement;\n");
	poll("SELECT count(*) > 0 FROM pg_locks WHERE relation = '$table'::regclass AND NOT granted",
		"$name: somebody waits");
	$node->safe_psql('shop', $decoys, extra_params => [ '-U', 'eve' ]);
	$holder->query_safe('COMMIT');
	$dropper->query('SELECT 1');
	$victim->query('SELECT 1');
	$_->quit foreach $holder, $dropper, $victim;
	no_decoy("$name: runs no decoy", $offset);
	restore();
	return;
}

# Statements that change a table as the extension's owner. Each is the first one of its
# session, so it is prepared while it waits.
attack('delete', '_event_channels', '_event_handlers', 'app', q(SELECT unlisten_event_channel('x')));
attack('update', '_event_handlers', '_event_channels', 'app', q(SELECT pause_event_handler('h')));
attack('update of another table', '_event_handler_progress', '_event_channels', 'app', q(SELECT resume_event_handler('h')));
attack('insert', '_event_consumers', '_event_channels', 'app', q(SELECT create_event_consumer('c2')));
attack('delete from several tables', '_event_handler_failures', '_event_channels', 'app',
	q(SELECT drop_event_handler('other')));
# statements that only read
attack('select', '_event_install', '_event_channels', 'app', q(SELECT create_event_handler('h3', 'work.record', 'none')));
attack('select of a consumer', '_event_consumers', '_event_channels', 'app', q(SELECT fetch_events('c')));
# statements with the rights of a reader: as another role that is subject to row security
$node->safe_psql('shop', q(SELECT notify_event('first')));
attack('row security, fetch', 'notification_events', '_event_channels', 'bob', q(SELECT count(*) FROM public.fetch_events('bobs')));
attack('row security, call', 'notification_events', '_event_channels', 'bob',
	q(SELECT public.call_event_handler('bobs', 1)));

# Executors wait for the log when they begin a batch, and for progress when they store it.
# In the second case, the lock is taken before the event is committed.
foreach my $table (qw(notification_events _event_handler_progress))
{
	my $offset = -s $node->logfile;
	my $writer = session('postgres');
	my $holder = session('postgres');
	my $dropper = session('eve');

	$writer->query_safe(q(BEGIN; SELECT notify_event('hello'), notify_event('bye')));
	$writer->query_safe('COMMIT') if $table eq 'notification_events';
	$holder->query_safe('BEGIN; LOCK TABLE _event_channels IN ACCESS SHARE MODE');
	$dropper->query_until(qr/begins/, "\\echo begins\nDROP TABLE public.$table, public._event_channels;\n");
	poll("SELECT count(*) > 0 FROM pg_locks WHERE relation = '$table'::regclass AND granted AND mode = 'AccessExclusiveLock'",
		'eve has the table');
	$writer->query_safe('COMMIT') if $table ne 'notification_events';
	poll("SELECT count(*) > 0 FROM pg_locks WHERE relation = '$table'::regclass AND NOT granted",
		"a worker waits for $table");
	$node->safe_psql('shop', $decoys, extra_params => [ '-U', 'eve' ]);
	$holder->query_safe('COMMIT');
	$dropper->query('SELECT 1');
	$_->quit foreach $writer, $holder, $dropper;
	restore();
	wait_for_handlers($node, 'shop');
	no_decoy("a worker that waits for $table: runs no decoy", $offset);
}

is( $node->safe_psql(
		'shop', q(
		SELECT count(*) FROM notification_events l
		WHERE event_name = 'bye' AND (SELECT count(*) FROM work.seen s WHERE s.id = l.id) <> 1)),
	'0', 'each event of bob is handled once');

# A table of the same name in the schema, while the extension's table has another name
$node->safe_psql(
	'shop', q(
	ALTER TABLE public._event_channels RENAME TO hidden;
	CREATE TABLE public._event_channels (LIKE public.hidden INCLUDING ALL);
	ALTER TABLE public._event_channels OWNER TO eve;
	SET ROLE eve;
	CREATE TRIGGER spring BEFORE INSERT OR DELETE ON public._event_channels FOR EACH ROW EXECUTE FUNCTION trap.spring();
));
my $offset = -s $node->logfile;
my ($status, $out, $err) = $node->psql('shop', q(SELECT unlisten_event_channel('x')));
like($err, qr/ERROR:  extension "pg_notify_events" is not installed/, 'a namesake is not taken for the table');
no_decoy('and its trigger does not run', $offset);

# the same for the log, when a session records an event
$node->safe_psql(
	'shop', q(
	ALTER TABLE public.notification_events RENAME TO hidden_log;
	CREATE TABLE public.notification_events (LIKE public.hidden_log INCLUDING ALL);
	ALTER TABLE public.notification_events OWNER TO eve;
	CREATE TABLE work.orders (id bigint);
	CREATE TRIGGER orders AFTER INSERT ON work.orders FOR EACH ROW EXECUTE FUNCTION notify_event('order');
	SET ROLE eve;
	CREATE TRIGGER spring BEFORE INSERT ON public.notification_events FOR EACH ROW EXECUTE FUNCTION trap.spring();
));
$offset = -s $node->logfile;
foreach my $statement (q(SELECT notify_event('order')), 'INSERT INTO work.orders VALUES (1)')
{
	($status, $out, $err) = $node->psql('shop', $statement);
	like(
		$err,
		qr/ERROR:  table public\.notification_events does not exist\nDETAIL:  The table of that name is not the one of extension/,
		"$statement: a namesake is not taken for the log");
}
no_decoy('and its trigger does not run, either', $offset);

$node->stop;
done_testing();
