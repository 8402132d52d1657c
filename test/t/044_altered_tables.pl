
# What triggers record while tables, triggers, types and schemas are altered at
# random, also by another session and in transactions that are rolled back
# (lib/altered_tables.py).  What a session has cached of a trigger must never be
# out of date.  sql/altered_tables.sql has the known cases.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'python3 with psycopg2 is needed'
  if system('python3', '-c', 'import psycopg2') != 0;

my $steps = 5000;
my $seed = $ENV{TEST_SEED} // int(rand(2**31));
note "TEST_SEED=$seed";

my $node = new_server('altered', 'log_statement = none', 'pg_notify_events.announce = off');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');

my ($out, $err) = ('', '');
ok( IPC::Run::run(
		[ 'python3', "$FindBin::RealBin/lib/altered_tables.py", $node->connstr('postgres'), $seed, $steps ],
		'>', \$out, '2>', \$err),
	"each event is what its row and its trigger were, TEST_SEED=$seed")
  or diag "$out$err";
my %count = $out =~ /(altered|compared|meddled) (\d+)/g;
cmp_ok($count{altered} // 0, '>', $steps / 10, 'something was altered');
cmp_ok($count{meddled} // 0, '>', $steps / 100, 'some triggers were replaced before they fired');
cmp_ok($count{compared} // 0, '>', $steps / 10, 'something was compared');

$node->stop;
done_testing();
