
# Any value that a column of the log can hold makes an ordinary event.  It is handled
# once, announced and counted, and no worker fails because of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server(
	'hostile',
	# each session chooses its payload here, and the client hears of it at once
	'pg_notify_events.announce = direct',
	'log_statement = none',
	'autovacuum = off',
	'shared_buffers = 32MB',
	'max_wal_size = 4GB');

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_owner($node, 'postgres', 'ann');
# One handler of each shape.  A batch is two events, so most positions are inside a
# window.  The handlers record what they got; for data, its length and hash.  For
# 100 MB that takes longer than the default timeout on a slow machine.
$node->safe_psql(
	'postgres', q(
	CREATE TABLE got (handler text, id bigint, name text, data text, n bigint GENERATED ALWAYS AS IDENTITY);
	GRANT SELECT, INSERT ON got TO PUBLIC;
	-- the text of a string, as escaping 100 MB takes its time
	CREATE FUNCTION digest(data jsonb) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		type text := jsonb_typeof(data);
		content text := CASE type WHEN 'string' THEN data #>> '{}' ELSE data::text END;
	BEGIN
		RETURN coalesce(concat_ws(' ', type, octet_length(content), md5(content)), 'none');
	END $$;
	CREATE FUNCTION get_row(e notification_events) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO got (handler, id, name, data) VALUES ('row', e.id, e.event_name, digest(e.event_data)); END $$;
	CREATE FUNCTION get_array(l notification_events[]) RETURNS void LANGUAGE sql AS $$
		INSERT INTO got (handler, id, name, data)
			SELECT 'array', id, event_name, digest(event_data) FROM unnest(l) ORDER BY id
	$$;
	CREATE FUNCTION get_text(name text, data jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO got (handler, name, data) VALUES ('text', name, digest(data)) $$;
	CREATE FUNCTION get_varchar(name varchar, data jsonb) RETURNS void LANGUAGE sql AS
		$$ INSERT INTO got (handler, name, data) VALUES ('varchar', name, digest(data)) $$;
	SELECT create_event_handler(shape, 'get_' || shape, owner => 'ann', batch_size => 2, timeout => '10 min')
		FROM unnest('{row,array,text,varchar}'::text[]) shape;
));

# Each handler has got each event once, as it is in the log.  It got the events of
# one transaction in the order of their ids.
sub check_got
{
	my ($name) = @_;

	wait_for_handlers($node, 'postgres');
	foreach my $handler (qw(row array text varchar))
	{
		my $id = $handler =~ /row|array/ ? 'id' : 'NULL::bigint';

		is( $node->safe_psql(
				'postgres', qq(
				WITH l AS (SELECT $id, event_name::text, digest(event_data) FROM notification_events),
					 g AS (SELECT id, name, data FROM got WHERE handler = '$handler')
				SELECT (SELECT count(*) FROM (TABLE l EXCEPT ALL TABLE g) d),
					   (SELECT count(*) FROM (TABLE g EXCEPT ALL TABLE l) d),
					   (SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY n) AS previous FROM g JOIN got USING (id)
						WHERE handler = '$handler') o WHERE id <= previous))),
			'0|0|0',
			"$name, handler $handler: missing, wrong or doubled, out of order");
	}
	is( $node->safe_psql(
			'postgres', q(
			SELECT (SELECT count(*) FROM event_retries), (SELECT sum(failed) FROM event_handler_stats),
				   (SELECT count(*) FROM event_worker_stats WHERE last_error IS NOT NULL))),
		'0|0|0',
		"$name: nothing has failed");
	$node->safe_psql('postgres', 'DELETE FROM notification_events; TRUNCATE got');
	return;
}

# A client that listens
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN event_notification');

# Returns the payloads that the client has got since the last call.  The events are
# announced at commit (announce = direct), so the client has received everything when
# its next statement is done.
sub heard
{
	my $out = $listener->query_safe('SELECT 1');
	my @payloads;

	push @payloads, $1
	  while $out =~ /^Asynchronous notification "event_notification" with payload "(.*?)" received from server process with PID \d+\.$/gms;
	return @payloads;
}

#
# Names
#
my @names = (
	'𝄞' x 100, 'ü' x 100, 'x' x 100, '*', '?', '**?*', 'a*b', '[a-z]', '%', '_', '%s%n%d', 'back\\slash', '\\', '\\*', q(quo'te), 'quo"te', q('"),
	'$1', '$$', ';DROP TABLE got', "new\nline", "tab\there", "\x01\x1f\x7f", ' ', ' x ', 'null', 'NULL', '(other)', '{}', '{1,2}', '🐘🐘');
my $quoted = join(', ', map { "('" . s/'/''/gr . "')" } @names);
$node->safe_psql('postgres', "INSERT INTO notification_events (event_name) SELECT v.name FROM (VALUES $quoted) v (name)");
is_deeply([ heard() ], \@names, 'names: announced as they are');
# In patterns only * and ? are special; any other character stands for itself.
my %patterns = (
	'?' => q(char_length(event_name) = 1),
	'?' x 100 => q(char_length(event_name) = 100),
	'𝄞' x 50 . '*' => q(event_name ^@ '𝄞'),
	'*𝄞?𝄞' => q(event_name ^@ '𝄞'),
	'*ü' => q(event_name ^@ 'ü'),
	'[a-z]' => q(event_name = '[a-z]'),
	'%' => q(event_name = '%'),
	'back\\slash' => q(event_name = 'back\slash'),
	'\\*' => q(event_name ^@ '\\'),
	q(*'*) => q(strpos(event_name, '''') > 0),
	"*\n*" => q(strpos(event_name, chr(10)) > 0),
	'new?line' => q(event_name = E'new\nline'),
	'?*b' => q(event_name = 'a*b'),
	'*' => q(true),);
wait_for_handlers($node, 'postgres');
my $number = 0;
foreach my $pattern (sort keys %patterns)
{
	my $literal = "'" . ($pattern =~ s/'/''/gr) . "'";

	$node->safe_psql('postgres',
		"SELECT create_event_handler('pattern', 'get_row', $literal, owner => 'ann', start_from => 'beginning')");
	wait_for_handlers($node, 'postgres');
	is( $node->safe_psql(
			'postgres', qq(
			SELECT delivered = (SELECT count(*) FROM notification_events WHERE $patterns{$pattern}), delivered > 0
			FROM event_handler_stats WHERE handler = 'pattern')),
		't|t',
		'pattern ' . ++$number);
	$node->safe_psql('postgres', q(
		SELECT drop_event_handler('pattern');
		DELETE FROM got WHERE n IN (SELECT n FROM (SELECT n, row_number() OVER (PARTITION BY id ORDER BY n) AS k
			FROM got WHERE handler = 'row') g WHERE k > 1)));
}
$node->poll_query_until('postgres', 'SELECT count(*) = ' . @names . ' FROM event_stats')
  or die 'not all names are counted';
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM event_stats s FULL JOIN (SELECT DISTINCT event_name FROM notification_events) l USING (event_name)
		WHERE s.emitted IS DISTINCT FROM 1 OR s.delivered IS NULL)),
	'0',
	'names: in event_stats');
check_got('names');

#
# Ids
#
my $max = '9223372036854775807';
my @ids = ('-9223372036854775807', '-2147483649', -5, -1, 0, 2147483646 .. 2147483650, 4294967295, 4294967296, '9007199254740993', $max);
$node->safe_psql('postgres',
	'INSERT INTO notification_events (id, event_name) SELECT v.id, \'given\' FROM (VALUES '
	  . join(', ', map { "($_)" } @ids)
	  . ') v (id)');
check_got('ids that are given');
like(
	[ $node->psql('postgres', q(INSERT INTO notification_events (id, event_name) VALUES ('-9223372036854775808', 'given'))) ]->[2],
	qr/ERROR:  an event cannot have the id -9223372036854775808/,
	'the smallest bigint is no id');
foreach my $payload (qw(id json))
{
	heard();
	my $sql = qq(SET pg_notify_events.payload = $payload;
		SELECT setval('notification_events_id_seq', 2147483645);
		SELECT notify_event('near 2^31', '{"a": 1}') FROM generate_series(1, 4);
		SELECT setval('notification_events_id_seq', $max - 2);
		SELECT notify_event('near 2^63', 'null') FROM generate_series(1, 2););
	my $drawn = $node->safe_psql('postgres', $sql);
	my @drawn = (2147483646 .. 2147483649, '9223372036854775806', $max);

	is( join(' ', grep { !/^(2147483645|9223372036854775805)$/ } split(/\n/, $drawn)),
		"@drawn",
		'ids that are drawn');
	is_deeply(
		[ heard() ],
		[
			$payload eq 'id'
			? @drawn
			: ((map { qq({"id": $_, "name": "near 2^31", "data": {"a": 1}}) } @drawn[ 0 .. 3 ]),
				(map { qq({"id": $_, "name": "near 2^63", "data": null}) } @drawn[ 4 .. 5 ]))
		],
		"payload = $payload: beyond 2^31");
	my ($status, $out, $err) = $node->psql('postgres', q(SELECT notify_event('none left')));
	like($err, qr/ERROR:  nextval: reached maximum value of sequence "notification_events_id_seq"/,
		'no id is left: an error of who emits');
	check_got("drawn ids, payload = $payload");
}
$node->safe_psql('postgres', q(SELECT setval('notification_events_id_seq', 1000)));
my ($status, $out, $err) = $node->psql(
	'postgres', q(
	INSERT INTO notification_events (id, event_name) VALUES (7, 'once');
	INSERT INTO notification_events (id, event_name) VALUES (7, 'twice');
));
like($err, qr/ERROR:  duplicate key value violates unique constraint "notification_events_pkey"/,
	'an id that is taken: an error of who emits');
check_got('an id that is taken');
# an id below all ids that were handled
$node->safe_psql('postgres', q(INSERT INTO notification_events (id, event_name) VALUES (-7, 'behind')));
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT last_event_id FROM event_handler_stats WHERE handler = 'row')),
	'-7', 'an id below the last one');
check_got('ids behind others');

#
# Times
#
my @times = ("'infinity'", "'-infinity'", 'NULL', "'0001-01-01'", "'4713-01-01 BC'", "'290000-01-01'",
	"'1970-01-01'", "'2000-01-01'", "now() + interval '1 year'", "now() - interval '1 year'");
$node->safe_psql('postgres',
	"SELECT pause_event_handler('row');\n"
	  . 'INSERT INTO notification_events (event_name, created_at) SELECT \'time\', v.t::timestamptz FROM (VALUES '
	  . join(', ', map { "($_)" } @times)
	  . ') v (t)');
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(SELECT pending, oldest_pending_at FROM event_handler_stats WHERE handler = 'row')),
	scalar(@times) . '|-infinity',
	'times: the oldest one');
$node->safe_psql('postgres',
	q(SELECT resume_event_handler('row'); INSERT INTO notification_events (event_name) SELECT 'now' FROM generate_series(1, 100)));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT count(*) FROM event_handler_stats
		WHERE latency_p50 BETWEEN 0 AND 1e8 AND latency_p95 >= latency_p50 AND latency_p99 >= latency_p95
			AND latency_p99 < 'infinity')),
	'4',
	'times: latencies are none the worse for them');
$node->poll_query_until('postgres', q(SELECT emitted = 100 AND delivered = 400 FROM event_stats WHERE event_name = 'now'))
  or die 'not counted';
check_got('times');

#
# Data
#
my $many = has_assertions($node) ? 5_000 : 100_000;
$node->safe_psql(
	'postgres', q(
	SELECT create_event_handler('is_null', 'get_text', filter => '$ == null', owner => 'ann');
	SELECT create_event_handler('huge', 'get_text', filter => '$ > 1e130000', owner => 'ann');
	SELECT create_event_handler('tiny', 'get_text', filter => '$ > 0 && $ < 1e-16000', owner => 'ann');
	SELECT create_event_handler('deep', 'get_text', filter => '$.** == 42', owner => 'ann');
	INSERT INTO notification_events (event_name, event_data) VALUES
		('json null', 'null'), ('sql null', NULL), ('empty', '{}'), ('empty', '[]'), ('empty', '""'), ('empty', '{"": ""}'),
		('huge', '1e131000'), ('huge', '-1e131000'), ('tiny', '1e-16380'),
		('precise', '12345678901234567890.123456789012345678901234567890'),
		('text', to_jsonb(E'\u0001\t\n\\"\'$1 %s \uFFFD\U0001F418'::text)),
		('keys', (SELECT jsonb_object_agg(i, i) FROM generate_series(1, MANY) i)),
		('list', (SELECT jsonb_agg(i) FROM generate_series(1, MANY) i));
) =~ s/MANY/$many/gr);
# AddressSanitizer needs more stack for each level.
my $depth = defined $ENV{ASAN_OPTIONS} ? 50 : 5000;
$node->safe_psql(
	'postgres', qq(
	SELECT notify_event('deep', repeat('[', $depth) || '42' || repeat(']', $depth));
	SELECT notify_event('deep', repeat('{"a":', $depth) || '1' || repeat('}', $depth));
));
wait_for_handlers($node, 'postgres');
is( $node->safe_psql(
		'postgres', q(
		SELECT handler, delivered, failed FROM event_handler_stats
		WHERE handler IN ('is_null', 'huge', 'tiny', 'deep') ORDER BY handler)),
	# 42 is in the keys and in the list, too
	"deep|3|0\nhuge|1|0\nis_null|1|0\ntiny|1|0",
	'filters: null, numbers, depth');
$node->safe_psql(
	'postgres', q(
	SELECT drop_event_handler(name) FROM unnest('{is_null,huge,tiny,deep}'::text[]) name;
	DELETE FROM got g WHERE handler = 'text' AND n NOT IN (SELECT min(n) FROM got WHERE handler = 'text' GROUP BY name, data)));
check_got('data');
foreach my $case (
	[ q('"\u0000"'), qr/22032|22P05/, 'U+0000' ],
	[ q('1e400000'), qr/22032|22003/, 'a number beyond numeric' ],
	[ q(repeat('[', 1000000)), qr/54001/, 'too deep' ],)
{
	my ($data, $sqlstate, $name) = @$case;

	($status, $out, $err) = $node->psql('postgres',
		"\\set VERBOSITY sqlstate\nSELECT notify_event('refused', ($data)::text)");
	like($err, qr/ERROR:  ($sqlstate)/, "$name: an error of who emits");
}
check_got('refused');

# Very large data of 100 MB each: it takes little space on disk, and much in memory.
# The data is smaller if assertions make it slow.
my $mb = has_assertions($node) ? 10 : 100;
sub memory
{
	my $status = slurp_file('/proc/' . worker_pid($node, 'executor', 'postgres', 'ann') . '/status');

	$status =~ /^RssAnon:\s*(\d+) kB/m or die 'no RssAnon';
	return int($1 / 1024);
}

my $before = memory();
my $executor = worker_pid($node, 'executor', 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	SET pg_notify_events.payload = 'json';
	SELECT create_event_handler('large', 'get_text', filter => '$ starts with "x"', owner => 'ann', timeout => '10 min');
	SELECT notify_event('large ' || n, to_jsonb(repeat('x', MB * 1024 * 1024))) FROM generate_series(1, 2) n;
) =~ s/MB/$mb/r);
wait_for_handlers($node, 'postgres');
is($node->safe_psql('postgres', q(SELECT delivered FROM event_handler_stats WHERE handler = 'large')),
	'2', '100 MB: filter');
$node->safe_psql('postgres', q(
	SELECT drop_event_handler('large');
	DELETE FROM got WHERE handler = 'text' AND n NOT IN (SELECT min(n) FROM got WHERE handler = 'text' GROUP BY name, data);
	INSERT INTO notification_events (event_name) VALUES ('small')));
check_got('100 MB');
is(worker_pid($node, 'executor', 'postgres', 'ann'), $executor, '100 MB: the executor is the same');
my $after = memory();
SKIP:
{
	skip 'the memory of a server with AddressSanitizer tells nothing', 1 if defined $ENV{ASAN_OPTIONS};
	cmp_ok($after, '<', $before + 50, "100 MB: memory is given back ($before MB before, $after MB after)");
}
my @heard = heard();
is(scalar(grep { /^\{"id": \d+, "name": "large \d"\}$/ } @heard),
	2, '100 MB: announced without data');

$listener->quit;
$node->stop;
done_testing();
