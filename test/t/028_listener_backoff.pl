
# A listener that cannot store its position backs off like any other worker, and does
# not spin.  It still stops if a command needs its database.
#
# The pg_sleep() in queries here does not wait for anything: it is the time that is
# measured.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('relay', 'log_statement = none');
my $error = qr/ERROR:  table "_event_announcer" has a trigger "zz_meddle" that is not the extension's/;

# creates a database whose listener has a position to store and cannot store it
sub make_database
{
	my ($database) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	wait_for_listener($node, $database);
	$node->safe_psql(
		$database, q(
		CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN new; END $$;
		SET allow_system_table_mods = on;
		CREATE TRIGGER zz_meddle BEFORE UPDATE ON _event_announcer FOR EACH ROW EXECUTE FUNCTION meddle();
		SELECT notify_event('not stored');
	));
	$node->poll_query_until($database,
		q(SELECT emitted = 1 FROM event_stats WHERE event_name = 'not stored'))
	  or die "the event is not counted";
	return;
}

make_database('shop');
make_database('lab');

# The listener of this database stops.
my ($status, $out, $err) =
  $node->psql('postgres', 'ALTER DATABASE lab RENAME TO study');
is($err, '', 'RENAME while a listener cannot store its position');
if ($status == 0)
{
	$node->safe_psql('study', 'DROP TRIGGER zz_meddle ON _event_announcer');
	wait_for_listener($node, 'study');
	$node->safe_psql('study', q(SELECT notify_event('behind')));
	ok( $node->poll_query_until('study',
			q(SELECT emitted = 1 FROM event_stats WHERE event_name = 'behind')),
		'its successor goes on');
}

# The listener of the other database tries to store, after 10 s.
my $offset = -s $node->logfile;
my $listener = worker_pid($node, 'listener', 'shop');
my $is_it = q(kind = 'listener' AND database = 'shop');
$node->poll_query_until('shop',
	"SELECT state = 'backing off' AND last_error ~ 'zz_meddle' FROM event_worker_stats WHERE $is_it")
  or die "the listener does not back off";
my $result = $node->safe_psql(
	'shop', qq(
	SELECT wakeups AS before FROM event_worker_stats WHERE $is_it \\gset
	SELECT pg_sleep(2) IS NULL;
	SELECT wakeups - :before FROM event_worker_stats WHERE $is_it;
));
my $wakeups = (split(/\n/, $result))[-1];
cmp_ok($wakeups, '<=', 10,
	"who backs off does not spin ($wakeups wake-ups in 2 s)");
is(scalar(() = slurp_file($node->logfile, $offset) =~ /\[$listener\][^\n]*$error/g),
	1, 'its error is logged once');
my $dropped_at = $node->safe_psql('shop',
	'DROP TRIGGER zz_meddle ON _event_announcer; SELECT clock_timestamp()');
$node->poll_query_until(
	'shop', q(
	SELECT bool_and(pg_visible_in_snapshot(txid::text::xid8, cursor)) FROM notification_events, _event_announcer)
) or die "the listener does not store its position";
is(wait_for_listener($node, 'shop'), $listener, 'the trigger is dropped: goes on');
my $taken = $node->safe_psql('shop',
	"SELECT extract(epoch FROM clock_timestamp() - '$dropped_at')");
cmp_ok($taken, '<', 15, "soon ($taken s)");

$node->stop;
done_testing();
