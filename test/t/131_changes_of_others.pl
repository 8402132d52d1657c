
# A change of a definition has only that definition read again: not the windows of the
# owner's other handlers, and nothing of other owners. Handlers that are inside the same
# window share it, in whatever order they enter it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'changes_of_others',
	'log_statement = none',
	'autovacuum = off',
	'pg_notify_events.announce = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	GRANT EXECUTE ON FUNCTION pause_event_handler, resume_event_handler, alter_event_handler, drop_event_handler TO PUBLIC;
	GRANT EXECUTE ON FUNCTION create_event_handler TO bob;
));

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

# Each event of ann is a batch and a round of its own. It changes the definition of
# another handler, so that there are as many changes as rounds. The changed handler reads
# its own window anew; if it belongs to ann, it has none.
my $events = 300;
my %changes = (
	'pause and resume, of another owner' =>
	  [ 'bob', q(PERFORM public.pause_event_handler('other'), public.resume_event_handler('other')) ],
	'alter, of the same owner' =>
	  [ 'ann', q(PERFORM public.alter_event_handler('other', batch_size => 3)) ],
	'pause and resume, of the same owner' =>
	  [ 'ann', q(PERFORM public.pause_event_handler('other'), public.resume_event_handler('other')) ],
	'alter, of another owner' =>
	  [ 'bob', q(PERFORM public.alter_event_handler('other', batch_size => 3)) ],
	'create and drop, of another owner' =>
	  [ 'bob', q(PERFORM public.create_event_handler('third', 'public.record', 'none'), public.drop_event_handler('third')) ],
);
foreach my $what (sort keys %changes)
{
	my ($owner, $change) = @{ $changes{$what} };

	$node->safe_psql(
		'postgres', qq(
		CREATE OR REPLACE FUNCTION change() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
			\$\$ BEGIN $change; END \$\$;
		ALTER FUNCTION change() OWNER TO $owner;
		CREATE OR REPLACE FUNCTION record_and_change(e notification_events) RETURNS void LANGUAGE plpgsql AS
			\$\$ BEGIN INSERT INTO public.seen (handler, id) VALUES ('record', e.id); PERFORM public.change(); END \$\$;
		SELECT create_event_handler('h', 'record_and_change', owner => 'ann', batch_size => 1);
		SELECT pause_event_handler('h');
	));
	$node->safe_psql('postgres', "SELECT create_event_handler('other', 'record', 'none', owner => 'bob')")
	  if $owner eq 'bob';
	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name) SELECT 'e' FROM generate_series(1, $events)));
	$node->safe_psql('postgres', "SELECT create_event_handler('other', 'record', 'none', owner => 'ann')")
	  if $owner eq 'ann';
	$node->safe_psql('postgres', 'SELECT pg_stat_reset()');
	$node->safe_psql('postgres', "SELECT resume_event_handler('h')");
	wait_for_handlers($node, 'postgres');
	seen_is_log($node, 'postgres', 'record', 'true', $what);
	poll(
		q(SELECT count(*) = 0 FROM event_worker_stats WHERE kind = 'executor' AND state = 'running'),
		'idle');

	# The window is read once. The listener reads what arrives at the same time.
	my $read = $node->safe_psql('postgres',
		q(SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'notification_events_txid_idx'));
	cmp_ok($read, '<', 20 * $events, "$what: index entries of events that were read");
	cmp_ok($read, '>=', $events, "$what: but they were read");
	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler('h'), drop_event_handler('other');
		DELETE FROM notification_events; TRUNCATE seen));
}

# Handlers that enter a window and then fail for as long as there is an outage. Each has
# passed a different number of events of the window.
my $handlers = 12;
my $many = 150_000;

$node->safe_psql(
	'postgres', q(
	CREATE TABLE outage (first_id bigint);
	CREATE UNLOGGED TABLE calls (handler integer, id bigint);
	GRANT SELECT ON outage TO PUBLIC;
	GRANT INSERT ON calls TO PUBLIC;
));
foreach my $n (1 .. $handlers)
{
	my $size = 10 * $n;

	$node->safe_psql(
		'postgres', qq(
		CREATE SEQUENCE tries_$n;
		GRANT USAGE ON SEQUENCE tries_$n TO PUBLIC;
		CREATE FUNCTION handler_$n(events notification_events[]) RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
			PERFORM nextval('public.tries_$n');
			IF EXISTS (SELECT FROM public.outage WHERE first_id < events[1].id) THEN
				RAISE insufficient_resources;
			END IF;
			INSERT INTO public.calls SELECT $n, e.id FROM unnest(events) e;
		END \$\$;
		SELECT create_event_handler('h$n', 'handler_$n', owner => 'ann', batch_size => $size,
			retry_delay => '10 ms', max_retry_delay => '20 ms');
	));
}
my $first_id = $node->safe_psql('postgres', q(SELECT nextval('notification_events_id_seq') + 1));

# Wait until each handler was called again.
sub all_called
{
	my $sql = join(' UNION ALL ', map { "SELECT $_ AS n, last_value AS tries FROM tries_$_" } 1 .. $handlers);
	my @before = split(/\n/, $node->safe_psql('postgres', "SELECT tries FROM ($sql) t ORDER BY n"));
	my $now = join(' AND ', map { "(SELECT last_value FROM tries_$_) > $before[$_ - 1]" } 1 .. $handlers);

	poll("SELECT $now", 'all handlers are called');
	return;
}

# The memory that the executor has allocated, in kB. The process may keep memory that was
# freed, so the test reads the server's memory contexts.
sub memory
{
	my $pid = worker_pid($node, 'executor', 'postgres', 'ann');
	my $offset = -s $node->logfile;
	my $line = qr/\[$pid\].*Grand total: (\d+) bytes/;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	$node->wait_for_log($line, $offset);
	return slurp_file($node->logfile, $offset) =~ $line ? int($1 / 1024) : die 'no figures of memory';
}

$node->safe_psql(
	'postgres', qq(
	INSERT INTO outage VALUES ($first_id);
	INSERT INTO notification_events (event_name) SELECT 'e' FROM generate_series(1, $many);
));
all_called();
all_called();

{
	my $shared = memory();

	# The next executor finds all handlers inside the window, each at another position.
	my $previous = worker_pid($node, 'executor', 'postgres', 'ann');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($previous, 60000)");
	poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_notify_events executor' AND pid <> $previous",
		'the next executor');
	all_called();
	all_called();
	is( $node->safe_psql(
			'postgres', q(SELECT count(*), count(DISTINCT p."window"::text), count(DISTINCT last_id) > 1 FROM _event_handler_progress p)),
		"$handlers|1|t", 'they stand in one window, at several places');
	cmp_ok(memory(), '<', $shared + 10_000, 'memory of the next executor, in kB');

	# Here the handlers that are further behind come later.
	$node->safe_psql('postgres', "SELECT pause_event_handler('h$_')") foreach 1 .. $handlers;
	$previous = worker_pid($node, 'executor', 'postgres', 'ann');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($previous, 60000)");
	my @order = split(/\n/, $node->safe_psql('postgres', 'SELECT handler FROM _event_handler_progress ORDER BY last_id DESC'));
	foreach my $name (@order)
	{
		my $n = substr($name, 1);
		my $tries = $node->safe_psql('postgres', "SELECT last_value FROM tries_$n");

		$node->safe_psql('postgres', "SELECT resume_event_handler('$name')");
		poll("SELECT last_value > $tries FROM tries_$n", "$name is called");
	}
	# The last handler's round, in which there may be two copies of the window, is
	# over then.
	all_called();
	all_called();
	cmp_ok(memory(), '<', $shared + 10_000, 'memory where they come one by one, in kB');
}

# Some handlers go on to the end.
$node->safe_psql('postgres', join('', map { "SELECT drop_event_handler('h$_');" } 4 .. $handlers)
	  . join('', map { "SELECT alter_event_handler('h$_', batch_size => 20000);" } 1 .. 3)
	  . 'DELETE FROM outage');
wait_for_handlers($node, 'postgres');
foreach my $n (1 .. 3)
{
	is( $node->safe_psql(
			'postgres', "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM calls WHERE handler = $n"),
		"$many|$many|$first_id|" . ($first_id + $many - 1), "h$n: each event once");
}
$node->stop;
done_testing();
