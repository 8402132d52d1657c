
# A slow handler does not delay other handlers of its owner.  The position of a
# handler that matches no events advances while another handler is busy.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('slow_and_fast', 'log_statement = none');
my $count = 5000;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION crawl(e notification_events) RETURNS void LANGUAGE sql AS \$\$
		INSERT INTO public.seen (handler, id) VALUES ('slow', e.id);
		SELECT pg_sleep(0.05);
	\$\$;
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'many', jsonb_build_object('n', n) FROM generate_series(1, $count) n;
	BEGIN;
	SELECT create_event_handler('slow', 'crawl', owner => 'ann', batch_size => 10, start_from => 'beginning');
	SELECT create_event_handler('record', 'record', owner => 'ann', start_from => 'beginning');
	SELECT create_event_handler('never', 'record', owner => 'ann', filter => '\$.n < 0', start_from => 'beginning');
	SELECT create_event_handler('other', 'record', 'other', owner => 'ann', start_from => 'beginning');
	COMMIT;
));

sub stats
{
	my ($handler, $columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM event_handler_stats WHERE handler = '$handler'");
}

$node->poll_query_until('postgres',
	"SELECT delivered = $count FROM event_handler_stats WHERE handler = 'record'")
  or die "the fast handler does not come to an end";
my $slow = stats('slow', 'delivered');
cmp_ok($slow, '<', $count / 10,
	"the fast handler is through while the slow one has done $slow of $count");
seen_is_log($node, 'postgres', 'record', 'true', 'the fast handler');

# The position of a handler that matches no events is stored now and then, not only
# when the executor has nothing else to do.
foreach my $handler (qw(never other))
{
	ok( $node->poll_query_until('postgres',
			"SELECT pending = 0 FROM event_handler_stats WHERE handler = '$handler'"),
		"handler $handler comes forward");
	is(stats($handler, 'delivered, failed, calls'), '0|0|0', 'without a call');
}
cmp_ok(stats('slow', 'pending'), '>', $count / 2,
	'beside a handler that is busy');

# New events do not wait for the slow handler, either.
$node->safe_psql('postgres', q(SELECT notify_event('other')));
$node->poll_query_until('postgres',
	q(SELECT delivered = 1 FROM event_handler_stats WHERE handler = 'other'))
  or die "new event is not handled";
my $taken = $node->safe_psql(
	'postgres', q(
	SELECT min(extract(epoch FROM s.at - e.created_at))
	FROM seen s JOIN notification_events e USING (id) WHERE e.event_name = 'other'));
cmp_ok($taken, '<', 2, "a new event is handled between its batches ($taken s)");

# The slow handler stops where it is, and stays there.
$node->safe_psql('postgres', q(SELECT pause_event_handler('slow')));
wait_for_handlers($node, 'postgres');
my ($state, $delivered, $pending) =
  split(/\|/, stats('slow', 'state, delivered, pending'));
is($state, 'paused', 'the slow handler is paused');
is($delivered + $pending, $count + 1, 'what it has not done waits');
is( $node->safe_psql(
		'postgres', q(SELECT count(*), count(DISTINCT id), max(id) - min(id) + 1 FROM seen WHERE handler = 'slow')),
	"$delivered|$delivered|$delivered",
	'what it has done is done once, in order');
is( $node->safe_psql(
		'postgres', q(SELECT count(*) FROM event_handler_stats WHERE failed > 0)),
	'0',
	'nothing has failed');

$node->stop;
done_testing();
