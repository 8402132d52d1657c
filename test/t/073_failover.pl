
# A failover: the durable client goes on at the promoted standby, and its ledger
# has each event of the new primary exactly once.  Handlers and announcements go
# on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use Announced;
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'python3 with psycopg2 is needed'
  if system('python3', '-c', 'import psycopg2') != 0;

my $tmp = $PostgreSQL::Test::Utils::tmp_check;
my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--locale=C', '--no-sync' ]);
$primary->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'pg_notify_events'
max_worker_processes = 16
));
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($primary, 'postgres');
make_recorder($primary, 'postgres');
make_owner($primary, 'postgres', 'ann');
$primary->safe_psql('postgres', q(SELECT create_event_consumer('durable')));
$primary->safe_psql('postgres', q(SELECT create_event_handler('record', 'record', owner => 'ann')));

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres',
	q(ALTER SYSTEM SET synchronous_standby_names = 'standby'; SELECT pg_reload_conf()));
$primary->poll_query_until('postgres', q(SELECT sync_state = 'sync' FROM pg_stat_replication))
  or die 'the standby is not synchronous';
is(scalar worker_pids($standby, 'listener'), 0, 'no listener on a standby');

# The client connects to whichever server accepts writes.
my $both = sprintf('host=%s,%s port=%d,%d dbname=postgres target_session_attrs=read-write',
	$primary->host, $standby->host, $primary->port, $standby->port);
my $client = IPC::Run::start(
	[ 'python3', "$FindBin::RealBin/../clients/durable_listener.py", $both, "$tmp/ledger.sqlite" ],
	'>', '/dev/null', '2>', "$tmp/log/client");
append_to_file("$tmp/load.sql", q(INSERT INTO notification_events (event_name) SELECT 'x' FROM generate_series(1, 5);));
my $load = IPC::Run::start(
	[
		'pgbench', '--no-vacuum', '--client', 3, '--time', 600, '--file', "$tmp/load.sql",
		'-d', $primary->connstr('postgres')
	],
	'>', '/dev/null', '2>', '/dev/null');
my $stats = q(SELECT %s FROM event_consumer_stats WHERE consumer = 'durable');
$primary->poll_query_until('postgres', sprintf($stats, 'acknowledged > 500'))
  or die 'no progress: ' . slurp_file("$tmp/log/client");

$primary->stop('immediate');
$load->finish;
$standby->promote;
wait_for_listener($standby, 'postgres');
my $listening = start_listening($standby, 'postgres');
$standby->safe_psql('postgres', q(INSERT INTO notification_events (event_name) VALUES ('after the failover')));
heard_until($listening, 'after the failover');
pass('the promoted standby announces');
stop_listening($listening);
$standby->poll_query_until('postgres', sprintf($stats, 'pending = 0 AND batch = 0'))
  or die 'not all is acknowledged: ' . slurp_file("$tmp/log/client");
$client->kill_kill(grace => 0);

my $ledger = `python3 -c "import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute('SELECT id FROM done ORDER BY id'): print(*row)" $tmp/ledger.sqlite`;
my $log = $standby->safe_psql('postgres', 'SELECT id FROM notification_events ORDER BY id');
cmp_ok(scalar(split /\n/, $log), '>', 500, 'there were events before it');
ok($ledger eq "$log\n", 'the ledger has exactly the events that the promoted standby has');
wait_for_handlers($standby, 'postgres');
seen_is_log($standby, 'postgres', 'record', 'true', 'the handler had each of them once, too');

$standby->stop;
done_testing();
