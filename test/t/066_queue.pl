
# A session listens and does not read, so the notification queue fills up.  Before
# it is full, direct announcements are left to the listener, and no transaction
# fails because of the queue.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use Announced;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'python3 with psycopg2 is needed'
  if system('python3', '-c', 'import psycopg2') != 0;

# 8 GB are too much to fill: the limit here is about 170 kB.
my $node = new_server(
	'queue',
	'log_statement = none',
	'pg_notify_events.announce = direct',
	'pg_notify_events.payload = json',
	'pg_notify_events.queue_usage_limit = 0.00002');
my $usage = 'SELECT pg_notification_queue_usage() %s current_setting($$pg_notify_events.queue_usage_limit$$)::float';

$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
my $listener = wait_for_listener($node, 'postgres');
my $client = start_listening($node, 'postgres');

# emits COUNT events of about 2 kB, in one transaction
sub emit
{
	my ($name, $count) = @_;

	$node->safe_psql('postgres',
		qq(SELECT notify_event('$name ' || n, to_jsonb(repeat(n::text, 500))) FROM generate_series(1000, 999 + $count) n;\n));
	return;
}

# the same, each in a transaction of its own
sub emit_each
{
	my ($name, $count) = @_;

	$node->safe_psql('postgres',
		join '', map { "SELECT notify_event('$name $_', to_jsonb(repeat('$_', 500)));\n" } 1000 .. 999 + $count);
	return;
}

# the number of events with this name that were left to the listener, or were not
sub marked
{
	my ($name, $marked) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*) FROM notification_events WHERE event_name LIKE '$name %' AND announce = $marked");
}

emit('early', 20);
is(marked('early', 'true'), '0', 'an empty queue: direct');

# A session listens and does not read.  It may even be in another database.
$node->safe_psql('postgres', 'CREATE DATABASE other');
my $blocker = $node->background_psql('other', on_error_stop => 0);
$blocker->query_safe('LISTEN whatever');
$blocker->query_safe('BEGIN');
$blocker->query_safe('SELECT 1');
emit_each('filling', 200);
is($node->safe_psql('postgres', sprintf($usage, '>')), 't', 'the queue is over the limit');
cmp_ok(marked('filling', 'false'), '>', 20, 'the first ones were announced directly');
cmp_ok(marked('filling', 'true'), '>', 20, 'the others were left to the listener');
emit('full', 20);
is(marked('full', 'false'), '0', 'nothing is announced directly any more');

# A large transaction, before any of its notifications is in the queue: the rest
# is left to the listener, too, as soon as the transaction would exceed the limit.
$blocker->query_safe('COMMIT');
$node->poll_query_until('postgres', sprintf($usage, '< 0.4 *')) or die 'the queue does not get shorter';
emit('at once', 200);
cmp_ok(marked('at once', 'false'), '>', 20, 'a large transaction: the first ones are announced directly');
cmp_ok(marked('at once', 'true'), '>', 20, 'the others are left to the listener');

# The queue is read and then blocked again: left to the listener again.
my $attempts = 0;
do { emit('better', 1) } until marked('better', 'false') > 0 || $attempts++ > 1000;
cmp_ok($attempts, '<', 1000, 'the queue is read: direct again');
$blocker->query_safe('BEGIN');
$blocker->query_safe('SELECT 1');
emit_each('again', 200);
cmp_ok(marked('again', 'true'), '>', 20, 'it is blocked again: left to the listener again');
$blocker->query_safe('COMMIT');
$blocker->quit;

# Nothing was lost or announced twice.
$node->safe_psql('postgres', q(SELECT notify_event('the end')));
my $id = $node->safe_psql('postgres', q(SELECT id FROM notification_events WHERE event_name = 'the end'));
heard_until($client, qq({"id": $id, "name": "the end"}));
my %heard;
my @from = ([], []);
foreach (stop_listening($client))
{
	my ($sender, $payload) = @$_;

	$heard{$1}++ if $payload =~ /^\{"id": (\d+), /;
	push @{ $from[ $sender == $listener ? 1 : 0 ] }, $1;
}
is( join(',', sort { $a <=> $b } grep { $heard{$_} == 1 } keys %heard),
	$node->safe_psql('postgres', q(SELECT string_agg(id::text, ',' ORDER BY id) FROM notification_events)),
	'every event was announced, once');
is( join(',', sort { $a <=> $b } @{ $from[1] }),
	$node->safe_psql('postgres', q(SELECT string_agg(id::text, ',' ORDER BY id) FROM notification_events WHERE announce)),
	'by the listener those that are marked');

# Where no listener is expected, every announcement is direct.
$node->safe_psql('postgres', 'ALTER DATABASE postgres IS_TEMPLATE true');
wait_for_no_workers($node, 'postgres');
$node->safe_psql('postgres', 'SET pg_notify_events.announce = direct; SELECT notify_event($$alone $$ || n) FROM generate_series(1, 3) n');
is(marked('alone', 'true'), '0', 'no listener: direct, however full it is');

$node->stop;
done_testing();
