
# The clients of test/clients reconnect by themselves: after a peer that vanished without
# closing the connection, a failover to a standby that is read-only for a while, a server
# that is read-only, a restart, and a crash. Clients that have a consumer lose no event. A
# mistake (no consumer, no right, wrong SQL) ends each of them.
#
# They connect to one address, that of a relay. LOOK_EVERY shortens their interval
# of one minute.

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
my $patience = 20 * $PostgreSQL::Test::Utils::timeout_default;
my @names = sort keys %client_program;
my @consumers = grep { $_ ne 'recipe' } @names;

$ENV{LOOK_EVERY} = 5;

#
# A primary, a synchronous standby
#
my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1, extra => [ '--encoding=UTF8', '--locale=C', '--no-sync' ]);
$primary->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'pg_notify_events'
max_worker_processes = 16
max_connections = 100
log_statement = none
log_line_prefix = '%m [%p] %q%a: '
));
$primary->start;
$primary->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events; CREATE ROLE clerk LOGIN');
wait_for_listener($primary, 'postgres');
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', q(ALTER SYSTEM SET synchronous_standby_names = 'standby'; SELECT pg_reload_conf()));
$primary->poll_query_until('postgres', q(SELECT sync_state = 'sync' FROM pg_stat_replication))
  or die 'the standby is not synchronous';
my $server = $primary;

#
# The relay
#
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } @names;
my ($commands, $answers) = ('', '');
my $relay = IPC::Run::start(
	[ 'python3', "$FindBin::RealBin/lib/relay.py", map { "$_=$port{$_}" } @names ],
	'<', \$commands, '>', \$answers, '2>', "$tmp/log/relay",
	my $relay_timer = IPC::Run::timeout($patience));

sub tell_relay
{
	my ($command) = @_;

	$answers = '';
	$commands .= "$command\n" if defined $command;
	pump_until($relay, $relay_timer, \$answers, qr/^done$/m) or die 'no answer of the relay';
	return;
}

sub forward_to_server
{
	tell_relay('forward ' . $server->host . ' ' . $server->port);
	return;
}

tell_relay();
forward_to_server();

#
# The clients
#
my %client;
my $started = 0;

sub start
{
	my ($name, %options) = @_;
	my %new = (name => $name, out => '', err => "$tmp/log/client.$name." . ++$started);

	$new{timer} = IPC::Run::timeout($patience);
	$new{run} = IPC::Run::start(
		[ client_command($name, 'localhost', $port{$name}, $options{user}, $options{directory}) ],
		'>', \$new{out}, '2>', $new{err}, $new{timer});
	return $client{$name} = \%new;
}

sub start_all
{
	my (%options) = @_;

	start($_, %options) foreach @names;
	return;
}

sub create_consumers
{
	$server->safe_psql('postgres', join '', map { "SELECT create_event_consumer('$_');" } @consumers);
	return;
}

# the ids of the events that a client has received
sub had
{
	my ($name) = @_;
	my $ledger = "$tmp/ledger.sqlite";

	return $client{$name}{out} =~ /^(\d+)[ |]/mg if $name ne 'durable';
	return split /\n/, `python3 -c "import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute('SELECT id FROM done'): print(*row)" $ledger`;
}

# Events reach each client that has a consumer, including those that were emitted while it
# was cut off.
my $first_id = 1;

sub emit
{
	my ($name) = @_;

	$server->safe_psql('postgres', "SELECT notify_event('$name') FROM generate_series(1, 3)");
	return;
}

sub all_go_on
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @ids;
	my $heard;

	emit($what);
	@ids = split /\n/, $server->safe_psql('postgres', 'SELECT id FROM notification_events ORDER BY id');
	foreach my $name (@consumers)
	{
		my %had;
		my $attempts = 10 * $PostgreSQL::Test::Utils::timeout_default;

		do
		{
			$client{$name}{run}->pump_nb;
			%had = map { $_ => 1 } had($name);
		} while ((grep { !$had{$_} } @ids) && $attempts-- > 0
			&& $client{$name}{run}->pumpable && (select undef, undef, undef, 0.1) == 0);
		is(join(' ', grep { !$had{$_} } @ids), '', "$what: $name has all")
		  or diag slurp_file($client{$name}{err});
		$server->poll_query_until('postgres',
			"SELECT pending = 0 AND batch = 0 FROM event_consumer_stats WHERE consumer = '$name'")
		  or die "$what: not all is acknowledged by $name";
	}

	# The client that only listens hears what is announced from then on.
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$client{recipe}{run}->pump_nb;
		last if ($heard = $client{recipe}{out} =~ /^event_notification - \Q$what\E again$/m)
		  || !$client{recipe}{run}->pumpable;
		emit("$what again");
		select(undef, undef, undef, 0.1);
	}
	ok($heard, "$what: recipe hears") or diag slurp_file($client{recipe}{err});
	return;
}

# Wait until each client has met a server that refuses its statement.
sub all_are_refused
{
	my ($offset, $why, @who) = @_;

	foreach my $name (@who)
	{
		$server->wait_for_log(qr/\] $name: ERROR:  cannot execute [^\n]* $why/, $offset);
	}
	return;
}

create_consumers();
start_all();
all_go_on('in the beginning');

# A peer that vanishes: existing connections stay open, and so do new ones. A client has
# noticed the silence as soon as it makes a new connection.
tell_relay('silent');
emit('unheard');
foreach my $name (@names)
{
	ok(pump_until($relay, $relay_timer, \$answers, qr/^silent $name$/m), "silence: $name notices")
	  or diag slurp_file($client{$name}{err});
}
forward_to_server();
all_go_on('after the silence');

# A failover behind the same address: the new server is read-only first.
$primary->stop('immediate');
$server = $standby;
my $offset = -s $standby->logfile;
forward_to_server();
all_are_refused($offset, 'during recovery', @names);
$standby->promote;
wait_for_listener($standby, 'postgres');
all_go_on('after the failover');

# The server is made read-only for a while.
$offset = -s $standby->logfile;
$standby->safe_psql('postgres', 'ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()');
all_are_refused($offset, 'in a read-only transaction', @consumers);
$standby->safe_psql('postgres', 'ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()');
$standby->poll_query_until('postgres', 'SHOW default_transaction_read_only', 'off') or die 'it stays read-only';
all_go_on('after it was read-only');

$standby->restart;
wait_for_listener($standby, 'postgres');
all_go_on('after a restart');
$standby->stop('immediate');
$standby->start;
wait_for_listener($standby, 'postgres');
all_go_on('after a crash');

#
# Mistakes
#

# The client has ended and said why.
sub ends
{
	my ($name, $what, $why) = @_;
	my $run = $client{$name}{run};
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	eval { $run->finish; 1 } or $run->kill_kill(grace => 0);
	isnt($run->result(0), 0, "$what: $name ends") if $@ eq '';
	is($@, '', "$what: $name ends in time");
	like(slurp_file($client{$name}{err}), $why, "$what: $name says why");
	return;
}

sub drop_consumers
{
	$server->safe_psql('postgres', join '', map { "SELECT drop_event_consumer('$_');" } @consumers);
	return;
}

$client{$_}{timer}->start($PostgreSQL::Test::Utils::timeout_default) foreach @names;
drop_consumers();
ends($_, 'the consumer is dropped', qr/event consumer "$_" does not exist/) foreach @consumers;
$client{recipe}{run}->kill_kill(grace => 0);

start($_) foreach @consumers;
ends($_, 'no such consumer', qr/event consumer "$_" does not exist/) foreach @consumers;

create_consumers();
start($_, user => 'clerk') foreach @consumers;
ends($_, 'no right', qr/permission denied|must be/) foreach @consumers;

mkdir "$tmp/wrong" or die $!;
foreach my $name (@names)
{
	my $program = slurp_file("$client_directory/$client_program{$name}");

	$program =~ s/(?:fetch_events|LISTEN)(?=[ (]\S+['"])/WRONG/ or die "$name: where is its SQL?";
	append_to_file("$tmp/wrong/$client_program{$name}", $program);
}
start_all(directory => "$tmp/wrong");
ends($_, 'wrong SQL', qr/WRONG/i) foreach @names;

$relay->kill_kill(grace => 0);
$standby->stop;
done_testing();
