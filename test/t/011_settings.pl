
# Settings of the handler's owner, of the database and of the server reach a
# worker's session.  None of them may keep the worker from its work.  What a
# handler does to its session does not reach the next handler.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'settings',
	'pg_notify_events.max_executors = 10',
	'log_statement = none');

my %settings = (
	default_transaction_isolation => 'serializable',
	default_transaction_read_only => 'on',
	default_transaction_deferrable => 'on',
	statement_timeout => '1ms',
	lock_timeout => '1ms',
	idle_in_transaction_session_timeout => '1ms',
	idle_session_timeout => '1ms',
	client_encoding => 'latin1',
	row_security => 'off',
	DateStyle => 'SQL, DMY',
	IntervalStyle => 'sql_standard',
	bytea_output => 'escape',
	check_function_bodies => 'off',
	enable_indexscan => 'off',
	enable_seqscan => 'off',
	plan_cache_mode => 'force_custom_plan',
	synchronous_commit => 'local',
	search_path => 'evil, pg_catalog',
	transform_null_equals => 'on',
	client_min_messages => 'debug5',);

# the settings that a handler must find with exactly these values
my %forced = (
	transaction_isolation => 'read committed',
	transaction_read_only => 'off',
	transaction_deferrable => 'off',
	statement_timeout => '0',
	lock_timeout => '0',
	idle_in_transaction_session_timeout => '0',
	idle_session_timeout => '0',
	session_replication_role => 'origin',
	client_encoding => 'UTF8',);
if ($node->pg_version >= 17)
{
	# longer than a worker takes to start, because this timeout is fatal
	$settings{transaction_timeout} = '1s';
	$forced{transaction_timeout} = '0';
}
my $forced = join(', ', map { "'$_'" } sort keys %forced);
my $expected = join(', ', map { "$_=$forced{$_}" } sort keys %forced);

# for the test's own sessions
my $usual = join(' ',
	map { "-c $_" } (
		'client_encoding=utf8',
		'client_min_messages=notice',
		'default_transaction_isolation=read\ committed',
		'default_transaction_read_only=off',
		'idle_in_transaction_session_timeout=0',
		'idle_session_timeout=0',
		'lock_timeout=0',
		'row_security=on',
		'search_path=public',
		'session_replication_role=origin',
		'statement_timeout=0',
		($node->pg_version >= 17 ? 'transaction_timeout=0' : ())));

# Check a database whose owners and handlers are ordinary, except for what has been
# set before.
sub check_handlers
{
	my ($name, $database, $owner) = @_;

	local $ENV{PGOPTIONS} = $usual;
	$node->safe_psql(
		$database, qq(
		SELECT create_event_handler('$owner', 'look_around', owner => '$owner', retry_delay => '10 ms');
		SELECT notify_event('one', '{"fail": false}'::jsonb);
		SELECT notify_event('two', '{"fail": true}'::jsonb);
		INSERT INTO notification_events (event_name) SELECT 'more' FROM generate_series(1, 100);
	));
	wait_for_handlers($node, $database);
	$node->poll_query_until($database,
		"SELECT waiting = 0 FROM event_handler_stats WHERE handler = '$owner'");
	is( $node->safe_psql(
			$database,
			"SELECT delivered, failed, retried FROM event_handler_stats WHERE handler = '$owner'"),
		'102|1|1',
		"$name: handlers work");
	is( $node->safe_psql(
			$database,
			"SELECT DISTINCT by_role, settings FROM around WHERE handler = '$owner'"),
		"$owner|$expected",
		"$name: what a handler finds");
	$node->safe_psql($database, "SELECT drop_event_handler('$owner')");
	return;
}

# Create a handler that records its settings, and fails once for some events.  Also
# create a schema that comes before pg_catalog.  Its operators and functions must
# not be taken for those of pg_catalog.
sub make_database
{
	my ($database, @owners) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	make_owner($node, $database, @owners);
	$node->safe_psql(
		$database, qq(
		CREATE TABLE around (handler text, by_role name, settings text, id bigint);
		GRANT SELECT, INSERT ON around TO PUBLIC;
		CREATE FUNCTION look_around(e notification_events) RETURNS void LANGUAGE plpgsql
			SET search_path = pg_catalog AS \$\$
		BEGIN
			INSERT INTO public.around
			SELECT session_user, current_user, string_agg(name || '=' || current_setting(name), ', ' ORDER BY name), e.id
			FROM unnest(ARRAY[$forced]) AS name;
			IF e.event_data \@> '{"fail": true}' AND
				NOT EXISTS (SELECT FROM public.event_retries WHERE event_id = e.id) THEN
				RAISE 'once';
			END IF;
		END \$\$;

		CREATE SCHEMA evil;
		GRANT USAGE ON SCHEMA evil TO PUBLIC;
		CREATE FUNCTION evil.never(text, text) RETURNS boolean LANGUAGE plpgsql AS
			\$\$ BEGIN RAISE 'evil operator'; END \$\$;
		CREATE FUNCTION evil.never(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
			\$\$ BEGIN RAISE 'evil operator'; END \$\$;
		CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.never);
		CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.never);
		CREATE OPERATOR evil.<= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.never);
		CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
			\$\$ BEGIN RAISE 'evil function'; END \$\$;
		CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
			\$\$ BEGIN RAISE 'evil function'; END \$\$;
		CREATE TABLE evil.notification_events (id bigint);
		CREATE TABLE evil._event_handlers (name text);
	));
	return;
}

# Settings of the owner: each of them alone, and all together
make_database('of_owner', 'usual', 'all_of_them', 'in_database', map { "o_$_" } sort map { lc } keys %settings);
check_handlers('none', 'of_owner', 'usual');
foreach my $setting (sort keys %settings)
{
	my $owner = 'o_' . lc $setting;
	my $value = $setting eq 'search_path' ? $settings{$setting} : "'$settings{$setting}'";

	$node->safe_psql('postgres',
		"ALTER ROLE $_ SET $setting = $value")
	  foreach ($owner, 'all_of_them');
	check_handlers("ALTER ROLE, $setting", 'of_owner', $owner);
}
$node->safe_psql('postgres',
	'ALTER ROLE all_of_them SET session_replication_role = replica');
check_handlers('ALTER ROLE, all of them', 'of_owner', 'all_of_them');

# Settings of the owner in this database only
$node->safe_psql(
	'postgres', join(
		";\n",
		map {
			my $value = $_ eq 'search_path' ? $settings{$_} : "'$settings{$_}'";
			"ALTER ROLE in_database IN DATABASE of_owner SET $_ = $value"
		} sort keys %settings));
check_handlers('ALTER ROLE IN DATABASE', 'of_owner', 'in_database');

# A call may take longer than any of these timeouts.
make_owner($node, 'of_owner', 'slow');
$node->safe_psql('postgres', "ALTER ROLE slow SET $_ = '100ms'")
  foreach (grep { /_timeout$/ } sort keys %settings);
$node->safe_psql(
	'of_owner', q(
	CREATE FUNCTION sleep(e notification_events) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.3)';
	SELECT create_event_handler('slow', 'sleep', owner => 'slow');
	SELECT notify_event('slow') FROM generate_series(1, 3);
));
wait_for_handlers($node, 'of_owner');
is( $node->safe_psql(
		'of_owner', q(SELECT delivered, failed FROM event_handler_stats WHERE handler = 'slow')),
	'3|0',
	'no timeout of the owner ends a call');

# Settings of the database reach the listener, too.
make_database('of_database', 'usual');
foreach my $setting (sort keys %settings)
{
	my $value = $setting eq 'search_path' ? $settings{$setting} : "'$settings{$setting}'";

	$node->safe_psql('postgres',
		"ALTER DATABASE of_database SET $setting = $value");
}
$node->safe_psql('postgres',
	'ALTER DATABASE of_database SET session_replication_role = replica');
$node->safe_psql(
	'postgres', q(
	SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
	WHERE datname = 'of_database'));
check_handlers('ALTER DATABASE', 'of_database', 'usual');

# Settings of the server, when it starts and when it reloads its configuration
foreach my $how ('reload', 'restart')
{
	local $ENV{PGOPTIONS} = $usual;
	my @set = map {
		my $value =
		  $_ eq 'search_path' ? $settings{$_} : "'$settings{$_}'";
		"ALTER SYSTEM SET $_ = $value"
	  }
	  grep { $_ ne 'client_encoding' } sort keys %settings;

	make_database("of_server_$how", 'usual');
	wait_for_handlers($node, "of_server_$how");
	$node->safe_psql('postgres', join(";\n", @set));
	$how eq 'reload' ? $node->reload : $node->restart;
	check_handlers("ALTER SYSTEM, $how", "of_server_$how", 'usual');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL');
	$node->reload;
}

# What a handler leaves in its session is gone for the next handler.
make_database('session', 'usual', 'other');
$node->safe_psql(
	'session', q(
	GRANT other TO usual;
	GRANT TEMPORARY ON DATABASE session TO PUBLIC;
	CREATE SEQUENCE numbers;
	GRANT USAGE ON SEQUENCE numbers TO PUBLIC;
	CREATE TABLE found (id bigint, what text);
	GRANT INSERT ON found TO PUBLIC;
	CREATE FUNCTION litter(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		-- what is there?
		INSERT INTO public.found SELECT e.id, 'setting ' || name FROM pg_settings
			WHERE name IN ('statement_timeout', 'search_path', 'work_mem', 'DateStyle') AND source = 'session';
		INSERT INTO public.found SELECT e.id, 'custom setting' WHERE current_setting('my.setting', true) <> '';
		INSERT INTO public.found SELECT e.id, 'role ' || current_user WHERE current_user <> 'usual';
		INSERT INTO public.found SELECT e.id, 'temporary table' WHERE to_regclass('pg_temp.litter') IS NOT NULL;
		INSERT INTO public.found SELECT e.id, 'advisory lock' FROM pg_locks
			WHERE locktype = 'advisory' AND pid = pg_backend_pid();
		INSERT INTO public.found SELECT e.id, 'prepared statement ' || name FROM pg_prepared_statements
			WHERE from_sql;
		INSERT INTO public.found SELECT e.id, 'cursor ' || name FROM pg_cursors WHERE is_holdable;
		INSERT INTO public.found SELECT e.id, 'channel ' || c FROM pg_listening_channels() c;
		BEGIN
			PERFORM currval('public.numbers');
			INSERT INTO public.found VALUES (e.id, 'currval');
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			NULL;
		END;
		-- leave all of it
		CREATE TEMPORARY TABLE litter AS SELECT 1;
		PERFORM pg_advisory_lock(e.id);
		EXECUTE 'PREPARE litter AS SELECT 1';
		EXECUTE 'DECLARE litter CURSOR WITH HOLD FOR SELECT 1';
		PERFORM nextval('public.numbers');
		PERFORM set_config('my.setting', 'litter', false);
		SET work_mem = '100 kB';
		SET search_path = 'evil';
		SET DateStyle = 'German';
		SET statement_timeout = '1 s';
		IF e.event_data @> '{"fail": true}' THEN
			RAISE 'fails every time';
		END IF;
		SET ROLE other;
	END $$;
	SELECT create_event_handler('litter', 'litter', owner => 'usual', batch_size => 1, max_attempts => 2, retry_delay => '10 ms');
	SELECT notify_event('litter', jsonb_build_object('fail', i % 2 = 0)) FROM generate_series(1, 6) AS i;
));
wait_for_handlers($node, 'session');
$node->poll_query_until('session', 'SELECT dead = 3 FROM event_handler_stats');
is( $node->safe_psql('session', 'SELECT delivered, dead FROM event_handler_stats'),
	'3|3', 'a handler that leaves litter behind works');
is( $node->safe_psql('session', 'SELECT DISTINCT what FROM found ORDER BY what'),
	'', 'and nobody finds it');
is( $node->safe_psql(
		'session', q(
		SELECT DISTINCT last_error FROM event_retries)),
	'fails every time',
	'no other errors');

$node->stop;
done_testing();
