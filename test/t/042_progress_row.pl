
# An executor looks for a handler's progress row where the row was the last time.
# The row may have moved, or another session may have locked it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('progress_row', 'log_statement = none', 'autovacuum = off', 'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('filler ' || i, 'record', 'nobody', owner => 'ann') FROM generate_series(1, 200) AS i;
	SELECT create_event_handler('ann', 'record', 'for ann', owner => 'ann');
	SELECT create_event_handler('ann too', 'record', 'for ann too', owner => 'ann');
	SELECT create_event_handler('bob', 'record', 'for bob', owner => 'bob');
));

sub handle
{
	my ($name) = @_;

	$node->safe_psql('postgres', "SELECT notify_event('for $name')");
	wait_for_handlers($node, 'postgres');
	return;
}

sub place
{
	my ($handler) = @_;

	return $node->safe_psql('postgres', "SELECT ctid FROM _event_handler_progress WHERE handler = '$handler'");
}

my $log_start = -s $node->logfile;

# The row is remembered behind the present end of the table.
$node->safe_psql('postgres', q(SELECT drop_event_handler('filler ' || i) FROM generate_series(1, 200) AS i));
handle('ann');
unlike(place('ann'), qr/^\(0,/, 'the row is not in the first page of the table');
$node->safe_psql('postgres', 'VACUUM FULL _event_handler_progress');
is($node->safe_psql('postgres', "SELECT pg_relation_size('_event_handler_progress') / current_setting('block_size')::int"),
	1, 'which is all that is left of it');
handle('ann');

handle('bob');

# The place holds a row of another owner now, with the same values, and another
# session has locked the handler's own row.
handle('ann') foreach (1 .. 3);
my $place = place('ann');
$node->safe_psql('postgres', 'VACUUM FULL _event_handler_progress');
isnt(place('ann'), $place, 'the row is moved');
my $guard = $node->safe_psql('postgres',
	"SELECT tgname FROM pg_trigger WHERE tgrelid = '_event_handler_progress'::regclass AND tgtype & 1 = 1");
$node->safe_psql('postgres', "ALTER TABLE _event_handler_progress DISABLE TRIGGER $guard");
foreach my $try (1 .. 100)
{
	last if place('bob') eq $place;
	$node->safe_psql(
		'postgres', q(
		UPDATE _event_handler_progress AS bob
		SET version = ann.version, cursor = ann.cursor, "window" = ann."window", last_id = ann.last_id
		FROM _event_handler_progress AS ann
		WHERE ann.handler = 'ann' AND bob.handler = 'bob'));
}
$node->safe_psql('postgres', "ALTER TABLE _event_handler_progress ENABLE ALWAYS TRIGGER $guard");
is(place('bob'), $place, 'and that of another owner, which says the same, is in its place');

my $somebody = $node->background_psql('postgres');
$somebody->query_safe(q(BEGIN; SELECT FROM _event_handler_progress WHERE handler = 'ann' FOR UPDATE));
$node->safe_psql('postgres', q(SELECT notify_event('for ann'); SELECT notify_event('for ann too')));
ok( $node->poll_query_until(
		'postgres', q(
		SELECT EXISTS (SELECT FROM seen JOIN notification_events USING (id) WHERE event_name = 'for ann too'))),
	'another handler of the owner does not wait for a row that somebody holds');
my $missing = q(
	SELECT count(*) FROM notification_events AS e WHERE NOT EXISTS (SELECT FROM seen WHERE seen.id = e.id));
is($node->safe_psql('postgres', $missing), 1, 'the handler whose row it is does');
$somebody->query_safe('COMMIT');
$somebody->quit;
ok($node->poll_query_until('postgres', $missing, '0'), 'until it is let go');
handle('bob');

is($node->safe_psql('postgres', 'SELECT count(*) = count(DISTINCT id) FROM seen'), 't', 'no event came twice');
is( $node->safe_psql(
		'postgres', q(
		SELECT bool_and(delivered = (SELECT count(*) FROM notification_events WHERE event_name = 'for ' || handler))
		FROM event_handler_stats)),
	't', 'and each handler counts its own');
unlike(slurp_file($node->logfile, $log_start), qr/ERROR:/, 'nothing failed');

$node->stop;
done_testing();
