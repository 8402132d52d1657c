
# Values that a jsonb cannot hold, because they are above 256 MB. The error tells the
# writer which column and which trigger it was, and how to leave the column out. Nothing
# else in the session suffers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Memory for some copies of such a value while its row is written and read. To compress a
# value takes longer than to write it.
my $needed_kb = 3 * 1024 * 1024;

(-r '/proc/meminfo' ? slurp_file('/proc/meminfo') : '') =~ /^MemAvailable:\s+(\d+) kB/m && $1 >= $needed_kb
  or plan skip_all => 'this takes 3 GB of memory';

my $node = new_server('large_values', 'pg_notify_events.announce = off', 'log_statement = none');
my $limit = 268435455;

$node->safe_psql(
	'postgres', q(
	CREATE EXTENSION pg_notify_events;
	CREATE UNLOGGED TABLE papers (id integer, "the text" text, other text, parts text[]);
	ALTER TABLE papers ALTER "the text" SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL,
		ALTER parts SET STORAGE EXTERNAL;
	CREATE TRIGGER each AFTER INSERT ON papers FOR EACH ROW EXECUTE FUNCTION notify_event('paper');
));

my $too_long = "ERROR:  string too long to represent as jsonb string\nDETAIL:  Due to an implementation restriction, jsonb strings cannot exceed $limit bytes.";
my $too_much = "ERROR:  total size of jsonb object elements exceeds the maximum of $limit bytes";
my $half = 140_000_000;
my $hint = "HINT:  To leave columns out, name those to record in CREATE TRIGGER: notify_event('name', new, column, ...).";

foreach my $case (
	[ 'text', '"the text"', "repeat('x', $limit + 1)", $too_long, 'column "the text" of table "public.papers", recorded by trigger "each"' ],
	[ 'in an array', 'parts', "ARRAY[repeat('x', $limit + 1)]", $too_long, 'column "parts" of table "public.papers", recorded by trigger "each"' ],
	[ 'two columns', '"the text", other', "repeat('x', $half), repeat('x', $half)", $too_much, 'row of table "public.papers", recorded by trigger "each"' ])
{
	my ($name, $columns, $value, $error, $context) = @$case;
	my ($status, $out, $err) = $node->psql(
		'postgres', qq(
		INSERT INTO papers (id, $columns) VALUES (1, $value);
		INSERT INTO papers (id) VALUES (2);
		SELECT event_data #>> '{new,id}' FROM notification_events;
		TRUNCATE papers, notification_events;
	), on_error_stop => 0);

	$err =~ s/^psql:<stdin>:\d+: //mg;
	like($err, qr/^\Q$error\E\n(?:DETAIL: .*\n)?\Q$hint\E\nCONTEXT: .*\Q$context\E/s, "$name: what and where");
	is($out, '2', "$name: the next one is recorded");
}

# what the hint recommends
$node->safe_psql(
	'postgres', qq(
	CREATE OR REPLACE TRIGGER each AFTER INSERT ON papers FOR EACH ROW EXECUTE FUNCTION notify_event('paper', new, id, other);
	INSERT INTO papers (id, "the text") VALUES (3, repeat('x', $limit + 1))));
is($node->safe_psql('postgres', q(SELECT event_data -> 'new' FROM notification_events)), '{"id": 3, "other": null}', 'without the column');

$node->stop;
done_testing();
