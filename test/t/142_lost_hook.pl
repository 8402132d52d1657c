
# A module that sets post_parse_analyze_hook to NULL disables the check of internal
# statements. They are refused then, each time, and the session goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('lost_hook', 'restart_after_crash = off');
my $library = "$PostgreSQL::Test::Utils::tmp_check/lost_hook.so";
my $refused = qr/ERROR:  another module keeps pg_notify_events from checking its internal statements/;

system_or_bail('gcc', '-shared', '-fPIC', '-O1', '-I' . $node->config_data('--includedir-server'),
	'-o', $library, "$FindBin::RealBin/lib/lost_hook.c");
$node->safe_psql('postgres', q(CREATE EXTENSION pg_notify_events; SELECT listen_event_channel('x')));

# refused(NAME, STATEMENT...): run the statements in a new session, which goes on after
# errors; the last two are refused
sub refused
{
	my ($name, @statements) = @_;
	my ($status, $out, $err) =
	  $node->psql('postgres', join(";\n", @statements, q(SELECT 'alive')), on_error_stop => 0);
	my @errors = $err =~ /$refused/g;

	is($out =~ /^alive$/m, 1, "$name: the session goes on");
	is(scalar(@errors), 2, "$name: it is refused");
	return;
}

refused('a first time', "LOAD '$library'", (q(SELECT unlisten_event_channel('x'))) x 2);

# A statement that was prepared before, and is prepared again for a schema of
# another name.
refused(
	'another time',
	q(SELECT unlisten_event_channel('x')),
	'ALTER SCHEMA public RENAME TO other',
	"LOAD '$library'",
	q(SELECT other.unlisten_event_channel('x')),
	'ALTER SCHEMA other RENAME TO public',
	q(SELECT unlisten_event_channel('x')));

$node->stop;
done_testing();
