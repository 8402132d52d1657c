
# A handler has an ordinary session of its owner.  What works in a transaction of
# such a session works here, too.  What its owner has no right to do fails.  Nothing
# of it reaches the next batch, whatever the handler tries.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'session',
	'log_statement = none',
	'max_prepared_transactions = 10',
	"pg_notify_events.batch_time = '1min'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'bob', 'carl');
$node->safe_psql(
	'postgres', q(
	CREATE ROLE root LOGIN SUPERUSER;
	GRANT bob TO ann;
	GRANT INSERT ON notification_events TO ann;

	-- what handlers did, and as whom; a probe tells what it finds
	CREATE TABLE acted (id bigint, text text, n bigint GENERATED ALWAYS AS IDENTITY);
	CREATE TABLE probed (id bigint, session text);
	CREATE TABLE who (what text, role name DEFAULT current_user, session_role name DEFAULT session_user);
	GRANT SELECT, INSERT ON acted, probed, who TO PUBLIC;
	CREATE FUNCTION whoami(what text) RETURNS integer LANGUAGE sql
		AS $$ INSERT INTO public.who VALUES ($1); SELECT 1 $$;

	-- the handler runs what the event says; a probe looks at the session
	CREATE FUNCTION act(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF e.event_name = 'probe' THEN
			INSERT INTO public.probed SELECT e.id, concat_ws(' ', session_user, current_user,
				'settings', (SELECT count(*) FROM pg_catalog.pg_settings WHERE source = 'session'),
				'read_only', current_setting('transaction_read_only'),
				'isolation', current_setting('transaction_isolation'),
				'custom', coalesce(nullif(current_setting('my.setting', true), ''), 'none'),
				'temporary', (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())
					+ (SELECT count(*) FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.pg_my_temp_schema()),
				'prepared', (SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE from_sql),
				'cursors', (SELECT count(*) FROM pg_catalog.pg_cursors WHERE is_holdable),
				'locks', (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'),
				'channels', (SELECT count(*) FROM pg_catalog.pg_listening_channels()),
				'path', current_schemas(false)::text);
		ELSE
			INSERT INTO public.acted (id, text) VALUES (e.id, e.event_data ->> 0);
			EXECUTE e.event_data ->> 0;
		END IF;
	END $$;

	CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
	CREATE PROCEDURE rolls_back() LANGUAGE plpgsql AS $$ BEGIN ROLLBACK; END $$;
	CREATE PROCEDURE acts() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.own VALUES (1); END $$;

	SET ROLE ann;
	CREATE TABLE own (a integer);
	CREATE TABLE parent (a integer PRIMARY KEY);
	CREATE TABLE child (a integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE at_commit (a integer);
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM whoami('deferred trigger'); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON at_commit DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION at_commit();
));

# ann's own schema has an object for every name that internal statements could mean
# if they were not qualified.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE caught (what text, role name DEFAULT current_user);
	GRANT SELECT, INSERT ON caught TO PUBLIC;
	CREATE SCHEMA evil AUTHORIZATION ann;
	SET ROLE ann;
	CREATE FUNCTION evil.caught(what text) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.caught VALUES ($1) $$;
	CREATE FUNCTION evil.plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS
		$$ BEGIN PERFORM evil.caught('+'); RETURN 0; END $$;
	CREATE OPERATOR evil.+ (FUNCTION = evil.plus, LEFTARG = bigint, RIGHTARG = bigint);
	CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
		$$ BEGIN PERFORM evil.caught('clock_timestamp()'); RETURN NULL; END $$;
	CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
		$$ BEGIN PERFORM evil.caught('now()'); RETURN NULL; END $$;
	CREATE DOMAIN evil.pg_snapshot AS text;
	CREATE DOMAIN evil.text AS pg_catalog.text;
));
foreach my $type (qw(text bigint oid name boolean timestamptz))
{
	$node->safe_psql(
		'postgres', qq(
		SET ROLE ann;
		CREATE FUNCTION evil.compare($type, $type) RETURNS boolean LANGUAGE plpgsql AS
			\$\$ BEGIN PERFORM evil.caught('$type'); RETURN false; END \$\$;
		CREATE OPERATOR evil.= (FUNCTION = evil.compare, LEFTARG = $type, RIGHTARG = $type);
		CREATE OPERATOR evil.<> (FUNCTION = evil.compare, LEFTARG = $type, RIGHTARG = $type);
		CREATE OPERATOR evil.<= (FUNCTION = evil.compare, LEFTARG = $type, RIGHTARG = $type);
	));
}
my $hijack = 'CREATE TEMP TABLE notification_events (id bigint); CREATE TEMP TABLE _event_handlers (name text); '
  . 'CREATE TEMP TABLE _event_handler_progress (handler text); CREATE TEMP TABLE _event_retries (handler text, event_id bigint); '
  . 'CREATE TEMP TABLE _event_handler_failures (handler text); CREATE TEMP TABLE pg_class (a int); '
  . 'SET search_path = evil, pg_temp, public, pg_catalog';

# each statement, with the SQLSTATE of its failure if it fails
my @of_ann = (
	# these statements work
	[ 'INSERT INTO own VALUES (1)' ],
	[ 'CREATE TEMP TABLE mine (a serial PRIMARY KEY); INSERT INTO mine DEFAULT VALUES' ],
	[ q(CREATE FUNCTION pg_temp.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'; SELECT pg_temp.f()) ],
	[ 'INSERT INTO child VALUES (1); INSERT INTO parent VALUES (1)' ],
	[ 'SET CONSTRAINTS ALL IMMEDIATE' ],
	[ 'INSERT INTO child VALUES (2); INSERT INTO parent VALUES (2)' ],
	[ 'INSERT INTO at_commit VALUES (1)' ],
	[ q(DECLARE held CURSOR WITH HOLD FOR SELECT whoami('cursor')) ],
	[ q(DO $x$ BEGIN INSERT INTO own VALUES (1/0); EXCEPTION WHEN division_by_zero THEN INSERT INTO own VALUES (2); END $x$) ],
	[ 'CALL acts()' ],
	[ q(NOTIFY from_handler, 'heard') ],
	[ 'PREPARE mine AS SELECT 1; EXECUTE mine' ],
	[ q(SET work_mem = '1MB'; SET my.setting = 'x'; SET DateStyle = 'SQL') ],
	[ q(SET LOCAL work_mem = '1MB'; SET LOCAL my.setting = 'x') ],
	[ q(SELECT set_config('work_mem', '1MB', false), set_config('my.setting', 'x', true)) ],
	[ 'SET default_transaction_read_only = on' ],
	[ 'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE' ],
	[ q(SET statement_timeout = '1ms'; SET lock_timeout = '1ms'; SET idle_in_transaction_session_timeout = '1ms') ],
	[ 'SET row_security = off' ],
	[ 'SET ROLE bob' ],
	[ 'SET LOCAL ROLE bob' ],
	[ 'SET SESSION AUTHORIZATION ann' ],
	[ 'SET SESSION AUTHORIZATION DEFAULT; RESET ROLE' ],
	[ 'RESET ALL' ],
	[ 'DISCARD TEMP' ],
	[ 'DISCARD PLANS' ],
	[ 'DISCARD SEQUENCES' ],
	[ 'DEALLOCATE ALL' ],
	[ 'UNLISTEN *' ],
	[ 'SELECT pg_advisory_lock(1), pg_advisory_lock_shared(2, 3), pg_advisory_xact_lock(4)' ],
	[ 'SELECT pg_advisory_unlock_all()' ],
	[ 'LOCK TABLE own' ],
	[ q(ALTER ROLE ann SET work_mem = '5MB') ],
	[ q(ALTER ROLE ann SET default_transaction_read_only = on) ],
	[ $hijack ],
	[ "$hijack; INSERT INTO public.at_commit VALUES (2)" ],
	[ q(INSERT INTO public.notification_events (event_name, txid, origin_txid) VALUES ('forged', '3', NULL)) ],
	[ q(INSERT INTO public.notification_events (event_name, txid) VALUES ('forged', '9000000000000000000')) ],
	# transaction commands fail
	[ 'COMMIT', '0A000' ],
	[ 'ROLLBACK', '0A000' ],
	[ 'SAVEPOINT s', '0A000' ],
	[ 'CALL commits()', '2D000' ],
	[ 'CALL rolls_back()', '2D000' ],
	[ 'DO $x$ BEGIN COMMIT; END $x$', '2D000' ],
	[ q(PREPARE TRANSACTION 'x'), '0A000' ],
	# statements that must be alone, or that need a client, fail
	[ 'DISCARD ALL', '25001' ],
	[ 'VACUUM own', '25001' ],
	[ 'CREATE INDEX CONCURRENTLY ON own (a)', '25001' ],
	[ 'LISTEN somewhere', '0A000' ],
	[ 'COPY own TO STDOUT', '0A000' ],
	[ 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE', '25001' ],
	# a call can be read only; the update of its progress is not affected
	[ 'SET TRANSACTION READ ONLY' ],
	[ 'SET transaction_read_only = on' ],
	[ 'SET TRANSACTION READ ONLY; INSERT INTO own VALUES (1)', '25006' ],
	# these statements fail at commit
	[ 'INSERT INTO child VALUES (99)', '23503' ],
	[ q(DECLARE held CURSOR WITH HOLD FOR SELECT 1 / (random() * 0)::integer), '22012' ],
	# the rights of other roles are refused
	[ 'SET SESSION AUTHORIZATION bob', '42501' ],
	[ 'SET SESSION AUTHORIZATION postgres', '42501' ],
	[ 'RESET SESSION AUTHORIZATION; RESET ROLE; SET ROLE postgres', '42501' ],
	[ 'SET ROLE carl', '42501' ],
	[ 'SET session_replication_role = replica', '42501' ],
	[ 'SET pg_notify_events.announce = off', '42501' ],
	[ q(COPY own FROM PROGRAM 'true'), '42501' ],
	[ 'ALTER TABLE public.notification_events DISABLE TRIGGER ALL', '42501' ],
	[ 'CREATE TRIGGER t BEFORE INSERT ON public.notification_events FOR EACH ROW EXECUTE FUNCTION at_commit()', '42501' ],
	[ 'UPDATE public._event_handlers SET paused = true', '42501' ],
	[ 'UPDATE public._event_handler_progress SET delivered = 0', '42501' ],
	[ 'DELETE FROM public._event_retries', '42501' ],
	[ 'UPDATE public.notification_events SET event_name = event_name', '42501' ],
	[ q(SELECT public.pause_event_handler('of_carl')), '42501' ],
	[ q(SELECT public.activate_events()), '42501' ],
	# all of this is undone with its event
	[ q(NOTIFY from_handler, 'lost'; INSERT INTO own VALUES (1000); SET work_mem = '1MB'; SET ROLE bob; SELECT 1/0), '22012' ],);
my @of_root = (
	[ 'SET ROLE bob' ],
	[ 'SET SESSION AUTHORIZATION bob' ],
	[ 'SET SESSION AUTHORIZATION bob; SET ROLE bob' ],
	[ 'SET LOCAL SESSION AUTHORIZATION bob' ],
	[ 'SET ROLE ann; SET SESSION AUTHORIZATION bob; SELECT 1/0', '22012' ],
	[ 'SET session_replication_role = replica' ],
	[ 'SET pg_notify_events.announce = off; SET pg_notify_events.payload = id' ],
	[ 'SET default_transaction_read_only = on; SET log_statement = none' ],);

sub event_data
{
	my ($statement) = @_;

	return "jsonb_build_array('" . ($statement =~ s/'/''/gr) . "')";
}

# Run each statement in a batch of its own, followed by a probe.
sub check_statements
{
	my ($owner, @statements) = @_;
	my $offset = 0;

	$node->safe_psql(
		'postgres', qq(
		DELETE FROM notification_events;
		TRUNCATE acted, probed;
		SELECT create_event_handler('of_$owner', 'act', '*e', owner => '$owner', batch_size => 1, max_attempts => 1);
		INSERT INTO notification_events (event_name, event_data) VALUES ('probe', NULL), )
		  . join(', ', map { "('execute', " . event_data($_->[0]) . "), ('probe', NULL)" } @statements));
	wait_for_handlers($node, 'postgres');

	my %outcome = map { split(/\|/, $_, 2) } split(
		/\n/,
		$node->safe_psql(
			'postgres', q(
			SELECT row_number() OVER (ORDER BY l.id) - 1, CASE
				WHEN r.state IS NOT NULL THEN r.state || ' ' || r.last_sqlstate
				WHEN a.id IS NOT NULL THEN 'done' END
			FROM notification_events l LEFT JOIN event_retries r ON r.event_id = l.id LEFT JOIN acted a ON a.id = l.id
			WHERE l.event_name = 'execute')));
	foreach my $n (0 .. $#statements)
	{
		my ($statement, $sqlstate) = @{ $statements[$n] };

		is($outcome{$n}, $sqlstate ? "dead $sqlstate" : 'done', "$owner: $statement");
	}
	is( $node->safe_psql('postgres', 'SELECT DISTINCT session FROM probed'),
		"$owner $owner settings 0 read_only off isolation read committed custom none temporary 0 prepared 0 "
		  . 'cursors 0 locks 0 channels 0 path {public}',
		"$owner: the next batch finds a fresh session");
	is( $node->safe_psql(
			'postgres', q(
			SELECT count(*) FROM notification_events l FULL JOIN probed p USING (id) WHERE (l.event_name = 'probe') <> (p.id IS NOT NULL))),
		'0',
		"$owner: each of them");
	is( $node->safe_psql('postgres', 'SELECT count(*) FROM event_worker_stats WHERE last_error IS NOT NULL'),
		'0',
		"$owner: no worker had an error of its own");
	$node->safe_psql('postgres', "SELECT drop_event_handler('of_$owner')");
	return;
}

my $client = $node->background_psql('postgres');
$client->query_safe('LISTEN from_handler');
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('record', 'record', 'forged', owner => 'bob');
	SELECT create_event_handler('of_carl', 'record', 'none', owner => 'carl');
));
check_statements('ann', @of_ann);

is( $node->safe_psql('postgres', 'SELECT a, count(*) FROM own GROUP BY a ORDER BY a'),
	"1|2\n2|1", 'what was done is there, once, and what failed is not');
is($node->safe_psql('postgres', 'SELECT a FROM child ORDER BY a'), "1\n2", 'deferred constraints');
is( $node->safe_psql('postgres', 'SELECT what, role, session_role, count(*) FROM who GROUP BY 1, 2, 3 ORDER BY 1'),
	"cursor|ann|ann|1\ndeferred trigger|ann|ann|2",
	'what runs at commit runs as the owner');
is($node->safe_psql('postgres', 'SELECT * FROM caught'), '', 'no internal statement was caught');
is( $node->safe_psql(
		'postgres', q(
		SELECT origin_txid, txid = (SELECT a.txid FROM notification_events a WHERE a.id = l.id) AND txid NOT IN ('3', '9000000000000000000')
		FROM notification_events l WHERE event_name = 'forged' ORDER BY id)),
	"3|t\n9000000000000000000|t",
	'a forged txid is foreign');
seen_is_log($node, 'postgres', 'record', q(event_name = 'forged'), 'a forged txid');
my $out = $client->query_safe('SELECT 1');
is(join(' ', $out =~ /Asynchronous notification "from_handler" with payload "(\w+)"/g),
	'heard', 'NOTIFY is heard when it is committed');
$client->quit;

check_statements('root', @of_root);

# A temporary table exists for a whole batch, and only for that batch.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	TRUNCATE own;
	SELECT create_event_handler('batch', 'act', 'execute', owner => 'ann', batch_size => 3);
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'execute', jsonb_build_array(sql) FROM generate_series(1, 4), (VALUES
			(1, 'CREATE TEMP TABLE scratch AS SELECT 1 AS a'),
			(2, 'INSERT INTO scratch VALUES (2)'),
			(3, 'INSERT INTO own SELECT sum(a) FROM scratch')) v (n, sql) ORDER BY generate_series, n;
));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT a, count(*) FROM own GROUP BY a'),
	'3|4', 'a temporary table lasts as long as its batch');
is($node->safe_psql('postgres', q(SELECT delivered, failed, batches FROM event_handler_stats WHERE handler = 'batch')),
	'12|0|4', 'and no longer');

$node->stop;
done_testing();
