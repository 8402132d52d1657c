
# The pace of rounds, tested without a server, with a clock and transactions that
# are made up.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $lib = "$FindBin::RealBin/lib";
my $src = "$FindBin::RealBin/../../src";
my $program = PostgreSQL::Test::Utils::tempdir() . '/pace';
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
chomp(my $include = `$pg_config --includedir-server`);

system_or_bail('gcc', '-O2', '-w', '-D_GNU_SOURCE', "-I$include", "-I$src", '-o', $program, "$lib/throttle.c", "$src/base/throttle.c");
my ($stdout, $stderr) = run_command([$program]);
foreach my $line (split /\n/, $stdout)
{
	ok(!$1, $2) if $line =~ /^(not )?ok \d+ - (.*)/;
}
like($stdout, qr/^1\.\.\d+$/m, 'all of it was run');
done_testing();
