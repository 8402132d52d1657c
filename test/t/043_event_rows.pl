
# An executor has read a window, and then reads its rows at the places that they
# had.  Meanwhile rows may be changed, move or vanish, another event may take the
# place of one, and the buffer may hold another page.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# too few buffers for the pages of a window
my $node = new_server('event_rows', 'log_statement = none', 'autovacuum = off', 'shared_buffers = 1MB',
	'max_connections = 20', 'pg_notify_events.announce = off');
my $events = 400;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');

# An event fills a page, a batch is one event, and its call waits at a gate.
$node->safe_psql(
	'postgres', qq(
	ALTER TABLE notification_events ALTER COLUMN event_data SET STORAGE PLAIN;
	CREATE TABLE seen (n bigserial, id bigint NOT NULL, what text);
	GRANT SELECT, INSERT ON seen TO ann;
	GRANT USAGE ON SEQUENCE seen_n_seq TO ann;
	CREATE FUNCTION see(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(e.id);
		INSERT INTO public.seen (id, what) VALUES (e.id, e.event_data ->> 'what');
	END \$\$;
	SELECT create_event_handler('see', 'see', owner => 'ann', batch_size => 1, timeout => '1 hour');
));

my $gates = $node->background_psql('postgres');

sub wait_at_gate
{
	my ($id) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $id")
	  or die "nobody waits at gate $id";
	return;
}

sub place
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT ctid FROM notification_events WHERE id = $id");
}

sub insert
{
	my ($count, $what, $also) = @_;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name, event_data)
		SELECT 'page', jsonb_build_object('what', '$what', 'filler', repeat('x', 5000)) FROM generate_series(1, $count);)
		  . ($also // ''));
	return;
}

$gates->query_safe('SELECT pg_advisory_lock(1), pg_advisory_lock(2)');
insert($events, 'first', q(UPDATE notification_events SET event_data = '{"what": "changed at once"}' WHERE id = 6));
wait_at_gate(1);
is($node->safe_psql('postgres', 'SELECT count(DISTINCT (ctid::text::point)[0]) FROM notification_events'),
	$events, 'an event is a page');

my %before = map { $_ => place($_) } (3 .. 5);
$node->safe_psql(
	'postgres', q(
	DELETE FROM notification_events WHERE id = 3;
	UPDATE notification_events SET event_data = '{"what": "changed"}' WHERE id = 4;
	UPDATE notification_events SET event_data = event_data || jsonb_build_object('what', 'moved', 'more', repeat('y', 2500)) WHERE id = 5;
));
my ($block) = $before{4} =~ /(\d+),/;
like(place(4), qr/^\($block,/, 'event 4 is changed on its page');
($block) = $before{5} =~ /(\d+),/;
unlike(place(5), qr/^\($block,/, 'event 5 is on another page');

# The batch of event 2 has a snapshot from after the deletion.  VACUUM (FREEZE)
# waits for any process that has a page pinned.
$gates->query_safe('SELECT pg_advisory_unlock(1)');
wait_at_gate(2);
$node->safe_psql('postgres', 'VACUUM (FREEZE, INDEX_CLEANUP ON) notification_events');
insert(2, 'later');
my @later = ($events + 1, $events + 2);
is(join(' ', grep { place($_) eq $before{3} } @later), $later[0], 'another event is where event 3 was');
$gates->query_safe('SELECT pg_advisory_unlock(2)');
wait_for_handlers($node, 'postgres');

is( $node->safe_psql(
		'postgres', q(
		SELECT string_agg(id || ' ' || what, ', ' ORDER BY n) FROM seen
		WHERE what <> 'first' OR id <= 6)),
	join(', ', '1 first', '2 first', '4 changed', '5 moved', '6 changed at once', map { "$_ later" } @later),
	'what was deleted is not delivered, what was changed is as it is now, and what came to its place comes later');
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), max(id) FROM seen'),
	join('|', $events + 1, $events + 1, $events + 2), 'all others are delivered once');

# The table is truncated, and so shorter than when the window was read.
my $ddl = $node->background_psql('postgres');

$gates->query_safe('SELECT pg_advisory_lock(1000)');
$node->safe_psql('postgres', q(SELECT setval(pg_get_serial_sequence('notification_events', 'id'), 999)));
insert(20, 'late');
wait_at_gate(1000);
$ddl->query_until(qr/begins/, "\\echo begins\nTRUNCATE notification_events;\n");
$node->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'notification_events'::regclass))
  or die 'TRUNCATE does not wait';
$gates->query_safe('SELECT pg_advisory_unlock(1000)');
$ddl->query_safe('SELECT 1');
insert(1, 'last');
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT string_agg(id || ' ' || what, ', ' ORDER BY n) FROM seen WHERE id >= 1000)),
	'1000 late, 1020 last', 'what was truncated is not delivered');
$_->quit foreach $gates, $ddl;

$node->stop;
done_testing();
