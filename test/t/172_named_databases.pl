
# The setting "databases" may be long: the check whether a database is named adds next to
# nothing to the cost of an event, and the names keep their meaning.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('named_databases', 'log_statement = none');
my @databases = ('postgres', 'Upper', 'zulu', 'not_named');

foreach my $database (@databases)
{
	$node->safe_psql('postgres', qq(CREATE DATABASE "$database")) if $database ne 'postgres';
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
}

# served(NAME...): whether these databases, and no others, have a listener
sub served
{
	my (@names) = @_;
	my $list = join(',', map { "'$_'" } @names);

	return $node->poll_query_until('postgres',
		"SELECT coalesce(array_agg(database::text ORDER BY database::text COLLATE \"C\") = ARRAY[$list]::text[], cardinality(ARRAY[$list]::text[]) = 0)
		FROM event_worker_stats WHERE kind = 'listener' AND state = 'listening'");
}

ok(served('Upper', 'not_named', 'postgres', 'zulu'), 'all are served');

# The order of names does not matter. Case matters only inside quotes.
configure($node, databases => q('zulu, "Upper", POSTGRES'));
ok(served('Upper', 'postgres', 'zulu'), 'those that are named are');
configure($node, databases => q('upper, "POSTGRES"'));
ok(served(), 'case counts');
configure($node, databases => q(''));
ok(served(), 'no name is none');
isnt($node->psql('postgres', q(ALTER SYSTEM SET pg_notify_events.databases = 'a,,b')), 0, 'a list that is none is refused');

# cpu_of(DATABASE): the CPU time that many events cost there, in ticks
sub cpu_of
{
	my ($database) = @_;
	my $session = $node->background_psql($database);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my $cpu = sub {
		my @fields = split(' ', slurp_file("/proc/$pid/stat") =~ s/^.*\) //r);

		return $fields[11] + $fields[12];
	};
	my $before = $cpu->();

	$session->query_safe(q(SELECT count(notify_event('event')) FROM generate_series(1, 5000)));
	my $used = $cpu->() - $before;
	$session->quit;
	return $used;
}

SKIP:
{
	skip 'no /proc', 1 unless -d "/proc/$$";

	configure($node, databases => q('*'));
	ok(served('Upper', 'not_named', 'postgres', 'zulu'), 'all are served again');
	my $usual = cpu_of('zulu');
	configure($node, databases => "'" . join(', ', 'postgres', 'zulu', map { "database_$_" } (1 .. 20000)) . "'");
	ok(served('postgres', 'zulu'), 'two of many names are there');
	my $long = cpu_of('zulu');
	cmp_ok($long, '<', 3 * $usual + 20, "5,000 events cost $long ticks, with a long list, as against $usual");
}

$node->stop;
done_testing();
