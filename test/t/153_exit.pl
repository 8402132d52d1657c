
# A process that ends in a call keeps its timers for a while after it has detached from
# shared memory. None of them may touch shared memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# a process that takes longer to end than the timers take to fire
my $module = "$PostgreSQL::Test::Utils::tmp_check/deadly.so";
my ($include) = run_command([ 'pg_config', '--includedir-server' ]);
system_or_bail('gcc', '-shared', '-fPIC', '-O1', "-I$include", '-o', $module,
	"$FindBin::RealBin/lib/deadly.c");

my $node = new_server('exit', 'restart_after_crash = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', qq(
	CREATE FUNCTION linger_at_exit(integer) RETURNS void LANGUAGE c AS '$module', 'linger_at_exit';
	CREATE FUNCTION work(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
	BEGIN
		PERFORM public.linger_at_exit(2000);
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO public.seen (handler, id) VALUES ('work', e.id);
	END \$\$;
	SELECT create_event_handler('work', 'work', owner => 'ann', retry_delay => '10 ms');
));

my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', q(SELECT notify_event('e')));
$node->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
  or die 'is not called';
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
my $log = -s $node->logfile;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($executor)");
$node->wait_for_log(qr/background worker "pg_notify_events executor" \(PID $executor\) (exited|was terminated)/, $log);
like(slurp_file($node->logfile, $log), qr/\(PID $executor\) exited with exit code 1/, 'it ends as a process that was terminated');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$gate->quit;
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'work', 'true', 'the event is handled');

$node->stop;
done_testing();
