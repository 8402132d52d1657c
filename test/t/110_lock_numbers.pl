
# Locks that one role can make another wait for.  The locks of handlers and
# consumers use numbers that the extension draws, so no choice of a name leads to
# the lock of another role.  A role without a right to something does not wait for
# a role that has the right.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('lock_numbers', 'autovacuum = off');
my $other = $node->background_psql('postgres');
my ($out, $err);

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann', 'eve');
$node->safe_psql(
	'postgres', q(
	GRANT EXECUTE ON FUNCTION create_event_consumer TO ann, eve;
	GRANT EXECUTE ON FUNCTION listen_event_channel TO ann));

# as(ROLE, SQL): returns the output or, if the SQL fails, its SQLSTATE.  SQL that
# has to wait for a lock fails with 55P03.
sub as
{
	my ($role, $sql) = @_;

	(undef, $out, $err) = $node->psql('postgres',
		"\\set VERBOSITY sqlstate\nSET lock_timeout = '2 s';\nSET SESSION AUTHORIZATION $role;\n$sql");
	return $err =~ /(?:ERROR|FATAL):  (\w{5})/ ? $1 : $out;
}

#
# Names that share a hash share no lock
#

# two names with the same 32-bit hash, the one by which names of all kinds are
# looked up
my ($anns, $eves) = split(
	/\|/,
	$node->safe_psql(
		'postgres', q(
		SELECT min(n), max(n) FROM (SELECT 'h' || i AS n FROM generate_series(1, 400000) i) s
		GROUP BY hashtext(n) HAVING count(*) > 1 LIMIT 1)));

$node->safe_psql(
	'postgres', qq(
	SELECT create_event_handler('$anns', 'record', owner => 'ann'),
		create_event_handler('$eves', 'record', 'none', owner => 'eve')));
foreach my $what (qq(pause_event_handler('$eves')), qq(drop_event_handler('$eves')), qq(replay_events('$eves', 1)))
{
	$other->query_safe("SET SESSION AUTHORIZATION eve; BEGIN; SELECT $what");
	is(as('ann', qq(SELECT alter_event_handler('$anns', batch_size => 10))), '', "$what is open: another handler is altered");
	$node->safe_psql('postgres', q(TRUNCATE seen; SELECT notify_event('go')));
	is(as('postgres', q(CALL wait_for_event_handlers('20 s'))), '', '... gets its events');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), '1', '... each');
	$other->query_safe('ROLLBACK');
}

# two names that share 48 bits of the longer hash
($anns, $eves) = ('c15636842', 'c2186410');
is( $node->safe_psql('postgres', qq(
		SELECT (hashtextextended('$anns', 0) # hashtextextended('$eves', 0)) & (2 ^ 48 - 1)::bigint)),
	'0', 'names of consumers that share 48 bits');
$node->safe_psql(
	'postgres', qq(
	SELECT create_event_consumer('$anns', owner => 'ann'), create_event_consumer('$eves', owner => 'eve')));
$node->safe_psql('postgres', q(SELECT notify_event('go')));
foreach my $what (qq(count(*) FROM fetch_events('$eves')), qq(ack_events('$eves')), qq(drop_event_consumer('$eves')))
{
	$other->query_safe("BEGIN; SELECT count(*) FROM fetch_events('$eves'); SELECT $what");
	is(as('ann', qq(SELECT count(*) FROM fetch_events('$anns'))), '1', "$what is open: another consumer fetches");
	is(as('ann', qq(SELECT retry_event('$anns', max(id)) FROM notification_events)), '', '... hands back');
	is(as('ann', qq(SELECT count(*) FROM fetch_events('$anns'))), '1', '... fetches again');
	is(as('ann', qq(CALL wait_for_events('$anns', '20 s'))), '', '... may fetch');
	is(as('ann', qq(SELECT ack_events('$anns'))), '1', '... acknowledges');
	is(as('ann', qq(SELECT create_event_consumer('$anns', or_replace => true))), '', '... is replaced');
	$other->query_safe('ROLLBACK');
	$node->safe_psql('postgres', q(SELECT notify_event('go')));
}

#
# A role without the right waits for no lock
#

$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	SELECT drop_event_consumer(name) FROM event_consumers;
	SELECT create_event_handler('anns', 'record', owner => 'ann'), create_event_consumer('anns', owner => 'ann');
	SET SESSION AUTHORIZATION ann;
	SELECT listen_event_channel('anns'), notify_event('go')));
$other->query_safe(
	q(RESET SESSION AUTHORIZATION;
	SET SESSION AUTHORIZATION ann;
	BEGIN;
	SELECT pause_event_handler('anns'), count(*) FROM fetch_events('anns');
	SELECT unlisten_event_channel('anns')));
foreach my $what (
	'alter_event_handler', 'pause_event_handler', 'resume_event_handler', 'drop_event_handler',
	'retry_dead_events', 'discard_dead_events', 'replay_events', 'call_event_handler', 'drop_event_consumer',
	'fetch_events', 'ack_events', 'retry_event', 'unlisten_event_channel')
{
	my $more = $what =~ /^(call|replay|retry_event$)/ ? ', 1' : '';

	is(as('eve', "SELECT $what('anns'$more)"), '42501', "$what: no right, and no waiting");
}
is( as('eve', q(SELECT create_event_handler('anns', 'record', or_replace => true))),
	'42501', 'create_event_handler: no right, and no waiting');
is( as('eve', q(SELECT create_event_consumer('anns', or_replace => true))),
	'42501', 'create_event_consumer: no right, and no waiting');
is(as('ann', q(SELECT resume_event_handler('anns'))), '55P03', 'who has the right waits');
is(as('ann', q(SELECT ack_events('anns'))), '55P03', 'and so for a consumer');
is(as('ann', q(SELECT unlisten_event_channel('anns'))), '55P03', 'and for a channel');
$other->quit;

#
# Numbers
#

# numbers(DATABASE): how many definitions have a number, and how many different
# numbers they have
sub numbers
{
	my ($database) = @_;

	return $node->safe_psql(
		$database, q(
		SELECT count(number), count(DISTINCT number), bool_and(number > 0) FROM _event_handlers;
		SELECT count(number), count(DISTINCT number), bool_and(number > 0) FROM _event_consumers));
}

# make(DATABASE, PREFIX): creates 20 of each, and checks that they are locked by
# their own numbers
sub make
{
	my ($database, $prefix) = @_;

	return $node->safe_psql(
		$database, qq(
		DO \$\$ BEGIN
			PERFORM create_event_handler('$prefix' || i, 'record', 'none'), create_event_consumer('$prefix' || i)
			FROM generate_series(1, 20) i;
		END \$\$;
		BEGIN;
		DO \$\$ BEGIN
			PERFORM pause_event_handler('$prefix' || i), ack_events('$prefix' || i)
			FROM generate_series(1, 20) i;
			PERFORM fetch_events('$prefix' || i) FROM generate_series(1, 20) i;
		END \$\$;
		SELECT count(*), bool_and(EXISTS (
			SELECT FROM _event_handlers h WHERE l.classid = '_event_handlers'::regclass
			AND l.objid::bigint + (l.objsubid::bigint << 32) = h.number))
		FROM pg_locks l WHERE locktype = 'object' AND classid = '_event_handlers'::regclass AND mode = 'AccessExclusiveLock';
		ROLLBACK));
}

$node->safe_psql('postgres', q(
	SELECT drop_event_handler(name) FROM event_handlers;
	SELECT drop_event_consumer(name) FROM event_consumers));
is(make('postgres', 'a'), '20|t', 'handlers are locked by their numbers');
is(numbers('postgres'), "20|20|t\n20|20|t", 'each has one');
my $last = $node->safe_psql('postgres', 'SELECT max(number) FROM _event_handlers');
$node->safe_psql('postgres', q(SELECT drop_event_handler('a20'); SELECT create_event_handler('a20', 'record', 'none')));
is( $node->safe_psql('postgres', "SELECT number > $last FROM _event_handlers WHERE name = 'a20'"),
	't', 'a handler of the same name is another one');

# a copy, with the definitions of the original
$node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE true');
wait_for_no_workers($node, 'postgres');
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
$node->safe_psql('template1', 'ALTER DATABASE postgres IS_TEMPLATE false');
is(make('copy', 'b'), '20|t', 'further ones in a copy made with TEMPLATE');
is(numbers('copy'), "40|40|t\n40|40|t", '... have numbers of their own');

# a restore into an empty database, and a restore of the data alone
my $dumps = PostgreSQL::Test::Utils::tempdir;

sub restore
{
	my ($database, $name, @options) = @_;

	$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', "$dumps/$name", @options ], "pg_dump @options");
	$node->command_ok(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', "$dumps/$name" ],
		"restore of $name");
	return;
}

$node->safe_psql('template1', 'CREATE DATABASE restored');
restore('restored', 'all');
is(numbers('restored'), "20|20|t\n20|20|t", 'restored definitions have numbers');
is(make('restored', 'b'), '20|t', 'further ones in a restored database');
is(numbers('restored'), "40|40|t\n40|40|t", '... have numbers of their own');

foreach my $how ('data_only', 'without_triggers')
{
	my @options = ('--data-only', '--exclude-table-data=seen', '--exclude-table-data=notification_events');

	push @options, '--disable-triggers' if $how eq 'without_triggers';
	$node->safe_psql('template1', "CREATE DATABASE $how");
	$node->safe_psql($how, 'CREATE EXTENSION pg_notify_events');
	make_recorder($node, $how);
	# numbers that the database has drawn already, and that the dump has, too
	make($how, 'b') if $how eq 'data_only';
	restore($how, $how, @options);
	is(make($how, 'c'), '20|t', "further ones after $how");
	is(numbers($how), $how eq 'data_only' ? "60|60|t\n60|60|t" : "40|40|t\n40|40|t", "... have numbers of their own after $how");
}

$node->stop;
done_testing();
