
# In a deadlock with a client the handler is the victim, whichever waits first,
# and whatever deadlock_timeout the server has.  It runs the batch again in smaller
# parts, and no event fails.  It checks often, and logs nothing about that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# with this deadlock_timeout alone, executors would not check during this test
my $node = new_server('deadlocks', 'log_statement = none', 'log_lock_waits = on', "deadlock_timeout = '30min'",
	"pg_notify_events.batch_time = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE accounts (name text PRIMARY KEY, n bigint DEFAULT 0);
	INSERT INTO accounts VALUES ('first'), ('second');
	GRANT SELECT, UPDATE ON accounts TO PUBLIC;
	-- the gate: the sequence tells how often somebody was there
	CREATE SEQUENCE visits;
	GRANT ALL ON SEQUENCE visits TO PUBLIC;
	CREATE FUNCTION book(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('book', e.id);
		IF e.event_name = 'second' THEN
			PERFORM nextval('visits'), pg_advisory_xact_lock_shared(1);
		END IF;
		UPDATE accounts SET n = n + 1 WHERE name = e.event_name;
	END $$;
	-- what the setting of an owner, or of a database, says does not matter
	ALTER DATABASE postgres SET deadlock_timeout = '20min';
	ALTER ROLE ann SET deadlock_timeout = '10min';
	SELECT create_event_handler('book', 'book', owner => 'ann', timeout => '10 min');
));
my $gate = $node->background_psql('postgres');
my $client = $node->background_psql('postgres');
my $client_pid = $client->query_safe('SELECT pg_backend_pid()');
$client->query_safe("SET deadlock_timeout = '40s'");

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

sub client_waits
{
	poll("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $client_pid", 'the client waits');
	return;
}

sub executor_waits
{
	my ($kind) = @_;

	poll(
		qq(SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'pg_notify_events executor' AND wait_event_type = 'Lock' AND wait_event = '$kind'),
		'the executor waits');
	return;
}

my $total = 0;
foreach my $first (qw(client executor))
{
	# the client has locked the second row, the batch the first
	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$client->query_safe(q(BEGIN; UPDATE accounts SET n = n + 1000 WHERE name = 'second'));
	$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name)
		SELECT CASE WHEN n < 5 THEN 'first' ELSE 'second' END FROM generate_series(1, 8) n));
	executor_waits('advisory');

	# each wants the row of the other
	my $want = "\\echo begins\nUPDATE accounts SET n = n + 1000 WHERE name = 'first';\n";
	if ($first eq 'client')
	{
		$client->query_until(qr/begins/, $want);
		client_waits();
		$gate->query_safe('SELECT pg_advisory_unlock(1)');
	}
	else
	{
		$gate->query_safe('SELECT pg_advisory_unlock(1)');
		executor_waits('transactionid');
		# by then the executor has checked for a deadlock
		poll(q(SELECT clock_timestamp() - waitstart > '200 ms' FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted),
			'the executor has waited');
		$client->query_until(qr/begins/, $want);
	}
	$client->query_safe('COMMIT');
	wait_for_handlers($node, 'postgres');
	$total += 4;
	is($node->safe_psql('postgres', 'SELECT name, n % 1000, n / 1000 FROM accounts ORDER BY name'),
		"first|$total|" . $total / 4 . "\nsecond|$total|" . $total / 4, "$first first: each has its effect, once");
	seen_is_log($node, 'postgres', 'book', 'true', "$first first");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM event_retries'), 0, "$first first: no event has failed");
}
is($node->safe_psql('postgres', q(SELECT failed, batches > 2 FROM event_handler_stats)), '0|t',
	'batches were run again in parts');

unlike(slurp_file($node->logfile), qr/pg_notify_events executor .*still waiting/, 'waits are not told of at each look');

$_->quit foreach ($gate, $client);
$node->stop;
done_testing();
