
# Databases of different encodings: event_worker_stats can be read in each of them,
# whatever errors the workers of the others had, and wherever those texts were cut.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'encodings',
	'pg_notify_events.announce = off',
	'pg_notify_events.max_executors = 8',
	'log_statement = none');

# The errors that are raised in each database, in bytes of its encoding. A character of
# two or more bytes stands where the text is cut, with or without a byte before.
my %raised = (
	UTF8 => [ "\xc3\xa9", "\xe3\x81\x82", "\xf0\x9f\x98\x80" ],
	LATIN1 => ["\xe9"],
	EUC_JP => ["\xa4\xa2"],
	SQL_ASCII => [ "\xe9", "\xc3\xa9" ]);

# prepare(DATABASE, OWNER): create a handler owner for whom reading the log fails in
# DATABASE, with a text that the test chooses
sub prepare
{
	my ($database, $owner) = @_;

	$node->safe_psql(
		$database, q(
		CREATE EXTENSION pg_notify_events;
		CREATE TABLE said (hex text);
		GRANT SELECT ON said TO PUBLIC;
		CREATE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS
			$$ BEGIN RAISE '%', (SELECT convert_from(decode(hex, 'hex'), getdatabaseencoding()) FROM public.said); END $$;
		CREATE FUNCTION handle(e notification_events) RETURNS void LANGUAGE sql AS '';
	));
	make_owner($node, $database, qq("$owner"));
	$node->safe_psql(
		$database, qq(
		ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
		CREATE POLICY failing ON notification_events TO "$owner" USING (fail());
		SELECT notify_event('e');
	));
	return;
}

my %database;

foreach my $encoding (sort keys %raised)
{
	$database{$encoding} = lc $encoding;
	$node->safe_psql('postgres',
		"CREATE DATABASE $database{$encoding} TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'"
	);
	prepare($database{$encoding}, 'ann');
}
$node->safe_psql('postgres', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor');

# message(ENCODING, TEXT, [DATABASE, [OWNER]]): have an executor of that database fail
# with TEXT, for a new handler
my $handlers = 0;
sub message
{
	my ($encoding, $text, $database, $owner) = @_;
	my $hex = unpack('H*', $text);

	$database //= $database{$encoding};
	$owner //= 'ann';
	$handlers++;
	$node->safe_psql(
		$database, qq(
		BEGIN;
		SELECT drop_event_handler(name) FROM event_handlers;
		TRUNCATE said;
		INSERT INTO said VALUES ('$hex');
		SET LOCAL SESSION AUTHORIZATION "$owner";
		SELECT create_event_handler('h$handlers', 'handle', start_from => 'beginning');
		COMMIT;
	));
	my $since = $node->safe_psql($database, 'SELECT clock_timestamp()');
	$node->poll_query_until($database,
		"SELECT count(*) > 0 FROM event_worker_stats WHERE kind = 'executor' AND database = current_database() AND last_error_at > '$since'"
	) or die 'no executor has failed';
	return;
}

# seen(FROM, OF): the last error of the executor of database OF, as another role reads it
# in database FROM
sub seen
{
	my ($from, $of) = @_;
	my ($status, $out, $err) = $node->psql(
		$database{$from},
		"SELECT last_error FROM event_worker_stats WHERE kind = 'executor' AND database = '$database{$of}' AND owner = 'ann'",
		extra_params => [ '-U', 'watcher' ]);

	is($err, '', "read in $from what was raised in $of");
	return $out;
}

# in all encodings, cut or not
foreach my $of (sort keys %raised)
{
	foreach my $character (@{ $raised{$of} })
	{
		foreach my $before (0, 1)
		{
			message($of, 'x' x $before . $character x 600);
			foreach my $from (sort keys %raised)
			{
				local $ENV{PGCLIENTENCODING} = 'UTF8';
				my $out = seen($from, $of);

				my $unit =
				  $from eq $of && $of ne 'SQL_ASCII'
				  ? ($of eq 'LATIN1' ? "\xc3\xa9" : $of eq 'EUC_JP' ? "\xe3\x81\x82" : $character)
				  : $out =~ /^x{$before}(\\x[0-9a-f]{2}|.[\x80-\xbf]*)/ ? $1
				  : '?';
				like($out, qr/^x{$before}\Q$unit\E/, '... as it was raised, or as its bytes');
			}
		}
	}
}

# Characters with a counterpart are converted; the others are shown as bytes.
message('UTF8', "caf\xc3\xa9 \xe3\x81\x82!");
$ENV{PGCLIENTENCODING} = 'UTF8';
is(seen('UTF8', 'UTF8'), "caf\xc3\xa9 \xe3\x81\x82!", 'the text');
is(seen('LATIN1', 'UTF8'), "caf\xc3\xa9 \\xe3\\x81\\x82!", 'in LATIN1');
is(seen('EUC_JP', 'UTF8'), "caf\xc3\xa9 \xe3\x81\x82!", 'in EUC_JP');
is(seen('SQL_ASCII', 'UTF8'), "caf\\xc3\\xa9 \\xe3\\x81\\x82!", 'in SQL_ASCII');
message('LATIN1', "caf\xe9");
is(seen('UTF8', 'LATIN1'), "caf\xc3\xa9", 'of LATIN1');
message('SQL_ASCII', "caf\xe9 \xc3\xa9");
is(seen('UTF8', 'SQL_ASCII'), "caf\\xe9 \xc3\xa9", 'of SQL_ASCII');

# Names of databases and roles are bytes in the encoding of the session that gave them.
{
	local $ENV{PGCLIENTENCODING};
	delete $ENV{PGCLIENTENCODING};
	my $name = "caf\xe9";
	$node->safe_psql($database{LATIN1}, qq(CREATE DATABASE "$name" TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'));
	prepare($name, $name);
	message('LATIN1', 'a', $name, $name);
}
foreach my $from (sort keys %raised)
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	my ($status, $out, $err) = $node->psql(
		$database{$from},
		"SELECT database, owner, last_error FROM event_worker_stats WHERE database::text LIKE 'caf%' AND kind = 'executor'",
		extra_params => [ '-U', 'watcher' ]);
	my $name = $from eq 'LATIN1' ? "caf\xc3\xa9" : 'caf\\xe9';

	is($err, '', "names of another encoding, in $from");
	is($out, "$name|$name|a", '... can be read');
}

# A name that is longer in another encoding, and does not fit there, is cut
# between two characters.
{
	local $ENV{PGCLIENTENCODING};
	delete $ENV{PGCLIENTENCODING};
	my $name = "cu\xe9" . "\xc3\xa9" x 30;
	$node->safe_psql($database{LATIN1}, qq(CREATE DATABASE "$name" TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'));
	$node->safe_psql($name, 'CREATE EXTENSION pg_notify_events');
	$node->poll_query_until($database{UTF8},
		"SELECT count(*) > 0 FROM event_worker_stats WHERE database::text LIKE 'cu%'")
	  or die 'it has no listener';
}
foreach my $encoding (qw(UTF8 LATIN1))
{
	local $ENV{PGCLIENTENCODING} = $encoding;
	my ($status, $out, $err) = $node->psql(
		$database{UTF8},
		"SELECT DISTINCT database FROM event_worker_stats WHERE database::text LIKE 'cu%'",
		extra_params => [ '-U', 'watcher' ]);

	is($err, '', "a name that is cut, for a client in $encoding");
	is($out, 'cu\\xe9' . ($encoding eq 'UTF8' ? "\xc3\xa9" : "\xe9") x 28, '... between two characters');
}

$node->stop;
done_testing();
