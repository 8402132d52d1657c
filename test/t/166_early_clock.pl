
# The server's clock shows a time long before 2000, as that of a machine without a battery
# does. The server's own timestamps begin at 2000.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'sanitizers want to be preloaded first' if ($ENV{LD_PRELOAD} // '') ne '' || defined $ENV{ASAN_OPTIONS};

my $dir = PostgreSQL::Test::Utils::tempdir();
my $clock = "$dir/clock";

append_to_file($clock, pack('q', 86400 - time()));
system_or_bail('gcc', '-shared', '-fPIC', '-O2', '-o', "$dir/settable_clock.so",
	"$FindBin::RealBin/lib/settable_clock.c");

my $node;
{
	local $ENV{LD_PRELOAD} = "$dir/settable_clock.so";
	local $ENV{SETTABLE_CLOCK} = $clock;
	$node = new_server('early_clock');
}
is($node->safe_psql('postgres', 'SELECT extract(year FROM clock_timestamp())'), '1970', 'it is 1970');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_notify_events');
make_recorder($node, 'postgres');
make_owner($node, 'postgres', 'ann');
$node->safe_psql(
	'postgres', q(
	CREATE SEQUENCE first_times;
	GRANT ALL ON first_times TO PUBLIC;
	CREATE FUNCTION call(e notification_events) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.seen (handler, id) VALUES ('h', e.id);
		IF e.event_name = 'fail' AND nextval('public.first_times') = 1 THEN
			RAISE 'it fails';
		ELSIF e.event_name = 'terminate' AND nextval('public.first_times') = 2 THEN
			PERFORM pg_terminate_backend(pg_backend_pid());
		END IF;
	END $$;
	SELECT create_event_handler('h', 'call', owner => 'ann', retry_delay => '4 s', batch_size => 1);
	SELECT notify_event('fail'), notify_event('terminate');
));

# One event waits for its retry when the call of the other one ends the process.
ok($node->poll_query_until('postgres', q(SELECT delivered = 2 FROM event_handler_stats)), 'all are handled');
seen_is_log($node, 'postgres', 'h', 'true', 'in 1970');

$node->stop;
done_testing();
