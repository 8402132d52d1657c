
# A consumer that an open transaction uses is "held" in event_consumer_stats, which shows
# the session and since when. Nobody else gets its events meanwhile, and without this
# state a forgotten transaction would never be found. The same holds for a prepared
# transaction, also after a restart.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'held', 'autovacuum = off', 'max_prepared_transactions = 3',
	"pg_notify_events.announce = off");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'eve');
$node->safe_psql(
	'postgres', q(
	GRANT EXECUTE ON FUNCTION create_event_consumer TO ann;
	CREATE ROLE member LOGIN IN ROLE ann;
	CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
	SELECT create_event_consumer('a', owner => 'ann'), create_event_consumer('b', owner => 'ann'),
		create_event_consumer('c', owner => 'ann');
	SELECT notify_event('go') FROM generate_series(1, 3)));

my $session = $node->background_psql('postgres');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe('SET SESSION AUTHORIZATION ann');

# What ROLE sees of the consumers: the state of each, whether the session holds it, and
# since when (the start of its transaction).
sub seen_by
{
	my ($role) = @_;

	return $node->safe_psql(
		'postgres', qq(
		SET SESSION AUTHORIZATION $role;
		SELECT string_agg(concat_ws(' ', consumer, state, CASE held_pid WHEN $pid THEN 'by session' ELSE held_pid::text END,
			CASE held_since WHEN a.xact_start THEN 'since then' WHEN p.prepared THEN 'since prepared' ELSE held_since::text END),
			', ' ORDER BY consumer)
		FROM event_consumer_stats LEFT JOIN (SELECT min(prepared) AS prepared FROM pg_prepared_xacts) p ON true
		LEFT JOIN (SELECT xact_start FROM began) a ON true));
}

# began: the start of the session's transaction, which not every role may read
$node->safe_psql(
	'postgres', q(
	CREATE VIEW began AS SELECT now() AS xact_start;
	GRANT SELECT ON began TO PUBLIC));
sub held
{
	my ($sql) = @_;
	my $at = (split /\n/, $session->query_safe("BEGIN; SELECT now(); $sql"))[0];

	$node->safe_psql('postgres', "CREATE OR REPLACE VIEW began AS SELECT '$at'::timestamptz AS xact_start");
	return;
}

my $none = 'a ready, b ready, c ready';
is(seen_by('postgres'), $none, 'at first nobody has one');

#
# What makes it held
#
held(q(SELECT count(*) FROM fetch_events('b')));
foreach my $role ('postgres', 'ann', 'member', 'watcher')
{
	is(seen_by($role), 'a ready, b held by session since then, c ready', "fetched in an open transaction: $role sees who has it");
}
is(seen_by('eve'), '', 'who has nothing to do with it sees nothing');
is($session->query_safe(q(SELECT state, held_pid IS NULL FROM event_consumer_stats WHERE consumer = 'b')),
	'fetched|t', 'the session itself sees what it has done');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('b'))), '0', 'nobody else gets its events');
$session->query_safe('COMMIT');
is(seen_by('ann'), 'a ready, b fetched, c ready', 'committed, nobody has it');

held(q(SELECT count(*) FROM fetch_events('b')));
is(seen_by('ann'), 'a ready, b held by session since then, c ready', 'the open batch fetched again');
$session->query_safe('COMMIT');

held(q(SELECT ack_events('b')));
is(seen_by('ann'), 'a ready, b held by session since then, c ready', 'acknowledged in an open transaction');
$session->query_safe('ROLLBACK');
is(seen_by('ann'), 'a ready, b fetched, c ready', 'rolled back, nobody has it');

held(q(SELECT retry_event('b', min(id)) FROM notification_events));
is(seen_by('ann'), 'a ready, b held by session since then, c ready', 'an event handed back');
$session->query_safe('ROLLBACK');

held(q(SELECT create_event_consumer('c', 'other', or_replace => true)));
is(seen_by('ann'), 'a ready, b fetched, c held by session since then', 'replaced');
$session->query_safe('ROLLBACK');

held(q(SELECT drop_event_consumer('c'); SELECT count(*) FROM fetch_events('a')));
is(seen_by('ann'), 'a held by session since then, b fetched, c held by session since then', 'dropped; and two at once');
$session->query_safe('ROLLBACK');

held(q(SAVEPOINT s; SELECT count(*) FROM fetch_events('a')));
is(seen_by('ann'), 'a held by session since then, b fetched, c ready', 'fetched behind a savepoint');
$session->query_safe('ROLLBACK TO s');
is(seen_by('ann'), 'a ready, b fetched, c ready', 'rolled back to it');
$session->query_safe('COMMIT');

$session->query_safe(q(SELECT count(*) FROM fetch_events('a', lease => '1 h')));
is(seen_by('ann'), 'a leased, b fetched, c ready', 'a lease is no open transaction');
held(q(SELECT ack_events('a', min(id)) FROM notification_events));
is(seen_by('ann'), 'a held by session since then, b fetched, c ready', 'one that acknowledges a part of it is');
$session->query_safe('COMMIT');
is(seen_by('ann'), 'a leased, b fetched, c ready', 'then the rest is leased');

#
# What does not make it held
#
$session->query_safe(q(SELECT count(*) FROM fetch_events('c'); SELECT ack_events('c')));
held(q(SELECT count(*) FROM fetch_events('c'); SELECT ack_events('c')));
is(seen_by('ann'), 'a leased, b fetched, c ready', 'a poll that found nothing');
$session->query_safe('COMMIT');

# A start that is not known is not made up.
$session->query_safe('RESET SESSION AUTHORIZATION; SET track_activities = off');
held(q(SELECT count(*) FROM fetch_events('b')));
is(seen_by('ann'), 'a leased, b held by session, c ready', 'a session that does not tell since when');
$session->query_safe('COMMIT; RESET track_activities; SET SESSION AUTHORIZATION ann');

#
# Prepared
#
$session->query_safe(
	q(BEGIN; SELECT count(*) FROM fetch_events('b'); SAVEPOINT s; SELECT ack_events('b'); PREPARE TRANSACTION 'ours'));
my $prepared = 'a leased, b held since prepared, c ready';
is(seen_by('ann'), $prepared, 'a prepared transaction has it: no session, since when it was prepared');
$session->query_safe(q(BEGIN; SELECT count(*) FROM fetch_events('c'); SELECT notify_event('in the same session')));
is(seen_by('ann'), $prepared, 'while its session does other things');
$session->query_safe('COMMIT');
$session->quit;
is(seen_by('member'), $prepared, 'and is gone');
$node->restart('immediate');
is(seen_by('watcher'), $prepared, 'after a crash');
$node->safe_psql('postgres', q(COMMIT PREPARED 'ours'));
is(seen_by('ann'), 'a leased, b ready, c ready', 'committed, nobody has it');

#
# Many consumers, some of them held, by two sessions
#
$session = $node->background_psql('postgres');
$pid = $session->query_safe('SELECT pg_backend_pid()');
$node->safe_psql(
	'postgres', q(
	SELECT count(create_event_consumer('many ' || n)) FROM generate_series(1, 500) n;
	SELECT notify_event('go')));
$session->query_safe(q(BEGIN; SELECT count(*) FROM fetch_events('many 77')));
my $other = $node->background_psql('postgres');
my $other_pid = $other->query_safe('SELECT pg_backend_pid()');
$other->query_safe(q(BEGIN; SELECT count(*) FROM fetch_events('many 78'); SELECT count(*) FROM fetch_events('many 76')));
is( $node->safe_psql('postgres', q(SELECT consumer, held_pid FROM event_consumer_stats WHERE held_since IS NOT NULL ORDER BY consumer)),
	"many 76|$other_pid\nmany 77|$pid\nmany 78|$other_pid", 'those among many that are held');
$other->query_safe('COMMIT');
$other->quit;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok( $node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM event_consumer_stats WHERE state = 'held')),
	'its session terminated, nobody has it');
$session->{run}->finish;

$node->stop;
done_testing();
