
# What waiting for handlers costs: wait_for_event_handlers() looks repeatedly while a
# backlog is worked off. It looks at each event about once, however many looks it takes
# and for however many handlers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $backlog = 50_000;

my $node = new_server('wait_looks', 'pg_notify_events.announce = off', 'autovacuum = off');
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

sub sql
{
	my ($statements) = @_;

	return $node->safe_psql('postgres', $statements);
}

# the number of index entries of the log that were looked at so far
sub rows
{
	return sql(q(
		SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'notification_events'));
}

# wait_for(WAIT): call wait_for_event_handlers(WAIT) and return its error
sub wait_for
{
	my ($wait) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "CALL wait_for_event_handlers('$wait')");

	return $err;
}

sql('CREATE EXTENSION pg_notify_events');
sql(q(
	CREATE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
	CREATE FUNCTION stand_still(text, jsonb) RETURNS void LANGUAGE plpgsql AS
		'BEGIN PERFORM pg_advisory_xact_lock(1); END';
	SELECT create_event_handler('stands still', 'stand_still', event_name => 'stop', timeout => '1 h');
	SELECT create_event_handler('rare ' || i, 'ignore', event_name => 'rare ' || i) FROM generate_series(1, 10) i));

# An executor is in a call. Other handlers of its owner wait behind a backlog that is for
# none of them; only the first one has an event.
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
sql(q(SELECT notify_event('stop')));
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 0")
  or die 'the handler does not stand still';
sql(qq(SELECT notify_event('rare 1');
	INSERT INTO notification_events (event_name) SELECT 'other' FROM generate_series(1, $backlog)));
$node->poll_query_until('postgres', "SELECT sum(emitted) = $backlog + 2 FROM event_stats")
  or die 'the listener does not see the events';

my $before = rows();
like(wait_for('5 s'), qr/timeout while waiting for event handlers: "(rare 1|stands still)", "(rare 1|stands still)"$/m,
	'those that are not done, and no others');
my $looked_at = rows() - $before;
cmp_ok($looked_at, '<=', 4 * $backlog, 'events are looked at about once');

# A definition is changed while a session waits.
my $waiting = $node->background_psql('postgres');
$waiting->query_until(qr/waiting/, "\\echo waiting\nCALL wait_for_event_handlers('$timeout s');\n\\echo has waited\n");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CALL wait%' AND state = 'active'")
  or die 'nobody waits';
sql(q(SELECT alter_event_handler('rare 2', event_name => 'other')));
$holder->query_safe('SELECT pg_advisory_unlock(1)');
$waiting->query_until(qr/has waited/, '');
is(sql(q(SELECT string_agg(handler || ' ' || delivered, ', ' ORDER BY handler) FROM event_handler_stats WHERE delivered > 0)),
	"rare 1 1, rare 2 $backlog, stands still 1",
	'all is done when the wait ends');
$holder->quit;
$waiting->quit;

# An event that was waited for is deleted.
$holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
sql(q(SELECT notify_event('stop')));
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 0")
  or die 'the handler does not stand still';
sql(q(SELECT notify_event('rare 3')));
like(wait_for('1 s'), qr/"rare 3"/, 'an event waits');
sql(q(DELETE FROM notification_events WHERE event_name = 'rare 3'));
unlike(wait_for('1 s'), qr/"rare 3"/, 'and not when it is gone');
$holder->query_safe('SELECT pg_advisory_unlock(1)');
wait_for_handlers($node, 'postgres');
$holder->quit;

done_testing();
