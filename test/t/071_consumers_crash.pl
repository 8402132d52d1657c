
# Consumers under load, while clients, sessions and the server are killed.  Where
# effects and acknowledgement are one transaction, each event has its effect
# exactly once in the end.  What a client has seen is in the log, with the same
# data, although the server forgets the commits of its last moments.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'consumers_crash',
	'restart_after_crash = on',
	'log_statement = none',
	'synchronous_commit = off',
	"wal_writer_delay = '10s'");
my $tmp = $PostgreSQL::Test::Utils::tmp_check;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE ledger (consumer text, id bigint);
	SELECT create_event_consumer('once'), create_event_consumer('leased'),
		create_event_consumer('odd', 'multi', '$.n % 2 == 1')));

# Writers: single events, several at once, some rolled back, some late.
append_to_file(
	"$tmp/write.sql", q(
	SELECT notify_event('single', jsonb_build_object('token', gen_random_uuid()));
	BEGIN;
	SELECT notify_event('late', jsonb_build_object('token', gen_random_uuid()));
	SELECT count(notify_event('multi', jsonb_build_object('token', gen_random_uuid(), 'n', n))) FROM generate_series(1, 5) n;
	COMMIT;
	BEGIN;
	SELECT notify_event('rolled back', jsonb_build_object('token', gen_random_uuid()));
	ROLLBACK;
));

# Fetch, effects and acknowledgement in one transaction.
append_to_file(
	"$tmp/$_.sql", qq(
	CALL wait_for_events('$_', '200 ms');
	BEGIN;
	INSERT INTO ledger SELECT '$_', id FROM fetch_events('$_', 20);
	SELECT ack_events('$_');
	COMMIT;
)) foreach qw(once odd);

# Fetch on its own, with a lease; then effects and acknowledgement.  Some clients
# take longer than their lease; the fence refuses their acknowledgement.  If the
# last event has a round id, it is handed back the first time.  Each client prints
# what it has seen, so that the record is outside of the server.
append_to_file(
	"$tmp/leased.sql", q(
	CALL wait_for_events('leased', '200 ms');
	SELECT count(*) > 0 AS some, string_agg(id::text, ',') AS ids, max(id) AS last,
		string_agg(id || '=' || (event_data ->> 'token'), ' ') AS seen
	FROM fetch_events('leased', 50, '100 ms') \gset
	\if :some
		\echo saw :seen
		SELECT :last % 20 = 0 AND attempts IS NULL AS back FROM event_delivery_status(:last) WHERE name = 'leased' \gset
		\if :back
			SELECT retry_event('leased', :last, '50 ms');
		\else
			SELECT pg_sleep(0.2) IS NULL WHERE :last % 7 = 0;
			BEGIN;
			INSERT INTO ledger SELECT 'leased', unnest(ARRAY[:ids]::bigint[]);
			SELECT ack_events('leased', :last);
			COMMIT;
		\endif
	\endif
) x 500);

my %clients;    # name -> process
my $n = 0;

sub start_client
{
	my ($name) = @_;
	my @connection = ('-d', $node->connstr('postgres'));
	my $log = sprintf("%s/%s.%d", $tmp, $name, ++$n);

	$clients{$name} = IPC::Run::start(
		$name =~ /^leased/ ? [ 'psql', '-X', '-q', '-A', '-t', @connection, '-f', "$tmp/leased.sql" ] :
		  [ 'pgbench', '--no-vacuum', '--client', $name eq 'write' ? 4 : 1, '--time', 600,
			'--file', "$tmp/" . ($name =~ s/\d//r) . '.sql', @connection ],
		'>', "$log.out", '2>', "$log.err");
	return;
}

my @fetchers = qw(once1 once2 odd1 odd2 leased1 leased2);

# Starts the clients that do not run.
sub start_clients
{
	foreach my $name ('write', @fetchers)
	{
		next if $clients{$name} && $clients{$name}->pumpable;
		$clients{$name}->finish if $clients{$name};
		start_client($name);
	}
	return;
}

sub stop_client
{
	my ($name) = @_;

	$clients{$name}->kill_kill(grace => 0);
	delete $clients{$name};
	return;
}

# Waits until each consumer has MORE more events in the ledger.  Clients that end
# are started again.
sub wait_for_progress
{
	my ($more) = @_;
	my $counts =
	  q(SELECT consumer, count(l.id) FROM (VALUES ('leased'), ('odd'), ('once')) c (consumer) LEFT JOIN ledger l USING (consumer) GROUP BY 1 ORDER BY 1);
	my %goal = map { my ($c, $count) = split /\|/; $c => $count + $more } split /\n/, $node->safe_psql('postgres', $counts);
	my $deadline = time() + $PostgreSQL::Test::Utils::timeout_default;

	while (1)
	{
		my %now = map { split /\|/ } split /\n/, $node->safe_psql('postgres', $counts);

		return unless grep { $now{$_} < $goal{$_} } keys %goal;
		die "no progress" if time() > $deadline;
		start_clients();
	}
}

# The clients have ended with the server.
sub forget_clients
{
	$clients{$_}->finish foreach keys %clients;
	%clients = ();
	return;
}

foreach my $round (1, 2)
{
	# kill clients
	start_clients();
	wait_for_progress(100);
	foreach my $name (@fetchers)
	{
		stop_client($name);
		start_client($name);
		wait_for_progress(20);
	}

	# kill a session, and with it all others
	wait_for_progress(100);
	crash_server(
		$node,
		sub {
			$node->safe_psql('postgres',
				q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1));
		});
	pass("round $round: a session is killed");
	forget_clients();

	# kill the server
	start_clients();
	wait_for_progress(100);
	$node->stop('immediate');
	$node->start;
	pass("round $round: the server is killed");
	forget_clients();
}

# No writers any more: the clients fetch all events that are left.
start_client($_) foreach @fetchers;
my $deadline = time() + $PostgreSQL::Test::Utils::timeout_default;
while ($node->safe_psql('postgres', q(SELECT sum(pending + batch + waiting) FROM event_consumer_stats)) ne '0')
{
	die 'they do not come to an end' if time() > $deadline;
	foreach my $name (grep { !$clients{$_}->pumpable } @fetchers)
	{
		$clients{$name}->finish;
		start_client($name);
	}
}
stop_client($_) foreach @fetchers;

foreach my $consumer (qw(once leased odd))
{
	my $condition = $consumer eq 'odd' ? q(event_name = 'multi' AND (event_data ->> 'n')::int % 2 = 1) : 'true';

	is( $node->safe_psql(
			'postgres', qq(
			WITH s AS (SELECT id, count(*) AS n FROM ledger WHERE consumer = '$consumer' GROUP BY id),
				 l AS (SELECT id FROM notification_events WHERE $condition)
			SELECT (SELECT count(*) FROM l WHERE id NOT IN (SELECT id FROM s)),
				   (SELECT count(*) FROM s WHERE n > 1),
				   (SELECT count(*) FROM s WHERE id NOT IN (SELECT id FROM l)))),
		'0|0|0',
		"$consumer: missing, doubled, not in the log");
	is( $node->safe_psql(
			'postgres', qq(
			SELECT (SELECT count(*) FROM ledger WHERE consumer = s.consumer) - acknowledged
			FROM event_consumer_stats s WHERE consumer = '$consumer')),
		'0',
		"$consumer: acknowledged is what is in the ledger");
}

cmp_ok(
	$node->safe_psql('postgres', q(SELECT retried FROM event_consumer_stats WHERE consumer = 'leased')),
	'>', 0, 'some were handed back');

# What clients have seen is in the log, with the same data.
my %token = map { split /\|/ } split /\n/,
  $node->safe_psql('postgres', q(SELECT id, event_data ->> 'token' FROM notification_events));
my ($seen, $lost) = (0, 0);
foreach my $file (glob "$tmp/leased?.*.out")
{
	foreach my $line (grep { /^saw .*\w$/ } split /\n/, slurp_file($file))
	{
		foreach my $pair (split / /, substr($line, 4))
		{
			my ($id, $token) = split /=/, $pair;

			$seen++;
			$lost++ if ($token{$id} // '') ne $token;
		}
	}
}
cmp_ok($seen, '>', 500, "clients tell what they have seen ($seen events)");
cmp_ok(scalar(grep { slurp_file($_) =~ /is not in the open batch/ } glob "$tmp/leased?.*.err"),
	'>', 0, 'who was slow was refused');
is($lost, 0, 'what a client has seen is in the log');

# A lease survives a crash, even if most commits around it do not.
$node->safe_psql(
	'postgres', q(
	SELECT notify_event('last');
	SELECT count(*) FROM fetch_events('once', 1, '1 h')));
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', q(SELECT state, batch FROM event_consumer_stats WHERE consumer = 'once')),
	'leased|1', 'a lease outlasts a crash');

# So does an event that was fetched in a transaction which did not end.  Only the
# fetch flushes WAL here: it is less than a page, and no process waits for the
# flush of the event's commit.
my $session = $node->background_psql('postgres');
my ($id, $fetched) = split /\n/, $session->query_safe(
	q(SET pg_notify_events.announce = off;
	SELECT notify_event('seen');
	BEGIN;
	SELECT max(id) FROM fetch_events('leased')));
is($fetched, $id, 'the event is fetched');
$node->stop('immediate');
$session->{run}->finish;
$node->start;
is($node->safe_psql('postgres', "SELECT event_name FROM notification_events WHERE id = $id"),
	'seen', 'what was fetched outlasts a crash');

$node->stop;
done_testing();
