
# Clients in several languages, as they are in test/clients.  Every event reaches
# them, also across a restart of the server.  The ledger of the durable client has
# each event exactly once, whatever is killed.  What works through a pooler.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use Clients;
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('clients', 'log_statement = none', 'restart_after_crash = on', 'max_connections = 50');
my $host = $node->host;
my $port = $node->port;
my $tmp = $PostgreSQL::Test::Utils::tmp_check;
my $started = 0;

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'postgres');

sub emit
{
	my ($count) = @_;

	return split /\n/, $node->safe_psql('postgres',
		join('', map { q(SELECT notify_event('order ' || currval('notification_events_id_seq')::text) FROM nextval('notification_events_id_seq');) } 1 .. $count));
}

# waits until this consumer has acknowledged all of its events
sub wait_until_acknowledged
{
	my ($consumer) = @_;

	$node->poll_query_until('postgres',
		"SELECT pending = 0 AND batch = 0 FROM event_consumer_stats WHERE consumer = '$consumer'")
	  or die "not all is acknowledged by $consumer";
	return;
}

# starts a client; NAME is that of its consumer, if it has one
sub start
{
	my ($name, @command) = @_;
	my %client = (name => $name, out => '', err => "$tmp/log/client." . ++$started);

	$client{timer} = IPC::Run::timeout(5 * $PostgreSQL::Test::Utils::timeout_default);
	$client{run} = IPC::Run::start(\@command, '>', \$client{out}, '2>', $client{err}, $client{timer});
	return \%client;
}

# Waits until the client has printed these ids and acknowledged them; what is not
# acknowledged comes again after its connection has ended.  The client must have
# printed just these ids, each once, with some data behind the id.
sub prints
{
	my ($client, $name, @ids) = @_;
	my $last = $ids[-1];

	ok( pump_until($client->{run}, $client->{timer}, \$client->{out}, qr/^$last[ |].+\n/m),
		"$client->{name}: $name")
	  or diag slurp_file($client->{err});
	is(join(' ', map { /^(\d+)[ |]order \d+$/ ? $1 : "?$_" } split /\n/, $client->{out}),
		"@ids", "$client->{name}: $name: each once, in order");
	$client->{out} = '';
	wait_until_acknowledged($client->{name});
	return;
}

#
# Clients that print, each with a consumer of its own
#
my %command = map { $_ => [ client_command($_, $host, $port) ] } qw(async libpq node psql);

foreach my $name (sort keys %command)
{
	$node->safe_psql('postgres', "SELECT create_event_consumer('$name')");
	my @early = emit(3);
	my $client = start($name, @{ $command{$name} });

	prints($client, 'what was there before it came', @early);
	foreach my $n (1 .. 3)
	{
		prints($client, "an event at a time, $n", emit(1));
	}
	prints($client, 'more than a batch of them', emit(250));
	$node->safe_psql('postgres',
		qq(SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()));
	prints($client, 'its connection was ended', emit(5));
	$node->stop;
	$node->start;
	prints($client, 'the server was restarted', emit(5));
	$client->{run}->kill_kill(grace => 0);
	$node->safe_psql('postgres', "SELECT drop_event_consumer('$name')");
}

#
# Through a pooler in transaction mode: consumers work, LISTEN does not.
#
my $pooler_port = PostgreSQL::Test::Cluster::get_free_port();
append_to_file(
	"$tmp/pgbouncer.ini", qq(
[databases]
postgres = host=$host port=$port user=postgres
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
auth_type = any
listen_port = $pooler_port
unix_socket_dir = $host
));
my $pooler = IPC::Run::start([ 'pgbouncer', "$tmp/pgbouncer.ini" ], '>', \my $pooler_out, '2>', "$tmp/log/pgbouncer.log");
my $pooled = "host=$host port=$pooler_port dbname=postgres user=postgres";
my $attempts = 0;
until (system('psql', '-X', '-q', '-o', '/dev/null', '-c', 'SELECT 1', $pooled) == 0)
{
	die 'pgbouncer does not come up' if $attempts++ > 100 || !$pooler->pumpable;
	select(undef, undef, undef, 0.1);
}
foreach my $name ('async', 'psql')
{
	$node->safe_psql('postgres', "SELECT create_event_consumer('$name')");
	my $client = start($name, client_command($name, $host, $pooler_port));
	foreach my $n (1 .. 3)
	{
		prints($client, "through pgbouncer, an event at a time, $n", emit(1));
	}
	prints($client, 'through pgbouncer, more than a batch of them', emit(250));
	$client->{run}->kill_kill(grace => 0);
	$node->safe_psql('postgres', "SELECT drop_event_consumer('$name')");
}

# This is last, as the server's session goes on listening, whichever client gets
# it next.
my $deaf = start('recipe', client_command('recipe', $host, $pooler_port));
my $hears = start('recipe', client_command('recipe', $host, $port));
$node->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pg_stat_activity WHERE query = 'LISTEN event_notification' AND state = 'idle'))
  or die 'they do not listen';
emit(1);
ok(pump_until($hears->{run}, $hears->{timer}, \$hears->{out}, qr/^event_notification - order \d+\n/m), 'LISTEN hears');
$deaf->{run}->pump_nb;
is($deaf->{out}, '', 'LISTEN through a pooler hears nothing');
$_->{run}->kill_kill(grace => 0) foreach $deaf, $hears;
$pooler->kill_kill(grace => 5);

#
# The durable client: psycopg2, LISTEN and fetch, a ledger outside of the server
#
my $ledger = "$tmp/ledger.sqlite";

my $durable;

sub start_durable
{
	return start('durable', client_command('durable', $host, $port));
}

sub ledger
{
	return `python3 -c "import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute('SELECT id FROM done ORDER BY id'): print(*row)" $ledger`;
}

$node->safe_psql('postgres', q(SELECT create_event_consumer('durable')));
my $before = $node->safe_psql('postgres', 'SELECT last_value FROM notification_events_id_seq');
$durable = start_durable();
$node->poll_query_until('postgres',
	q(SELECT count(*) > 0 FROM pg_stat_activity WHERE query ~ 'LISTEN|fetch_events' AND backend_type = 'client backend' AND pid <> pg_backend_pid()))
  or die 'the client does not come';
append_to_file(
	"$tmp/load.sql", q(
	INSERT INTO notification_events (event_name) VALUES ('single');
	INSERT INTO notification_events (event_name) SELECT 'many' FROM generate_series(1, 20);
	BEGIN;
	INSERT INTO notification_events (event_name) VALUES ('rolled back');
	ROLLBACK;
));
my $acknowledged = q(SELECT COALESCE(max(acknowledged), 0) FROM event_consumer_stats WHERE consumer = 'durable');

sub start_load
{
	return IPC::Run::start(
		[
			'pgbench', '--no-vacuum', '--client', 3, '--time', 600, '--file', "$tmp/load.sql",
			'-d', $node->connstr('postgres')
		],
		'>', '/dev/null', '2>', '/dev/null');
}

sub progress
{
	my ($more) = @_;
	my $count = $node->safe_psql('postgres', $acknowledged);

	$node->poll_query_until('postgres', "SELECT ($acknowledged) > $count + $more")
	  or die 'no progress: ' . slurp_file($durable->{err});
	return;
}

my $load = start_load();
foreach my $round (1 .. 4)
{
	progress(300);
	$durable->{run}->kill_kill(grace => 0);
	$durable = start_durable();
}
foreach my $what ('listener', 'server', 'listener', 'server')
{
	progress(300);
	if ($what eq 'listener')
	{
		crash_server($node, sub { worker_pid($node, 'listener', 'postgres') });
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	$load->finish;
	$load = start_load();
}
progress(300);
$load->kill_kill(grace => 5);
$node->poll_query_until('postgres',
	q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'))
  or die "writers do not end";
wait_until_acknowledged('durable');
my $expected = $node->safe_psql('postgres', "SELECT id FROM notification_events WHERE id > $before ORDER BY id");
ok(ledger() eq "$expected\n", 'durable: its ledger has exactly the events that were committed')
  or diag(join ' ', (split /\n/, $expected) + 0, 'events,', (split /\n/, ledger()) + 0, 'in the ledger');
cmp_ok(scalar(split /\n/, $expected), '>', 3000, 'durable: there were some');

# The announcement wakes an idle client.  Nothing else does, as the client looks
# by itself only once a day here, instead of once a minute.
my $looking = q(SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT id.*fetch_events' AND state = 'idle');

$durable->{run}->kill_kill(grace => 0);
$node->poll_query_until('postgres', $looking, 0) or die 'its connection stays';
$ENV{LOOK_EVERY} = 86400;
$durable = start_durable();
$node->poll_query_until('postgres', $looking, 1) or die 'it does not look for events';
$node->safe_psql('postgres', q(SELECT notify_event('the last one')));
wait_until_acknowledged('durable');
pass('durable: woken by an announcement');
$durable->{run}->kill_kill(grace => 0);

$node->stop;
done_testing();
