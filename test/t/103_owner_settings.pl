
# Every relevant change of a handler's owner as a role, or of the settings with
# which the owner's sessions begin, reaches a running executor: it begins a new
# session after the batch.  Changes of other roles, and lost invalidations, cause
# no new session.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('owner_settings', 'max_prepared_transactions = 2', 'autovacuum = off');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
$node->safe_psql('postgres', 'CREATE DATABASE other');
make_owner($node, 'postgres', 'ann', 'bob');
$node->safe_psql(
	'postgres', q(
	CREATE TABLE ran (handler text, name text, tenant text DEFAULT NULLIF(current_setting('app.tenant', true), ''),
		pid integer DEFAULT pg_backend_pid(), path text DEFAULT current_setting('search_path'), n integer GENERATED ALWAYS AS IDENTITY);
	GRANT SELECT, INSERT ON ran TO PUBLIC;
	CREATE FUNCTION run(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF e.event_name = 'gate' THEN
			PERFORM pg_catalog.pg_advisory_xact_lock_shared(1);
		END IF;
		INSERT INTO public.ran (handler, name) VALUES (current_user, e.event_name);
	END $$;
	SELECT create_event_handler('h', 'run', 'of ann', owner => 'ann');
	SELECT create_event_handler('b', 'run', 'of bob', owner => 'bob');
	SELECT create_event_handler('g', 'run', 'gate', owner => 'ann', batch_size => 1);
));

# the setting and the process that the next call of a handler finds
sub next_call
{
	my ($owner) = @_;

	$node->safe_psql('postgres', "SELECT notify_event('of $owner')");
	wait_for_handlers($node, 'postgres');
	return split(/\|/,
		$node->safe_psql('postgres', "SELECT COALESCE(tenant, 'none'), pid FROM ran WHERE handler = '$owner' ORDER BY n DESC LIMIT 1"));
}

my ($setting, $pid) = next_call('ann');
my (undef, $pid_of_bob) = next_call('bob');

my @changes = (
	[ 'none', q(ALTER ROLE bob SET app.tenant = 'x') ],
	[ 'none', q(ALTER ROLE bob RESET app.tenant) ],
	[ 'none', q(ALTER DATABASE other SET app.tenant = 'x') ],
	[ 'none', q(ALTER ROLE ann IN DATABASE other SET app.tenant = 'x') ],
	[ 'none', q(BEGIN; ALTER ROLE ann SET app.tenant = 'x'; ROLLBACK) ],
	[ 'none', q(ALTER ROLE ann CONNECTION LIMIT 7; ALTER ROLE ann PASSWORD 'x') ],
	[ 'none', q(CREATE ROLE carl; GRANT carl TO ann; DROP ROLE carl) ],
	[ 'none', q(VACUUM FULL pg_authid; VACUUM FULL pg_db_role_setting) ],
	[ 'role', q(ALTER ROLE ann SET app.tenant = 'role') ],
	[ 'role 2', q(ALTER ROLE ann SET app.tenant = 'role 2') ],
	[ 'role 2', q(ALTER DATABASE postgres SET app.tenant = 'database'), 'new' ],
	[ 'database', q(ALTER ROLE ann RESET app.tenant) ],
	[ 'both', q(ALTER ROLE ann IN DATABASE postgres SET app.tenant = 'both') ],
	[ 'both', q(ALTER ROLE ALL SET app.tenant = 'all'), 'new' ],
	[ 'database', q(ALTER ROLE ann IN DATABASE postgres RESET ALL) ],
	[ 'all', q(ALTER DATABASE postgres RESET ALL) ],
	[ 'none', q(ALTER ROLE ALL RESET app.tenant) ],
	[ 'from current', q(SET app.tenant = 'from current'; ALTER ROLE ann SET app.tenant FROM CURRENT) ],
	[ 'prepared', q(BEGIN; ALTER ROLE ann SET app.tenant = 'prepared'; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p') ],
	[ 'elsewhere', q(ALTER ROLE ann SET app.tenant = 'elsewhere'), 'other' ],
	[ 'late', q(BEGIN; SAVEPOINT s; ALTER ROLE ann SET app.tenant = 'lost'; ROLLBACK TO s; ALTER ROLE ann SET app.tenant = 'late'; COMMIT) ],
	[ 'late', q(ALTER ROLE ann CREATEDB), 'new' ],
	[ 'late', q(ALTER ROLE ann RENAME TO ann2; ALTER ROLE ann2 RENAME TO ann) ],
	[ 'none', q(ALTER ROLE ann RESET ALL) ],);
foreach my $change (@changes)
{
	my ($expected, $sql, $where) = @$change;
	my ($new_setting, $new_pid);
	my $new = $setting ne $expected || ($where // '') eq 'new';

	$node->safe_psql(($where // '') eq 'other' ? 'other' : 'postgres', $sql);
	($new_setting, $new_pid) = next_call('ann');
	is($new_setting, $expected, "$sql: the next call has the setting");
	is($new_pid != $pid ? 'new' : 'same', $new ? 'new' : 'same', "$sql: session");
	($setting, $pid) = ($new_setting, $new_pid);
}

# A change in the middle of a batch: the next batch has it.
my $gate = $node->background_psql('postgres');

sub at_gate
{
	my ($what) = @_;

	$gate->query_safe('SELECT pg_advisory_lock(1)');
	$node->safe_psql('postgres', q(TRUNCATE ran; SELECT notify_event('gate'), notify_event('gate')));
	$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
	  or die 'the handler is not called';
	$what->();
	$gate->query_safe('SELECT pg_advisory_unlock(1)');
	wait_for_handlers($node, 'postgres');
	return $node->safe_psql('postgres',
		q(SELECT string_agg(COALESCE(tenant, 'none'), ' ' ORDER BY n), count(DISTINCT pid) FROM ran WHERE name = 'gate'));
}

is( at_gate(sub { $node->safe_psql('postgres', q(ALTER ROLE ann SET app.tenant = 'during')) }),
	'none during|2', 'changed during a batch: the next one has it');
$node->safe_psql('postgres', 'ALTER ROLE ann RESET ALL');
($setting, $pid) = next_call('ann');
is($setting, 'none', 'and taken back');

# Another database sends more invalidations than the server keeps.  Meanwhile the
# executor is in a call, which does not read them.
(undef, $pid_of_bob) = next_call('bob');
is( at_gate(
		sub {
			$node->safe_psql('other',
				q(DO $$ BEGIN FOR n IN 1..400 LOOP EXECUTE 'CREATE TABLE t (a int, b int, c int, d int); DROP TABLE t'; COMMIT; END LOOP; END $$));
		}),
	'none none|1',
	'lost invalidations: the executor goes on');
is((next_call('ann'))[1], $pid, 'lost invalidations: it is the same session');
is((next_call('bob'))[1], $pid_of_bob, 'lost invalidations: that of another owner, too');
is( at_gate(
		sub {
			$node->safe_psql('other',
				q(ALTER ROLE ann SET app.tenant = 'hidden';
				DO $$ BEGIN FOR n IN 1..400 LOOP EXECUTE 'CREATE TABLE t (a int, b int, c int, d int); DROP TABLE t'; COMMIT; END LOOP; END $$));
		}),
	'none hidden|2',
	'a change among them is found');

$gate->quit;
$node->stop;
done_testing();
