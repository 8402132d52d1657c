
# LISTEN inside the server: the listener receives and counts what a client sends
# with NOTIFY, and does not alter it.  It drains the queue even if it is never idle.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('listen', 'log_min_messages = debug1', 'log_statement = none');
my $received =
  q(SELECT notifications_received FROM event_worker_stats WHERE kind = 'listener' AND database = current_database());

sub make_database
{
	my ($database, $options) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database $options");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	return wait_for_listener($node, $database);
}

# returns the notifications that this listener has logged since that offset, as a
# list of [channel, sender, payload]
sub logged
{
	my ($listener, $offset) = @_;
	my $log = slurp_file($node->logfile, $offset);
	my @found;

	push @found, [ $1, $2, $3 ]
	  while $log =~
	  /\[$listener\] pg_notify_events listener DEBUG:  notification on channel "(.*?)" from process (\d+): "(.*)"\n/g;
	return @found;
}

# Send payloads from one session, each in its own transaction, and check what
# arrives.  The payloads are in the database's encoding.
sub check_payloads
{
	my ($database, $listener, $name, @payloads) = @_;
	my $offset = -s $node->logfile;
	my $before = $node->safe_psql($database, $received);
	my $expected = $before + @payloads;

	my $sql = 'SELECT pg_backend_pid();';

	$sql .= "NOTIFY event_notification, '" . s/'/''/gr . "';\n" foreach @payloads;
	my $pid = $node->safe_psql($database, $sql);
	ok($node->poll_query_until($database, $received, $expected),
		"$name: all are counted");
	is_deeply(
		[ logged($listener, $offset) ],
		[ map { [ 'event_notification', $pid, $_ ] } @payloads ],
		"$name: channel, sender and payload");
	return;
}

# Plain NOTIFY.  Payloads are bytes here, as this file does not "use utf8".
my $listener = make_database('utf', '');
check_payloads(
	'utf', $listener, 'UTF8', 'x', '', 'grün, ελληνικά, 日本語, 🐘',
	"quote ' and \" and \\ and \$1 and %s", "tab\there", 'ü' x 3999);

# The same in a database whose client_encoding cannot represent all characters: the
# payload arrives unchanged.
$listener = make_database('utf_latin', '');
$node->safe_psql('postgres',
	'ALTER DATABASE utf_latin SET client_encoding = latin1');
my $previous = $listener;
$listener = wait_for_other_listener($node, 'utf_latin', $previous);
isnt($listener, $previous, 'a listener with the new setting');
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	check_payloads('utf_latin', $listener, 'UTF8 with LATIN1 clients',
		'grün, ελληνικά, 日本語, 🐘');
}

# The same in a database that is not UTF8.
$listener =
  make_database('latin', q(TEMPLATE template0 ENCODING 'latin1' LOCALE 'C'));
check_payloads('latin', $listener, 'LATIN1', "gr\xfcn");
{
	my $offset = -s $node->logfile;

	local $ENV{PGCLIENTENCODING} = 'UTF8';
	$node->safe_psql('latin', q(NOTIFY event_notification, 'grün'));
	$node->wait_for_log(qr/\[$listener\] .*"gr\xfcn"/, $offset);
	pass('LATIN1: bytes are those of the database');
}

# The listener ignores other channels and other databases.
$listener = worker_pid($node, 'listener', 'utf');
my $before = $node->safe_psql('utf', $received);
my $offset = -s $node->logfile;
$node->safe_psql('utf', q(NOTIFY another_channel, 'wrong channel'));
$node->safe_psql('utf', q(NOTIFY "Event_Notification", 'wrong case'));
$node->safe_psql('latin', q(NOTIFY event_notification, 'wrong database'));
$node->safe_psql('utf', q(BEGIN; NOTIFY event_notification, 'rolled back'; ROLLBACK));
$node->safe_psql('utf', q(NOTIFY event_notification, 'right'));
ok($node->poll_query_until('utf', $received, $before + 1),
	'other channels and databases are not counted');
is_deeply([ map { $_->[2] } logged($listener, $offset) ],
	['right'], 'and not received');

# A listener that is never idle: it gets events with a handler and a flood of large
# notifications.  If nothing drained the queue, it would fill to 0.006 of its 8 GB.
$node->safe_psql(
	'utf', q(
	ALTER DATABASE utf SET pg_notify_events.announce = off;
	ALTER SYSTEM SET log_min_messages = warning;
	SELECT pg_reload_conf();
));
$listener = wait_for_other_listener($node, 'utf', $listener);
make_recorder($node, 'utf');
make_owner($node, 'utf', 'ann');
$node->safe_psql('utf',
	q(SELECT create_event_handler('record', 'record', owner => 'ann')));
$before = $node->safe_psql('utf', $received);
my $script = "$PostgreSQL::Test::Utils::tmp_check/flood.sql";
append_to_file(
	$script, q(
	SELECT pg_notify('event_notification', repeat('x', 7900) || :client_id || nextval('flood'));
	INSERT INTO notification_events (event_name) VALUES ('flood');
));
$node->safe_psql('utf', 'CREATE SEQUENCE flood');
my ($clients, $transactions) = (4, 1500);
my $pgbench = IPC::Run::start(
	[
		'pgbench', '--no-vacuum', '--client', $clients, '--jobs', 2,
		'--transactions', $transactions, '--file', $script,
		'-d', $node->connstr('utf')
	],
	'>', \my $out, '2>', \my $err);
my $highest = 0;
my $samples = 0;
while ($pgbench->pumpable)
{
	my $usage = $node->safe_psql('utf', 'SELECT pg_notification_queue_usage()');

	$samples++;
	$highest = $usage if $usage > $highest;
	$pgbench->pump_nb;
}
ok($pgbench->finish, 'the flood') or diag $err;
my $sent = $clients * $transactions;
cmp_ok($samples, '>', 10, "looked at the queue $samples times");
cmp_ok($highest, '<', 0.0006,
	"pg_notification_queue_usage() stays near 0 ($highest)");
ok($node->poll_query_until('utf', $received, $before + $sent),
	'every notification was received');
is( $node->safe_psql('utf', 'SELECT pg_notification_queue_usage() < 0.0001'),
	't', 'the queue is empty again');
wait_for_handlers($node, 'utf');
seen_is_log($node, 'utf', 'record', 'true', 'events under load');

# The listener follows the channel when the configuration changes.
$node->safe_psql(
	'utf', q(
	ALTER DATABASE utf RESET pg_notify_events.announce;
	ALTER SYSTEM RESET log_min_messages;
	ALTER SYSTEM SET pg_notify_events.channel = 'Other "channel"';
	SELECT pg_reload_conf();
));
$before += $sent;
$offset = -s $node->logfile;
$listener = wait_for_other_listener($node, 'utf', $listener);
$node->poll_query_until(
	'utf', qq(
	WITH sent AS MATERIALIZED (SELECT pg_notify('Other "channel"', 'probe'))
	SELECT ($received) > $before FROM sent))
  or die "nothing is received";
$node->wait_for_log(
	qr/\[$listener\] .*notification on channel "Other "channel"" from process/,
	$offset);
pass('the channel is followed');

$offset = -s $node->logfile;
$node->safe_psql('utf', q(NOTIFY event_notification, 'old channel'));
$node->safe_psql('utf', q(NOTIFY "Other ""channel""", 'new channel'));
$node->wait_for_log(qr/\[$listener\] .*"new channel"/, $offset);
# skip the probes: the query that saw an earlier probe arrive has sent another one
is_deeply([ grep { $_ ne 'probe' } map { $_->[2] } logged($listener, $offset) ],
	['new channel'], 'and the old one is left');
like(
	$node->safe_psql(
		'utf', q(
		SET pg_notify_events.announce = direct;
		LISTEN "Other ""channel""";
		SELECT notify_event('on the new channel');
	)),
	qr/Asynchronous notification "Other "channel"" with payload "on the new channel"/,
	'events are announced there');

$node->stop;
done_testing();
