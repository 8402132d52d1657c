
# The number of event channels of a database is limited. Channels that a restore brings
# beyond the limit are not listened on, and their state says so. The same holds for a
# channel with an event_name that no event can have.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('many_channels', 'log_statement = none');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'postgres');

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# what a restore does: insert rows as they are given
sub restore
{
	my ($sql) = @_;

	$node->safe_psql(
		'postgres', qq(
		BEGIN;
		ALTER TABLE _event_channels DISABLE TRIGGER guard_rows;
		$sql;
		ALTER TABLE _event_channels ENABLE ALWAYS TRIGGER guard_rows;
		COMMIT;
	));
	# Any change makes the listener read the channels.
	$node->safe_psql('postgres', q(SELECT activate_events()));
	return;
}

sub states
{
	return $node->safe_psql('postgres',
		'SELECT state, count(*), min(channel), max(channel) FROM event_channel_stats GROUP BY 1 ORDER BY 1');
}

sub refused
{
	my ($sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	return $stderr =~ /ERROR:  (\w+: .*)/ ? $1 : '';
}

$node->safe_psql('postgres', q(SELECT listen_event_channel('c' || n) FROM generate_series(1000, 1999) n));
poll(q(SELECT count(*) = 1000 FROM event_channel_stats WHERE state = 'listening'), 'all are listened on');
like(refused(q(SELECT listen_event_channel('d'))), qr/^54000: a database cannot have more than 1000 event channels/,
	'one more');
is($node->safe_psql('postgres', q(BEGIN; SELECT unlisten_event_channel('c1000'); SELECT listen_event_channel('d'); ROLLBACK; SELECT 1)) =~ /1$/,
	1, 'one instead of another one');

# beyond the limit
my $offset = -s $node->logfile;
restore(q(
	INSERT INTO _event_channels (channel, event_name, owner, owner_name, install_id, database, created_at)
	SELECT 'e' || n, 'e' || n, c.owner, c.owner_name, c.install_id, c.database, c.created_at + interval '1 day'
	FROM _event_channels c, generate_series(1, 5) n WHERE c.channel = 'c1000'));
$node->wait_for_log(qr/WARNING:  5 event channels are not listened on/, $offset);
poll(q(SELECT count(*) FILTER (WHERE state = 'listening') = 1000 FROM event_channel_stats), 'the first ones are listened on');
is(states(), "left out|5|e1|e5\nlistening|1000|c1000|c1999", 'the newest are left out');
$node->safe_psql('postgres', q(NOTIFY e1; NOTIFY c1999));
poll(q(SELECT count(*) = 1 FROM notification_events), 'an event');
is($node->safe_psql('postgres', 'SELECT event_name FROM notification_events'), 'c1999', 'of one that is listened on');

# there is room again
$node->safe_psql('postgres', q(SELECT unlisten_event_channel('c' || n) FROM generate_series(1001, 1003) n));
poll(q(SELECT count(*) = 2 FROM event_channel_stats WHERE state = 'left out'), 'others move up');
poll(q(SELECT count(*) FILTER (WHERE state = 'listening') = 1000 FROM event_channel_stats), 'and are listened on');
is(states(), "left out|2|e4|e5\nlistening|1000|c1000|e3", 'in the order of their age');
like(refused(q(SELECT listen_event_channel('d'))), qr/^54000: /, 'still too many for another one');
$node->safe_psql('postgres', q(SELECT unlisten_event_channel('c' || n) FROM generate_series(1004, 1900) n));
poll(q(SELECT count(*) = 105 FROM event_channel_stats WHERE state = 'listening'), 'all of the rest are listened on');
$node->safe_psql('postgres', q(SELECT listen_event_channel('d')));

# Names that no event can have do not hold up the others, and large ones are not read.
my $listener = worker_pid($node, 'listener', 'postgres');
my $before = peak_memory($listener);
foreach my $name ("repeat('x', 101)", "repeat('x', 100000000)", "''")
{
	$offset = -s $node->logfile;
	restore("UPDATE _event_channels SET event_name = $name WHERE channel = 'e1'");
	$node->wait_for_log(qr/WARNING:  event channel "e1" is suspended: no event can have its event_name/, $offset);
	poll(q(SELECT state = 'suspended' FROM event_channel_stats WHERE channel = 'e1'), 'suspended');
	my $n = $node->safe_psql('postgres', 'SELECT count(*) FROM notification_events');
	$node->safe_psql('postgres', q(NOTIFY e1; NOTIFY e2));
	poll("SELECT count(*) = $n + 1 FROM notification_events", 'the event of the other one');
	restore(q(UPDATE _event_channels SET event_name = 'e1' WHERE channel = 'e1'));
	poll(q(SELECT state = 'listening' FROM event_channel_stats WHERE channel = 'e1'), 'mended');
}
SKIP:
{
	skip 'the memory of a server with AddressSanitizer tells nothing', 1 if defined $ENV{ASAN_OPTIONS};
	cmp_ok(peak_memory($listener) - $before, '<', 50_000, 'memory of the listener in kB');
}
is($node->safe_psql('postgres', q(SELECT DISTINCT event_name FROM notification_events ORDER BY 1)), "c1999\ne2",
	'event names');
$node->stop;
done_testing();
