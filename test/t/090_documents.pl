
# The README tells the truth: its SQL runs, its client is the one that is
# tested, and it names every function, view and setting there is.
#
# A fenced sql block behind <!-- test: NAME --> belongs to the script NAME; the
# blocks of a script run one after the other in a database of their own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my $readme = slurp_file("$top/README.md");

my %scripts;
my $blocks = 0;
while ($readme =~ /^(?:<!-- test: (\w+) -->\n)?```sql\n(.*?)^```$/msg)
{
	my ($name, $sql) = ($1, $2);

	ok(defined $name, 'sql block says which script it belongs to')
	  or diag($sql);
	$scripts{ $name // 'unnamed' } .= $sql;
	$blocks++;
}
cmp_ok($blocks, '>=', 4, 'the README has examples');

my $node = new_server('readme');

# What the scripts begin with.
my %before = (
	# the recipe, as tutorials have it
	recipe => q(
		CREATE TABLE notification_events (
			id serial PRIMARY KEY,
			event_name varchar(100) NOT NULL,
			event_data jsonb,
			created_at timestamptz DEFAULT now());
		CREATE FUNCTION notify_event() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO notification_events (event_name, event_data)
			VALUES ('order_created', to_jsonb(NEW));
			PERFORM pg_notify('event_notification', 'order_created');
			RETURN NEW;
		END $$;
		CREATE TABLE orders (id int PRIMARY KEY);
		CREATE TRIGGER orders_created AFTER INSERT ON orders
			FOR EACH ROW EXECUTE FUNCTION notify_event();
		INSERT INTO orders VALUES (1), (2), (3);));

# What they must have done.
my %after = (
	recipe => [
		q(INSERT INTO orders VALUES (4);
		  SELECT string_agg(event_name || ' ' || COALESCE(event_data #>> '{new,id}', event_data ->> 'id'), ',' ORDER BY id)
		  FROM notification_events),
		'order_created 1,order_created 2,order_created 3,order_created 4'
	],
	start => [
		q(SELECT (SELECT string_agg(recipient, ',' ORDER BY recipient) FROM mails),
			(SELECT string_agg(name, ',' ORDER BY id) FROM audit),
			(SELECT count(*) FROM event_retries),
			(SELECT string_agg(DISTINCT event_name, ',' ORDER BY event_name) FROM notification_events)),
		'Ada,Grace|order_created,order_changed|0|order_changed,order_created,shop_opened'
	]);

foreach my $name (sort keys %scripts)
{
	my ($status, $out, $err);

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, $before{$name}) if $before{$name};
	($status, $out, $err) =
	  $node->psql($name, $scripts{$name}, on_error_stop => 1, timeout => $PostgreSQL::Test::Utils::timeout_default);
	is($status, 0, "script $name runs") or diag($err);
	unlike($err, qr/WARNING/, "script $name gives no warning");
	ok(exists $after{$name}, "script $name has a result to look at");
	is($node->safe_psql($name, $after{$name}[0]), $after{$name}[1], "script $name did what it says")
	  if $after{$name};
}

# The clients.
my %clients = $readme =~ /^<!-- client: (\S+) -->\n```\w+\n(.*?)^```$/msg;
cmp_ok(scalar keys %clients, '>=', 3, 'there are clients');
is($clients{$_}, slurp_file("$top/test/clients/$_"), "client $_ is the one that is tested")
  foreach sort keys %clients;
unlike($readme, qr/^(?!<!-- client: )[^\n]*\n```(?:python|sh)\n/m, 'no other one is shown');

# The reference.
my @functions = split /\n/, $node->safe_psql('start', q(
	SELECT DISTINCT p.proname FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')
	AND p.proname NOT LIKE '\_%' ORDER BY 1));
cmp_ok(scalar @functions, '>=', 10, 'there are functions');
like($readme, qr/^(?:\*\*|.*, \*\*)`(?:CALL )?\Q$_\E\(/m, "the reference has $_()") foreach @functions;

my @columns = split /\n/, $node->safe_psql('start', q(
	SELECT c.relname || ' ' || a.attname FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')
	AND c.relkind IN ('r', 'v') AND c.relname NOT LIKE '\_%' ORDER BY c.relname, a.attnum));
cmp_ok(scalar @columns, '>=', 50, 'there are columns');
foreach (@columns)
{
	my ($relation, $column) = split / /;
	my ($paragraph) = $readme =~ /^(\*\*`\Q$relation\E`\*\*.*?)\n\n/ms;

	like($paragraph // '', qr/\b\Q$column\E\b/, "the reference has $relation.$column");
}

my @settings = split /\n/, $node->safe_psql('start',
	q(SELECT name || ' ' || current_setting(name) FROM pg_settings WHERE name LIKE 'pg\_notify\_events.%'));
cmp_ok(scalar @settings, '>=', 13, 'there are settings');
foreach (@settings)
{
	my ($name, $default) = split / /, $_, 2;

	$default =~ s/(\d)(ms|s|min|h|MB)$/$1 $2/;
	like($readme, qr/^\| `\Q$name\E` \| `?\Q$default\E`? \|/m, "the reference has $name with its default");
}

$node->stop;
done_testing();
