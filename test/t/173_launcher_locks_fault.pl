
# The launcher looks at all databases, of which there may be more than the server has room
# for locks. It keeps none of them locked.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_server('launcher_locks', 'log_statement = none');
my $faults = $node->data_dir . '/pg_notify_events.faults';

mkdir $faults or die "mkdir $faults: $!";
$node->safe_psql('postgres', "CREATE DATABASE d$_") foreach (1 .. 3);
$node->safe_psql('d1', 'CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'd1');

# It waits where it has looked at all of them.
append_to_file("$faults/databases-read", 'wait');
$node->safe_psql('d2', 'CREATE EXTENSION pg_notify_events');
foreach my $try (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if -e "$faults/databases-read.hit";
	usleep(10_000);
}
ok(-e "$faults/databases-read.hit", 'the launcher has looked at the databases');
my $launcher = worker_pid($node, 'launcher');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $launcher AND locktype = 'object'"),
	'0', 'it has none of them locked');
unlink("$faults/databases-read.hit") or die "unlink: $!";
wait_for_listener($node, 'd2');

$node->stop;
done_testing();
