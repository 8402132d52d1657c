
# What the tests of pg_notify_events have in common.
#
# A server is a PostgreSQL::Test::Cluster with the extension preloaded.  Nothing
# in these tests sleeps: they wait for handlers with wait_for_event_handlers(),
# for all else by asking the server until the answer is right.

package NotifyEvents;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  configure
  new_server
  preload
  make_owner
  make_recorder
  wait_for_handlers
  wait_for_listener
  wait_for_other_listener
  wait_for_no_workers
  worker_pid
  worker_pids
  peak_memory
  has_assertions
  seen_is_log
  crash_server
);

# A session of background_psql() may last longer than one query of it may: on a
# slow machine a timer for the whole session ends a test that is all right.
{
	no warnings 'redefine';
	my $background_psql = \&PostgreSQL::Test::Cluster::background_psql;

	*PostgreSQL::Test::Cluster::background_psql = sub {
		my $session = $background_psql->(@_);

		$session->set_query_timer_restart;
		return $session;
	};
}

# new_server(NAME, SETTING...): a running server, UTF8, with the extension
# preloaded and the given lines in postgresql.conf
sub new_server
{
	my ($name, @settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => [ '--encoding=UTF8', '--locale=C', '--no-sync' ]);
	$node->append_conf(
		'postgresql.conf', join(
			"\n",
			"shared_preload_libraries = 'pg_notify_events'",
			"max_worker_processes = 16",
			"max_logical_replication_workers = 0",
			"log_line_prefix = '%m [%p] %b %q%u@%d '",
			@settings) . "\n");
	$node->start;
	return $node;
}

# preload(LIBRARY): what LD_PRELOAD is for a server with that library.  The runtime
# of AddressSanitizer refuses to start unless it comes first.
sub preload
{
	my ($library) = @_;
	my ($bindir) = run_command([ 'pg_config', '--bindir' ]);
	my ($libraries) = run_command([ 'ldd', "$bindir/postgres" ]);
	my ($sanitizer) = $libraries =~ m{=> (/\S*/libasan\.so\S*)};

	return join(':', grep { ($_ // '') ne '' } $sanitizer, $ENV{LD_PRELOAD}, $library);
}

# configure(NODE, NAME => VALUE...): settings of the extension, in the running
# server
sub configure
{
	my ($node, %settings) = @_;

	$node->safe_psql('postgres',
		join('', map { "ALTER SYSTEM SET pg_notify_events.$_ = $settings{$_};\n" } sort keys %settings)
		  . 'SELECT pg_reload_conf()');
	return;
}

# make_owner(NODE, DATABASE, ROLE...): roles that may write and read events and
# own handlers
sub make_owner
{
	my ($node, $database, @roles) = @_;

	foreach my $role (@roles)
	{
		$node->safe_psql(
			$database, qq(
			DO \$\$ BEGIN
				IF to_regrole('$role') IS NULL THEN CREATE ROLE $role LOGIN; END IF;
			END \$\$;
			GRANT SELECT ON notification_events TO $role;
			GRANT EXECUTE ON FUNCTION create_event_handler TO $role;
			GRANT EXECUTE ON FUNCTION notify_event(varchar, jsonb) TO $role;
			GRANT CREATE ON SCHEMA public TO $role;
		));
	}
	return;
}

# make_recorder(NODE, DATABASE): a table "seen", and functions for handlers that
# write there which event they were called with, when, where and by whom.  Any
# role may use them.
sub make_recorder
{
	my ($node, $database) = @_;

	$node->safe_psql(
		$database, q(
		CREATE TABLE seen (
			handler text NOT NULL,
			id bigint NOT NULL,
			at timestamptz NOT NULL DEFAULT clock_timestamp(),
			pid integer NOT NULL DEFAULT pg_backend_pid(),
			by_role name NOT NULL DEFAULT current_user
		);
		GRANT SELECT, INSERT ON seen TO PUBLIC;
		CREATE FUNCTION record(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('record', e.id); END $$;
	));
	return;
}

# wait_for_handlers(NODE, DATABASE): until all that is committed is handled or
# parked
sub wait_for_handlers
{
	my ($node, $database) = @_;

	$node->safe_psql($database,
		"CALL wait_for_event_handlers('${PostgreSQL::Test::Utils::timeout_default} s')"
	);
	return;
}

# worker_pids(NODE, KIND, [DATABASE, [OWNER]]): of the workers that are there,
# as the server's processes tell
sub worker_pids
{
	my ($node, $kind, $database, $owner) = @_;
	my $sql =
	  "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_notify_events $kind'";

	$sql .= " AND datname = '$database'" if defined $database;
	$sql .= " AND usename = '$owner'" if defined $owner;
	return split(/\n/, $node->safe_psql('postgres', "$sql ORDER BY pid"));
}

# worker_pid(NODE, KIND, [DATABASE, [OWNER]]): of the one worker; waits until
# there is one
sub worker_pid
{
	my ($node, $kind, $database, $owner) = @_;
	my $sql =
	  "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events $kind'";

	$sql .= " AND datname = '$database'" if defined $database;
	$sql .= " AND usename = '$owner'" if defined $owner;
	for (;;)
	{
		$node->poll_query_until('postgres', $sql)
		  or die "there is not exactly one $kind";
		my @pids = worker_pids(@_);

		# it may be replaced at this moment, for settings that were altered
		return $pids[0] if @pids == 1;
	}
}

# wait_for_listener(NODE, DATABASE): until its LISTEN is committed; returns its
# process id
sub wait_for_listener
{
	my ($node, $database) = @_;

	$node->poll_query_until(
		$database, q(
		SELECT count(*) = 1 FROM event_worker_stats
		WHERE kind = 'listener' AND database = current_database() AND state = 'listening'
	)) or die "no listener in $database";
	return worker_pid($node, 'listener', $database);
}

# wait_for_other_listener(NODE, DATABASE, PID): the same, of one that is not PID
sub wait_for_other_listener
{
	my ($node, $database, $pid) = @_;

	$node->poll_query_until(
		$database, qq(
		SELECT count(*) = 1 FROM event_worker_stats
		WHERE kind = 'listener' AND database = current_database() AND state = 'listening' AND pid <> $pid
	)) or die "no other listener in $database";
	return worker_pid($node, 'listener', $database);
}

# wait_for_no_workers(NODE, DATABASE): until all of them have left
sub wait_for_no_workers
{
	my ($node, $database) = @_;

	return $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type LIKE 'pg\\_notify\\_events %' AND datname = '$database'
	));
}

# peak_memory(PID): the most memory of its own that a process has had, in kB
sub peak_memory
{
	my ($pid) = @_;
	my $status = slurp_file("/proc/$pid/status");
	my ($peak) = $status =~ /^VmHWM:\s+(\d+) kB/m;
	my ($shared) = $status =~ /^RssShmem:\s+(\d+) kB/m;

	return $peak - $shared;
}

# has_assertions(NODE): such a server makes a new copy of a list whenever it grows.
# For a filter to list 20,000 elements takes it 17 seconds, and nothing cancels it
# meanwhile.
sub has_assertions
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SHOW debug_assertions') eq 'on';
}

# seen_is_log(NODE, DATABASE, HANDLER, CONDITION, NAME): a test: what the handler
# recorded are exactly the events of the log that meet the condition, each once
sub seen_is_log
{
	my ($node, $database, $handler, $condition, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my $difference = $node->safe_psql(
		$database, qq(
		WITH s AS (SELECT id, count(*) AS n FROM seen WHERE handler = '$handler' GROUP BY id),
			 l AS (SELECT id FROM notification_events WHERE $condition)
		SELECT (SELECT count(*) FROM l WHERE id NOT IN (SELECT id FROM s)) AS missing,
			   (SELECT count(*) FROM s WHERE n > 1) AS doubled,
			   (SELECT count(*) FROM s WHERE id NOT IN (SELECT id FROM l)) AS foreign
	));
	return is($difference, '0|0|0', "$name: missing, doubled, not in the log");
}

# Whether the process stands still now.  One that has ended, or is about to,
# does not; to be signalled is no sign of life, a zombie can be, too.
sub _stopped
{
	my ($pid) = @_;

	kill('STOP', $pid);
	while (1)
	{
		my $state = eval { slurp_file("/proc/$pid/status") =~ /^State:\t(\S)/m ? $1 : 'X' } // 'X';

		return $state eq 'T' if $state =~ /[TXZ]/;
		usleep(1_000);
	}
}

# crash_server(NODE, CHOOSE): kill -9 of the process whose id CHOOSE returns, and
# until the server, which ends all others for it, has recovered.  CHOOSE is asked
# again if there is none, or if it has ended by itself: the server would not mind.
sub crash_server
{
	my ($node, $choose) = @_;
	my $offset = -s $node->logfile;
	my $pid;

	do { $pid = $choose->() } until $pid && _stopped($pid);
	kill('KILL', $pid);
	$node->wait_for_log(
		qr/all server processes terminated; reinitializing.*database system is ready to accept connections/s,
		$offset);
	return;
}

1;
