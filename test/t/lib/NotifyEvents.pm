
# What the tests of pg_notify_events have in common.
#
# A server is a PostgreSQL::Test::Cluster with the extension preloaded.  Nothing in
# these tests sleeps.  They wait for handlers with wait_for_event_handlers(), and for
# everything else by asking the server until the answer is right.

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

# A session of background_psql() may last longer than the timeout of one query.  A timer
# for the whole session would fail a correct test on a slow machine.
{
	no warnings 'redefine';
	my $background_psql = \&PostgreSQL::Test::Cluster::background_psql;

	*PostgreSQL::Test::Cluster::background_psql = sub {
		my $session = $background_psql->(@_);

		$session->set_query_timer_restart;
		return $session;
	};
}

# new_server(NAME, SETTING...): returns a running UTF8 server with the extension preloaded
# and these lines in postgresql.conf
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

# preload(LIBRARY): returns the LD_PRELOAD of a server with that library.  The runtime of
# AddressSanitizer must come first, or it refuses to start.
sub preload
{
	my ($library) = @_;
	my ($bindir) = run_command([ 'pg_config', '--bindir' ]);
	my ($libraries) = run_command([ 'ldd', "$bindir/postgres" ]);
	my ($sanitizer) = $libraries =~ m{=> (/\S*/libasan\.so\S*)};

	return join(':', grep { ($_ // '') ne '' } $sanitizer, $ENV{LD_PRELOAD}, $library);
}

# configure(NODE, NAME => VALUE...): changes settings of the extension in the running
# server
sub configure
{
	my ($node, %settings) = @_;

	$node->safe_psql('postgres',
		join('', map { "ALTER SYSTEM SET pg_notify_events.$_ = $settings{$_};\n" } sort keys %settings)
		  . 'SELECT pg_reload_conf()');
	return;
}

# make_owner(NODE, DATABASE, ROLE...): creates roles that may write and read events and
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

# make_recorder(NODE, DATABASE): creates a table "seen" and functions for handlers.  They
# write there which event they were called with, when, where and by which role.  Any
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

# wait_for_handlers(NODE, DATABASE): waits until all committed events are handled or
# deferred
sub wait_for_handlers
{
	my ($node, $database) = @_;

	$node->safe_psql($database,
		"CALL wait_for_event_handlers('${PostgreSQL::Test::Utils::timeout_default} s')"
	);
	return;
}

# worker_pids(NODE, KIND, [DATABASE, [OWNER]]): returns the process ids of the workers, as
# pg_stat_activity shows them
sub worker_pids
{
	my ($node, $kind, $database, $owner) = @_;
	my $sql =
	  "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_notify_events $kind'";

	$sql .= " AND datname = '$database'" if defined $database;
	$sql .= " AND usename = '$owner'" if defined $owner;
	return split(/\n/, $node->safe_psql('postgres', "$sql ORDER BY pid"));
}

# worker_pid(NODE, KIND, [DATABASE, [OWNER]]): returns the process id of the only such
# worker; waits until there is exactly one
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

		# a changed setting may cause its replacement at this moment
		return $pids[0] if @pids == 1;
	}
}

# wait_for_listener(NODE, DATABASE): waits until its LISTEN is committed; returns its
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

# wait_for_other_listener(NODE, DATABASE, PID): the same, for a listener other than PID
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

# wait_for_no_workers(NODE, DATABASE): waits until all of them have stopped
sub wait_for_no_workers
{
	my ($node, $database) = @_;

	return $node->poll_query_until(
		'postgres', qq(
		SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type LIKE 'pg\\_notify\\_events %' AND datname = '$database'
	));
}

# peak_memory(PID): returns the highest private memory of a process so far, in kB
sub peak_memory
{
	my ($pid) = @_;
	my $status = slurp_file("/proc/$pid/status");
	my ($peak) = $status =~ /^VmHWM:\s+(\d+) kB/m;
	my ($shared) = $status =~ /^RssShmem:\s+(\d+) kB/m;

	return $peak - $shared;
}

# has_assertions(NODE): whether assertions are on.  Such a server copies a list whenever
# it grows.  A filter that lists 20,000 elements then takes 17 seconds, and nothing
# cancels it meanwhile.
sub has_assertions
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SHOW debug_assertions') eq 'on';
}

# seen_is_log(NODE, DATABASE, HANDLER, CONDITION, NAME): a test that the handler has
# recorded exactly the events of the log that meet the condition, each once
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

# Stops the process, and returns whether it is stopped.  It is not if it has ended or is
# about to end.  A successful kill() does not show that: a zombie accepts signals, too.
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

# crash_server(NODE, CHOOSE): kills (-9) the process whose id CHOOSE returns.  Waits until
# the server has ended all other processes and has recovered.  CHOOSE is called again if
# there is no such process, or if it has ended by itself, which causes no crash.
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
