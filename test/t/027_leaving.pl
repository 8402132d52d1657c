
# A worker that backs off after an error logs the cause once, and goes on when the
# cause is gone.  Meanwhile it stops like any other worker if a command needs its
# database.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('leaving', 'log_statement = none', 'max_prepared_transactions = 2');
my ($status, $out, $err);

$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'shop');
make_owner($node, 'shop', 'ann');
$node->safe_psql(
	'shop', q(
	CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
	SELECT create_event_handler('record', 'record', owner => 'ann');
	SELECT notify_event('first');
));
wait_for_handlers($node, 'shop');

# returns how often the log has a line since that offset
sub logged
{
	my ($pattern, $offset) = @_;
	my $log = slurp_file($node->logfile, $offset);

	return scalar(() = $log =~ /$pattern/g);
}

sub wait_for_worker
{
	my ($database, $condition, $what) = @_;

	$node->poll_query_until($database,
		"SELECT count(*) = 1 FROM event_worker_stats WHERE $condition")
	  or die "never: $what";
	return;
}

# ALTER DATABASE ... RENAME; the server gives up after 5 s
sub rename_database
{
	my ($from, $to, $name) = @_;

	($status, $out, $err) = $node->psql(
		'postgres', qq(
		SELECT clock_timestamp() AS began \\gset
		ALTER DATABASE $from RENAME TO $to;
		SELECT extract(epoch FROM clock_timestamp() - :'began');
	));
	is($err, '', "RENAME $name");
	cmp_ok($out || 5, '<', 3, "RENAME $name: does not wait for the end of that");
	return;
}

# The executor fails: the table of positions has a trigger that is not the extension's.
my $trigger =
  qr/ERROR:  table "_event_handler_progress" has a trigger "zz_meddle" that is not the extension's/;
my $executor = worker_pid($node, 'executor', 'shop', 'ann');
my $offset = -s $node->logfile;
$node->safe_psql(
	'shop', q(
	SET allow_system_table_mods = on;
	CREATE TRIGGER zz_meddle BEFORE UPDATE ON _event_handler_progress
		FOR EACH ROW EXECUTE FUNCTION meddle();
	SELECT notify_event('held up');
));
wait_for_worker('shop',
	q(kind = 'executor' AND state = 'backing off' AND last_error ~ 'trigger "zz_meddle"'),
	'the executor backs off');
my $first_error = $node->safe_psql('shop',
	q(SELECT last_error_at FROM event_worker_stats WHERE kind = 'executor'));
wait_for_worker('shop',
	"kind = 'executor' AND last_error_at > '$first_error'::timestamptz + '2.5 s'",
	'the executor tries again');
is(worker_pid($node, 'executor', 'shop', 'ann'),
	$executor, 'an executor that fails and fails again stays');
is(logged($trigger, $offset), 1, 'its error is logged once');
is( $node->safe_psql(
		'shop', 'SELECT delivered, failed, waiting, pending FROM event_handler_stats'),
	'1|0|0|1',
	'no event is charged with it');

# It now backs off for 4 s.
is($node->safe_psql('shop', q(SELECT state FROM event_worker_stats WHERE kind = 'executor')),
	'backing off', 'it still backs off');
rename_database('shop', 'store', 'while an executor backs off');
$node->safe_psql('store', 'DROP TRIGGER zz_meddle ON _event_handler_progress');
$node->safe_psql('store', q(SELECT notify_event('behind')));
wait_for_handlers($node, 'store');
seen_is_log($node, 'store', 'record', 'true', 'without the trigger it goes on');
is($node->safe_psql('store', 'SELECT delivered, failed FROM event_handler_stats'),
	'3|0', 'as if nothing had been');

# The same without a rename: the executor goes on by itself.
$offset = -s $node->logfile;
$node->safe_psql(
	'store', q(
	SET allow_system_table_mods = on;
	CREATE TRIGGER zz_meddle BEFORE UPDATE ON _event_handler_progress
		FOR EACH ROW EXECUTE FUNCTION meddle();
	SELECT notify_event('held up');
));
$node->wait_for_log($trigger, $offset);
$node->safe_psql('store', 'DROP TRIGGER zz_meddle ON _event_handler_progress');
wait_for_handlers($node, 'store');
seen_is_log($node, 'store', 'record', 'true', 'the trigger is dropped: goes on');
wait_for_worker('store', q(kind = 'executor' AND state = 'idle'), 'idle again');

# The listener fails: it cannot read an internal table.  It reads the table because
# definitions have changed.
$offset = -s $node->logfile;
my $listener = wait_for_listener($node, 'store');
$node->safe_psql(
	'store', q(
	BEGIN;
	SELECT alter_event_handler('record', batch_size => 10);
	ALTER TABLE _event_handlers RENAME COLUMN batch_size TO size_of_batch;
	COMMIT;
	SELECT notify_event('unreadable');
));
wait_for_worker('store',
	q(kind = 'listener' AND state = 'backing off' AND last_error ~ 'batch_size'),
	'the listener backs off');
$first_error = $node->safe_psql('store',
	q(SELECT last_error_at FROM event_worker_stats WHERE kind = 'listener'));
wait_for_worker('store',
	"kind = 'listener' AND last_error_at > '$first_error'::timestamptz + '0.9 s'",
	'the listener tries again');
is(worker_pid($node, 'listener', 'store'),
	$listener, 'a listener that fails stays');
is(logged(qr/\[$listener\] pg_notify_events listener ERROR:/, $offset),
	1, 'its error is logged once');
rename_database('store', 'shop', 'while a listener backs off');
$node->safe_psql('shop',
	'ALTER TABLE _event_handlers RENAME COLUMN size_of_batch TO batch_size');
wait_for_listener($node, 'shop');
$node->safe_psql('shop', q(SELECT notify_event('readable')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'its successor goes on');

# A listener that stops has stored the counters of what it has seen; its successor
# does not count these events again.
wait_for_listener($node, 'shop');
$node->safe_psql('shop', 'SELECT reset_event_stats()');
$node->safe_psql('shop',
	q(SELECT notify_event('counted') FROM generate_series(1, 10)));
$node->poll_query_until('shop',
	q(SELECT emitted = 10 FROM event_stats WHERE event_name = 'counted'))
  or die "events are not counted";
$listener = worker_pid($node, 'listener', 'shop');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
isnt(wait_for_listener($node, 'shop'), $listener, 'the listener has left for a copy');
$node->safe_psql('shop', q(SELECT notify_event('counted')));
$node->poll_query_until('shop',
	q(SELECT emitted > 10 FROM event_stats WHERE event_name = 'counted'))
  or die "event is not counted";
is( $node->safe_psql(
		'shop', q(SELECT emitted FROM event_stats WHERE event_name = 'counted')),
	'11',
	'each event is counted once');
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'all are handled');

# A shutdown does not wait for a worker's orderly stop: a prepared transaction may
# hold the lock that the executor needs for it.
$node->safe_psql(
	'shop', q(
	SELECT pg_reload_conf();
	BEGIN;
	LOCK TABLE _event_handler_progress IN SHARE MODE;
	PREPARE TRANSACTION 'in the way';
));
$node->stop('fast', timeout => 30);
$node->start;
$node->safe_psql('shop', q(ROLLBACK PREPARED 'in the way'));
$node->safe_psql('shop', q(SELECT notify_event('counted')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'after a shutdown with a lock in the way');

$node->stop;
done_testing();
