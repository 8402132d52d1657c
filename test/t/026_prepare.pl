
# PREPARE TRANSACTION: COMMIT PREPARED, by any role, wakes an executor that nothing
# else would wake.  What cannot be prepared is refused.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# far above any delay here, far below naptime
my $limit = 10;
my $node = new_server(
	'prepare',
	'max_prepared_transactions = 10',
	'pg_notify_events.announce = off',
	"pg_notify_events.naptime = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
$node->safe_psql('postgres', 'CREATE DATABASE empty');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('warm-up');
));
wait_for_handlers($node, 'postgres');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
my $emitted = 1;

# returns the seconds until all that is committed is handled
sub taken
{
	$emitted++;
	$node->poll_query_until('postgres', "SELECT count(*) = $emitted FROM seen")
	  or die "not handled at all";
	return $node->safe_psql('postgres',
		'SELECT extract(epoch FROM max(s.at) - max(c.at)) FROM seen s, committed c');
}

my $session = $node->background_psql('postgres');
$node->safe_psql('postgres', 'CREATE TABLE committed (at timestamptz)');

$session->query_safe('BEGIN');
$session->query_safe(q(SELECT notify_event('same session')));
$session->query_safe(q(PREPARE TRANSACTION 'same'));
$session->query_safe('INSERT INTO committed VALUES (clock_timestamp())');
$session->query_safe(q(COMMIT PREPARED 'same'));
my $taken = taken();
cmp_ok($taken, '<', $limit, "COMMIT PREPARED, same session ($taken s)");

$session->query_safe('BEGIN');
$session->query_safe(q(SELECT notify_event('other session')));
$session->query_safe(q(PREPARE TRANSACTION 'other'));
$node->safe_psql(
	'postgres', q(
	UPDATE committed SET at = clock_timestamp();
	COMMIT PREPARED 'other';
));
$taken = taken();
cmp_ok($taken, '<', $limit, "COMMIT PREPARED, another session ($taken s)");

# by a role that has no rights here, in a session that has done nothing else
$node->safe_psql('postgres', 'CREATE ROLE clerk LOGIN; GRANT EXECUTE ON FUNCTION notify_event(varchar, jsonb) TO clerk');
$node->safe_psql(
	'postgres',
	q(BEGIN; SELECT notify_event('gone session', '{}'::jsonb); PREPARE TRANSACTION 'gone'),
	extra_params => [ '-U', 'clerk' ]);
$node->safe_psql('postgres', 'UPDATE committed SET at = clock_timestamp()');
$node->safe_psql('postgres', q(COMMIT PREPARED 'gone'),
	extra_params => [ '-U', 'clerk' ]);
$taken = taken();
cmp_ok($taken, '<', $limit, "COMMIT PREPARED, another role ($taken s)");

# after a restart, when the executor is gone
$node->safe_psql('postgres',
	q(BEGIN; SELECT notify_event('restart'); PREPARE TRANSACTION 'restart'));
$session->quit;
$node->restart;
wait_for_listener($node, 'postgres');
$node->safe_psql('postgres', q(SELECT notify_event('meanwhile')));
taken();
$node->safe_psql('postgres', 'UPDATE committed SET at = clock_timestamp()');
$node->safe_psql('postgres', q(COMMIT PREPARED 'restart'));
$taken = taken();
cmp_ok($taken, '<', $limit, "COMMIT PREPARED after a restart ($taken s)");
seen_is_log($node, 'postgres', 'record', 'true', 'each once');

# A transaction that changes definitions cannot be prepared.
my %refused = (
	create => q(SELECT create_event_handler('new', 'record', owner => 'ann')),
	alter => q(SELECT alter_event_handler('record', batch_size => 7)),
	pause => q(SELECT pause_event_handler('record')),
	resume => q(SELECT resume_event_handler('record')),
	drop => q(SELECT drop_event_handler('record')),
	'drop extension' => 'DROP EXTENSION pg_notify_events CASCADE',
	'savepoint' => q(SAVEPOINT s; SELECT pause_event_handler('record'); RELEASE s),
	'with an event' => q(SELECT notify_event('never'); SELECT drop_event_handler('record')),
	'create extension' => 'CREATE EXTENSION pg_notify_events',);
foreach my $name (sort keys %refused)
{
	my $database = $name eq 'create extension' ? 'empty' : 'postgres';
	my ($status, $out, $err) = $node->psql(
		$database, qq(
		\\set VERBOSITY verbose
		BEGIN;
		$refused{$name};
		PREPARE TRANSACTION 'refused';
		ROLLBACK PREPARED 'refused';
	));
	like(
		$err,
		qr/ERROR:  0A000: cannot PREPARE a transaction that has changed event handlers, event channels or extension pg_notify_events.*HINT:/s,
		"refused: $name");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	'0', 'none of them is prepared');
is( $node->safe_psql(
		'postgres', 'SELECT name, batch_size, paused FROM event_handlers'),
	'record|1000|f',
	'nothing is changed');
is($node->safe_psql('empty', q(SELECT count(*) FROM pg_extension WHERE extname = 'pg_notify_events')),
	'0', 'nor installed');

# A refused PREPARE does not affect the next transaction.
$node->safe_psql('postgres', 'UPDATE committed SET at = clock_timestamp()');
my ($status, $out, $err) = $node->psql(
	'postgres', q(
	BEGIN;
	SELECT pause_event_handler('record');
	PREPARE TRANSACTION 'refused';
	BEGIN;
	SELECT notify_event('next');
	PREPARE TRANSACTION 'next';
	COMMIT PREPARED 'next';
), on_error_stop => 0);
like($err, qr/cannot PREPARE/, 'refused, in a session that goes on');
$taken = taken();
cmp_ok($taken, '<', $limit, "the next one is prepared and committed ($taken s)");
seen_is_log($node, 'postgres', 'record', 'true', 'each once');

$node->stop;
done_testing();
