
# The documents of the repository, as the tests read them: fenced blocks with
# the comments in front of them, headings with their anchors, links, and tables.
#
# It knows the Markdown that these documents use, not all of Markdown.

package Documents;

use strict;
use warnings;

use Encode qw(decode);
use Exporter 'import';
use File::Find;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  document_files
  read_document
  section_of
  tables_of
  names_in
);

# document_files(TOP): returns the paths of all documents below TOP, relative to TOP
sub document_files
{
	my ($top) = @_;
	my @files;

	find(
		{
			no_chdir => 1,
			wanted => sub {
				$File::Find::prune = 1, return if -d && m{/(?:\.git|tmp_check|results|output_iso)$};
				push @files, substr($_, length("$top/")) if /\.md$/;
			}
		},
		$top);
	return sort @files;
}

# The anchor that GitHub makes of a heading, without the number of a repeated heading
sub anchor_of
{
	my ($text) = @_;

	$text =~ s/!?\[([^\]]*)\]\([^)]*\)/$1/g;
	$text = lc $text;
	$text =~ s/[^\w\- ]//g;
	$text =~ tr/ /-/;
	return $text;
}

# read_document(PATH): returns a hash of
#
#	lines		its lines
#	blocks		its fenced blocks, and the hidden ones: language, text, line, and
#				"marks", the comments <!-- NAME: VALUE --> on the lines before it
#	headings	level, text, line, anchor
#	anchors		the anchors that a link to it may have after "#"
#	links		target, line
#
# A hidden block is a comment whose first line is "<!-- NAME: VALUE" and which
# ends with a line "-->".  It is a block of the language "hidden" with that mark.
sub read_document
{
	my ($path) = @_;
	my @lines = split /\n/, decode('UTF-8', slurp_file($path));
	my %document = (lines => \@lines, blocks => [], headings => [], anchors => {}, links => []);
	my (%seen, %marks, $block, $end);
	my $prose = '';

	foreach my $n (1 .. @lines)
	{
		my $line = $lines[ $n - 1 ];

		if ($block)
		{
			if ($line =~ $end) { push @{ $document{blocks} }, $block; undef $block; }
			else { $block->{text} .= "$line\n"; }
		}
		elsif ($line =~ /^(\s*)(`{3,}|~{3,})\s*(\w*)/)
		{
			$end = qr/^\s*\Q$2\E\s*$/;
			$block = { language => $3, text => '', line => $n, marks => {%marks} };
			%marks = ();
		}
		elsif ($line =~ /^<!-- (\w+)(?:: (\S.*?))? -->$/)
		{
			$marks{$1} = $2 // '';
		}
		elsif ($line =~ /^<!-- (\w+)(?:: (\S+))?$/)
		{
			$end = qr/^-->$/;
			$block = { language => 'hidden', text => '', line => $n, marks => { $1 => $2 // '' } };
			%marks = ();
		}
		else
		{
			%marks = ();
			if ($line =~ /^(#{1,6})\s+(.*?)[\s#]*$/)
			{
				my $anchor = anchor_of($2);
				my $count = $seen{$anchor}++;

				$anchor .= "-$count" if $count;
				push @{ $document{headings} }, { level => length $1, text => $2, line => $n, anchor => $anchor };
				$document{anchors}{$anchor} = 1;
			}
			$document{anchors}{$1} = 1 while $line =~ /<a\s+(?:id|name)="([^"]+)"/g;
			$prose .= $line;
		}
		$prose .= "\n";
	}
	die "$path: the block that begins in line $block->{line} does not end" if $block;

	# a code span contains no link; it may continue on the next line
	$prose =~ s{(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)}{ $2 =~ tr/\n//cdr }sge;
	while ($prose =~ /\]\(\s*<?([^\s)>]+)|^\[[^\]]+\]:\s*<?([^\s>]+)|\b(?:href|src)="([^"]+)"/mg)
	{
		push @{ $document{links} },
		  { target => $1 // $2 // $3, line => 1 + (substr($prose, 0, $-[0]) =~ tr/\n//) };
	}
	return \%document;
}

# section_of(DOCUMENT, HEADING): returns the lines below the heading, up to the next
# heading of the same or a higher level
sub section_of
{
	my ($document, $heading) = @_;
	my ($next) = grep { $_->{line} > $heading->{line} && $_->{level} <= $heading->{level} } @{ $document->{headings} };
	my @lines = @{ $document->{lines} };

	return @lines[ $heading->{line} .. ($next ? $next->{line} - 2 : $#lines) ];
}

# tables_of(LINE...): returns the tables, each an array of rows, each an array of cells;
# the first row is the header
sub tables_of
{
	my (@tables, $table);

	foreach my $line (@_)
	{
		if ($line =~ /^\|(.*)\|\s*$/)
		{
			push @tables, $table = [] unless $table;
			push @$table, [ map { s/^\s+|\s+$//gr } split /(?<!\\)\|/, $1, -1 ]
			  unless $line =~ /^[|:\- ]+$/;
		}
		else
		{
			undef $table;
		}
	}
	return @tables;
}

# names_in(TEXT): returns the names that TEXT has as code, without what follows the name:
# of "`CALL wait_for_events(text, interval)`" it is wait_for_events
sub names_in
{
	my ($text) = @_;

	return map { /^(?:CALL )?([\w.]+)/ ? $1 : () } $text =~ /`([^`]+)`/g;
}

1;
