
# Windows that are larger than the part that executors and the listener hold in memory.
# Memory stays within its bound, however many events wait. Each event is delivered once
# and in the order of ids inside a window, whatever commits late in between. The number of
# rows that are read grows with the number of events, not with its square. The bound is
# lowered for this test (src/base/fault.c).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my $bound = 2000;
# bytes of an event in a window, including the index of the events by name
my $event_bytes = 48;
my $many = 100_000;
my $node = new_server(
	'bounded',
	'log_statement = none',
	'autovacuum = off',
	'max_wal_size = 4GB',
	"pg_notify_events.payload = 'id'");
my $faults = $node->data_dir . '/pg_notify_events.faults';

mkdir $faults or die "mkdir $faults: $!";
append_to_file("$faults/window-bound", $bound);
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE UNLOGGED TABLE taken (n bigserial, handler text, id bigint);
	GRANT SELECT, INSERT ON taken TO PUBLIC;
	GRANT USAGE ON SEQUENCE taken_n_seq TO PUBLIC;
));

sub ask
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql);
}

# The memory of windows in a process that waits at a fault point, in bytes
sub window_memory
{
	my ($pid) = @_;
	my $log_offset = -s $node->logfile;
	my $memory = 0;

	ask("SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log(qr/\[$pid\].*Grand total/, $log_offset);
	my $log = slurp_file($node->logfile, $log_offset);
	$memory += $1 while $log =~ /\[$pid\].* event window: (\d+) total in/g;
	return $memory;
}

# The next process that reaches the place waits there.
sub set_fault
{
	my ($place) = @_;

	append_to_file("$faults/$place.new", 'wait');
	rename("$faults/$place.new", "$faults/$place") or die "rename: $!";
	return;
}

sub wait_for_hit
{
	my ($place) = @_;

	foreach (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return if -e "$faults/$place.hit";
		Time::HiRes::usleep(10_000);
	}
	die "nobody came to $place";
}

sub go_on
{
	my ($place) = @_;

	unlink("$faults/$place.hit") or die "unlink: $!";
	return;
}

# The number of rows of the log that executors and the listener have read, by txid and by
# id. They report it when they are idle.
sub rows_read
{
	my @last = (-1);

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my @now = split(
			/\|/,
			ask(q(
				SELECT sum(idx_tup_read) FILTER (WHERE indexrelname = 'notification_events_txid_idx'),
					   sum(idx_tup_read) FILTER (WHERE indexrelname = 'notification_events_pkey')
				FROM pg_stat_user_indexes)));
		my $idle = ask(
			q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind <> 'launcher' AND state NOT IN ('idle', 'listening')));

		return @now if $idle eq 't' && "@now" eq "@last";
		@last = @now;
		Time::HiRes::usleep(100_000);
	}
	die 'reading does not end';
}

# Create a handler with an owner and a pattern of names, which takes events in arrays.
sub make_handler
{
	my ($name, $owner, $pattern, $start) = @_;

	ask(qq(
		CREATE FUNCTION "$name"(events notification_events[]) RETURNS void LANGUAGE sql AS \$\$
			INSERT INTO public.taken (handler, id) SELECT '$name', e.id FROM unnest(events) WITH ORDINALITY AS e ORDER BY e.ordinality
		\$\$;
		SELECT create_event_handler('$name', '$name', '$pattern', owner => '$owner', start_from => '$start', batch_size => 700)));
	return;
}

# Check that a handler has taken each event of some names once, and in the order of ids,
# with $breaks exceptions.
sub check_taken
{
	my ($handler, $pattern, $breaks, $name) = @_;

	is( ask(qq(
			SELECT count(*) = l.count, count(DISTINCT id) = l.count, sum(id) = l.sum
			FROM taken, (SELECT count(*), sum(id) FROM notification_events WHERE event_name LIKE '$pattern') l
			WHERE handler = '$handler' GROUP BY l.count, l.sum)),
		't|t|t', "$name: each event once");
	is( ask(qq(
			SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY n) AS previous FROM taken WHERE handler = '$handler') t
			WHERE id < previous)),
		$breaks, "$name: by id");
	return;
}

# ----------
# A backlog of many transactions. In parts of it, ids and transactions differ in their
# order. An open transaction has the lowest ids of all, another one has ids in the middle.
# ----------
my $early = $node->background_psql('postgres');
my $middle = $node->background_psql('postgres');
$early->query_safe(q(BEGIN; SELECT count(notify_event('a early')) FROM generate_series(1, 100)));
# Two transactions write in turns. The lowest ids are those of the second one, so the part
# of the window that is kept has to make room for them.
my @turns = map { $node->background_psql('postgres') } (1, 2);
$_->query_safe('BEGIN; SELECT pg_current_xact_id()') foreach @turns;
foreach my $turn (1 .. 5)
{
	$_->query_safe(qq(INSERT INTO notification_events (event_name) SELECT 'a 1' FROM generate_series(1, $many / 40) i))
	  foreach reverse @turns;
}
$_->query_safe('COMMIT') foreach @turns;
$_->quit foreach @turns;
ask(qq(INSERT INTO notification_events (event_name) SELECT 'a ' || i % 5 FROM generate_series(1, $many / 4) i));
$middle->query_safe(q(BEGIN; SELECT count(notify_event('a middle')) FROM generate_series(1, 100)));
ask(qq(INSERT INTO notification_events (event_name) SELECT 'b ' || i % 5 FROM generate_series(1, $many / 2) i));

ask('SELECT pg_stat_reset()');
my @before = rows_read();
set_fault('after-window-read');
make_handler('everything', 'ann', '*', 'beginning');
wait_for_hit('after-window-read');
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
my $memory = window_memory($executor);
cmp_ok($memory, '>', 0, 'a window is in memory');
cmp_ok($memory, '<=', $bound * $event_bytes, "and takes no more than it may ($memory bytes)");
# The window was read: what is committed now comes behind it.
$early->query_safe('COMMIT');
go_on('after-window-read');
# in the middle of the window
$node->poll_query_until('postgres', "SELECT count(*) > $many / 10 FROM taken") or die 'it does not begin';
$middle->query_safe('COMMIT');
wait_for_handlers($node, 'postgres');
$_->quit foreach ($early, $middle);
my @after = rows_read();
check_taken('everything', '%', 1, 'a backlog');
is( ask(q(
		SELECT count(*) FROM taken t JOIN notification_events e USING (id)
		WHERE e.event_name IN ('a early', 'a middle') AND t.n <= (SELECT max(n) FROM taken JOIN notification_events e USING (id) WHERE e.event_name LIKE 'b%'))),
	'0', 'what was committed late comes behind the window');
my $by_txid = ($after[0] - $before[0]) / $many;
my $by_id = ($after[1] - $before[1]) / $many;
cmp_ok($by_txid + $by_id, '<', 4, "an event is read $by_txid times by txid, $by_id times by id");

# ----------
# Handlers that begin at the same position and want different events. One stops on its way
# and goes on later, alone. The server is restarted in the middle of the window.
# ----------
ask(q(SELECT drop_event_handler('everything'); TRUNCATE taken));
$node->restart;
set_fault('after-window-read');
foreach my $name ('a', 'b', 'all', 'rare', 'none')
{
	my %pattern = (a => 'a *', b => 'b *', all => '*', rare => 'b 3', none => 'c*');

	make_handler($name, 'bob', $pattern{$name}, 'beginning');
}
wait_for_hit('after-window-read');
go_on('after-window-read');
$node->poll_query_until('postgres', "SELECT count(*) > $many / 10 FROM taken") or die 'they do not begin';
ask(q(SELECT pause_event_handler('all')));
$node->poll_query_until('postgres', "SELECT count(*) > $many / 2 FROM taken") or die 'they do not go on';
set_fault('after-window-read');
ask(q(SELECT resume_event_handler('all')));
wait_for_hit('after-window-read');
$memory = window_memory(worker_pid($node, 'executor', 'postgres', 'bob'));
cmp_ok($memory, '<=', 3 * $bound * $event_bytes, "handlers far from each other ($memory bytes)");
go_on('after-window-read');
$node->restart;
wait_for_handlers($node, 'postgres');
check_taken('a', 'a %', 0, 'names of the first half');
check_taken('b', 'b %', 0, 'names of the second half');
check_taken('all', '%', 0, 'one that was paused');
check_taken('rare', 'b 3', 0, 'one name of many');
is(ask(q(SELECT count(*) FROM taken WHERE handler = 'none')), '0', 'nothing');

# ----------
# A large transaction that others have overtaken: a window of few events among many.
# ----------
my $open = $node->background_psql('postgres');
ask('SELECT drop_event_handler(name) FROM event_handlers; TRUNCATE taken');
make_handler('late', 'ann', 'late', 'now');
$open->query_safe('BEGIN');
foreach my $part (1 .. 4)
{
	$open->query_safe(q(SELECT count(notify_event('late')) FROM generate_series(1, 2000)));
	ask(qq(INSERT INTO notification_events (event_name) SELECT 'others' FROM generate_series(1, $many / 4)));
}
wait_for_handlers($node, 'postgres');
@before = rows_read();
$open->query_safe('COMMIT');
wait_for_handlers($node, 'postgres');
$open->quit;
@after = rows_read();
check_taken('late', 'late', 0, 'few among many');
cmp_ok($after[0] - $before[0], '<', 10 * 8000, 'few among many: so many are read by txid');
cmp_ok($after[1] - $before[1], '<', 10 * $many, 'and by id');

# ----------
# The listener: what it announces, and how much of it is in memory.
# ----------
$node->stop;
$node->start;
ask('SELECT drop_event_handler(name) FROM event_handlers');
my $client = $node->background_psql('postgres');
$client->query_safe('LISTEN event_notification');
my $listener = worker_pid($node, 'listener', 'postgres');
my $announced = 3 * $bound;
set_fault('before-announce');
my $first = ask(qq(SELECT min(id) FROM (SELECT notify_event('heard') AS id FROM generate_series(1, $announced)) e));
do
{
	wait_for_hit('before-announce');
	$memory = window_memory($listener);
	# The listener came here without events to announce.
	set_fault('before-announce') if $memory == 0;
	go_on('before-announce');
} until $memory > 0;
cmp_ok($memory, '<=', $bound * $event_bytes, "the listener's window takes no more than it may ($memory bytes)");
my @heard;
foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	# Earlier events may be announced again after the restart.
	push @heard, grep { $_ >= $first } $client->query_safe('SELECT 1') =~ /with payload "(\d+)"/g;
	last if @heard >= $announced;
	Time::HiRes::usleep(100_000);
}
is_deeply(\@heard, [ $first .. $first + $announced - 1 ], 'each event is announced once, in the order of ids');
is(ask(q(SELECT emitted FROM event_stats WHERE event_name = 'heard')), $announced, 'and counted once');
$client->quit;

# ----------
# A consumer
# ----------
ask(q(SELECT create_event_consumer('puller', start_from => 'beginning')));
my $fetched = ask(q(
	CREATE TABLE fetched (n bigserial, id bigint);
	DO $$
	BEGIN
		LOOP
			INSERT INTO fetched (id) SELECT id FROM fetch_events('puller', 5000);
			EXIT WHEN NOT FOUND;
			PERFORM ack_events('puller');
			COMMIT;
		END LOOP;
	END $$;
	SELECT count(*) = l.count, count(DISTINCT id) = l.count
	FROM fetched, (SELECT count(*) FROM notification_events) l GROUP BY l.count));
is($fetched, 't|t', 'a consumer fetches each event once');
is(ask('SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY n) AS previous FROM fetched) f WHERE id < previous'),
	'0', 'by id');

$node->stop;
done_testing();
