
# The clients of test/clients: how to run each one, and its language.

package Clients;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  $client_directory
  %client_program
  client_command
);

our $client_directory = "$FindBin::RealBin/../clients";

# the programs, by the name of the consumer if the client has one
our %client_program = (
	async => 'async_consumer.py',
	durable => 'durable_listener.py',
	libpq => 'consumer.c',
	node => 'consumer.js',
	psql => 'consumer.sh',
	recipe => 'recipe_listener.py');

my $compiled = 0;

sub compile
{
	my ($source) = @_;
	my $program = "$PostgreSQL::Test::Utils::tmp_check/consumer." . ++$compiled;
	my ($include, $library) =
	  map { chomp(my $directory = `pg_config --$_`); $directory } qw(includedir libdir);

	system('cc', '-Wall', '-Wextra', '-Werror', $source, "-I$include", '-I/usr/include/postgresql',
		"-L$library", '-lpq', '-o', $program) == 0
	  or die "$source does not compile";
	return $program;
}

# client_command(NAME, HOST, PORT, [USER, [DIRECTORY]]): the command that runs a client,
# which connects there with its NAME as application_name; its program is in DIRECTORY
sub client_command
{
	my ($name, $host, $port, $user, $directory) = @_;
	my $program = ($directory // $client_directory) . "/$client_program{$name}";
	my %interpreter = (py => 'python3', js => 'node', sh => 'sh');

	$user //= 'postgres';
	return (
		$program =~ /\.c$/ ? compile($program) : ($interpreter{ ($program =~ /\.(\w+)$/)[0] }, $program),
		$name eq 'node'
		? "postgresql://$user\@localhost:$port/postgres?host=$host&application_name=$name"
		: "host=$host port=$port dbname=postgres user=$user application_name=$name",
		$name eq 'durable' ? "$PostgreSQL::Test::Utils::tmp_check/ledger.sqlite" : ());
}

1;
