
# The clients of test/clients reach a server even if the first of two hosts accepts
# connections and never answers, and even if their role may have only one connection. If
# they find no server, they say why.

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

my $tmp = $PostgreSQL::Test::Utils::tmp_check;
my $node = new_server('connections', 'log_statement = none', "log_line_prefix = '%m [%p] %q%a: '");

$ENV{LOOK_EVERY} = 15;
$node->safe_psql(
	'postgres', q(
	CREATE EXTENSION pg_notify_events;
	CREATE ROLE clerk LOGIN CONNECTION LIMIT 1;
	GRANT SELECT ON notification_events TO clerk;
	GRANT EXECUTE ON FUNCTION create_event_consumer TO clerk));
wait_for_listener($node, 'postgres');

my %client;

sub start
{
	my ($name, $host, $port, $user) = @_;
	my %new = (out => '', err => "$tmp/log/client.$name");

	$new{timer} = IPC::Run::timeout(2 * $PostgreSQL::Test::Utils::timeout_default);
	$new{run} = IPC::Run::start([ client_command($name, $host, $port, $user) ], '>', \$new{out}, '2>', $new{err}, $new{timer});
	return $client{$name} = \%new;
}

# Wait until a client has received the events that wait for it.
sub gets
{
	my ($name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	ok( $node->poll_query_until(
			'postgres', "SELECT pending = 0 AND batch = 0 FROM event_consumer_stats WHERE consumer = '$name'"),
		"$what: $name has its events")
	  or diag slurp_file($client{$name}{err});
	return;
}

sub end
{
	my ($name) = @_;

	$client{$name}{run}->kill_kill(grace => 0);
	return;
}

#
# Two hosts. The node client's library supports only one; psycopg tries the second one
# since version 3.1.13.
#
my $port = PostgreSQL::Test::Cluster::get_free_port();
my ($commands, $answers) = ('', '');
my $silent = IPC::Run::start(
	[ 'python3', "$FindBin::RealBin/lib/relay.py", "nobody=$port" ],
	'<', \$commands, '>', \$answers, '2>', "$tmp/log/relay",
	my $timer = IPC::Run::timeout(10 * $PostgreSQL::Test::Utils::timeout_default));
pump_until($silent, $timer, \$answers, qr/^done$/m) or die 'no answer of the relay';

my $psycopg = `python3 -c "import psycopg; print('%d%03d%03d' % tuple(map(int, psycopg.__version__.split('.')[:3])))"`;
my @several = ('durable', 'libpq', 'psql');
push @several, 'async' if $psycopg >= 3001013;

foreach my $name (@several)
{
	$node->safe_psql('postgres', "SELECT create_event_consumer('$name'), notify_event('first')");
	start($name, '127.0.0.1,' . $node->host, "$port," . $node->port);
}
gets($_, 'a silent host before') foreach @several;
$node->safe_psql('postgres', q(SELECT notify_event('second')));
gets($_, '... and then') foreach @several;
end($_) foreach @several;

# A client that only listens has no consumer; pg_stat_activity shows that it has
# come through.
start('recipe', '127.0.0.1,' . $node->host, "$port," . $node->port);
ok( $node->poll_query_until(
		'postgres', q(SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'recipe' AND query LIKE 'LISTEN%')),
	'a silent host before: recipe listens')
  or diag slurp_file($client{recipe}{err});
end('recipe');
$silent->kill_kill(grace => 0);

#
# One connection. A client that reconnects has to close its old connection first.
#
my @consumers = grep { $_ ne 'recipe' } sort keys %client_program;
$node->safe_psql('postgres', 'SELECT drop_event_consumer(name) FROM event_consumers');
foreach my $name (@consumers)
{
	my $log_offset = -s $node->logfile;

	$node->safe_psql('postgres', "SELECT create_event_consumer('$name', owner => 'clerk'), notify_event('first')");
	start($name, $node->host, $node->port, 'clerk');
	gets($name, 'one connection');
	$node->safe_psql('postgres', 'ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()');
	$node->wait_for_log(qr/\] $name: ERROR:  cannot execute [^\n]* in a read-only transaction/, $log_offset);
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', 'SHOW default_transaction_read_only', 'off') or die 'it stays read-only';
	$node->safe_psql('postgres', q(SELECT notify_event('second')));
	gets($name, '... after it was read-only');
	end($name);
	$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'clerk'))
	  or die "$name is still connected";
}

#
# A connection that is refused. libpq reports no SQLSTATE for that, so its clients wait
# for a role that may be created later. The node client's library reports one.
#
foreach my $name (sort keys %client_program)
{
	my $said = '';

	start($name, $node->host, $node->port, 'stranger');
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$said = slurp_file($client{$name}{err});
		last if (() = $said =~ /role "stranger" does not exist/g) > ($name eq 'node' ? 0 : 1);
		$client{$name}{run}->pump_nb if $client{$name}{run}->pumpable;
		select(undef, undef, undef, 0.1);
	}
	like($said, qr/role "stranger" does not exist/, "refused: $name says why");
	if ($name eq 'node')
	{
		$client{$name}{run}->finish;
		is($client{$name}{run}->result(0), 1, '... and ends');
	}
	else
	{
		ok($client{$name}{run}->pumpable, '... and tries again');
		end($name);
	}
}

$node->stop;
done_testing();
