
# The documents are correct: their SQL runs, their clients are those that are
# tested, their links have targets, and the reference lists all that exists and
# nothing else.
#
# A document has comments for this test, each on a line of its own right before a
# fenced block:
#
#	<!-- test: NAME -->		This sql block belongs to the page's script NAME, without
#							it to the script that has the name of the page.  The
#							blocks of a script run one after the other, in one
#							session of a superuser, in a new database of its name.
#							It has the extension, unless the script creates it.
#	<!-- error: SQLSTATE -->	The last statement of this sql block fails with this.
#	<!-- output -->			This block follows an sql block, and is the last output
#							of psql for it.
#	<!-- client: FILE -->	This block is the file of that name in test/clients.
#
# A comment that begins with the line "<!-- test" or "<!-- test: NAME" and ends
# with the line "-->" contains SQL of a script that readers do not see: what the
# page presupposes, and DO blocks with ASSERT for what it claims.
#
# Roles, databases and settings that a script makes are removed after it.

use strict;
use warnings;

use Encode qw(encode);
use File::Basename;
use File::Find;
use FindBin;
use lib "$FindBin::RealBin/lib";
use Documents;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my %document = map { $_ => read_document("$top/$_") } document_files($top);
my @pages = ('README.md', grep { m{^doc/} } sort keys %document);

#
# Scripts
#

# what scripts need first and is too long for a page
my %before = (
	# the recipe, as tutorials show it
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

# what they must have done: a query, and its result
my %after = (
	recipe => [
		q(INSERT INTO orders VALUES (4);
		  SELECT string_agg(event_name || ' ' || COALESCE(event_data #>> '{new,id}', event_data ->> 'id'), ',' ORDER BY id)
		  FROM notification_events),
		'order_created 1,order_created 2,order_created 3,order_created 4'
	],
	start => [
		q(SELECT (SELECT string_agg(recipient, ',' ORDER BY recipient) FROM mails),
			(SELECT string_agg(customer, ',' ORDER BY event_id) FROM bills),
			(SELECT count(*) FROM event_retries),
			(SELECT string_agg(DISTINCT event_name, ',' ORDER BY event_name) FROM notification_events)),
		'Ada,Grace|Ada,Grace|0|order_created'
	]);

# The scripts, in the order of the pages: page, name, blocks.
my @scripts;
foreach my $page (@pages)
{
	my ($own) = fileparse($page, '.md');
	my (%script, $last);

	foreach my $block (@{ $document{$page}{blocks} })
	{
		my ($language, $marks) = @$block{qw(language marks)};

		if ($language eq 'sql' || $language eq 'hidden' && exists $marks->{test})
		{
			my $name = lc($marks->{test} || $own);

			push @scripts, $script{$name} = { page => $page, name => $name, blocks => [] } unless $script{$name};
			push @{ $script{$name}{blocks} }, $last = { %$block, place => "$page:$block->{line}" };
			next;
		}
		ok($last, "$page:$block->{line} is the output of an sql block") and $last->{output} = $block->{text}
		  if exists $marks->{output};
		undef $last;
	}
}
cmp_ok(scalar(map { @{ $_->{blocks} } } @scripts), '>=', 4, 'the documents have examples');

my $node = new_server('documents');

# resets the settings, and drops all databases and roles of the test before
sub start_anew
{
	my $sql = $node->safe_psql('postgres', q(
		SELECT format('DROP DATABASE %I WITH (FORCE);', datname) FROM pg_database
		WHERE datname NOT IN ('postgres', 'template0', 'template1')
		UNION ALL
		SELECT format('DROP ROLE %I;', rolname) FROM pg_roles
		WHERE rolname <> current_user AND rolname NOT LIKE 'pg\_%'));

	$node->safe_psql('postgres', "ALTER SYSTEM RESET ALL;\n$sql\nSELECT pg_reload_conf()");
	return;
}

foreach my $script (@scripts)
{
	my ($page, $name) = @$script{qw(page name)};
	my @blocks = @{ $script->{blocks} };
	my $sql = $before{$name} // '';
	my ($out, $err);

	$node->safe_psql('postgres', qq(CREATE DATABASE "$name"));
	if (!grep { $_->{text} =~ /CREATE EXTENSION pg_notify_events/ } @blocks)
	{
		$node->safe_psql($name, 'CREATE EXTENSION pg_notify_events');
		wait_for_listener($node, $name);
	}
	$sql .= "\n\\pset format aligned\n\\pset tuples_only off\n\\encoding UTF8\n";
	foreach my $n (0 .. $#blocks)
	{
		my $error = $blocks[$n]{marks}{error};

		$sql .= "\\echo \@\@block $n\n";
		$sql .= $error ? "\\set ON_ERROR_STOP off\n" : "\\set ON_ERROR_STOP on\n";
		$sql .= encode('UTF-8', $blocks[$n]{text});
		$sql .= "\\echo \@\@error :SQLSTATE\n" if $error;
	}
	$sql .= "\\echo \@\@end\n";
	$node->psql($name, $sql, stdout => \$out, stderr => \$err,
		timeout => $PostgreSQL::Test::Utils::timeout_default);

	my ($begun) = $out =~ /.*^\@\@block (\d+)$/ms;
	ok($out =~ /^\@\@end$/m, "$page: script $name runs")
	  or diag('it ends in the block at ' . (defined $begun ? $blocks[$begun]{place} : $page) . ":\n$err");
	unlike($err, qr/WARNING/, "$page: script $name gives no warning");

	foreach my $n (0 .. $#blocks)
	{
		my ($printed) = $out =~ /^\@\@block $n\n(.*?)(?=^\@\@(?:block|end)|\z)/ms;

		$printed //= '';
		my $state = $printed =~ s/^\@\@error (\w+)\n//m ? $1 : 'none';
		is($state, $blocks[$n]{marks}{error}, "the block at $blocks[$n]{place} fails as it says")
		  if exists $blocks[$n]{marks}{error};
		next unless defined $blocks[$n]{output};
		my $output = tidy(encode('UTF-8', $blocks[$n]{output}));
		is((tidy($printed) =~ /(?:\A|\n)(\Q$output\E)\z/ ? $1 : tidy($printed)), $output, "the block at $blocks[$n]{place} prints what it says");
	}
	is($node->safe_psql($name, $after{$name}[0]), $after{$name}[1], "$page: script $name did what it says")
	  if $after{$name};
	start_anew();
}
foreach my $name (sort keys %after)
{
	ok(scalar(grep { $_->{name} eq $name } @scripts), "there is a script $name");
}

# the output of psql without blanks and empty lines at its ends
sub tidy
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\A\n+|\n+\z//g;
	return $text;
}

#
# Clients, and blocks without code
#
my %shown;
foreach my $page (@pages)
{
	foreach my $block (@{ $document{$page}{blocks} })
	{
		my ($language, $client) = ($block->{language}, $block->{marks}{client});

		if (defined $client)
		{
			$shown{$client} = 1;
			is(encode('UTF-8', $block->{text}), slurp_file("$top/test/clients/$client"),
				"$page:$block->{line}: client $client is the one that is tested");
		}
		else
		{
			like($language, qr/^(?:sql|hidden|text|console|ini|)$/, "$page:$block->{line}: no code that is not tested");
		}
	}
}
cmp_ok(scalar keys %shown, '>=', 3, 'there are clients');

#
# Links
#
my $links = 0;
foreach my $file (sort keys %document)
{
	foreach my $link (@{ $document{$file}{links} })
	{
		my ($path, $anchor) = $link->{target} =~ /^([^#]*)(?:#(.*))?$/;
		my $place = "$file:$link->{line}: $link->{target}";
		my $to = $file;

		next if $path =~ m{^(?:[a-z][a-z0-9+.\-]*:|//)}i;
		$links++;
		if ($path ne '')
		{
			my @parts = (split(m{/}, dirname($file)), split(m{/}, $path));
			my @to;

			foreach my $part (grep { $_ ne '.' } @parts)
			{
				$part eq '..' ? (@to ? pop @to : push @to, $part) : push @to, $part;
			}
			$to = join '/', @to;
			unlike($path, qr{^/}, "$place is relative");
			ok($to !~ /^\.\./ && -e "$top/$to", "$place is there");
		}
		next unless defined $anchor;
		ok($document{$to} && $document{$to}{anchors}{$anchor}, "$place has its anchor");
	}
}
cmp_ok($links, '>=', 10, 'there are links');

# The README is short, and leads to every page.
cmp_ok(scalar @{ $document{'README.md'}{lines} }, '<=', 200, 'the README is short');
foreach my $page (grep { m{^doc/} } @pages)
{
	ok(scalar(grep { $_->{target} =~ /^\Q$page\E(?:#|$)/ } @{ $document{'README.md'}{links} }), "the README leads to $page");
}

#
# Messages that a page quotes must be messages of the extension or of the server.
# "..." stands for what differs from case to case.
#
my $messages = '';
find(sub { $messages .= slurp_file($_) if /\.c$/ }, "$top/src");
$messages =~ s/"\s*\n\s*"//g;
$messages =~ s/\\"/"/g;
chomp(my $bindir = `pg_config --bindir`);
$messages .= slurp_file($_) foreach grep { -f } map { "$bindir/$_" } qw(postgres postgres.real);
my $quoted = 0;
foreach my $page (@pages)
{
	foreach my $table (grep { $_->[0][0] eq 'what one sees' } tables_of(@{ $document{$page}{lines} }))
	{
		foreach my $message (map { /"([^"]+)"/g } map { $_->[0] } @$table[ 1 .. $#$table ])
		{
			$quoted++;
			is(join(', ', grep { index($messages, $_) < 0 } split /\s*\.\.\.\s*/, $message), '',
				"$page: \"$message\" is a message");
		}
	}
}
cmp_ok($quoted, '>=', 10, 'there are messages');

#
# The reference
#
$node->safe_psql('postgres', 'CREATE DATABASE catalog');
$node->safe_psql('catalog', 'CREATE EXTENSION pg_notify_events');

sub catalog
{
	my ($sql) = @_;

	return split /\n/, $node->safe_psql('catalog', $sql =~ s/MEMBERS\((\w+)\)/
		SELECT objid FROM pg_depend WHERE classid = '$1'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_notify_events')/gr);
}

# name => arguments, and result columns, of all functions of that name
my (%arguments, %results);
foreach (catalog(q(
	SELECT p.proname, COALESCE(a.mode, 'i'), a.name
	FROM pg_proc p LEFT JOIN LATERAL (
		SELECT unnest(p.proargnames), unnest(COALESCE(p.proargmodes, array_fill('i'::"char", ARRAY[COALESCE(cardinality(p.proargnames), 0)])))
	) a(name, mode) ON true
	WHERE p.oid IN (MEMBERS(pg_proc)) AND p.proname NOT LIKE '\_%')))
{
	my ($function, $mode, $argument) = split /\|/, $_, -1;

	$arguments{$function} //= {};
	$results{$function} //= {};
	($mode eq 'i' ? \%arguments : \%results)->{$function}{$argument} = 1 if $argument ne '';
}
cmp_ok(scalar keys %arguments, '>=', 10, 'there are functions');

my %columns;
foreach (catalog(q(
	SELECT c.relname, a.attname FROM pg_class c
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.oid IN (MEMBERS(pg_class)) AND c.relkind IN ('r', 'v') AND c.relname NOT LIKE '\_%')))
{
	my ($relation, $column) = split /\|/;

	$columns{$relation}{$column} = 1;
}
cmp_ok(scalar keys %columns, '>=', 5, 'there are tables and views');

my %settings = map { split /\|/, $_, 2 }
  catalog(q(SELECT name, current_setting(name) FROM pg_settings WHERE name LIKE 'pg\_notify\_events.%'));
cmp_ok(scalar keys %settings, '>=', 13, 'there are settings');

# SQLSTATEs that the sources raise, and all SQLSTATEs that they name
my %code = slurp_file(`pg_config --includedir-server` =~ s/\n//r . '/utils/errcodes.h') =~
  /^#define (ERRCODE_\w+) MAKE_SQLSTATE\(([^)]+)\)/mg;
my (%raised, %named);
s/[', ]//g foreach values %code;
find(
	sub {
		return unless /\.c$/;
		my $source = slurp_file($_);

		$raised{ $code{$1} } = 1 while $source =~ /\b(?:errcode\(|set_problem\(problem, )(ERRCODE_\w+)/g;
		$named{ $code{$1} // $1 } = 1 while $source =~ /\b(ERRCODE_\w+)/g;
	},
	"$top/src");
cmp_ok(scalar keys %raised, '>=', 10, 'there are SQLSTATEs');

check_reference($document{'doc/reference.md'});
check_sqlstates($document{'doc/reference.md'});

# has_exactly(EXPECTED, FOUND, NAME): a test: two sets of names are the same
sub has_exactly
{
	my ($expected, $found, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my @missing = grep { !$found->{$_} } sort keys %$expected;
	my @left_over = grep { !$expected->{$_} } sort keys %$found;
	return is("missing: @missing, left over: @left_over", 'missing: , left over: ', $name);
}

# the names in the first column of those tables of a section whose header begins
# with this word
sub names_in_tables
{
	my ($header, @section) = @_;
	my @tables = grep { $_->[0][0] =~ $header } tables_of(@section);

	return { map { $_ => 1 } map { names_in($_->[0]) } map { @$_[ 1 .. $#$_ ] } @tables };
}

# Each function, view, table and setting has a heading; a setting may have a row
# in a table of settings instead.  Below the heading are tables of the arguments
# and of the columns.
sub check_reference
{
	my ($document) = @_;
	my %known = (map { $_ => 1 } keys %arguments, keys %columns, keys %settings);
	my (%entry, %found_arguments, %found_results, %default);

	foreach my $heading (grep { $_->{level} > 1 } @{ $document->{headings} })
	{
		my @section = section_of($document, $heading);

		foreach my $name (names_in($heading->{text}))
		{
			my $place = "doc/reference.md:$heading->{line}: $name";

			ok($known{$name}, "$place is there") or next;
			$entry{$name} = 1;
			$default{$name} = join "\n", @section if exists $settings{$name};
			has_exactly($columns{$name}, names_in_tables(qr/^column/i, @section), "$place: columns")
			  if $columns{$name};
			if ($arguments{$name})
			{
				my %found = (%{ names_in_tables(qr/^argument/i, @section) });

				# arguments of triggers have no names
				next if $heading->{text} =~ /trigger/i;
				$found_arguments{$name} = { %{ $found_arguments{$name} // {} }, %found };
				$found_results{$name} =
				  { %{ $found_results{$name} // {} }, %{ names_in_tables(qr/^(?:column|result)/i, @section) } };
			}
		}
	}
	foreach my $table (grep { $_->[0][0] =~ /^(?:setting|name)/i } tables_of(@{ $document->{lines} }))
	{
		foreach my $row (@$table[ 1 .. $#$table ])
		{
			my ($name) = grep { /^pg_notify_events\./ } names_in($row->[0]) or next;

			ok(exists $settings{$name}, "doc/reference.md: setting $name is there") or next;
			$entry{$name} = 1;
			$default{$name} //= join ' | ', @$row;
		}
	}

	has_exactly(\%known, \%entry, 'the reference has an entry for each');
	foreach my $name (sort keys %found_arguments)
	{
		has_exactly($arguments{$name}, $found_arguments{$name}, "the reference has the arguments of $name");
		has_exactly($results{$name}, $found_results{$name}, "the reference has the result columns of $name");
	}
	foreach my $name (sort keys %default)
	{
		my $value = $settings{$name} =~ s/(\d)(ms|s|min|h|MB)$/$1 $2/r;

		like($default{$name}, qr/(?<![\w.])\Q$value\E(?![\w.])/, "the reference has the default of $name");
	}
	return;
}

# The list of SQLSTATEs has all that the sources raise, and none that they do not
# name.
sub check_sqlstates
{
	my ($document) = @_;
	my ($heading) = grep { $_->{text} =~ /^SQLSTATE/ } @{ $document->{headings} };
	my %listed;

	ok($heading, 'the reference has a list of SQLSTATEs') or return;
	foreach my $table (grep { $_->[0][0] =~ /^SQLSTATE/ } tables_of(section_of($document, $heading)))
	{
		$listed{ $_->[0] =~ s/`//gr } = 1 foreach @$table[ 1 .. $#$table ];
	}
	is(join(' ', grep { !$listed{$_} } sort keys %raised), '', 'the reference has all SQLSTATEs');
	is(join(' ', grep { !$named{$_} } sort keys %listed), '', 'the reference has no other SQLSTATEs');
	return;
}

$node->stop;
done_testing();
