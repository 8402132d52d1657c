
# Announcements by the listener: what it announces, and when.  The listener and
# the emitting transactions together announce each event exactly once, whatever
# settings change meanwhile.
#
# The short sleeps in a loop only let a change of settings meet many transactions.
# No test waits for something by them.

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
use Time::HiRes qw(time);

plan skip_all => 'python3 with psycopg2 is needed'
  if system('python3', '-c', 'import psycopg2') != 0;

my $node = new_server(
	'relay',
	'log_statement = none',
	'max_prepared_transactions = 10',
	"pg_notify_events.naptime = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
my $listener = wait_for_listener($node, 'postgres');

sub listener_figure
{
	my ($figure) = @_;

	return $node->safe_psql('postgres',
		"SELECT $figure FROM event_worker_stats WHERE kind = 'listener' AND database = 'postgres'");
}

#
# What is announced, by which process, and what is counted
#
my $client = start_listening($node, 'postgres');
my $received = listener_figure('notifications_received');
$node->safe_psql('postgres', q(SELECT notify_event('relayed', '{"a": 1}'::jsonb)));
my @heard = heard_until($client, 'relayed');
is_deeply(\@heard, [ [ $listener, 'relayed' ] ], 'the listener announces, long before its nap is over');
is(listener_figure('events_announced'), '1', 'and counts it');
is( $node->safe_psql('postgres', q(SELECT emitted, announced FROM event_stats WHERE event_name = 'relayed')),
	'1|1', 'by name, too');
is($node->safe_psql('postgres', 'SELECT announce FROM notification_events'), 't', 'the row is marked');

$node->safe_psql('postgres', q(SET pg_notify_events.announce = off; SELECT notify_event('silent')));
my $pid = $node->safe_psql('postgres',
	q(SET pg_notify_events.announce = direct; SELECT notify_event('direct'); SELECT pg_backend_pid()));
$pid =~ s/.*\n//s;
$node->safe_psql('postgres', q(BEGIN; SELECT notify_event('undone'); ROLLBACK; SELECT notify_event('next')));
@heard = heard_until($client, 'next');
is_deeply(
	[ @heard[ 1 .. $#heard ] ],
	[ [ $pid, 'direct' ], [ $listener, 'next' ] ],
	'off and a rollback are silent, direct is by the session itself');
is( $node->safe_psql('postgres', 'SELECT string_agg(announce::text, $$,$$ ORDER BY id) FROM notification_events'),
	'true,false,false,true', 'none of these is marked');
is(listener_figure('notifications_received') - $received, 1, 'its own are no news to the listener');

# Equal payloads of a batch are announced once, a large transaction in batches.
my $before = listener_figure('events_announced');
$node->safe_psql(
	'postgres', q(
	BEGIN;
	INSERT INTO notification_events (event_name) SELECT 'equal' FROM generate_series(1, 5000);
	SELECT notify_event('last of them');
	COMMIT));
@heard = grep { $_->[1] eq 'equal' } heard_until($client, 'last of them');
is(scalar @heard, 5, '5001 events of one transaction: one notification in each batch of 1000');
is(listener_figure('events_announced') - $before, 5001, 'all are counted');
stop_listening($client);

# Payloads, and a channel with an odd name
configure($node, payload => 'id', channel => q('Odd "channel"'));
$node->poll_query_until('postgres', q(SHOW pg_notify_events.payload), 'id') or die 'no reload';
$client = start_listening($node, 'postgres', 'Odd "channel"');
my $id = $node->safe_psql('postgres', q(SELECT notify_event('by id')));
heard_until($client, $id);
pass('payload = id, channel "Odd ""channel"""');
configure($node, payload => 'json');
$node->poll_query_until('postgres', q(SHOW pg_notify_events.payload), 'json') or die 'no reload';
$id = $node->safe_psql('postgres', q(SELECT notify_event('by "json"', '{"ü": [1, null]}'::jsonb)));
heard_until($client, qq({"id": $id, "name": "by \\"json\\"", "data": {"ü": [1, null]}}));
$id = $node->safe_psql('postgres', q(SELECT notify_event('too long', to_jsonb(repeat('x', 7990)))));
heard_until($client, qq({"id": $id, "name": "too long"}));
pass('payload = json, too long data is left out');
# some kB of numbers whose text would be more than 100 MB
$id = $node->safe_psql('postgres',
	q(SELECT notify_event('huge', ('[' || repeat('1e131071,', 880) || '0]')::jsonb) FROM generate_series(1, 200)));
$id =~ s/.*\n//s;
heard_until($client, qq({"id": $id, "name": "huge"}));
is(wait_for_listener($node, 'postgres'), $listener, 'payload = json, numbers of huge length do the listener no harm');
stop_listening($client);

# Settings of the database reach a listener that runs already.
$client = start_listening($node, 'postgres', 'of the database');
$node->safe_psql('postgres', q(ALTER DATABASE postgres SET pg_notify_events.channel = 'of the database'));
$listener = wait_for_other_listener($node, 'postgres', $listener);
$id = $node->safe_psql('postgres', q(SELECT notify_event('there')));
heard_until($client, qq({"id": $id, "name": "there"}));
pass('ALTER DATABASE ... SET is taken up');
stop_listening($client);
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET pg_notify_events.channel');
wait_for_other_listener($node, 'postgres', $listener);

# An event of a prepared transaction is announced by COMMIT PREPARED.
configure($node, payload => 'name', channel => 'event_notification');
$node->poll_query_until('postgres', q(SHOW pg_notify_events.payload), 'name') or die 'no reload';
$client = start_listening($node, 'postgres');
$node->safe_psql('postgres', q(BEGIN; SELECT notify_event('prepared'); PREPARE TRANSACTION 'p'));
$node->safe_psql('postgres', q(SELECT notify_event('meanwhile')));
@heard = heard_until($client, 'meanwhile');
is(scalar(grep { $_->[1] eq 'prepared' } @heard), 0, 'a prepared transaction announces nothing');
my $began = time;
$node->safe_psql('postgres', q(COMMIT PREPARED 'p'));
heard_until($client, 'prepared');
cmp_ok(time - $began, '<', 10, 'COMMIT PREPARED does, long before the nap is over');
$node->safe_psql('postgres', q(BEGIN; SELECT notify_event('prepared 2'); PREPARE TRANSACTION 'p'));
$node->safe_psql('postgres', q(ROLLBACK PREPARED 'p'));
$node->safe_psql('postgres', q(SELECT notify_event('behind')));
@heard = heard_until($client, 'behind');
is(scalar(grep { $_->[1] eq 'prepared 2' } @heard), 0, 'ROLLBACK PREPARED: nothing');
stop_listening($client);

#
# Without a listener to relay, the emitting transaction announces.
#
$client = start_listening($node, 'postgres');
my $n = 0;

sub announced_directly
{
	my ($name) = @_;
	my $event = 'direct ' . ++$n;
	my $out = $node->safe_psql('postgres', "SELECT notify_event('$event'); SELECT pg_backend_pid()");

	$out =~ s/.*\n//s;
	is_deeply([ grep { $_->[1] eq $event } heard_until($client, $event) ],
		[ [ $out, $event ] ], "direct: $name");
	return;
}

configure($node, enabled => 'off');
wait_for_no_workers($node, 'postgres');
announced_directly('switched off');
configure($node, enabled => 'on', databases => 'other');
announced_directly('database not served');
configure($node, databases => q('*'));
$node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE true');
wait_for_no_workers($node, 'postgres');
announced_directly('a template');
$node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE false');
configure($node, enabled => 'on');
wait_for_listener($node, 'postgres');
stop_listening($client);

#
# Hand-overs: settings are switched back and forth under load.
#
configure($node, payload => 'id', naptime => q('1s'));
my $script = "$PostgreSQL::Test::Utils::tmp_check/load.sql";
append_to_file(
	$script, q(
	INSERT INTO notification_events (event_name, event_data)
		VALUES ('single', jsonb_build_object('pid', pg_backend_pid()));
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'many', jsonb_build_object('pid', pg_backend_pid()) FROM generate_series(1, 3);
	BEGIN;
	SELECT notify_event('part', jsonb_build_object('pid', pg_backend_pid()));
	SAVEPOINT s;
	SELECT notify_event('undone part', jsonb_build_object('pid', pg_backend_pid()));
	ROLLBACK TO s;
	SELECT notify_event('part', jsonb_build_object('pid', pg_backend_pid()));
	COMMIT;
	BEGIN;
	SELECT notify_event('undone', jsonb_build_object('pid', pg_backend_pid()));
	ROLLBACK;
));

sub under_load
{
	my ($name, $rounds, $twice_ok, @changes) = @_;
	my $way;

	$node->safe_psql('postgres', 'TRUNCATE notification_events');
	my $client = start_listening($node, 'postgres');
	my $load = IPC::Run::start(
		[
			'pgbench', '--no-vacuum', '--client', 4, '--time', 600, '--file', $script,
			'-d', $node->connstr('postgres')
		],
		'>', '/dev/null', '2>', '/dev/null');
	foreach my $round (1 .. $rounds)
	{
		foreach my $change (@changes)
		{
			my $count = $node->safe_psql('postgres', 'SELECT last_value FROM notification_events_id_seq');

			$change->();
			$node->poll_query_until('postgres',
				"SELECT last_value > $count + 100 FROM notification_events_id_seq")
			  or die "no load";
		}
	}
	$load->kill_kill(grace => 5);
	$node->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'))
	  or die "writers do not end";
	# the last event, when all settings are restored
	wait_for_listener($node, 'postgres');
	my $last = $node->safe_psql('postgres', q(SET pg_notify_events.announce = relay; SELECT notify_event('last', jsonb_build_object('pid', pg_backend_pid()))));
	heard_until($client, $last);
	my @heard = stop_listening($client);
	$way = is_announced_once_each($node, 'postgres', \@heard, $name, $twice_ok);
	cmp_ok($way->{relayed}, '>', 100, "$name: some were relayed");
	return $way;
}

my $way = under_load('settings', 4, 0,
	sub { configure($node, announce => 'direct') },
	sub { configure($node, announce => 'relay') },
	sub { configure($node, announce => 'direct') },
	sub { configure($node, announce => 'relay') });
cmp_ok($way->{direct}, '>', 100, 'settings: some were not');

$way = under_load('served or not', 3, 0,
	sub { configure($node, enabled => 'off') },
	sub { configure($node, enabled => 'on') },
	sub { configure($node, databases => 'other') },
	sub { configure($node, databases => q('*')) },
	sub { $node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE true') },
	sub { $node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE false'); configure($node, enabled => 'on') });
cmp_ok($way->{direct}, '>', 100, 'served or not: some were not relayed');

# The listener is lost: its events are announced late, and no writer announces
# them instead.
$way = under_load('listener terminated', 4, 1,
	sub {
		$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE backend_type = 'pg_notify_events listener'));
	});
is($way->{direct}, 0, 'listener terminated: writers did not go back to the commit lock');

$node->stop;
done_testing();
