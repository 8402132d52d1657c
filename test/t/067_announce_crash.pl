
# Announcements and a crash: those that were not made before it are made after it,
# and none is made of an event that the crash has taken back.

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

my $node = new_server(
	'announce_crash',
	'log_statement = none',
	'synchronous_commit = off',
	'restart_after_crash = on',
	'max_connections = 50',
	'pg_notify_events.payload = json',
	# no other process flushes
	'wal_writer_delay = 10s',
	'wal_writer_flush_after = 1GB');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'postgres');

sub start_load
{
	my ($script, @options) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/load.sql";

	unlink $file;
	append_to_file($file, $script);
	return IPC::Run::start(
		[ 'pgbench', '--no-vacuum', '--file', $file, @options, '-d', $node->connstr('postgres') ],
		'>', '/dev/null', '2>', '/dev/null');
}

#
# Writers do not wait for the flush of their commits.  A client that has heard of
# an event finds it after the crash, and not another one under its id.
#
my %heard;

# Writes for a while, then the server crashes.
sub crash_under_load
{
	my $load = start_load(
		q(INSERT INTO notification_events (event_name) VALUES (gen_random_uuid()::text)),
		'--client', 4, '--time', 600);
	my $before = $node->safe_psql('postgres', 'SELECT last_value FROM notification_events_id_seq');

	$node->poll_query_until('postgres', "SELECT last_value > $before + 3000 FROM notification_events_id_seq")
	  or die 'no load';
	$node->stop('immediate');
	$load->finish;
	return;
}

# Without an announcement, a crash does take an event back.
$node->safe_psql('postgres', 'CHECKPOINT');
$node->safe_psql('postgres', q(SET pg_notify_events.announce = off; SELECT notify_event('taken back')));
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', 'SELECT count(*) FROM notification_events'),
	'0', 'a crash takes back what was not flushed');

foreach my $round (1 .. 4)
{
	my $client = start_listening($node, 'postgres');

	crash_under_load();
	$client->{run}->finish;
	my $count = 0;
	foreach (split /\n/, slurp_file($client->{file}))
	{
		next unless /"id": (\d+), "name": "(.*?)"/;
		is($heard{$1}, $2, "id $1 is not given twice") if exists $heard{$1} && $heard{$1} ne $2;
		$heard{$1} = $2;
		$count++;
	}
	cmp_ok($count, '>', 500, "round $round: the client has heard of $count events");
	$node->start;
	# ids that the crash has freed are used again
	$node->safe_psql('postgres',
		q(INSERT INTO notification_events (event_name) SELECT gen_random_uuid()::text FROM generate_series(1, 500)));
	my %log = map { split /\|/ } split /\n/, $node->safe_psql('postgres', 'SELECT id, event_name FROM notification_events');
	my @wrong = grep { ($log{$_} // 'nothing') ne $heard{$_} } sort { $a <=> $b } keys %heard;
	is("@wrong[0 .. ($#wrong < 9 ? $#wrong : 9)]", '', "round $round: all that was heard of is in the log, as it was heard");
}

#
# The server, or only the listener, is lost when events are committed and not
# announced.  The next listener announces them.
#
$node->safe_psql('postgres', q(ALTER SYSTEM SET wal_writer_delay = '200ms'));
$node->safe_psql('postgres', 'ALTER SYSTEM SET synchronous_commit = on');
configure($node, payload => 'id');
$node->restart;

foreach my $how ('server', 'listener by kill -9', 'listener by pg_terminate_backend')
{
	my $listener = wait_for_listener($node, 'postgres');
	my @ids;

	# the listener is stopped, as if it were just not scheduled
	kill 'STOP', $listener;
	push @ids, $node->safe_psql('postgres', q(SELECT notify_event('unannounced'))) foreach 1 .. 5;
	push @ids, split /\n/,
	  $node->safe_psql('postgres', q(SELECT notify_event('unannounced') FROM generate_series(1, 3000)));
	# the next listener must not start before the client listens
	configure($node, enabled => 'off') if $how ne 'server';
	if ($how eq 'server')
	{
		$node->stop('immediate');
		$node->append_conf('postgresql.conf', "pg_notify_events.enabled = off\n");
		$node->safe_psql('postgres', 'SELECT 1') if $node->start;
	}
	elsif ($how eq 'listener by kill -9')
	{
		crash_server($node, sub { $listener });
	}
	else
	{
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($listener)");
		kill 'CONT', $listener;
	}
	wait_for_no_workers($node, 'postgres');
	my $client = start_listening($node, 'postgres');
	configure($node, enabled => 'on');
	push @ids, $node->safe_psql('postgres', q(SET pg_notify_events.announce = relay; SELECT notify_event('last')));
	heard_until($client, $ids[-1]);
	my %again = map { $_->[1] => 1 } stop_listening($client);
	my @missing = grep { !$again{$_} } @ids;
	is("@missing[0 .. ($#missing < 9 ? $#missing : 9)]", '', "$how: its successor announces what was left");
}

#
# A million events under load, each heard by its id
#
$node->safe_psql('postgres', 'TRUNCATE notification_events');
wait_for_listener($node, 'postgres');
my $client = start_listening($node, 'postgres');
my $load = start_load(
	q(INSERT INTO notification_events (event_name) SELECT 'm' FROM generate_series(1, 20)),
	'--client', 8, '--transactions', 6250);
ok($load->finish, 'the load');
my $last = $node->safe_psql('postgres', q(SELECT notify_event('last')));
heard_until($client, $last);
my %ids;
$ids{ $_->[1] }++ foreach stop_listening($client);
my @ids = split /\n/, $node->safe_psql('postgres', 'SELECT id FROM notification_events');
is(scalar @ids, 1000001, 'a million events');
is(scalar(grep { !$ids{$_} } @ids), 0, 'none is missing');
is(scalar(keys %ids), scalar @ids, 'and none comes that is not there');
is(scalar(grep { $_ > 1 } values %ids), 0, 'none came twice');

$node->stop;
done_testing();
