
# The audit (lib/Audit.pm).  Processes die and definitions change at any time.  In the
# end each committed event has been handled exactly once, in the order of changes of
# its row.  The test also checks that the checker finds lost, doubled and swapped
# events.
#
# TEST_SEED=N repeats a sequence of faults.  test/chaos runs this test for the number
# of minutes in TEST_MINUTES.  Without it the test takes less than one minute.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use Audit;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{TEST_SEED} // int(rand(2**31));
my $minutes = $ENV{TEST_MINUTES};

$| = 1;
diag "TEST_SEED=$seed";

my $node = new_server('audit', Audit->settings($seed));
my $audit = Audit->new($node, $seed);

$audit->start_writers(3);
if (defined $minutes)
{
	$audit->inject(seconds => 60 * $minutes, least => 30, open_faults => 60, open_seconds => 120);
}
else
{
	$audit->inject(seconds => 40, least => 30, rounds => 2, open_faults => 8);
}
my @wrong = $audit->finish;
my @violations = $audit->violations;

cmp_ok($audit->faults, '>=', 30, 'at least 30 faults');
is(join("\n", @wrong), '', 'everything has come to its end');
is(join("\n", @violations), '', 'each event once, in order');
diag $_ foreach $audit->summary;
note $_ foreach $audit->messages;

# The checker must find planted errors.
SKIP:
{
	skip 'there is something to be found already', 1 if @violations;

	my $found = join(
		"\n",
		$audit->violations(
			q(
			CREATE TEMPORARY TABLE one ON COMMIT DROP AS
				SELECT handler, max(n) AS n FROM seen
				WHERE NOT tried AND life = CASE handler WHEN 'recreated' THEN (
					SELECT life FROM seen JOIN lives USING (handler, life) WHERE cursor IS NOT NULL
					GROUP BY life ORDER BY count(*) DESC LIMIT 1) ELSE 1 END
				GROUP BY handler;
			-- lost
			DELETE FROM seen WHERE n = (SELECT n FROM one WHERE handler = 'plain');
			DELETE FROM seen WHERE n = (SELECT n FROM one WHERE handler = 'recreated');
			-- doubled
			INSERT INTO seen (handler, event_id, item, version, xact)
				SELECT handler, event_id, item, version, xact FROM seen WHERE n = (SELECT n FROM one WHERE handler = 'single');
			-- swapped
			UPDATE seen SET n = (SELECT max(n) + 1000000 FROM seen) WHERE n = (
				SELECT n FROM seen WHERE handler = 'array' AND NOT tried AND item = 1 ORDER BY n LIMIT 1);
			UPDATE seen SET n = (SELECT max(n) + 1000000 FROM seen) WHERE n = (
				SELECT n FROM seen WHERE handler = 'ordered' AND item = 1 ORDER BY n LIMIT 1);
			-- of no event
			INSERT INTO seen (handler, event_id) VALUES ('failing', 0);
			-- of one that it is not for
			INSERT INTO seen (handler, event_id) SELECT 'moving', id FROM notification_events WHERE event_name = 'emitted' LIMIT 1;
			-- effects without the call
			UPDATE seen SET event_id = 0 WHERE handler = 'emitting' AND n = (SELECT n FROM one WHERE handler = 'emitting');
			-- a commit that was lost, and one that never was
			DELETE FROM ledger WHERE writer = 1 AND transaction = (
				SELECT min(transaction) FROM acknowledged WHERE writer = 1 AND outcome = 'A') ;
			INSERT INTO ledger SELECT writer, min(transaction), -1, 3 FROM acknowledged
				WHERE writer = 2 AND outcome = 'R' GROUP BY writer;
		)));
	$found =~ s/\|[^|]*\|[^|]*$//mg;
	$found =~ s/recreated \d+/recreated/;
	is( $found,
		join(
			"\n",
			'acknowledged, but gone|writer 1',
			'doubled|single 1',
			'emitted by a lost call|log',
			'figures|failing',
			'figures|moving',
			'figures|plain',
			'figures|single',
			'foreign|emitting 1',
			'foreign|failing 1',
			'foreign|moving 1',
			'in the ledger, but never made|writer 2',
			'lost|emitting 1',
			'lost|plain 1',
			'lost|recreated',
			'not emitted by a call|log',
			'not recorded|log',
			'not the rows|ledger',
			'out of order|array 1',
			'out of order|ordered 1',
			'recorded, but not committed|log',
			'together|single'),
		'the checker finds what is lost, doubled, swapped or foreign');
}

$node->stop;
done_testing();
