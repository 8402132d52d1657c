
# The audit: writers that keep books, handlers that record each of their calls,
# faults, and a checker that compares all of these event by event.
#
#	my $node = new_server('audit', Audit->settings(SEED));
#	my $audit = Audit->new(NODE, SEED);
#	$audit->start_writers(COUNT);
#	$audit->inject(...);			# faults, while everything works
#	$audit->finish;					# no more faults: until all is quiet
#	my @found = $audit->violations;
#
# Books: each writer (test/clients/audit_writer.py) writes its changes to the table
# "ledger", in the transaction that makes them.  It also writes what the server has
# acknowledged to a file of its own.  Each update of a row increments the row's
# version, so the versions of a row show the order of its changes.
#
# Handlers write into the table "seen", whose key is the order of calls.  Calls of the
# same handler never overlap.
#
# The seed determines beforehand which faults there are, and in what order.  It does
# not determine what they hit: that is up to chance.  Faults wait for the progress of
# writers or handlers, not for time.

package Audit;

use strict;
use warnings;

use FindBin;
use IPC::Run;
use List::Util qw(sum0);
use NotifyEvents qw(crash_server);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $database = 'postgres';
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# The faults that may happen.  "count" is how often in one round.  "do" is a method with
# its argument, "sql" a statement.  While a transaction is open, some faults are not
# allowed: "crash" would end the transaction, "lock" would wait for it.
my %faults = (
	kill_executor => { count => 3, do => [ 'kill', 'executor' ], crash => 1 },
	kill_listener => { count => 1, do => [ 'kill', 'listener' ], crash => 1 },
	kill_launcher => { count => 1, do => [ 'kill', 'launcher' ], crash => 1 },
	kill_writer => { count => 1, do => [ 'kill', 'writer' ], crash => 1 },
	immediate_restart => { count => 2, do => [ 'restart', 'immediate' ], crash => 1 },
	fast_restart => { count => 1, do => [ 'restart', 'fast' ], crash => 1 },
	no_worker_slots => { count => 1, do => ['take_worker_slots'], crash => 1 },
	terminate_executor => { count => 3, do => [ 'signal', 'executor', 'pg_terminate_backend' ] },
	terminate_listener => { count => 2, do => [ 'signal', 'listener', 'pg_terminate_backend' ] },
	terminate_launcher => { count => 1, do => [ 'signal', 'launcher', 'pg_terminate_backend' ] },
	terminate_writer => { count => 2, do => [ 'signal', 'writer', 'pg_terminate_backend' ] },
	cancel_executor => { count => 4, do => [ 'signal', 'executor', 'pg_cancel_backend' ] },
	recreate_handler => { count => 4, do => ['recreate_handler'] },
	change_owner => { count => 4, do => ['change_owner'] },
	change_batch_size => { count => 3, do => ['change_batch_size'] },
	pause_handler => { count => 2, do => ['pause_handler'] },
	few_places => { count => 1, do => ['take_places'] },
	checkpoint => { count => 1, sql => 'CHECKPOINT' },
	vacuum_progress => { count => 2, sql => 'VACUUM _event_handler_progress' },
	reindex_log => { count => 1, sql => 'REINDEX TABLE notification_events', lock => 1 },
	rewrite_log => { count => 1, sql => 'VACUUM FULL notification_events', lock => 1 },
	add_column => {
		count => 1,
		sql => 'ALTER TABLE notification_events ADD COLUMN more uuid DEFAULT gen_random_uuid()',
		lock => 1,
		once => 1,
	},
	# these two enclose some of the others
	open_transaction => { count => 0, do => ['open_transaction'] },
	commit_transaction => { count => 0, do => ['commit_transaction'] },);

# handler => how it is created; "condition" selects the events of the log "l" that it
# must see.  "recreated" is not in this list: a fault creates and drops it.
my %handlers = (
	plain => { owner => 'ann', batch_size => 40 },
	single => { owner => 'ann', batch_size => 1 },
	emitting => { owner => 'ann', batch_size => 25 },
	emitted => { owner => 'cat', batch_size => 30, event_name => 'emitted' },
	array => { owner => 'bob', batch_size => 30 },
	failing => { owner => 'bob', batch_size => 12 },
	ordered => { owner => 'cat', batch_size => 15, ordered => 'true' },
	moving => {
		owner => 'ann',
		batch_size => 20,
		filter => '$.new.id % 2 == 0',
		condition => 'l.item % 2 = 0',
	},);
my @owners = qw(ann bob cat);
my @batch_sizes = (2, 5, 10, 40, 200);

# A random generator of our own: no other code takes numbers from it.
sub random_generator
{
	my $state = $_[0] % 2147483647 || 1;

	my $draw = sub {
		my ($below) = @_;

		$state = $state * 48271 % 2147483647;
		return int($state / 2147483647 * $below);
	};

	# the first numbers are small if the seed is small
	$draw->(1) foreach 1 .. 3;
	return $draw;
}

# settings(SEED): settings of the server; the seed determines some of them, too
sub settings
{
	my ($class, $seed) = @_;
	my $random = random_generator($seed + 1);
	my $any = sub { return $_[ $random->(scalar @_) ]; };

	return (
		'restart_after_crash = on',
		'log_statement = none',
		'max_prepared_transactions = 10',
		'max_wal_size = 2GB',
		"deadlock_timeout = '200 ms'",
		"autovacuum_naptime = '5 s'",
		"pg_notify_events.batch_time = '" . $any->(5, 20, 100) . " ms'",
		# if it is two, the owners take turns
		'pg_notify_events.max_executors = ' . $any->(2, 4, 4),
		"pg_notify_events.executor_idle_timeout = '" . $any->(0, 0, 50) . " ms'");
}

sub new
{
	my ($class, $node, $seed) = @_;
	my $self = bless {
		node => $node,
		seed => $seed,
		random => random_generator($seed),
		files => $PostgreSQL::Test::Utils::tmp_check,
		writers => [],
		counts => {},
		lives => 0,
		transaction => 0,
		wait_until => {},
		started => time,
	}, $class;

	$self->_create_objects;
	return $self;
}

# sql(TEXT): returns the result; the server is up, so an error fails the test
sub sql
{
	my ($self, $sql) = @_;

	return $self->{node}->safe_psql($database, $sql);
}

#
# The database
#

sub _create_objects
{
	my ($self) = @_;

	$self->sql(
		q(
		CREATE EXTENSION pg_notify_events;

		CREATE TABLE items (id bigint PRIMARY KEY, version bigint NOT NULL) WITH (fillfactor = 50);
		CREATE SEQUENCE item_ids START 1000;
		CREATE TABLE ledger (writer integer, transaction integer, item bigint, version bigint);
		-- what the writers' files say
		CREATE TABLE acknowledged (writer integer, transaction integer, outcome "char", items bigint[], versions bigint[]);

		CREATE TABLE seen (
			n bigserial PRIMARY KEY,
			handler text NOT NULL,
			life integer NOT NULL DEFAULT 1,
			event_id bigint,
			item bigint,
			version bigint,
			tried boolean NOT NULL DEFAULT false,
			xact xid8 NOT NULL DEFAULT pg_current_xact_id()
		);
		-- what each handler has to see; and from where to where, if it was made
		-- while others wrote
		CREATE TABLE audited (handler text PRIMARY KEY, event_name text NOT NULL, ordered boolean NOT NULL);
		CREATE TABLE lives (
			handler text,
			life integer,
			born pg_snapshot NOT NULL,
			born_xact xid8 NOT NULL,
			cursor pg_snapshot,
			"window" pg_snapshot,
			last_id bigint,
			failed bigint[],
			PRIMARY KEY (handler, life)
		);
		GRANT SELECT ON lives TO PUBLIC;
		GRANT SELECT, INSERT ON seen TO PUBLIC;
		GRANT USAGE ON seen_n_seq TO PUBLIC;

		-- An event that was tried before may come late.  The row of an attempt
		-- that is the first one, and under way, does not count.
		CREATE FUNCTION was_tried(name text, id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
		BEGIN
			RETURN EXISTS (SELECT FROM public.event_retries r WHERE r.handler = name AND r.event_id = id
				AND (r.attempts > 1 OR r.last_error IS NOT NULL));
		END $$;
		-- Some calls take a while: so that faults meet handlers at work, and
		-- windows are larger than batches.
		CREATE FUNCTION be_slow() RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF random() < 0.006 THEN
				PERFORM pg_sleep(0.05);
			END IF;
		END $$;
		CREATE FUNCTION record_call(name text, e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.seen (handler, event_id, item, version, tried)
			VALUES (name, e.id, (e.event_data #>> '{new,id}')::bigint, (e.event_data #>> '{new,version}')::bigint,
				public.was_tried(name, e.id));
			PERFORM public.be_slow();
		END $$;
		CREATE FUNCTION fail(share float) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF random() < share THEN
				RAISE 'failed at random';
			END IF;
		END $$;

		CREATE FUNCTION see_plain(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.record_call('plain', e); END $$;
		CREATE FUNCTION see_single(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.record_call('single', e); END $$;
		CREATE FUNCTION see_moving(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.record_call('moving', e); END $$;
		CREATE FUNCTION see_emitted(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.record_call('emitted', e); END $$;
		CREATE FUNCTION see_failing(e notification_events) RETURNS void LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.record_call('failing', e); PERFORM public.fail(0.05); END $$;
		CREATE FUNCTION see_emitting(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM public.notify_event('emitted'::varchar, jsonb_build_object('source', e.id));
			PERFORM public.record_call('emitting', e);
		END $$;
		CREATE FUNCTION see_array(e notification_events[]) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			FOR i IN 1 .. cardinality(e) LOOP
				PERFORM public.record_call('array', e[i]);
			END LOOP;
		END $$;
		-- this shape is not told the event's id
		CREATE FUNCTION see_ordered(name text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.seen (handler, item, version)
			VALUES ('ordered', (data #>> '{new,id}')::bigint, (data #>> '{new,version}')::bigint);
			PERFORM public.fail(0.003);
		END $$;
		CREATE FUNCTION see_recreated(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.seen (handler, life, event_id, item, version, tried)
			VALUES ('recreated', (SELECT max(life) FROM public.lives WHERE handler = 'recreated'), e.id,
				(e.event_data #>> '{new,id}')::bigint, (e.event_data #>> '{new,version}')::bigint,
				public.was_tried('recreated', e.id));
			PERFORM public.be_slow();
		END $$;

		CREATE ROLE writer LOGIN;
		CREATE ROLE preparer LOGIN;
		-- NOTIFY cannot be prepared
		ALTER ROLE preparer SET pg_notify_events.announce = off;
		CREATE ROLE ann LOGIN;
		CREATE ROLE bob LOGIN;
		CREATE ROLE cat LOGIN;
		GRANT SELECT ON notification_events TO ann, bob, cat;
		GRANT EXECUTE ON FUNCTION notify_event(varchar, jsonb) TO ann;
		GRANT SELECT, INSERT, UPDATE ON items, ledger TO writer, preparer;
		GRANT USAGE ON item_ids TO writer, preparer;
		GRANT EXECUTE ON FUNCTION notify_event() TO PUBLIC;
	));
	foreach my $name (sort keys %handlers)
	{
		my $handler = $handlers{$name};
		my $event_name = $handler->{event_name} // 'row_changed';
		my $filter = $handler->{filter} ? "'$handler->{filter}'" : 'NULL';
		my $ordered = $handler->{ordered} // 'false';

		$self->sql(
			qq(
			SELECT create_event_handler('$name', 'see_$name', '$event_name', filter => $filter,
				batch_size => $handler->{batch_size}, ordered => $ordered, owner => '$handler->{owner}',
				max_attempts => 1000, retry_delay => '50 ms', max_retry_delay => '500 ms');
			INSERT INTO audited VALUES ('$name', '$event_name', $ordered);
		));
	}
	# create this trigger last: all handlers created before must see every event
	$self->sql(
		q(
		CREATE TRIGGER items_changed AFTER INSERT OR UPDATE ON items
			FOR EACH ROW EXECUTE FUNCTION notify_event('row_changed', 'new', 'id', 'version');
	));
	$self->_change('INSERT INTO items SELECT id, 1 FROM generate_series(1, 12) id');
	$self->_create_handler;
	return;
}

#
# The writers
#

sub _file
{
	my ($self, $writer) = @_;

	return "$self->{files}/writer_$writer";
}

# start_writers(COUNT): starts them, and one more, which prepares its transactions
sub start_writers
{
	my ($self, $count) = @_;
	my $program = "$FindBin::RealBin/../clients/audit_writer.py";

	foreach my $number (1 .. $count + 1)
	{
		my @prepare = $number > $count ? ('prepare') : ();
		my $role = @prepare ? 'preparer' : 'writer';
		my $file = $self->_file($number);

		append_to_file($file, '');
		push @{ $self->{writers} },
		  {
			number => $number,
			position => 0,
			transactions => 0,
			process => IPC::Run::start(
				[
					'python3', $program,
					$self->{node}->connstr($database) . " user=$role",
					$number, $self->{seed}, $file, "$self->{files}/hold", @prepare
				],
				'</dev/null', '>', "$file.out", '2>&1'),
		  };
	}
	return;
}

# returns how many transactions the writers have finished
sub _transactions
{
	my ($self) = @_;

	foreach my $writer (@{ $self->{writers} })
	{
		die "writer $writer->{number} has ended: " . slurp_file($self->_file($writer->{number}) . '.out')
		  unless $self->{finishing} || $writer->{process}->pumpable;
		my $text = slurp_file($self->_file($writer->{number}), $writer->{position});

		$writer->{position} += length $text;
		$writer->{transactions} += $text =~ tr/\n//;
	}
	return sum0(map { $_->{transactions} } @{ $self->{writers} });
}

# returns about how often handlers were called
sub _calls
{
	my ($self) = @_;

	return $self->sql('SELECT last_value FROM seen_n_seq');
}

# _wait(WHAT, CONDITION, [INTERVAL]): waits until the condition holds
sub _wait
{
	my ($self, $what, $condition, $interval) = @_;
	my $deadline = time + $timeout;

	until ($condition->())
	{
		die "timeout while waiting for $what" if time > $deadline;
		usleep($interval // 20_000);
	}
	return;
}

sub _wait_for_writers
{
	my ($self, $more) = @_;
	my $goal = $self->_transactions + $more;

	$self->_wait("$more transactions", sub { $self->_transactions >= $goal });
	return;
}

sub _wait_for_handlers
{
	my ($self, $more) = @_;
	my $goal = $self->_calls + $more;

	$self->_wait("$more calls of handlers", sub { $self->_calls >= $goal }, 50_000);
	return;
}

#
# The harness is also a writer: number 0
#

# returns a statement that changes rows of "items" and records them in the ledger
sub _ledger_statement
{
	my ($self, $statement) = @_;

	return "WITH c AS ($statement RETURNING id, version) "
	  . "INSERT INTO ledger SELECT 0, $self->{transaction}, id, version FROM c RETURNING item, version;\n";
}

# records that the current transaction is acknowledged; rows are "item|version"
sub _record
{
	my ($self, @rows) = @_;
	my @columns = ([], []);

	foreach my $row (@rows)
	{
		my @values = split(/\|/, $row);
		push @{ $columns[$_] }, $values[$_] foreach 0, 1;
	}
	append_to_file($self->_file(0),
		join("\t", 0, $self->{transaction}, 'A', map { '{' . join(',', @$_) . '}' } @columns) . "\n");
	return;
}

# _change(STATEMENT...): executes statements in one transaction: those that change
# items, and others
sub _change
{
	my ($self, @statements) = @_;

	$self->{transaction}++;
	my $result = $self->sql(
		join('',
			"BEGIN;\n",
			(map { / items / ? $self->_ledger_statement($_) : "$_;\n" } @statements),
			"COMMIT;\n"));
	$self->_record(grep { /^-?\d+\|\d+$/ } split(/\n/, $result));
	return;
}

#
# Faults
#

# _draw_round(FIRST, MEANWHILE): returns the faults of one round, each with its
# parameters, all determined by the seed.  MEANWHILE is the number of faults while the
# transaction is open.
sub _draw_round
{
	my ($self, $first, $meanwhile) = @_;
	my $random = $self->{random};
	my @round;

	foreach my $kind (sort keys %faults)
	{
		next if $faults{$kind}->{once} && !$first;
		push @round, ($kind) x $faults{$kind}->{count};
	}
	foreach my $i (reverse 1 .. $#round)
	{
		my $j = $random->($i + 1);
		@round[ $i, $j ] = @round[ $j, $i ];
	}

	my @gentle = grep { !$faults{$_}->{crash} && !$faults{$_}->{lock} } @round;
	splice(
		@round, $random->(25), 0, 'open_transaction',
		(map { $gentle[ $random->(scalar @gentle) ] } 1 .. $meanwhile),
		'commit_transaction');

	my $open = 0;
	my @drawn;
	foreach my $kind (@round)
	{
		$open = 0 if $kind eq 'commit_transaction';
		push @drawn,
		  {
			kind => $kind,
			open => $open,
			# what to wait for before the fault, and for how many of these
			wait => ($random->(3) == 0 ? 'handlers' : 'writers'),
			share => $random->(1000) / 1000,
			# selects the process, handler, owner or size
			choice => $random->(1_000_000),
		  };
		$open = 1 if $kind eq 'open_transaction';
	}
	return @drawn;
}

# inject(OPTION => VALUE...): injects faults.  seconds: stop after this time, but not
# before "least" faults were injected; rounds: at most this many; open_faults,
# open_seconds: how long a transaction stays open
sub inject
{
	my ($self, %option) = @_;
	my $end = time + $option{seconds};
	my $told = time;
	my $injected = 0;
	my $pause = ($option{open_seconds} // 0) / $option{open_faults};

	for (my $round = 1; !$option{rounds} || $round <= $option{rounds}; $round++)
	{
		foreach my $fault ($self->_draw_round($round == 1, $option{open_faults}))
		{
			my $kind = $fault->{kind};

			return if time > $end && $injected >= $option{least};
			usleep(1_000_000 * $pause) if $fault->{open};
			if ($fault->{wait} eq 'handlers')
			{
				$self->_wait_for_handlers(20 + int(150 * $fault->{share}));
			}
			else
			{
				$self->_wait_for_writers(3 + int(25 * $fault->{share}));
			}

			append_to_file("$self->{files}/faults", "$kind $fault->{choice}\n");
			$self->_continue_open_transaction($fault) if $self->{open};
			$self->_do($fault);
			$self->_resume_handlers(0);
			if ($kind ne 'commit_transaction')
			{
				$self->{counts}->{$kind}++;
				$injected++;
			}
			if (time > $told + 15)
			{
				$told = time;
				note $self->progress;
			}
		}
		$self->_catch_up;
	}
	return;
}

# Writers pause until handlers have caught up; otherwise handlers might never catch up.
sub _catch_up
{
	my ($self) = @_;
	my $hold = "$self->{files}/hold";

	append_to_file($hold, '');
	$self->sql("CALL wait_for_event_handlers('$timeout s')");
	unlink $hold or die "cannot remove $hold: $!";
	return;
}

# returns how many faults there were
sub faults
{
	my ($self) = @_;

	return sum0(values %{ $self->{counts} });
}

# returns a line about the progress
sub progress
{
	my ($self) = @_;

	return sprintf('%3d s: %d faults, %d transactions, %d calls of handlers',
		time - $self->{started}, $self->faults,
		$self->_transactions, $self->_calls);
}

# returns lines that tell what was done
sub summary
{
	my ($self) = @_;
	my $counts = $self->{counts};

	return (
		sprintf('seed %s: %d s, %d faults', $self->{seed}, time - $self->{started}, $self->faults),
		join(', ', map { "$_ $counts->{$_}" } sort keys %$counts),
		$self->sql(
			q(
			SELECT format('%s transactions acknowledged, %s rolled back, %s unknown; %s events',
				count(*) FILTER (WHERE outcome = 'A'), count(*) FILTER (WHERE outcome = 'R'),
				count(*) FILTER (WHERE outcome = 'U'), (SELECT count(*) FROM notification_events))
			FROM acknowledged)),
		$self->sql(
			q(
			SELECT format('%s effects of %s calls: ', sum(n), (SELECT last_value FROM seen_n_seq)) ||
				string_agg(format('%s %s', handler, n) || CASE WHEN tried > 0 THEN format(' (%s tried before)', tried) ELSE '' END,
					', ' ORDER BY handler)
			FROM (SELECT handler, count(*) AS n, count(*) FILTER (WHERE tried) AS tried FROM seen GROUP BY handler) s)));
}

# _processes(CONDITION): waits until such processes exist; returns the active ones, or
# all of them if none is active
sub _processes
{
	my ($self, $condition) = @_;
	my @pids;

	$self->_wait(
		"a process with $condition",
		sub {
			@pids = split(
				/\n/,
				$self->sql(
					qq(
					SELECT pid FROM pg_stat_activity WHERE $condition
					AND (state = 'active' OR NOT EXISTS (
						SELECT FROM pg_stat_activity WHERE $condition AND state = 'active'))
					ORDER BY backend_start)));
			return @pids > 0;
		},
		50_000);
	return @pids;
}

sub _process
{
	my ($self, $fault, $who) = @_;
	my @pids = $self->_processes(
		$who eq 'writer'
		? q(application_name = 'audit_writer')
		: "backend_type = 'pg_notify_events $who'");

	return $pids[ $fault->{choice} % @pids ];
}

sub _do
{
	my ($self, $fault) = @_;
	my $what = $faults{ $fault->{kind} };

	if ($what->{sql})
	{
		$self->sql($what->{sql});
	}
	else
	{
		my ($method, @arguments) = @{ $what->{do} };

		$method = "_$method";
		$self->$method($fault, @arguments);
	}
	return;
}

sub _kill
{
	my ($self, $fault, $who) = @_;

	crash_server($self->{node}, sub { $self->_process($fault, $who) });
	return;
}

sub _signal
{
	my ($self, $fault, $who, $function) = @_;
	my $pid = $self->_process($fault, $who);

	$self->sql("SELECT $function($pid)");
	return;
}

sub _restart
{
	my ($self, $fault, $mode) = @_;

	$self->{node}->stop($mode);
	$self->{node}->start;
	return;
}

# The launcher and the listener take all worker slots.
sub _take_worker_slots
{
	my ($self) = @_;
	my $node = $self->{node};

	$node->adjust_conf('postgresql.conf', 'max_worker_processes', '2');
	$node->restart;
	$self->_wait_for_writers(20);
	$node->adjust_conf('postgresql.conf', 'max_worker_processes', '16');
	$node->restart;
	return;
}

# Returns one of the handlers that always exist.
sub _handler
{
	my ($self, $fault) = @_;
	my @names = sort keys %handlers;

	return $names[ $fault->{choice} % @names ];
}

sub _change_owner
{
	my ($self, $fault) = @_;
	my $owner = $self->sql(q(SELECT owner FROM event_handlers WHERE name = 'moving'));
	my @others = grep { $_ ne $owner } @owners;

	$self->sql("SELECT alter_event_handler('moving', owner => '$others[$fault->{choice} % @others]')");
	return;
}

sub _change_batch_size
{
	my ($self, $fault) = @_;
	my $name = $self->_handler($fault);
	my $size = $batch_sizes[ int($fault->{choice} / 1000) % @batch_sizes ];

	# the audit checks that each event of "single" has a transaction of its own
	$name = 'plain' if $name eq 'single';
	$self->sql("SELECT alter_event_handler('$name', batch_size => $size)");
	return;
}

# The handler stays paused during the next two faults.
sub _pause_handler
{
	my ($self, $fault) = @_;
	my $name = $self->_handler($fault);

	$self->sql("SELECT pause_event_handler('$name')");
	$self->{paused}->{$name} = 3;
	return;
}

sub _resume_handlers
{
	my ($self, $all) = @_;

	foreach my $name (sort keys %{ $self->{paused} })
	{
		next if --$self->{paused}->{$name} > 0 && !$all;
		$self->sql("SELECT resume_event_handler('$name')");
		delete $self->{paused}->{$name};
	}
	return;
}

# There is one executor slot, so owners take turns.
sub _take_places
{
	my ($self) = @_;

	$self->sql('ALTER SYSTEM SET pg_notify_events.max_executors = 1');
	$self->sql('SELECT pg_reload_conf()');
	$self->_wait_for_writers(20);
	$self->sql('ALTER SYSTEM RESET pg_notify_events.max_executors');
	$self->sql('SELECT pg_reload_conf()');
	return;
}

# Open a transaction that stays open.  It changes rows of its own at the start,
# meanwhile and at its end.
sub _open_transaction
{
	my ($self) = @_;

	$self->{open_id} = ++$self->{transaction};
	$self->{open_rows} = [];
	$self->_open_query('BEGIN');
	$self->_open_change("INSERT INTO items VALUES (-1000 - $self->{open_id}, 1)");
	return;
}

# Hide the output of this session.
sub _open_query
{
	my ($self, $query) = @_;
	my $builder = Test::More->builder;
	my $output = $builder->output;

	$builder->output(\my $nothing);
	$self->{open} //= $self->{node}->background_psql($database);
	my $result = $self->{open}->query_safe($query);
	$builder->output($output);
	return $result;
}

sub _open_change
{
	my ($self, $statement) = @_;
	local $self->{transaction} = $self->{open_id};

	push @{ $self->{open_rows} },
	  split(/\n/, $self->_open_query($self->_ledger_statement($statement)));
	return;
}

sub _continue_open_transaction
{
	my ($self, $fault) = @_;
	my $update = "UPDATE items SET version = version + 1 WHERE id = -1000 - $self->{open_id}";

	if ($fault->{choice} % 2)
	{
		$self->_open_query('SAVEPOINT s');
		$self->_open_query($update);
		$self->_open_query('ROLLBACK TO s');
	}
	$self->_open_change($update);
	return;
}

sub _commit_transaction
{
	my ($self) = @_;
	local $self->{transaction} = $self->{open_id};

	$self->_open_query('COMMIT');
	$self->{open}->quit;
	$self->_record(@{ $self->{open_rows} });
	delete $self->{open};
	return;
}

# A handler that is created while others write must see exactly what the snapshot of
# its creation does not see, and all events of the transaction that creates it.
sub _create_handler
{
	my ($self) = @_;
	my $life = ++$self->{lives};

	$self->_change(
		"INSERT INTO items VALUES (-$life, 1)",
		qq(
		INSERT INTO lives (handler, life, born, born_xact)
		SELECT 'recreated', $life, pg_current_snapshot(), pg_current_xact_id()
		FROM create_event_handler('recreated', 'see_recreated', 'row_changed', owner => 'bob', batch_size => 7,
			max_attempts => 1000, retry_delay => '50 ms', max_retry_delay => '500 ms')),
		"UPDATE items SET version = version + 1 WHERE id = -$life");
	return;
}

# A dropped handler has seen exactly what its position says, except for events that
# failed and had not been retried.
sub _drop_handler
{
	return (
		q(SELECT pause_event_handler('recreated')),
		q(
		UPDATE lives l SET cursor = p.cursor, "window" = p."window", last_id = p.last_id,
			failed = ARRAY(SELECT event_id FROM event_retries WHERE handler = 'recreated')
		FROM _event_handler_progress p
		WHERE p.handler = 'recreated' AND l.handler = p.handler
		AND l.life = (SELECT max(life) FROM lives WHERE handler = 'recreated')),
		q(SELECT drop_event_handler('recreated')));
}

sub _recreate_handler
{
	my ($self, $fault) = @_;

	$self->_change($self->_drop_handler);
	$self->_wait_for_writers(5) if $fault->{choice} % 2;
	$self->_create_handler;
	return;
}

#
# The end
#

# finish(): ends the faults, and waits until everything has been handled.  Returns what
# went wrong with that.
sub finish
{
	my ($self) = @_;
	my $node = $self->{node};
	my @wrong;

	$self->_commit_transaction if $self->{open};
	$self->_resume_handlers(1);
	# so that at least one handler was dropped
	$self->_recreate_handler({ choice => 1 });
	$self->{finishing} = 1;
	$_->{process}->signal('TERM') foreach @{ $self->{writers} };
	foreach my $writer (@{ $self->{writers} })
	{
		next if $writer->{process}->finish;
		push @wrong, "writer $writer->{number} failed: " . slurp_file($self->_file($writer->{number}) . '.out');
	}
	my $prepared = $self->sql('SELECT count(*) FROM pg_prepared_xacts');
	push @wrong, "$prepared transactions are still prepared" if $prepared > 0;

	# retries may emit events: so wait once more
	foreach my $pass (1, 2)
	{
		$self->sql("CALL wait_for_event_handlers('$timeout s')");
		$node->poll_query_until($database,
			q(SELECT count(*) = 0 FROM event_retries WHERE state = 'waiting'))
		  or push @wrong, 'retries do not end';
	}
	$self->sql("\\copy acknowledged from '" . $self->_file($_) . "'")
	  foreach 0, map { $_->{number} } @{ $self->{writers} };
	$self->sql('VACUUM ANALYZE');
	push @wrong, "event_retries: $_"
	  foreach split(/\n/,
		$self->sql('SELECT handler, event_id, state, last_error FROM event_retries'));

	my $log = slurp_file($node->logfile);
	push @wrong, $1 while $log =~ /^(.*(?:PANIC:|TRAP:|terminated by signal (?!9\b|3\b)).*)$/mg;
	return @wrong;
}

# messages(): returns the complaints of the workers, with how often each was logged
sub messages
{
	my ($self) = @_;
	my %messages;

	foreach my $line (split(/\n/, slurp_file($self->{node}->logfile)))
	{
		next unless $line =~ /pg_notify_events (launcher|listener|executor) .*?((?:WARNING|ERROR|FATAL|PANIC):.*)/;
		my ($who, $message) = ($1, $2);
		$message =~ s/\d+/N/g;
		$messages{"$who: $message"}++;
	}
	return map { "$messages{$_} x $_" } sort keys %messages;
}

# violations([SQL]): returns what is wrong, as lines "kind|handler|how many|for example".
# With SQL: as if that SQL had been executed before.
sub violations
{
	my ($self, $change) = @_;
	my $condition = join(' ',
		map { "WHEN '$_' THEN $handlers{$_}->{condition}" }
		grep { $handlers{$_}->{condition} } sort keys %handlers);

	my $result = $self->sql(
		'BEGIN; ' . ($change // '') . qq(;
		CREATE TEMPORARY TABLE log ON COMMIT DROP AS
			SELECT id, event_name::text, txid, (event_data #>> '{new,id}')::bigint AS item,
				   (event_data #>> '{new,version}')::bigint AS version, (event_data ->> 'source')::bigint AS source
			FROM notification_events;
		ANALYZE log;

		-- where the event's id was not told, item and version say which it was
		CREATE TEMPORARY TABLE called ON COMMIT DROP AS
			SELECT s.n, s.handler, s.life, COALESCE(s.event_id, l.id, -1) AS event_id, s.item, s.version, s.tried, s.xact
			FROM seen s
			LEFT JOIN log l ON s.event_id IS NULL AND l.event_name = 'row_changed'
				AND l.item = s.item AND l.version = s.version;
		ANALYZE called;

		CREATE TEMPORARY TABLE expected ON COMMIT DROP AS
			SELECT a.handler, 1 AS life, l.id AS event_id
			FROM audited a
			JOIN log l ON l.event_name = a.event_name AND CASE a.handler $condition ELSE true END
		UNION ALL
			SELECT v.handler, v.life, l.id
			FROM lives v
			JOIN log l ON l.event_name = 'row_changed'
				AND (l.txid = v.born_xact OR NOT pg_visible_in_snapshot(l.txid, v.born))
				AND (v.cursor IS NULL OR pg_visible_in_snapshot(l.txid, v.cursor)
					OR (v."window" IS NOT NULL AND pg_visible_in_snapshot(l.txid, v."window") AND l.id <= v.last_id))
				AND l.id <> ALL (COALESCE(v.failed, '{}'));
		ANALYZE expected;

		CREATE TEMPORARY TABLE changed ON COMMIT DROP AS
			SELECT a.writer, a.transaction, a.outcome, c.item, c.version
			FROM acknowledged a CROSS JOIN LATERAL unnest(a.items, a.versions) AS c (item, version);
		ANALYZE changed;

		SELECT kind, handler, count(*), min(example) FROM (
			-- handlers
			SELECT 'lost' AS kind, handler || ' ' || life AS handler, 'event ' || event_id AS example FROM
				(SELECT handler, life, event_id FROM expected EXCEPT SELECT handler, life, event_id FROM called) d
		UNION ALL
			SELECT 'foreign', handler || ' ' || life, 'event ' || event_id FROM
				(SELECT handler, life, event_id FROM called EXCEPT SELECT handler, life, event_id FROM expected) d
		UNION ALL
			SELECT 'doubled', handler || ' ' || life, 'event ' || event_id
			FROM called GROUP BY handler, life, event_id HAVING count(*) > 1
		UNION ALL
			SELECT 'out of order', handler || ' ' || life, format('row %s version %s after %s', item, version, previous) FROM
				(SELECT c.handler, c.life, c.item, c.version,
						lag(c.version) OVER (PARTITION BY c.handler, c.life, c.item ORDER BY c.n) AS previous
				 FROM called c LEFT JOIN audited a USING (handler)
				 WHERE a.ordered OR NOT c.tried) d
			WHERE version < previous
		UNION ALL
			SELECT 'together', handler, 'transaction ' || xact
			FROM called WHERE handler = 'single' GROUP BY handler, xact HAVING count(*) > 1
		UNION ALL
			SELECT 'figures', handler, format('delivered %s', delivered) FROM event_handler_stats s
			WHERE delivered <> (SELECT count(*) FROM called c WHERE c.handler = s.handler
				AND c.life = COALESCE((SELECT max(life) FROM lives v WHERE v.handler = s.handler), 1))
		-- the log
		UNION ALL
			SELECT 'not recorded', 'log', format('row %s version %s', item, version) FROM
				(SELECT item, version FROM ledger EXCEPT ALL SELECT item, version FROM log WHERE event_name = 'row_changed') d
		UNION ALL
			SELECT 'recorded, but not committed', 'log', format('row %s version %s', item, version) FROM
				(SELECT item, version FROM log WHERE event_name = 'row_changed' EXCEPT ALL SELECT item, version FROM ledger) d
		UNION ALL
			SELECT 'emitted by a lost call', 'log', 'source ' || source FROM
				(SELECT source FROM log WHERE event_name = 'emitted'
				 EXCEPT ALL SELECT event_id FROM called WHERE handler = 'emitting') d
		UNION ALL
			SELECT 'not emitted by a call', 'log', 'source ' || event_id FROM
				(SELECT event_id FROM called WHERE handler = 'emitting'
				 EXCEPT ALL SELECT source FROM log WHERE event_name = 'emitted') d
		-- the writers
		UNION ALL
			SELECT 'acknowledged, but gone', 'writer ' || writer, format('transaction %s, row %s version %s', transaction, item, version) FROM
				(SELECT writer, transaction, item, version FROM changed WHERE outcome = 'A'
				 EXCEPT SELECT writer, transaction, item, version FROM ledger) d
		UNION ALL
			SELECT 'in the ledger, but never made', 'writer ' || writer, format('transaction %s, row %s version %s', transaction, item, version) FROM
				(SELECT writer, transaction, item, version FROM ledger
				 EXCEPT SELECT writer, transaction, item, version FROM changed WHERE outcome IN ('A', 'U')) d
		UNION ALL
			SELECT 'half of a transaction', 'writer ' || writer, 'transaction ' || transaction FROM
				(SELECT c.writer, c.transaction FROM changed c
				 LEFT JOIN ledger l USING (writer, transaction, item, version)
				 WHERE c.outcome = 'U'
				 GROUP BY c.writer, c.transaction HAVING count(l.item) NOT IN (0, count(*))) d
		UNION ALL
			SELECT 'not the rows', 'ledger', 'row ' || COALESCE(i.id, l.item) FROM items i
			FULL JOIN (SELECT item, max(version) AS version, count(*) AS n FROM ledger GROUP BY item) l ON l.item = i.id
			WHERE i.version IS DISTINCT FROM l.version OR l.n IS DISTINCT FROM l.version
		) v GROUP BY kind, handler ORDER BY kind, handler;
		ROLLBACK));
	return split(/\n/, $result);
}

1;
