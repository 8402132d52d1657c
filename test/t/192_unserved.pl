
# What the listener's looks at handlers without an executor cost: rows of the log that are
# for none of these handlers are not looked at again with each event.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# fewer than the number after which an executor is asked to pass them anyway
my $backlog = 5_000;

my $node = new_server('unserved', 'pg_notify_events.announce = off', 'autovacuum = off');

sub sql
{
	my ($statements) = @_;

	return $node->safe_psql('postgres', $statements);
}

sql('CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');
sql(q(
	CREATE FUNCTION ignore(text, jsonb) RETURNS void LANGUAGE sql AS 'SELECT';
	CREATE FUNCTION stand_still(text, jsonb) RETURNS void LANGUAGE plpgsql AS
		'BEGIN PERFORM pg_advisory_xact_lock(1); END';
	SELECT create_event_handler('inside', 'ignore', event_name => 'other', batch_size => 100, owner => 'ann'),
		create_event_handler('stands still', 'stand_still', event_name => 'stop', timeout => '1 h', owner => 'ann')));

# A handler is inside a window when its executor is lost, and no event of the rest of the
# window is for it any more.
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(1)');
sql(qq(INSERT INTO notification_events (event_name)
	SELECT CASE i WHEN 1 THEN 'stop' ELSE 'other' END FROM generate_series(1, $backlog) i));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 0))
  or die 'the handler does not stand still';
sql('ALTER ROLE ann NOLOGIN');
$node->restart;
my $delivered = sql(q(SELECT delivered FROM event_handler_stats WHERE handler = 'inside'));
is(sql(q(SELECT "window" IS NOT NULL FROM _event_handler_progress WHERE handler = 'inside')), 't', 'a handler is inside a window');

sql(q(
	BEGIN;
	ALTER ROLE ann LOGIN;
	SELECT pause_event_handler('stands still'), alter_event_handler('inside', event_name => 'rare');
	COMMIT));
ok($node->poll_query_until('postgres', q(SELECT "window" IS NULL FROM _event_handler_progress WHERE handler = 'inside')),
	'an executor brings it out of there');
is(sql(q(SELECT delivered, pending, pending_is_exact FROM event_handler_stats WHERE handler = 'inside')), "$delivered|0|t", 'without another call');

done_testing();
