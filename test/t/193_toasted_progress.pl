
# If hundreds of transactions run, a snapshot takes kilobytes of TOAST. Batches that stay
# inside a window change only its last_id: they do not write a snapshot again, whatever
# happens to their events, and the stored position is correct.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $running = 900;
my $events = 600;
my $batch_size = 10;
# room for a few snapshots, but not for many
my $few = 8 * 8192;

my $node = new_server(
	'toasted', 'autovacuum = off', 'fsync = off', "max_prepared_transactions = $running",
	'pg_notify_events.announce = off');

sub sql
{
	my ($statements) = @_;

	return $node->safe_psql('postgres', $statements);
}

sub toast_size
{
	return sql(q(SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = '_event_handler_progress'::regclass));
}

sql('CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
sql(q(CREATE TABLE written (i int);
	CREATE FUNCTION fail_some(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF (e.event_data->>'i')::int % 100 = 50 THEN
			RAISE 'this one fails';
		END IF;
		INSERT INTO public.seen (handler, id) VALUES ('fails', e.id);
	END $$));
sql(join('', map { "BEGIN; INSERT INTO written VALUES ($_); PREPARE TRANSACTION 'p$_';\n" } (1 .. $running)));
sql(qq(
	SELECT create_event_handler('plain', 'record', batch_size => $batch_size),
		create_event_handler('fails', 'fail_some', batch_size => $batch_size, max_attempts => 1);
	SELECT notify_event('before', '{"i": 0}')));
wait_for_handlers($node, 'postgres');
cmp_ok(sql(q(SELECT min(pg_column_size(cursor)) FROM _event_handler_progress)), '>', 2000, 'a cursor is large');
sql(q(SELECT pause_event_handler('fails')));

# emit(): emit a backlog in one transaction, so that it is one window
sub emit
{
	sql(qq(INSERT INTO notification_events (event_name, event_data)
		SELECT 'e', jsonb_build_object('i', i) FROM generate_series(1, $events) i));
	return;
}

# stays_small(HANDLER): check this while the handler works off the backlog
sub stays_small
{
	my ($handler) = @_;
	my $batches = qq(SELECT batches FROM event_handler_stats WHERE handler = '$handler');
	my ($before, $size) = (sql($batches), toast_size());

	sql(qq(SELECT resume_event_handler('$handler')));
	wait_for_handlers($node, 'postgres');
	cmp_ok(sql($batches) - $before, '>=', $events / $batch_size, "$handler: in many batches");
	cmp_ok(toast_size() - $size, '<=', $few, "$handler: which write few snapshots");
	return;
}

sql(q(SELECT pause_event_handler('plain')));
emit();
stays_small('plain');
sql(q(SELECT pause_event_handler('plain')));
stays_small('fails');
is(sql(q(SELECT failed FROM event_handler_stats WHERE handler = 'fails')), $events / 100, 'some events failed');

# A handler that is stopped inside the window goes on there.
emit();
sql(q(SELECT pause_event_handler('fails')));
my $seen = sql(q(SELECT count(*) FROM seen));
sql(q(SELECT resume_event_handler('plain')));
$node->poll_query_until('postgres', "SELECT count(*) > $seen + 3 * $batch_size FROM seen") or die 'it does not begin';
sql(q(SELECT pause_event_handler('plain')));
$node->restart;
sql(q(SELECT resume_event_handler('plain'), resume_event_handler('fails')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'record', 'true', 'each event once');
is(sql(q(SELECT count(*) = count(DISTINCT id) AND count(*) = (SELECT count(*) FROM notification_events WHERE event_data->>'i' !~ '50$')
		FROM seen WHERE handler = 'fails')), 't', 'and those that do not fail');
is(sql(q(SELECT count(*) FROM _event_handler_progress p WHERE "window" IS NULL
		AND (SELECT bool_and(pg_visible_in_snapshot(e.txid, p.cursor)) FROM notification_events e))),
	'2', 'the cursors are behind all of them');

sql(join('', map { "ROLLBACK PREPARED 'p$_';\n" } (1 .. $running)));
$node->stop;
done_testing();
