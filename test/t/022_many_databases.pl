
# Many databases: after the server has started, all databases with the extension are
# served at once, whatever databases lie between them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('many_databases', 'max_worker_processes = 20');
my @served = map { "served_$_" } (1 .. 6);

# created in turn, so that the launcher looks into databases without the extension
# in between
foreach my $database (@served)
{
	(my $plain = $database) =~ s/served/plain/;

	$node->safe_psql('postgres', "CREATE DATABASE $plain");
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	make_recorder($node, $database);
	make_owner($node, $database, 'ann');
	$node->safe_psql($database,
		q(SELECT create_event_handler('record', 'record', owner => 'ann')));
}

# returns the seconds from the server's start until the slowest listener has started
sub slowest
{
	$node->poll_query_until(
		$served[0], q(
		SELECT count(*) = 6 FROM event_worker_stats WHERE kind = 'listener' AND state = 'listening'))
	  or die "not all databases are served";
	return $node->safe_psql(
		$served[0], q(
		SELECT max(extract(epoch FROM started_at - pg_postmaster_start_time()))
		FROM event_worker_stats WHERE kind = 'listener'));
}

foreach my $mode ('fast', 'immediate')
{
	$node->stop($mode);
	$node->start;
	my $taken = slowest();
	cmp_ok($taken, '<', 20,
		"$mode stop, start: all of six databases are served ($taken s)");
	foreach my $database (@served)
	{
		$node->safe_psql($database, qq(SELECT notify_event('$mode')));
	}
	foreach my $database (@served)
	{
		wait_for_handlers($node, $database);
		seen_is_log($node, $database, 'record', 'true', "$mode, $database");
	}
}
ok(wait_for_no_workers($node, "plain_$_"), "nobody stays in plain_$_")
  foreach (1 .. 6);

# Create the extension in all of them at once.
$node->safe_psql("plain_$_", 'CREATE EXTENSION pg_notify_events')
  foreach (1 .. 6);
$node->poll_query_until(
	$served[0], q(
	SELECT count(*) = 12 FROM event_worker_stats WHERE kind = 'listener' AND state = 'listening'))
  or die "not all databases are served";
my $taken = $node->safe_psql(
	'plain_6', q(
	SELECT max(extract(epoch FROM w.started_at - i.created_at))
	FROM event_worker_stats w, _event_install i
	WHERE w.kind = 'listener' AND w.database = current_database()));
cmp_ok($taken, '<', 20, "CREATE EXTENSION in six more ($taken s)");

$node->stop;
done_testing();
