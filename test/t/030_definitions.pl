
# Definitions change while executors work on them.  A session that changes a
# definition waits for the current batch and sees its effects.  After that the new
# definition holds, and an executor discards what it has in memory of the old one.
# The same holds if another executor has handled the events meanwhile.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'definitions',
	'log_statement = none',
	'autovacuum = off',
	"pg_notify_events.batch_time = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob');
# Two functions that record their calls.  They wait at a gate, an advisory lock, for
# events named "gate 1" and "gate 2".
foreach my $function (qw(one two))
{
	$node->safe_psql(
		'postgres', qq(
		CREATE FUNCTION $function(e notification_events) RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
			IF e.event_name ^@ 'gate ' THEN
				PERFORM pg_advisory_xact_lock_shared(right(e.event_name, 1)::integer);
			END IF;
			INSERT INTO public.seen (handler, id) VALUES ('$function', e.id);
		END \$\$;
	));
}
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION gate(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(1);
		INSERT INTO public.seen (handler, id) VALUES ('gate', e.id);
	END $$;
	-- bob's calls wait at the second gate
	CREATE FUNCTION wait_as_bob(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF current_user = 'bob' THEN
			PERFORM pg_advisory_xact_lock_shared(2);
		END IF;
		INSERT INTO public.seen (handler, id) VALUES ('wait_as_bob', e.id);
	END $$;
));

my $gate = $node->background_psql('postgres');
my $session = $node->background_psql('postgres');
my $session_pid = $session->query_safe('SELECT pg_backend_pid()');

sub poll
{
	my ($sql, $what) = @_;

	$node->poll_query_until('postgres', $sql) or die "never: $what";
	return;
}

sub close_gate
{
	my ($n) = @_;

	$gate->query_safe("SELECT pg_advisory_lock($n)");
	return;
}

sub open_gate
{
	my ($n) = @_;

	$gate->query_safe("SELECT pg_advisory_unlock($n)");
	return;
}

sub wait_at_gate
{
	my ($n, $owner) = @_;

	poll(
		qq(SELECT count(*) = 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.objid = $n AND NOT l.granted AND a.usename = '$owner'
		AND a.backend_type = 'pg_notify_events executor'),
		"$owner waits at gate $n");
	return;
}

# emits count events in one transaction; the third has the given name
sub emit
{
	my ($count, $gate_event) = @_;

	$node->safe_psql(
		'postgres', qq(
		INSERT INTO notification_events (event_name)
		SELECT CASE n WHEN 3 THEN '$gate_event' ELSE 'any' END FROM generate_series(1, $count) n));
	return;
}

# removes handlers and events before the next part
sub clean_up
{
	wait_for_handlers($node, 'postgres');
	$node->safe_psql(
		'postgres', q(
		SELECT drop_event_handler(name) FROM event_handlers;
		DELETE FROM notification_events;
		TRUNCATE seen));
	return;
}

# returns which function was called, as which role, how often, for how many events
sub calls
{
	return $node->safe_psql('postgres',
		'SELECT handler, by_role, count(*), count(DISTINCT id) FROM seen GROUP BY 1, 2 ORDER BY 1, 2');
}

# handled(COUNT, FUNCTION, OWNER): what calls() returns for this many events
sub handled
{
	my ($count, $function, $owner) = @_;

	return $count > 0 ? "$function|$owner|$count|$count" : '';
}

# Lets an executor run its first batch of five events, one batch of many, while
# another session changes the definition.  Returns how many events were handled when
# the change was done: those of the first batch, and those of later batches that ran
# before the change took effect.  A drop does not wait for the batch but ends it, so
# it returns 0.
my $many = 2000;

sub change_during_batch
{
	my ($command) = @_;
	my $drops = $command =~ /drop_event_handler/;
	my $n;

	$node->safe_psql('postgres',
		q(SELECT create_event_handler('h', 'one', owner => 'ann', batch_size => 5, timeout => '10 min')));
	close_gate(1);
	emit($many, 'gate 1');
	wait_at_gate(1, 'ann');

	$session->query_until(qr/begins/, "\\echo begins\nBEGIN;\n$command;\n");
	poll(
		qq(SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $session_pid),
		"$command waits") if !$drops;
	is(calls(), '', "$command: the batch at hand is not done");
	# a drop finishes before the gate is open
	$session->query_safe('SELECT 1') if $drops;
	open_gate(1);
	$session->query_safe('SELECT 1');

	# not committed yet, but no batch can begin from here on
	$n = $node->safe_psql('postgres', 'SELECT count(*) FROM seen');
	if ($drops)
	{
		is($n, '0', "$command: has ended the batch at hand");
	}
	else
	{
		ok($n >= 5 && $n < $many && $n % 5 == 0,
			"$command: has waited for whole batches, and not for all of them ($n events)");
	}
	is(calls(), handled($n, 'one', 'ann'), "$command: the effects are there, once");
	$session->query_safe('COMMIT');
	return $n;
}

my $n = change_during_batch(q(SELECT drop_event_handler('h')));
emit(3, 'any');
wait_for_handlers($node, 'postgres');
is(calls(), handled($n, 'one', 'ann'), 'dropped: not called any more');
is($node->safe_psql('postgres', 'SELECT count(*) FROM event_handlers'),
	'0', 'it is gone');
clean_up();

$n = change_during_batch(q(SELECT pause_event_handler('h')));
emit(3, 'any');
wait_for_handlers($node, 'postgres');
is(calls(), "one|ann|$n|$n", 'paused: not called any more');
is( $node->safe_psql(
		'postgres', 'SELECT state, delivered, pending FROM event_handler_stats'),
	"paused|$n|" . ($many + 3 - $n),
	'paused: figures');
$node->safe_psql('postgres', q(SELECT resume_event_handler('h')));
wait_for_handlers($node, 'postgres');
seen_is_log($node, 'postgres', 'one', 'true', 'resumed');
clean_up();

my %changes = (
	"SELECT alter_event_handler('h', function => 'two', batch_size => 7)" => 'ann',
	"SELECT create_event_handler('h', 'two', owner => 'ann', or_replace => true)" => 'ann',
	"SELECT alter_event_handler('h', function => 'two', owner => 'bob')" => 'bob',
	"SELECT create_event_handler('h', 'two', owner => 'bob', or_replace => true)" => 'bob',
	# the handler starts again from the beginning: its position is gone, too
	"SELECT drop_event_handler('h'), create_event_handler('h', 'two', owner => 'ann', start_from => 'beginning')" => 'all',
);
foreach my $command (sort keys %changes)
{
	$n = change_during_batch($command);
	wait_for_handlers($node, 'postgres');
	my $owner = $changes{$command};
	my $rest = $many - $n;
	($owner, $rest) = ('ann', $many) if $owner eq 'all';

	is(calls(), join("\n", grep { $_ } handled($n, 'one', 'ann'), handled($rest, 'two', $owner)),
		"$command: each event once, by the new definition after it");
	is( $node->safe_psql(
			'postgres', q(
			SELECT bool_and(o.id < t.id) FROM seen o, seen t WHERE o.handler = 'one' AND t.handler = 'two')
		  ),
		't',
		"$command: in order") if $rest != $many;
	is( $node->safe_psql(
			'postgres', 'SELECT delivered, failed, pending FROM event_handler_stats'),
		($rest == $many ? $rest : $many) . '|0|0',
		"$command: figures");
	clean_up();
}

# From here on it is not the turn of handler "h".  Its executor, that of ann, has a
# window for "h" in memory.  It is held in a batch of another handler, whose turn
# comes first.
sub before_its_turn
{
	my ($function) = @_;

	$node->safe_psql(
		'postgres', qq(
		SELECT create_event_handler('gate', 'gate', owner => 'ann');
		SELECT create_event_handler('h', '$function', owner => 'ann', batch_size => 5)));
	close_gate(1);
	emit(12, 'any');
	wait_at_gate(1, 'ann');
	return;
}

sub after_its_turn
{
	open_gate(1);
	# the handler "gate" is called again, so "h" has had its turn
	emit(1, 'any');
	poll(q(SELECT count(*) = 13 FROM seen WHERE handler = 'gate'),
		'the next round');
	return;
}

# another executor has handled all events of "h"
before_its_turn('one');
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', owner => 'bob')));
poll(q(SELECT delivered = 12 FROM event_handler_stats WHERE handler = 'h'),
	'bob does it');
is(calls(), 'one|bob|12|12', 'the new owner does not wait for the old one');
after_its_turn();
wait_for_handlers($node, 'postgres');
is(calls(), "gate|ann|13|13\none|bob|13|13",
	'another executor has been there: nothing twice');
is( $node->safe_psql(
		'postgres', q(SELECT delivered, pending FROM event_handler_stats WHERE handler = 'h')),
	'13|0',
	'nor counted twice');
clean_up();

# the same, and then the handler goes back to its old owner
before_its_turn('one');
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', owner => 'bob')));
poll(q(SELECT delivered = 12 FROM event_handler_stats WHERE handler = 'h'),
	'bob does it');
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', owner => 'ann')));
after_its_turn();
wait_for_handlers($node, 'postgres');
is(calls(), "gate|ann|13|13\none|ann|1|1\none|bob|12|12",
	'and back again: nothing twice');
clean_up();

# another executor is in a batch of the handler at that moment, and it is not the
# last batch
before_its_turn('wait_as_bob');
close_gate(2);
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', owner => 'bob')));
wait_at_gate(2, 'bob');
after_its_turn();
is(calls(), 'gate|ann|13|13',
	'another executor is there: no turn for the old one');
open_gate(2);
wait_for_handlers($node, 'postgres');
is(calls(), "gate|ann|13|13\nwait_as_bob|bob|13|13", 'nothing is lost or doubled');
clean_up();

# the same, and the handler goes back to its old owner before the other executor's
# first batch has ended
before_its_turn('wait_as_bob');
close_gate(2);
$node->safe_psql('postgres', q(SELECT alter_event_handler('h', owner => 'bob')));
wait_at_gate(2, 'bob');
$session->query_until(qr/begins/,
	"\\echo begins\nSELECT alter_event_handler('h', owner => 'ann');\n");
poll(qq(SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $session_pid),
	'the change waits for the batch');
open_gate(2);
$session->query_safe('SELECT 1');
after_its_turn();
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE by_role = 'bob') IN (5, 10, 12)
		FROM seen WHERE handler = 'wait_as_bob')),
	'13|13|t',
	'and back again during a batch: nothing is lost or doubled');
clean_up();

# commands that change the definition itself
my %undone = (
	"SELECT drop_event_handler('h')" => '',
	"SELECT pause_event_handler('h')" => '',
	"SELECT alter_event_handler('h', function => 'two')" => "\ntwo|ann|13|13",
	"SELECT alter_event_handler('h', event_name => 'none')" => '',
	"SELECT create_event_handler('h', 'two', owner => 'ann', or_replace => true)" => "\ntwo|ann|13|13",
	"SELECT drop_event_handler('h'), create_event_handler('h', 'two', owner => 'ann', start_from => 'beginning')" => "\ntwo|ann|13|13",
	"SELECT drop_event_handler('h'), create_event_handler('h', 'two', owner => 'bob', start_from => 'beginning')" => "\ntwo|bob|13|13",
	"SELECT drop_event_handler('h'), create_event_handler('h', 'two', owner => 'ann')" => "\ntwo|ann|1|1",);
foreach my $command (sort keys %undone)
{
	before_its_turn('one');
	# the command waits for nothing
	$node->safe_psql('postgres', "SET statement_timeout = '1min'; $command");
	after_its_turn();
	wait_for_handlers($node, 'postgres');
	is(calls(), "gate|ann|13|13$undone{$command}", "$command before its turn");
	clean_up();
}

$_->quit foreach ($gate, $session);
$node->stop;
done_testing();
