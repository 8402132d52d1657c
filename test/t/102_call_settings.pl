
# Every call of a handler begins with the state that the session has at its start.
# Settings and roles that another call, a policy or something deferred to the
# commit has set are gone, even if events share a transaction.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'call_settings',
	"pg_notify_events.batch_time = '1min'",
	"deadlock_timeout = '10min'");
my $version = $node->safe_psql('postgres', q(SELECT current_setting('server_version_num')::integer / 10000));

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann', 'bob', 'carl', 'root');
$node->safe_psql(
	'postgres', q(
	ALTER ROLE root SUPERUSER;
	GRANT bob TO ann;
	-- what a role or a database sets is there at the start
	ALTER ROLE ann SET work_mem = '3MB';
	ALTER ROLE ann SET app.of_role = 'start';
	ALTER DATABASE postgres SET app.of_database = 'start';
	ALTER ROLE ann SET synchronous_commit = 'local';

	CREATE TABLE probed (name text, session text, xid xid8 DEFAULT pg_current_xact_id(), n integer GENERATED ALWAYS AS IDENTITY);
	GRANT SELECT, INSERT ON probed TO PUBLIC;
	CREATE FUNCTION public.probe(name text) RETURNS void LANGUAGE sql AS $$
		INSERT INTO public.probed (name, session) SELECT name, pg_catalog.concat_ws(' ', session_user, current_user,
			pg_catalog.current_setting('is_superuser'), pg_catalog.current_setting('role'),
			(SELECT pg_catalog.string_agg(s.name OPERATOR(pg_catalog.||) '=' OPERATOR(pg_catalog.||) s.setting
				OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) s.source, ', ' ORDER BY s.name)
				FROM pg_catalog.pg_settings s WHERE s.name IN ('work_mem', 'search_path', 'DateStyle', 'TimeZone', 'row_security',
				'statement_timeout', 'lock_timeout', 'client_min_messages', 'synchronous_commit', 'transaction_read_only',
				'default_transaction_read_only', 'session_replication_role', 'enable_seqscan', 'check_function_bodies')),
			(SELECT pg_catalog.count(*) FROM pg_catalog.pg_settings s WHERE s.source = 'session'),
			'tenant', NULLIF(pg_catalog.current_setting('app.tenant', true), ''),
			'role', NULLIF(pg_catalog.current_setting('app.of_role', true), ''),
			'database', NULLIF(pg_catalog.current_setting('app.of_database', true), ''))
	$$;

	-- runs what an event says, behind a look at the session
	CREATE FUNCTION act(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.probe(e.event_name);
		IF e.event_data IS NOT NULL THEN
			EXECUTE e.event_data ->> 0;
		END IF;
	END $$;
	CREATE FUNCTION act_all(e notification_events[]) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		one public.notification_events;
	BEGIN
		PERFORM public.probe('call');
		FOREACH one IN ARRAY e LOOP
			EXECUTE one.event_data ->> 0;
		END LOOP;
	END $$;
	CREATE FUNCTION act_text(name text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.probe(name);
		EXECUTE data ->> 0;
	END $$;
	CREATE FUNCTION with_settings() RETURNS void LANGUAGE plpgsql
		SET work_mem = '7MB' SET search_path = pg_catalog AS $$
	BEGIN
		SET LOCAL work_mem = '8MB';
		SET enable_seqscan = off;
	END $$;
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM public.probe('at commit'); RETURN NULL; END $$;
	CREATE TABLE deferred (a integer);
	GRANT INSERT ON deferred TO PUBLIC;
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION at_commit();
	CREATE FUNCTION sets_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		SET ROLE bob; SET work_mem = '9MB'; SET app.tenant = 'commit'; SET search_path = pg_temp;
		RETURN NULL;
	END $$;
	CREATE TABLE setting (a integer);
	GRANT INSERT ON setting TO PUBLIC;
	CREATE CONSTRAINT TRIGGER sets_at_commit AFTER INSERT ON setting DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION sets_at_commit();
));

my @statements = (
	q(SET work_mem = '1MB'),
	q(SET LOCAL work_mem = '2MB'),
	q(SELECT set_config('work_mem', '1MB', true), set_config('app.tenant', 'a', true)),
	q(SELECT set_config('work_mem', '1MB', false), set_config('app.tenant', 'b', false)),
	q(SET app.tenant = 'c'; SET app.of_role = 'c'; SET app.of_database = 'c'),
	q(SET LOCAL app.tenant = 'd'; SET LOCAL app.of_role = 'd'; SET LOCAL app.of_database = 'd'),
	q(SET app.tenant = 'e'; SET LOCAL app.tenant = 'f'; RESET app.tenant; SET LOCAL app.tenant = 'g'),
	q(RESET app.of_role; RESET work_mem),
	q(SET work_mem TO DEFAULT),
	q(RESET ALL),
	q(SET LOCAL work_mem = '2MB'; RESET ALL),
	q(SET search_path = pg_temp),
	q(SET LOCAL search_path = pg_temp, pg_catalog),
	q(SELECT set_config('search_path', '', true)),
	q(SET DateStyle = 'SQL'; SET TIME ZONE 'Asia/Tokyo'),
	q(SET LOCAL TIME ZONE 'Asia/Tokyo'; SET check_function_bodies = off; SET LOCAL client_min_messages = error),
	q(SET row_security = off),
	q(SET LOCAL row_security = off),
	q(SET statement_timeout = '1h'; SET LOCAL lock_timeout = '1h'),
	q(SET synchronous_commit = remote_apply),
	q(SET LOCAL synchronous_commit = on),
	q(RESET synchronous_commit),
	q(SET default_transaction_read_only = on),
	q(SET TRANSACTION READ ONLY),
	q(SELECT set_config('transaction_read_only', 'on', true)),
	q(SELECT public.with_settings()),
	q(DO $x$ BEGIN SET LOCAL work_mem = '4MB'; PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN SET LOCAL app.tenant = 'h'; SET work_mem = '5MB'; END $x$),
	q(DO $x$ BEGIN SET work_mem = '4MB'; BEGIN SET ROLE bob; RESET ALL; PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN SET LOCAL ROLE bob; END; END $x$),
	q(ALTER ROLE ann SET enable_mergejoin = off),
	q(DISCARD PLANS),
	q(SET ROLE bob),
	q(SET LOCAL ROLE bob),
	q(SELECT set_config('role', 'bob', true)),
	q(SET ROLE bob; SET LOCAL ROLE ann; RESET ROLE; SET LOCAL ROLE bob),
	q(SET ROLE NONE),
	q(SET SESSION AUTHORIZATION ann; SET ROLE bob),
	q(SET ROLE bob; RESET SESSION AUTHORIZATION),);
my @of_root = (
	q(SET SESSION AUTHORIZATION bob),
	q(SET LOCAL SESSION AUTHORIZATION bob),
	q(SET SESSION AUTHORIZATION carl; SET ROLE carl),
	q(SET SESSION AUTHORIZATION ann; SET ROLE bob),
	q(SET ROLE bob; SET SESSION AUTHORIZATION ann; SET LOCAL ROLE bob),
	q(SET ROLE ann; SET LOCAL SESSION AUTHORIZATION ann; RESET SESSION AUTHORIZATION; SET ROLE bob),
	q(SET session_replication_role = replica),
	q(SET LOCAL pg_notify_events.announce = off; SET log_statement = ddl),);

sub quoted
{
	my ($text) = @_;

	return "'" . ($text =~ s/'/''/gr) . "'";
}

# emits events, each with a statement, and a last one without
sub emit
{
	my (@of) = @_;

	$node->safe_psql('postgres',
		'INSERT INTO notification_events (event_name, event_data) VALUES '
		  . join(', ', (map { '(' . quoted(substr($of[$_], 0, 80)) . ', jsonb_build_array(' . quoted($of[$_]) . '))' } 0 .. $#of),
			q(('last', '["SELECT 1"]'))));
	return;
}

# Every look at the session must have found the same as the first one.  The test
# names the statement before it.
sub all_as_at_the_start
{
	my ($name, $looks) = @_;
	my @rows = map { [ split(/\|/, $_, 2) ] }
	  split(/\n/, $node->safe_psql('postgres', 'SELECT name, session FROM probed ORDER BY n'));
	my $before = 'the start';

	is(scalar(@rows), $looks, "$name: each was called");
	foreach my $row (@rows)
	{
		is($row->[1], $rows[0][1], "$name: behind $before");
		$before = $row->[0];
	}
	return $rows[0][1];
}

foreach my $case (
	[ 'one by one', 'ann', 'act', 1000, @statements ],
	[ 'name and data', 'ann', 'act_text', 1000, @statements ],
	[ 'a transaction each', 'ann', 'act', 1, @statements ],
	[ 'a superuser', 'root', 'act', 1000, @statements, @of_root ])
{
	my ($name, $owner, $function, $batch_size, @of) = @$case;

	$node->safe_psql(
		'postgres', qq(
		TRUNCATE probed;
		DELETE FROM notification_events;
		SELECT create_event_handler('h', '$function', owner => '$owner', batch_size => $batch_size, max_attempts => 1);
	));
	emit(@of);
	wait_for_handlers($node, 'postgres');
	is( $node->safe_psql('postgres', q(SELECT s.state, t.last_error FROM event_handler_stats s LEFT JOIN event_retries t USING (handler))),
		'ready|', "$name: nothing failed");
	my $session = all_as_at_the_start($name, @of + 1);
	like($session, qr/^$owner $owner (on|off) none /, "$name: as the owner");
	like($session, qr/ work_mem=3072 user 0 tenant role start database start$/, "$name: with his settings") if $owner eq 'ann';
	is($node->safe_psql('postgres', 'SELECT count(DISTINCT xid) FROM probed'),
		$batch_size == 1 ? @of + 1 : 1, "$name: transactions");
	$node->safe_psql('postgres', q(SELECT drop_event_handler('h')));
}

# Tenants: a row that is written without a tenant fails.  It is not written for
# the tenant of the event before.
$node->safe_psql(
	'postgres', q(
	DELETE FROM notification_events;
	CREATE TABLE orders (id bigint, tenant text NOT NULL DEFAULT current_setting('app.tenant'));
	ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
	CREATE POLICY of_tenant ON orders USING (tenant = current_setting('app.tenant'));
	GRANT SELECT, INSERT ON orders TO ann;
	CREATE FUNCTION write_order(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF e.event_data ? 'tenant' THEN
			PERFORM set_config('app.tenant', e.event_data ->> 'tenant', true);
		END IF;
		INSERT INTO orders VALUES (e.id, coalesce(nullif(current_setting('app.tenant', true), ''), 'nobody'));
	END $$;
	SELECT create_event_handler('h', 'write_order', owner => 'ann', max_attempts => 1);
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'order', CASE WHEN n % 3 = 0 THEN '{}' ELSE jsonb_build_object('tenant', 'tenant ' || n) END FROM generate_series(1, 30) n;
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT COALESCE(e.event_data ->> 'tenant', 'nobody') = o.tenant, r.last_sqlstate, count(*)
		FROM notification_events e LEFT JOIN orders o USING (id) LEFT JOIN event_retries r ON r.event_id = e.id
		GROUP BY 1, 2 ORDER BY 1)),
	"t||20\n|42501|10", 'each order is the tenant\'s whose it is, or fails');

# One call for a whole array: the next batch, and what is deferred to the commit,
# begin with the initial state.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('h');
	TRUNCATE probed;
	DELETE FROM notification_events;
	SELECT create_event_handler('h', 'act_all', owner => 'ann', batch_size => 4, max_attempts => 1);
	INSERT INTO notification_events (event_name, event_data)
		SELECT 'array', jsonb_build_array(sql) FROM generate_series(1, 5), (VALUES
			(1, 'INSERT INTO public.deferred VALUES (1)'),
			(2, 'SET work_mem = ''1MB''; SET LOCAL search_path = pg_temp; SELECT set_config(''app.tenant'', ''x'', true)'),
			(3, 'INSERT INTO public.deferred VALUES (2)'),
			(4, 'SET LOCAL ROLE bob')) v (n, sql) ORDER BY generate_series, n;
));
wait_for_handlers($node, 'postgres');
all_as_at_the_start('array and commit', 15);
is($node->safe_psql('postgres', 'SELECT count(DISTINCT xid), count(*) FILTER (WHERE name = $$at commit$$) FROM probed'),
	'5|10', 'array: batches, and what ran at the commit');

# A setting that a trigger makes at the commit is gone in the next batch.
$node->safe_psql('postgres', q(SELECT drop_event_handler('h'); TRUNCATE probed; DELETE FROM notification_events;
	SELECT create_event_handler('h', 'act', owner => 'ann', batch_size => 1)));
emit('INSERT INTO public.setting VALUES (1)', 'SELECT 1', 'INSERT INTO public.setting VALUES (2)');
wait_for_handlers($node, 'postgres');
all_as_at_the_start('behind a commit', 4);

# From version 18 on, a deferred trigger runs in the role in which it was queued.
# Before 18, and in all versions for everything else, it runs in the session's
# initial state.
$node->safe_psql('postgres', q(TRUNCATE probed; DELETE FROM notification_events));
emit(q(SET ROLE bob; SET app.tenant = 'x'; INSERT INTO public.deferred VALUES (1)));
wait_for_handlers($node, 'postgres');
like($node->safe_psql('postgres', q(SELECT session FROM probed WHERE name = 'at commit')),
	$version >= 18 ? qr/^ann bob .* tenant role start/ : qr/^ann ann off none .* tenant role start/,
	'deferred by another role');

# A failure, its retry, and the events behind it
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('h');
	TRUNCATE probed;
	DELETE FROM notification_events;
	CREATE SEQUENCE attempts;
	GRANT ALL ON attempts TO ann;
	SELECT create_event_handler('h', 'act', owner => 'ann', retry_delay => '10 ms');
));
emit(q(SET app.tenant = 'x'),
	q(SET ROLE ann; SET work_mem = '1MB'; SET app.tenant = 'y'; SELECT 1 / (CASE WHEN nextval('public.attempts') > 3 THEN 1 ELSE 0 END); SET LOCAL ROLE bob),
	q(SET app.tenant = 'z'));
$node->poll_query_until('postgres', 'SELECT delivered = 4 AND waiting = 0 FROM event_handler_stats') or die 'no retry';
all_as_at_the_start('retries', 4);

# Policies of the log run before a call, as the handler's owner.
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler('h');
	TRUNCATE probed;
	DELETE FROM notification_events;
	CREATE FUNCTION sets() RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		SET app.tenant = 'policy'; SET LOCAL work_mem = '9MB'; SET search_path = pg_temp; SET LOCAL ROLE bob;
		RETURN true;
	END $$;
	CREATE POLICY sets ON notification_events TO ann USING (sets());
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
	SELECT create_event_handler('h', 'act', owner => 'ann', batch_size => 2);
));
emit('SELECT 1', 'SELECT 1', 'SELECT 1');
wait_for_handlers($node, 'postgres');
like(all_as_at_the_start('policies', 4), qr/^ann ann off none .* work_mem=3072 user 0 tenant role start database start$/,
	'policies set nothing for calls');
$node->safe_psql('postgres', q(ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY; DROP POLICY sets ON notification_events));

# Calls by hand: the caller's settings hold before and after, and no others.
$node->safe_psql('postgres', q(TRUNCATE probed; SELECT pause_event_handler('h')));
emit(@statements);
my @ids = split(/\n/, $node->safe_psql('postgres', q(SELECT id FROM notification_events WHERE event_name <> 'last' ORDER BY id)));
my $by_hand = "GRANT EXECUTE ON FUNCTION call_event_handler TO ann; SET SESSION AUTHORIZATION ann; SET ROLE ann;\n"
  . "SET work_mem = '6MB'; SET app.tenant = 'mine';\nBEGIN;\nSET LOCAL app.of_role = 'local'; SET LOCAL DateStyle = 'German';\n"
  . join("\n", map { "SELECT call_event_handler('h', $_), probe('by hand');" } @ids)
  . "\nCOMMIT;\nSELECT current_setting('work_mem'), current_setting('app.tenant'), current_setting('app.of_role'), current_setting('DateStyle'), current_user;\n";
like($node->safe_psql('postgres', $by_hand), qr/6MB\|mine\|\|ISO, MDY\|ann$/, 'by hand: settings of the caller stay as long as they would');
like(all_as_at_the_start('by hand', 2 * @ids - 0),
	qr/^ann ann off ann .*DateStyle=German.* work_mem=6144 session .* tenant mine role local/, 'by hand: as the caller is');

$node->stop;
done_testing();
