
# A handler runs, and row security is checked, as the handler's owner, whatever
# role the settings of a role or database give a session at its start.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('session_role');

# in template1, for all databases of this test
$node->safe_psql(
	'template1', q(
	CREATE EXTENSION pg_notify_events;
	CREATE TABLE ran (name text, role name DEFAULT current_user, session_role name DEFAULT session_user, n integer GENERATED ALWAYS AS IDENTITY);
	GRANT SELECT, INSERT ON ran TO PUBLIC;
	CREATE FUNCTION run(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.ran (name) VALUES (e.event_name);
		IF e.event_data IS NOT NULL THEN
			EXECUTE e.event_data ->> 0;
			INSERT INTO public.ran (name) VALUES ('then');
		END IF;
	END $$;
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran (name) VALUES ('commit'); RETURN NULL; END $$;
	CREATE TABLE deferred (a integer);
	GRANT INSERT ON deferred TO PUBLIC;
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION at_commit();

	-- what each role is to see of the log
	CREATE ROLE app_owner LOGIN;
	CREATE ROLE blue LOGIN NOINHERIT;
	CREATE ROLE root LOGIN SUPERUSER;
	GRANT app_owner TO blue;
	GRANT SELECT ON notification_events TO app_owner, blue;
	CREATE POLICY of_blue ON notification_events TO blue USING (event_name <> 'not for blue');
	CREATE POLICY of_app_owner ON notification_events TO app_owner USING (event_name = 'not for blue');
	ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
));

my @cases = (
	[ 'ALTER ROLE', 'blue', 'ALTER ROLE blue SET role = app_owner', 'ALTER ROLE blue RESET role' ],
	[
		'ALTER ROLE IN DATABASE', 'blue',
		'ALTER ROLE blue IN DATABASE %s SET role = app_owner',
		'ALTER ROLE blue IN DATABASE %s RESET role'
	],
	[ 'ALTER DATABASE', 'blue', 'ALTER DATABASE %s SET role = app_owner', '' ],
	[ 'ALTER ROLE ALL', 'blue', 'ALTER ROLE ALL SET role = app_owner', 'ALTER ROLE ALL RESET role' ],
	[ 'a superuser', 'root', 'ALTER ROLE root SET role = blue', 'ALTER ROLE root RESET role' ],
	[
		'session_authorization', 'root',
		'ALTER ROLE root SET session_authorization = blue',
		'ALTER ROLE root RESET session_authorization'
	],
	[
		'session_authorization of an ordinary role', 'blue',
		'ALTER ROLE blue SET session_authorization = app_owner',
		'ALTER ROLE blue RESET session_authorization'
	],);
my $n = 0;

# runs SQL as the superuser that connected, even if its role is another one then
sub as_superuser
{
	my ($database, $sql) = @_;

	return $node->safe_psql($database, "SET ROLE NONE;\n$sql");
}

foreach my $case (@cases)
{
	my ($name, $owner, $set, $reset) = @$case;
	my $database = 'shop' . ++$n;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql('postgres', $set =~ s/%s/$database/r);
	as_superuser(
		$database, qq(
		SELECT create_event_handler('run', 'run', owner => '$owner', batch_size => 1, max_attempts => 1);
		SELECT notify_event('first');
		SELECT notify_event('not for blue');
		SELECT notify_event('resets', '["RESET ROLE"]');
		SELECT notify_event('resets all', '["RESET ALL"]');
		SELECT notify_event('sets', '["SET ROLE app_owner; RESET ROLE"]');
		SELECT notify_event('resets authorization', '["RESET SESSION AUTHORIZATION"]');
		SELECT notify_event('inserts', '["INSERT INTO public.deferred VALUES (1)"]');
		SELECT notify_event('leaves', '["CREATE TEMP TABLE t (a integer); SET ROLE app_owner; SET ROLE NONE"]');
		SELECT notify_event('last');
	));
	as_superuser($database,
		"CALL wait_for_event_handlers('${PostgreSQL::Test::Utils::timeout_default} s')");
	is( as_superuser($database, 'SELECT DISTINCT role, session_role FROM ran'),
		"$owner|$owner", "$name: all that runs, runs as the owner");
	is( as_superuser($database, q(SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM ran)),
		'commit, first, inserts, last, leaves, '
		  . ($owner eq 'root' ? 'not for blue, ' : '')
		  . 'resets, resets all, resets authorization, sets, then',
		"$name: with what the owner may see");
	is(as_superuser($database, q(SELECT count(*) FROM event_worker_stats WHERE last_error IS NOT NULL)),
		'0', "$name: no worker has trouble");
	as_superuser('postgres', $reset =~ s/%s/$database/r) if $reset;
}

$node->stop;
done_testing();
