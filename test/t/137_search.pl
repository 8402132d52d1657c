
# A consumer reaches its events even if they are few among very many, and however short
# its client's timeouts are: each search ends in time, and stores the position that it has
# reached. No event is lost, repeated or out of order because of that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_server('search', 'log_statement = none', 'fsync = off', 'max_wal_size = 4GB',
	'autovacuum = off', 'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');

# Fetch at most $limit times, until all $wanted events are there. Returns their
# ids in the order in which they came. If the machine is too slow for a statement,
# its fetch adds nothing.
sub fetch_all
{
	my ($consumer, $settings, $wanted, $limit) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my @ids;

	$session->set_query_timer_restart;
	$session->query_safe($settings);
	for (1 .. $limit)
	{
		my $got = $session->query(
			"BEGIN; SELECT string_agg(id::text, ' ') FROM fetch_events('$consumer', 1000); SELECT ack_events('$consumer') > 0; COMMIT");
		my ($ids) = $session->{stderr} =~ /ERROR/ ? () : $got =~ /^([\d ]+)$/m;

		push @ids, split(' ', $ids) if defined $ids;
		last if @ids >= $wanted;
	}
	$session->quit;
	return @ids;
}

sub wanted_ids
{
	return $node->safe_psql('postgres',
		q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM notification_events WHERE event_name = 'wanted'));
}

# Events from before the consumer, events that it has to pass, and wanted events
$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) SELECT 'old' FROM generate_series(1, 200000)));
$node->safe_psql('postgres', qq(SELECT create_event_consumer('c$_', 'wanted'))) for 1 .. 4;
$node->safe_psql('postgres', q(SELECT create_event_consumer('beginning', 'wanted', start_from => 'beginning')));
$node->safe_psql(
	'postgres', q(
	INSERT INTO notification_events (event_name)
	SELECT CASE WHEN n IN (300000, 900000) THEN 'wanted' ELSE 'other' END FROM generate_series(1, 900000) n));
my $wanted = wanted_ids();

# The timeouts are as short as they can be for a search to get on with on this machine and
# its current load. A search of the whole log takes many times as long as a count of it.
my $began = time;
$node->safe_psql('postgres', q(SELECT count(*) FROM notification_events WHERE event_name = 'wanted'));
my $short = int(1000 * (time - $began));
$short = 250 if $short < 250;

foreach my $case (
	[ 'c1', "SET statement_timeout = $short" ],
	[ 'c2', 'SET statement_timeout = ' . int(1.2 * $short) ],
	[ 'beginning', "SET statement_timeout = $short" ])
{
	my ($consumer, $settings) = @$case;
	my @ids = fetch_all($consumer, $settings, 2, 400);

	is("@ids", $wanted, "$consumer, $settings: gets there");
}

my ($first) = split(' ', $wanted);

# The policy sleeps for as long as the event says, and shows few events.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION think(event notification_events) RETURNS boolean LANGUAGE plpgsql AS $$
		BEGIN
			IF event.event_data ? 'seconds' THEN PERFORM pg_sleep((event.event_data ->> 'seconds')::float8); END IF;
			RETURN event.event_name = 'shown';
		END $$;
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	CREATE POLICY think ON notification_events USING (think(notification_events));
	SELECT create_event_consumer('slow', owner => 'ann');
	INSERT INTO notification_events (event_name, event_data)
	SELECT 'hidden', '{"seconds": 0.002}' FROM generate_series(1, 1000);
	INSERT INTO notification_events (event_name) VALUES ('shown');
));
my @behind = fetch_all('slow', "SET statement_timeout = '1s'", 1, 400);
is("@behind",
	$node->safe_psql('postgres', q(SELECT max(id) FROM notification_events)), 'behind a slow policy');

# An event that is found is returned; the search does not wait until it finds
# more. The second wanted event lies behind one that takes longer than a search
# goes on after a find.
$node->safe_psql(
	'postgres', q(
	SELECT create_event_consumer('content', owner => 'ann');
	INSERT INTO notification_events (event_name, event_data)
	SELECT CASE WHEN n IN (1, 3000) THEN 'shown' ELSE 'hidden' END, CASE WHEN n = 1500 THEN '{"seconds": 0.2}'::jsonb END
	FROM generate_series(1, 3000) n;
));
my $shown = $node->safe_psql('postgres',
	q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM (SELECT id FROM notification_events WHERE event_name = 'shown' ORDER BY id DESC LIMIT 2) s));
my @once = fetch_all('content', '', 1, 1);
is("@once", $shown =~ s/ .*//r, 'the first one is not kept until the second one is found');
my @rest = fetch_all('content', '', 1, 100);
is("@rest", $shown =~ s/.* //r, 'the second one comes next');
$node->safe_psql('postgres', 'ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY');

# A caller that rolls back keeps its old position, and loses nothing.
$node->psql('postgres', q(SET statement_timeout = '100ms'; BEGIN; SELECT * FROM fetch_events('c4'); ROLLBACK));
is((fetch_all('c4', "SET statement_timeout = $short", 3, 400))[0], $first, 'after a rollback');

# wait_for_events() ends its searches in time, and finds what is there.
$node->safe_psql('postgres', q(SELECT create_event_consumer('w', 'wanted', start_from => 'beginning')));
$began = time;
my ($status, $out, $err) = $node->psql('postgres', q(SET statement_timeout = '3min'; CALL wait_for_events('w', '2 min')));
is("$status$out$err", '0', 'wait_for_events() without an error');
cmp_ok(time - $began, '<', 120, 'finds one');
is((fetch_all('w', '', 1, 100))[0], $first, 'that is the first one');
($status, $out, $err) = $node->psql('postgres', q(SET statement_timeout = '1s'; CALL wait_for_events('w', '0')));
is("$status$err", '0', 'and looks without the timeout');

done_testing();
