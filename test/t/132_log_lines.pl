
# A lasting condition is logged once, whatever happens to other definitions. Messages of
# which there can be any number are limited to so many lines per minute, and the log says
# how many were left out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('log_lines', 'log_statement = none', "pg_notify_events.naptime = '200 ms'");
my $offset = 0;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob', 'cat');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION fail(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN IF e.id % 2 = 0 THEN RAISE 'failed %', e.id; END IF; END $$;
	CREATE FUNCTION lost(e notification_events) RETURNS void LANGUAGE sql AS '';
	SELECT create_event_handler('works', 'record', owner => 'bob');
));

# the number of matches in the log since $offset
sub lines
{
	my ($regexp) = @_;
	my $log = slurp_file($node->logfile, $offset);

	return scalar(() = $log =~ /$regexp/g);
}

# Wait until the listener has looked at the current definitions: it has to find an
# executor for an event that is new.
sub listener_looks
{
	my ($n) = @_;

	$node->safe_psql('postgres', "SELECT create_event_handler('look $n', 'record', 'look $n', owner => 'cat'), notify_event('look $n', null)");
	$node->poll_query_until('postgres', "SELECT delivered = 1 FROM event_handler_stats WHERE handler = 'look $n'")
	  or die 'the listener does not look';
	$node->safe_psql('postgres', "SELECT drop_event_handler('look $n')");
	# Wait for further looks.
	my $wakeups = "SELECT wakeups FROM event_worker_stats WHERE kind = 'listener'";
	my $before = $node->safe_psql('postgres', $wakeups);
	$node->poll_query_until('postgres', "SELECT ($wakeups) > $before + 3") or die 'the listener sleeps';
	return;
}

# few handlers, which nobody serves
$node->safe_psql('postgres', q(
	SELECT create_event_handler('lost ' || n, 'lost', owner => 'ann') FROM generate_series(1, 3) n;
	DROP FUNCTION lost;
	SELECT notify_event('e', '1');
));
foreach my $n (1 .. 5)
{
	listener_looks($n);
	$node->safe_psql('postgres', q(SELECT pause_event_handler('works'), resume_event_handler('works')));
	$node->safe_psql('postgres', q(SELECT alter_event_handler('works', batch_size => 10)));
}
is(lines(qr/LOG:  event handler "lost $_" is suspended/), 1, "lost $_: logged once") foreach 1 .. 3;

# The message is logged again when the condition comes back.
my $function = q(CREATE FUNCTION lost(e notification_events) RETURNS void LANGUAGE sql AS '');
$node->safe_psql('postgres', $function);
wait_for_handlers($node, 'postgres');
$offset = -s $node->logfile;
configure($node, executor_idle_timeout => "'20 ms'");
$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind = 'executor'))
  or die 'the executors stay';
$node->safe_psql('postgres', 'DROP FUNCTION lost');
$node->safe_psql('postgres', q(SELECT notify_event('e', '1')));
$node->wait_for_log(qr/LOG:  event handler "lost 1" is suspended/, $offset);
pass('and again when the cause comes back');

# the same for a dormant handler
$offset = -s $node->logfile;
$node->safe_psql(
	'postgres', q(
	BEGIN;
	ALTER TABLE _event_handlers DISABLE TRIGGER guard_rows;
	UPDATE _event_handlers SET database = 0 WHERE name = 'lost 2';
	ALTER TABLE _event_handlers ENABLE ALWAYS TRIGGER guard_rows;
	SELECT notify_event('e', '1');
	COMMIT;
));
$node->wait_for_log(qr/event handler "lost 2" is dormant/, $offset);
foreach my $n (6 .. 8)
{
	listener_looks($n);
	$node->safe_psql('postgres', q(SELECT alter_event_handler('works', batch_size => 10)));
}
is(lines(qr/event handler "lost 2" is dormant/), 1, 'dormant: logged once');

# many handlers
$offset = -s $node->logfile;
$node->safe_psql('postgres', "$function;" . q(
	SELECT create_event_handler('many ' || n, 'lost', owner => 'ann') FROM generate_series(1, 1000) n;
	DROP FUNCTION lost;
	SELECT notify_event('e', '1');
));
listener_looks($_) foreach 9 .. 10;
my $logged = lines(qr/LOG:  event handler "many \d+" is suspended/);
# The listener logs its share, and so does the executor that it asks for.
cmp_ok($logged, '<=', 500, 'so many of 1,000 are logged');
cmp_ok($logged, '>', 0, 'but not none');

# many events, of which every second one fails
configure($node, executor_idle_timeout => "'1 h'");
$node->safe_psql('postgres', q(
	SELECT drop_event_handler('many ' || n) FROM generate_series(1, 1000) n;
	SELECT drop_event_handler('lost ' || n) FROM generate_series(1, 3) n;
	SELECT create_event_handler('fail', 'fail', owner => 'ann', max_attempts => 1, batch_size => 1);
	INSERT INTO notification_events (event_name) SELECT 'e' FROM generate_series(1, 400);
));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT failed FROM event_handler_stats WHERE handler = 'fail')), '200', '200 events failed');
my $failures = lines(qr/LOG:  event handler "fail" failed for event/);
is($failures, 100, 'so many of them are logged');

# A worker that stops logs how many messages it has left out.
configure($node, databases => "'nowhere'");
wait_for_no_workers($node, 'postgres');
my $log = slurp_file($node->logfile, $offset);
my $left_out = 0;
$left_out += $1 while $log =~ /LOG:  left out (\d+) more messages about event handlers/g;
is($logged + $left_out >= 1000 ? 'all' : $logged + $left_out, 'all', 'what was not logged of handlers was counted');
like($log, qr/LOG:  left out 100 more messages about events that failed/, 'and so were events');
$node->stop;
done_testing();
