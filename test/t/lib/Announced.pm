
# Clients that LISTEN and record what they receive, and the audit of that: which
# process announced which event.

package Announced;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  start_listening
  heard_until
  stop_listening
  is_announced_once_each
);

my $count = 0;

# start_listening(NODE, DATABASE, [CHANNEL]): starts a client; returns when its LISTEN
# is committed
sub start_listening
{
	my ($node, $database, $channel) = @_;
	my %client = (
		file => "$PostgreSQL::Test::Utils::tmp_check/heard." . ++$count,
		node => $node,
		database => $database,
		channel => $channel // 'event_notification');

	$client{timer} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default * 5);
	$client{run} = IPC::Run::start(
		[
			'python3', "$FindBin::RealBin/../clients/audit_listener.py",
			$node->connstr($database), $client{file}, $client{channel}
		],
		$client{timer});
	while (!-e $client{file})
	{
		$client{run}->pump_nb;
		die "the client does not start" if !$client{run}->pumpable;
		select(undef, undef, undef, 0.01);
	}
	return \%client;
}

# heard_until(CLIENT, PAYLOAD): waits until the client has received this payload;
# returns all that it has received so far, as a list of [pid, payload]
sub heard_until
{
	my ($client, $last) = @_;
	my $attempts = 100 * $PostgreSQL::Test::Utils::timeout_default;

	while ($attempts-- > 0)
	{
		my $heard = slurp_file($client->{file});

		return map { [ split / /, $_, 2 ] } split /\n/, $heard
		  if $heard =~ /^\d+ \Q$last\E$/m;
		select(undef, undef, undef, 0.01);
	}
	die "the client does not hear \"$last\"";
}

# stop_listening(CLIENT): stops the client; returns all that it has received, including
# what the listener has announced before this call
sub stop_listening
{
	my ($client) = @_;

	$client->{node}->safe_psql($client->{database}, "SELECT pg_notify('$client->{channel}', 'stop')");
	$client->{run}->finish;
	return map { [ split / /, $_, 2 ] } split /\n/, slurp_file($client->{file});
}

# is_announced_once_each(NODE, DATABASE, HEARD, NAME, [TWICE_OK]): a test, with
# payload = id, that each event was announced exactly once.  An event that is marked
# for the listener must come from the listener only.  Any other event must come from
# the process that emitted it; event_data holds its pid.  TWICE_OK: the listener was
# lost, and may have announced events again.
sub is_announced_once_each
{
	my ($node, $database, $heard, $name, $twice_ok) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %heard_from;
	my (@missing, @foreign, @doubled);
	my %ways = (relayed => 0, direct => 0);

	push @{ $heard_from{ $_->[1] } }, $_->[0] foreach @$heard;
	foreach (
		split /\n/,
		$node->safe_psql(
			$database, q(
			SELECT id, announce, event_data ->> 'pid' FROM notification_events
			WHERE event_data ? 'pid'))
	  )
	{
		my ($id, $relayed, $emitter) = split /\|/;
		my @from = @{ delete $heard_from{$id} // [] };

		$ways{ $relayed eq 't' ? 'relayed' : 'direct' }++;
		push @missing, $id if !@from;
		push @doubled, $id if @from > 1 && !($twice_ok && $relayed eq 't');
		push @foreign, $id if grep { ($_ eq $emitter) == ($relayed eq 't') } @from;
	}
	note "$name: $ways{relayed} relayed, $ways{direct} direct";
	is("@missing[0 .. ($#missing < 9 ? $#missing : 9)]", '', "$name: none is missing");
	is("@doubled[0 .. ($#doubled < 9 ? $#doubled : 9)]", '', "$name: none is announced twice");
	is("@foreign[0 .. ($#foreign < 9 ? $#foreign : 9)]", '', "$name: each by the one it was left to");
	is(join(' ', grep { /^\d+$/ } keys %heard_from), '', "$name: none that is not in the log");
	return \%ways;
}

1;
