
# A handler is changed after its executor has read events for it, and before
# their turn comes: the executor must discard what it has read.  Two handlers of
# one owner share a round.  The first waits at a gate, an advisory lock, while
# the second is changed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('overtaken', 'log_statement = none');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION wait_at_gate(e notification_events) RETURNS void LANGUAGE sql AS
		$$ SELECT pg_advisory_xact_lock_shared(1) $$;
	CREATE FUNCTION record_other(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('other', e.id); END $$;
));
my $gate = $node->background_psql('postgres');

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# overtake(CHANGE, MEANWHILE, AFTER, EXPECTED, NAME): a test.  It emits three
# events, and runs CHANGE when they have been read.  When MEANWHILE is true it
# opens the gate and runs AFTER.  EXPECTED is what "second" has recorded.
sub overtake
{
	my ($change, $meanwhile, $after, $expected, $name) = @_;

	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler(name) FROM event_handlers;
		TRUNCATE seen, notification_events RESTART IDENTITY;
		-- they take turns in the order of their names
		SELECT create_event_handler('first', 'wait_at_gate', owner => 'ann');
		SELECT create_event_handler('second', 'record', owner => 'ann');
	));
	# both stand at the same position
	wait_for_handlers($node, 'postgres');
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql('postgres', q(SELECT notify_event('read') FROM generate_series(1, 3)));
	poll(
		q(SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_notify_events executor' AND usename = 'ann' AND wait_event = 'advisory'),
		'the first handler waits at the gate');
	$node->safe_psql('postgres', $change);
	poll($meanwhile, $name) if $meanwhile;
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	wait_for_handlers($node, 'postgres');
	if ($after)
	{
		$node->safe_psql('postgres', $after);
		wait_for_handlers($node, 'postgres');
	}
	is( $node->safe_psql(
			'postgres',
			q(SELECT handler, by_role, string_agg(id::text, ' ' ORDER BY id) FROM seen
			GROUP BY handler, by_role ORDER BY handler, by_role)),
		$expected,
		$name);
	return;
}

overtake('SELECT 1', undef, undef, 'record|ann|1 2 3', 'nothing is changed');
overtake(
	q(SELECT alter_event_handler('second', owner => 'bob')),
	q(SELECT delivered = 3 FROM event_handler_stats WHERE handler = 'second'),
	undef,
	'record|bob|1 2 3',
	'another owner, whose executor is first');
overtake(q(SELECT alter_event_handler('second', owner => 'bob'); SELECT pause_event_handler('second')),
	undef, q(SELECT resume_event_handler('second')),
	'record|bob|1 2 3', 'another owner, whose executor is second');
overtake(q(SELECT alter_event_handler('second', function => 'record_other')),
	undef, undef, 'other|ann|1 2 3', 'another function');
overtake(q(SELECT alter_event_handler('second', event_name => 'new')),
	undef, q(SELECT notify_event('new')),
	'record|ann|4', 'other events');
overtake(q(SELECT alter_event_handler('second', filter => '$.n == 1')),
	undef, q(SELECT notify_event('read', '{"n": 1}'::jsonb)),
	'record|ann|4', 'a filter');
overtake(q(SELECT pause_event_handler('second')), undef, undef, '', 'paused');
overtake(q(SELECT pause_event_handler('second')), undef, q(SELECT resume_event_handler('second')),
	'record|ann|1 2 3', 'paused and resumed');
overtake(q(SELECT drop_event_handler('second')), undef, undef, '', 'dropped');
overtake(
	q(SELECT drop_event_handler('second'); SELECT create_event_handler('second', 'record', owner => 'ann')),
	undef, q(SELECT notify_event('new')),
	'record|ann|4', 'dropped and made again');
overtake(
	q(SELECT drop_event_handler('second');
	SELECT create_event_handler('second', 'record', owner => 'ann', start_from => 'beginning')),
	undef, undef, 'record|ann|1 2 3', 'dropped and made again from the beginning');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'),
	'0', 'no event has failed');

$gate->quit;
$node->stop;
done_testing();
