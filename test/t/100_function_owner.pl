
# The owner of a function can replace its body.  So a handler calls a function
# only if its own owner, a superuser, or a role that may become its owner anyway
# owns the function.  This is checked when the handler is created, and before each
# batch.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('function_owner', "pg_notify_events.naptime = '200 ms'");
my $version = $node->safe_psql('postgres', q(SELECT current_setting('server_version_num')::integer / 10000));

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'app', 'owner', 'grp', 'heir', 'root');
$node->safe_psql(
	'postgres', q(
	ALTER ROLE root SUPERUSER;
	ALTER ROLE grp NOLOGIN;
	CREATE TABLE ran (name text, by_role name DEFAULT current_user);
	GRANT SELECT, INSERT ON ran TO PUBLIC;
));

sub create_functions
{
	my ($owner) = @_;

	$node->safe_psql(
		'postgres', qq(
		CREATE SCHEMA of_$owner AUTHORIZATION $owner;
		GRANT USAGE ON SCHEMA of_$owner TO PUBLIC;
		SET ROLE $owner;
		CREATE FUNCTION of_$owner.event(e public.notification_events) RETURNS void LANGUAGE sql
			AS 'INSERT INTO public.ran VALUES (e.event_name)';
		CREATE FUNCTION of_$owner.events(e public.notification_events[]) RETURNS void LANGUAGE sql
			AS 'INSERT INTO public.ran SELECT event_name FROM unnest(e)';
		CREATE FUNCTION of_$owner.txt(n text, d jsonb) RETURNS void LANGUAGE sql
			AS 'INSERT INTO public.ran VALUES (n)';
		CREATE FUNCTION of_$owner.definer(n varchar, d jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER
			AS 'INSERT INTO public.ran VALUES (n)';
	));
	return;
}
create_functions($_) foreach (qw(app owner grp heir root));
$node->safe_psql('postgres', 'SET ROLE grp; CREATE FUNCTION of_grp.f(n text, d jsonb) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.ran VALUES (n) $$');

sub created
{
	my ($as, $function, $owner) = @_;
	my ($result, $out, $err) = $node->psql('postgres',
		"SELECT create_event_handler('h', '$function'" . ($owner ? ", owner => '$owner'" : '') . ')',
		extra_params => [ '-U', $as ]);

	$node->safe_psql('postgres', q(SELECT drop_event_handler('h'))) if $result == 0;
	return $result == 0 ? 'created' : $err;
}

my $refused = sub {
	my ($function, $owner, $handler_owner) = @_;
	return qr/ERROR:  event handler "h" cannot run: function \Q$function\E belongs to role "$owner", which may not become role "$handler_owner"\nHINT:  .*owner => '$owner'/;
};

# The function of a superuser's handler runs as superuser.
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
foreach my $function (qw(event events txt definer))
{
	like(created($superuser, "of_app.$function"),
		$refused->("of_app.$function", 'app', $superuser), "a superuser's handler, $function of app");
	like(created('root', "of_app.$function"),
		$refused->("of_app.$function", 'app', 'root'), "another superuser's handler, $function of app");
	like(created($superuser, "of_app.$function", 'owner'),
		$refused->("of_app.$function", 'app', 'owner'), "for an ordinary role, $function of app");
	is(created($superuser, "of_app.$function", 'app'), 'created', "$function with the owner that the hint names");
	is(created('app', "of_app.$function"), 'created', "$function of one's own");
	is(created('app', "of_root.$function"), 'created', "$function of a superuser");
}
like(created('owner', 'of_app.event'), $refused->('of_app.event', 'app', 'owner'), 'an ordinary role by itself');

# Memberships count in one direction only, also through other roles, inherited or
# not.
$node->safe_psql('postgres', 'GRANT app TO owner');
like(created('owner', 'of_app.event'),
	$refused->('of_app.event', 'app', 'owner'),
	'that the handler\'s owner may become the function\'s owner is not enough');
$node->safe_psql('postgres', 'REVOKE app FROM owner; GRANT owner TO app');
is(created('owner', 'of_app.event'), 'created', 'a function of a member');
$node->safe_psql('postgres', 'REVOKE owner FROM app; GRANT owner TO grp; GRANT grp TO app');
is(created('owner', 'of_grp.f'), 'created', 'a function of a group that is a member');
is(created('owner', 'of_app.event'), 'created', 'a function of a member of a member');
$node->safe_psql('postgres', 'ALTER ROLE app NOINHERIT');
is(created('owner', 'of_app.event'), 'created', 'a member that does not inherit');
$node->safe_psql('postgres', 'ALTER ROLE app INHERIT; REVOKE grp FROM app; REVOKE owner FROM grp');

if ($version >= 16)
{
	$node->safe_psql('postgres', 'GRANT owner TO app WITH INHERIT TRUE, SET FALSE');
	like(created('owner', 'of_app.event'),
		$refused->('of_app.event', 'app', 'owner'), 'a member that may not SET ROLE');
	$node->safe_psql('postgres', 'GRANT owner TO app WITH INHERIT FALSE, SET TRUE');
	is(created('owner', 'of_app.event'), 'created', 'a member that may SET ROLE and nothing else');
	$node->safe_psql('postgres', 'REVOKE owner FROM app');
}

# alter_event_handler() and or_replace check the same.
$node->safe_psql('postgres', q(SELECT create_event_handler('h', 'of_owner.event', owner => 'owner')));
foreach my $change (
	q(alter_event_handler('h', function => 'of_app.event')),
	q(alter_event_handler('h', owner => 'app')),
	q(create_event_handler('h', 'of_app.event', or_replace => true)))
{
	my ($result, $out, $err) = $node->psql('postgres', "SELECT $change");

	like($err, qr/ERROR:  event handler "h" cannot run: .* which may not become role/, $change);
}
$node->safe_psql('postgres',
	q(SELECT alter_event_handler('h', function => 'of_app.event', owner => 'app')));
is($node->safe_psql('postgres', 'SELECT function, owner FROM event_handlers'),
	'of_app.event(notification_events)|app', 'both at once');
$node->safe_psql('postgres', q(SELECT drop_event_handler('h')));

# The permission can end later.
sub run_event
{
	my ($name) = @_;

	$node->safe_psql('postgres', "SELECT notify_event('$name')");
	wait_for_handlers($node, 'postgres');
	return;
}

sub wait_for_state
{
	my ($state) = @_;

	$node->poll_query_until('postgres', "SELECT state = '$state' FROM event_handler_stats")
	  or die "handler is never $state";
	return;
}

# what any owner may do with a function
sub replace_function
{
	my ($owner, $inserts) = @_;

	$node->safe_psql(
		'postgres', qq(
		SET ROLE $owner;
		CREATE OR REPLACE FUNCTION of_$owner.event(e public.notification_events) RETURNS void LANGUAGE sql
			AS \$\$ INSERT INTO public.ran VALUES ($inserts) \$\$));
	return;
}

my @losses = (
	[ 'a membership', 'app', 'GRANT owner TO app', 'REVOKE owner FROM app' ],
	[ 'one in between', 'app', 'GRANT owner TO grp; GRANT grp TO app', 'REVOKE owner FROM grp' ],
	[ 'being a superuser', 'heir', 'ALTER ROLE heir SUPERUSER', 'ALTER ROLE heir NOSUPERUSER' ],);
foreach my $loss (@losses)
{
	my ($what, $owner, $grant, $revoke) = @$loss;

	replace_function($owner, 'e.event_name');
	$node->safe_psql('postgres',
		qq($grant; TRUNCATE ran; SELECT create_event_handler('h', 'of_$owner.event', owner => 'owner')));
	run_event('before');
	is($node->safe_psql('postgres', 'SELECT * FROM ran'), 'before|owner', "$what: runs");

	$node->safe_psql('postgres', $revoke);
	replace_function($owner, q(e.event_name || ' replaced'));
	run_event('behind');
	wait_for_state('suspended');
	is($node->safe_psql('postgres', 'SELECT * FROM ran'), 'before|owner', "$what: not called when it is lost");
	is( $node->safe_psql('postgres', 'SELECT suspended_reason, failed, pending FROM event_handler_stats'),
		qq(function of_$owner.event belongs to role "$owner", which may not become role "owner"|0|1),
		"$what: suspended");
	my ($result, $out, $err) = $node->psql('postgres', q(SELECT alter_event_handler('h', batch_size => 2)));
	like($err, qr/which may not become role "owner"/, "$what: nothing to be confirmed");
	($result, $out, $err) = $node->psql('postgres',
		'SELECT call_event_handler(\'h\', max(id)) FROM notification_events', extra_params => [ '-U', 'owner' ]);
	like($err, qr/which may not become role "owner"/, "$what: nor called by hand");

	$node->safe_psql('postgres', $grant);
	$node->poll_query_until('postgres', 'SELECT pending = 0 FROM event_handler_stats') or die 'does not go on';
	is($node->safe_psql('postgres', 'SELECT * FROM ran'), "before|owner\nbehind replaced|owner", "$what: goes on by itself");
	$node->safe_psql('postgres', "$revoke; SELECT drop_event_handler('h'); DELETE FROM notification_events");
	$node->safe_psql('postgres', 'REVOKE grp FROM app') if $what eq 'one in between';
}

# The permission ends in the middle of a batch: the next batch is not begun.
$node->safe_psql(
	'postgres', q(
	GRANT owner TO app;
	TRUNCATE ran;
	SET ROLE app;
	CREATE OR REPLACE FUNCTION of_app.event(e public.notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_catalog.pg_advisory_xact_lock_shared(1);
		INSERT INTO public.ran VALUES (e.event_name);
	END $$;
	RESET ROLE;
	SELECT create_event_handler('h', 'of_app.event', owner => 'owner', batch_size => 1);
));
my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(1)');
$node->safe_psql('postgres', q(SELECT notify_event('first'), notify_event('second')));
$node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted))
  or die 'the handler is not called';
$node->safe_psql('postgres', 'REVOKE owner FROM app');
$gate->query_safe('SELECT pg_advisory_unlock(1)');
$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM ran') or die 'the call does not end';
wait_for_state('suspended');
is($node->safe_psql('postgres', 'SELECT * FROM ran'), 'first|owner', 'revoked during a batch: the next one is not begun');

# The function gets another owner.  The change has to be confirmed even if that
# role may become the handler's owner.
$node->safe_psql('postgres', 'GRANT owner TO heir; GRANT owner TO app; ALTER FUNCTION of_app.event OWNER TO heir');
is( $node->safe_psql('postgres', 'SELECT suspended_reason FROM event_handler_stats'),
	'function of_app.event belongs to role "heir" now', 'another owner');
$node->safe_psql('postgres', q(SELECT alter_event_handler('h')));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran'), '2', 'confirmed');

$gate->quit;
$node->stop;
done_testing();
