
# A stop of the server under load is not a loss, however many calls it ends, and whoever
# has locked the rows. A process that is ended by anything else is a loss.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('orderly_stop');
my $tmp = $PostgreSQL::Test::Utils::tmp_check;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION slow(by text, e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(0.002);
		INSERT INTO public.seen (handler, id) VALUES (by, e.id);
		PERFORM pg_sleep(0.002);
	END $$;
	CREATE FUNCTION a(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.slow('a', e) $$;
	CREATE FUNCTION b(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.slow('b', e) $$;
	CREATE FUNCTION c(e notification_events[]) RETURNS void LANGUAGE sql AS $$ SELECT public.slow('c', i) FROM unnest(e) AS i $$;
	CREATE FUNCTION d(e notification_events) RETURNS void LANGUAGE sql AS $$ SELECT public.slow('d', e) $$;
	SELECT create_event_handler('a', 'a', owner => 'ann');
	SELECT create_event_handler('b', 'b', owner => 'ann', ordered => true, batch_size => 1);
	SELECT create_event_handler('c', 'c', owner => 'bob');
	SELECT create_event_handler('d', 'd', owner => 'bob', batch_size => 10);
));
append_to_file("$tmp/load.sql", q(INSERT INTO notification_events (event_name) SELECT 'e' FROM generate_series(1, 10);));

my $offset = -s $node->logfile;
foreach my $i (1 .. 4)
{
	my $load = IPC::Run::start(
		[ 'pgbench', '--no-vacuum', '--client', 2, '--rate', 10, '--time', 600, '--file', "$tmp/load.sql", '-d', $node->connstr('postgres') ],
		'>', '/dev/null', '2>', '/dev/null');
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM seen');
	$node->poll_query_until('postgres', "SELECT count(*) > $before + 50 AND count(DISTINCT handler) = 4 FROM seen") or die 'nothing is handled';

	# A client has locked a row, and ends at the stop like all others.
	my $locker = $node->background_psql('postgres');
	$locker->query_safe("SET lock_timeout = '60 s'; BEGIN; SELECT FROM _event_handler_progress WHERE handler = 'd' FOR UPDATE") if $i > 2;
	$node->stop('fast');
	eval { $locker->quit };
	$load->finish;
	$node->start;
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen s WHERE (SELECT count(*) FROM seen o WHERE (o.handler, o.id) = (s.handler, s.id)) > 1'),
	'0', 'nothing twice');
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', $_, 'true', "stopped under load: $_") foreach ('a', 'b', 'c', 'd');
is(scalar(my @lost = slurp_file($node->logfile, $offset) =~ /is guarded/g), 0, 'and no loss');

# the same call, terminated by another session
$node->safe_psql('postgres', q(INSERT INTO notification_events (event_name) SELECT 'e' FROM generate_series(1, 500)));
my $state = q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' AND usename = 'ann' AND wait_event = 'PgSleep');
$node->poll_query_until('postgres', $state) or die 'no call';
my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid, 60000)");
$node->wait_for_log(qr/is guarded/, $offset);
pass('a call that is terminated by somebody is a loss');

$node->stop;
done_testing();
