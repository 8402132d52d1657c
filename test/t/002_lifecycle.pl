
# When the workers of a database start and stop: with the extension and with the
# server.  Nobody has to restart the server for that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('lifecycle', 'log_min_messages = debug1');

# returns how many listeners were started for a database since that log offset
sub listener_starts
{
	my ($database, $offset) = @_;
	my $oid = $node->safe_psql('postgres',
		"SELECT oid FROM pg_database WHERE datname = '$database'");
	my $log = slurp_file($node->logfile, $offset);

	return
	  scalar(() = $log =~
		  /starting background worker process "pg_notify_events listener for database $oid"/g
	  );
}

# Without the extension no worker is connected.
my $launcher = worker_pid($node, 'launcher');
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(one two three);
foreach my $database (qw(postgres one two three))
{
	wait_for_no_workers($node, $database);
}

# CREATE EXTENSION: the workers start when it commits, not before, and only in
# that database.
my $offset = -s $node->logfile;
my $session = $node->background_psql('one');
$session->query_safe('BEGIN');
$session->query_safe('CREATE EXTENSION pg_notify_events');
my $rolled_back = $node->background_psql('two');
$rolled_back->query_safe('BEGIN');
$rolled_back->query_safe('CREATE EXTENSION pg_notify_events');
$rolled_back->query_safe('ROLLBACK');
$node->safe_psql('three',
	'CREATE SCHEMA "Odd ""Schema"; CREATE EXTENSION pg_notify_events SCHEMA "Odd ""Schema"'
);
$node->poll_query_until(
	'three', q(
	SELECT count(*) = 1 FROM "Odd ""Schema".event_worker_stats
	WHERE kind = 'listener' AND database = 'three' AND state = 'listening'))
  or die "no listener";
is(listener_starts('one', $offset),
	0, 'no worker before CREATE EXTENSION is committed');
$session->query_safe('COMMIT');
my $listener = wait_for_listener($node, 'one');
is(listener_starts('one', $offset), 1, 'workers start when it commits');
is(listener_starts('two', $offset),
	0, 'a rolled back CREATE EXTENSION starts none');
is(worker_pid($node, 'launcher'), $launcher, 'the launcher is the same');
$session->quit;
$rolled_back->quit;

# Handlers run in both schemas.
make_recorder($node, 'one');
make_owner($node, 'one', 'ann');
$node->safe_psql(
	'one', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('first');
));
wait_for_handlers($node, 'one');
is($node->safe_psql('one', 'SELECT count(*), min(by_role) FROM seen'),
	'1|ann', 'a handler runs');
$node->safe_psql(
	'three', q(
	CREATE TABLE seen (id bigint);
	CREATE FUNCTION record(e "Odd ""Schema".notification_events) RETURNS void LANGUAGE sql
		AS $$ INSERT INTO public.seen VALUES (e.id) $$;
	SELECT "Odd ""Schema".create_event_handler('record', 'record');
	SELECT "Odd ""Schema".notify_event('first');
	CALL "Odd ""Schema".wait_for_event_handlers();
));
is($node->safe_psql('three', 'SELECT count(*) FROM seen'),
	'1', 'a handler runs in an oddly named schema');

# DROP EXTENSION is rolled back: the same workers go on.
$node->safe_psql('one',
	'BEGIN; DROP EXTENSION pg_notify_events CASCADE; ROLLBACK; SELECT notify_event(\'second\')'
);
wait_for_handlers($node, 'one');
seen_is_log($node, 'one', 'record', 'true',
	'handlers after a rolled back DROP EXTENSION');
is(worker_pid($node, 'listener', 'one'),
	$listener, 'the listener is the same');

# DROP EXTENSION: the workers stop and do not come back; those of other databases
# go on.
my $other = worker_pid($node, 'listener', 'three');
$node->safe_psql('one', 'DROP EXTENSION pg_notify_events CASCADE');
ok(wait_for_no_workers($node, 'one'), 'workers leave on DROP EXTENSION');
is(worker_pid($node, 'listener', 'three'),
	$other, 'those of another database stay');

# Created again: the workers start again, and the database is served as before.
$node->safe_psql('one', 'DROP TABLE seen; CREATE EXTENSION pg_notify_events');
make_recorder($node, 'one');
make_owner($node, 'one', 'ann');
wait_for_listener($node, 'one');
$node->safe_psql(
	'one', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('again');
));
wait_for_handlers($node, 'one');
is($node->safe_psql('one', 'SELECT count(*) FROM seen'),
	'1', 'handlers run after it was created again');

# The extension is dropped and created in one transaction while the workers run.
$node->safe_psql(
	'one', q(
	DROP TABLE seen;
	BEGIN;
	DROP EXTENSION pg_notify_events CASCADE;
	CREATE EXTENSION pg_notify_events;
	COMMIT;
));
make_recorder($node, 'one');
make_owner($node, 'one', 'ann');
$node->safe_psql(
	'one', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('once more');
));
wait_for_handlers($node, 'one');
is($node->safe_psql('one', 'SELECT count(*) FROM seen'),
	'1', 'handlers run after it was replaced in one transaction');

# The workers start with the server, and handle what was committed before it went
# down: after a restart, and after a crash right behind the commit.
$node->safe_psql('one', q(SELECT notify_event('before restart')));
$node->restart;
$listener = wait_for_listener($node, 'one');
isnt($listener, undef, 'the listener starts with the server');
wait_for_handlers($node, 'one');
seen_is_log($node, 'one', 'record', 'true', 'after a restart');

$node->safe_psql('one', q(SELECT notify_event('before crash')));
$node->stop('immediate');
$node->start;
$node->safe_psql('one', q(SELECT notify_event('after crash')));
wait_for_handlers($node, 'one');
seen_is_log($node, 'one', 'record', 'true', 'after an immediate stop');
is($node->safe_psql('one', 'SELECT count(*) FROM seen'),
	'4', 'all events were handled');
wait_for_no_workers($node, 'two');

# The workers complain about none of this.
my @complaints =
  grep { /(ERROR|FATAL|PANIC|TRAP):/ && !/due to (administrator command|unexpected postmaster exit)/ }
  split(/\n/, slurp_file($node->logfile));
is(join("\n", @complaints), '', 'no errors on the way');

$node->stop;
done_testing();
