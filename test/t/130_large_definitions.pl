
# Definitions have a maximum size. A function refuses a larger one. If a restore brings
# one nevertheless, the handler is suspended, the consumer gets an error, and no process
# reads it into memory.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('large_definitions', "pg_notify_events.naptime = '200 ms'");

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');

# A filter of the given number of bytes. None of the events here passes it.
$node->safe_psql(
	'postgres', q(
	CREATE FUNCTION filter_of(bytes integer) RETURNS jsonpath LANGUAGE sql AS
		$$ SELECT ('$ == "' || repeat('x', bytes) || '"')::jsonpath $$;
	SELECT create_event_handler('small', 'record', owner => 'ann');
	SELECT create_event_consumer('small');
));

# the outcome of a statement of the superuser: SQLSTATE and message, or nothing
sub outcome
{
	my ($sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	return $stderr =~ /ERROR:  (\w+: .*)/ ? $1 : '';
}

my @definitions = (
	"SELECT create_event_handler('h', 'record', filter => %s)",
	"SELECT create_event_handler('small', 'record', or_replace => true, filter => %s)",
	"SELECT alter_event_handler('small', filter => %s)",
	"SELECT create_event_consumer('c', filter => %s)",
	"SELECT create_event_consumer('small', or_replace => true, filter => %s)",
);
foreach my $definition (@definitions)
{
	my $what = $definition =~ s/\(.*//r;

	like(
		outcome(sprintf($definition, 'filter_of(66000)')),
		qr/^54000: filter has 660\d\d bytes, 65536 are allowed/,
		"$what: filter of 66,000 bytes");
	like(
		outcome(sprintf($definition, 'filter_of(5000000)')),
		qr/^54000: filter has 50000\d\d bytes, 65536 are allowed/,
		"$what: filter of 5 MB");
	is(outcome('BEGIN; ' . sprintf($definition, 'filter_of(65000)') . '; ROLLBACK;'),
		'', "$what: filter of 65,000 bytes");

	my $name = $definition =~ s/filter => %s/event_name => repeat('x', 3000)/r;
	like(outcome($name), qr/^22023: event_name "x{200}\.\.\." is too long/, "$what: long event_name");
}

# Definitions that no function accepts. The handlers' owner has no executor, so that the
# listener looks at all of them whenever there is an event.
my $bytes = 20_000_000;
my $handlers = 8;

$node->safe_psql(
	'postgres', qq(
	SELECT drop_event_handler('small');
	SELECT drop_event_consumer('small');
	SELECT create_event_handler('large ' || n, 'record', owner => 'ann', filter => '\$ == 1')
		FROM generate_series(1, $handlers) n;
	SELECT create_event_handler('long', 'record', owner => 'ann');
	SELECT create_event_consumer('large', filter => '\$ == 1');
	SELECT create_event_consumer('long');
));
my $listener = wait_for_listener($node, 'postgres');
my $offset = -s $node->logfile;

$node->safe_psql(
	'postgres', qq(
	BEGIN;
	ALTER TABLE _event_handlers DISABLE TRIGGER guard_rows;
	ALTER TABLE _event_consumers DISABLE TRIGGER guard_rows;
	UPDATE _event_handlers SET filter = filter_of($bytes) WHERE name ~ 'large';
	UPDATE _event_handlers SET event_name = repeat('*', $bytes) WHERE name = 'long';
	UPDATE _event_consumers SET filter = filter_of($bytes) WHERE name = 'large';
	UPDATE _event_consumers SET event_name = repeat('*', 1025) WHERE name = 'long';
	ALTER TABLE _event_handlers ENABLE ALWAYS TRIGGER guard_rows;
	ALTER TABLE _event_consumers ENABLE ALWAYS TRIGGER guard_rows;
	SELECT notify_event('e', '1');
	COMMIT;
));
$node->wait_for_log(qr/event handler "long" is suspended: its event_name has $bytes bytes, 1024 are allowed/, $offset);
$node->safe_psql('postgres', q(SELECT notify_event('e', '1') FROM generate_series(1, 20)));
$node->poll_query_until('postgres', 'SELECT count(*) = 9 FROM event_handler_stats WHERE state = $$suspended$$')
  or die 'not suspended';

SKIP:
{
	skip 'the memory of a server with AddressSanitizer tells nothing', 1 if defined $ENV{ASAN_OPTIONS};
	cmp_ok(peak_memory($listener), '<', 50_000, 'memory of the listener in kB');
}

is( $node->safe_psql('postgres', q(SELECT handler, suspended_reason FROM event_handler_stats WHERE handler IN ('large 1', 'long') ORDER BY 1)),
	'large 1|its filter has ' . ($bytes + 41) . " bytes, 65536 are allowed\nlong|its event_name has $bytes bytes, 1024 are allowed",
	'why they are suspended');
like(outcome("SELECT alter_event_handler('large 1', batch_size => 3)"),
	qr/^54000: event handler "large 1" cannot run: its filter has \d+ bytes/,
	'another change does not drop the filter');
like(outcome("SELECT alter_event_handler('long', batch_size => 3)"),
	qr/^54000: event handler "long" cannot run: its event_name has $bytes bytes/,
	'nor the name');
like(outcome("SELECT replay_events('large 1', 1)"), qr/^54000: .*its filter has \d+ bytes/,
	'nothing is replayed without its filter');
like(outcome("SELECT * FROM fetch_events('large')"), qr/^54000: .*its filter has \d+ bytes/,
	'a consumer with such a filter');
like(outcome("SELECT * FROM fetch_events('long')"), qr/^54000: .*its event_name has 1025 bytes/,
	'a consumer with such a name');
is($node->safe_psql('postgres', 'SELECT count(*) FROM seen'), '0', 'nothing was delivered');

# When the definitions are mended, they get all events.
$node->safe_psql(
	'postgres', q(
	SELECT alter_event_handler('large 1', filter => '$ == 1');
	SELECT alter_event_handler('large 2', clear_filter => true);
	SELECT alter_event_handler('long', event_name => 'e*');
	SELECT create_event_consumer('large', filter => '$ == 1', or_replace => true);
	SELECT create_event_consumer('long', or_replace => true);
	SELECT drop_event_handler('large ' || n) FROM generate_series(3, 8) n;
));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT handler, delivered FROM event_handler_stats ORDER BY 1'),
	"large 1|21\nlarge 2|21\nlong|21", 'mended handlers');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('large'))), '21', 'mended consumer');
is($node->safe_psql('postgres', q(SELECT count(*) FROM fetch_events('long'))), '21', 'the other one');
$node->stop;
done_testing();
