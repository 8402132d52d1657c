
# Channels: what applications NOTIFY becomes events, whatever the channel and the
# payload are, in order, through restarts and floods, and no code of other roles
# sees it on the way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('channels', 'log_statement = none', 'pg_notify_events.naptime = 100ms');
my ($offset, $listener);

# creates a served database; the options are those of CREATE DATABASE
sub make_database
{
	my ($database, $options) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database " . ($options // ''));
	$node->safe_psql($database, 'CREATE EXTENSION pg_notify_events');
	wait_for_listener($node, $database);
	return;
}

# wait_until(DATABASE, CONDITION): dies if the condition does not become true
sub wait_until
{
	my ($database, $condition) = @_;

	$node->poll_query_until($database, "SELECT $condition") or die "never: $condition";
	return;
}

# waits until all channels, or one, have this state
sub wait_for_state
{
	my ($database, $state, $channel) = @_;

	wait_until($database,
		"(SELECT bool_and(state = '$state') FROM event_channel_stats"
		  . (defined $channel ? " WHERE channel = '$channel')" : ')'));
	return;
}

sub listen_channel
{
	my ($database, $channel, $event_name) = @_;

	$node->safe_psql($database,
		"SELECT listen_event_channel('$channel'" . (defined $event_name ? ", '$event_name')" : ')'));
	wait_for_state($database, 'listening', $channel);
	return;
}

# Sends a notification and waits until it has become an event.  As notifications
# become events in order, all earlier ones are events then.
my $marks = 0;
sub mark
{
	my ($database, $channel) = @_;
	my $mark = 'mark ' . ++$marks;

	$node->safe_psql($database, "SELECT pg_notify('$channel', '$mark')");
	wait_until($database, "EXISTS (SELECT FROM notification_events WHERE event_data = '\"$mark\"')");
	return;
}

sub restart_listener
{
	my ($database) = @_;
	my $pid = worker_pid($node, 'listener', $database);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_until('postgres', "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
	isnt(wait_for_listener($node, $database), $pid, "another listener in $database");
	return;
}

# the number of times that the log has this since then
sub logged
{
	my ($pattern, $since) = @_;
	my $log = slurp_file($node->logfile, $since);

	return scalar(() = $log =~ /$pattern/g);
}

# the data of the events with this name
sub data_of
{
	my ($database, $event_name) = @_;

	return $node->safe_psql($database,
		"SELECT string_agg(event_data #>> '{}', ' ' ORDER BY id) FROM notification_events WHERE event_name = '$event_name'");
}

# Each notification became an event or was counted as dropped.
sub is_accounted_for
{
	my ($database, $channel, $name) = @_;

	is( $node->safe_psql(
			$database, qq(
			SELECT notifications - dropped - (SELECT count(*) FROM notification_events WHERE event_name = '$channel')
			FROM event_channel_stats WHERE channel = '$channel')),
		'0', "$name: notifications = events + dropped");
	return;
}

#
# Names
#
make_database('names');
$node->safe_psql(
	'names', q(
	CREATE TABLE names (n serial, name text);
	INSERT INTO names (name) VALUES
		('plain'), ('Upper'), ('UPPER'), ('with space'), (' leading'), ('trailing '), ('dot.ted'), ('"quoted"'),
		('"'), (''''), ('it''s'), ('\\'), ('$1'), ('%s%n'), ('*'), ('NULL'), ('0'), ('a,b'), ('{}'),
		(E'tab\t'), (E'new\nline'), (E'\x01'), ('grün'), ('日本語'), ('🐘'), ('u' || U&'\0308'), ('ü'),
		('x''; DROP TABLE notification_events; --'), ('event_notification '), ('Event_Notification'),
		(repeat('x', 63)), (repeat('ü', 31)), (repeat('🐘', 15) || 'abc');
	SELECT listen_event_channel(name) FROM names;
));
wait_for_state('names', 'listening');
$node->safe_psql('names', q(SELECT pg_notify(name, n::text) FROM names ORDER BY n));
wait_until('names', '(SELECT count(*) FROM notification_events) >= (SELECT count(*) FROM names)');
is( $node->safe_psql(
		'names', q(
		SELECT count(*), count(*) FILTER (WHERE e.event_name = n.name AND e.event_data = to_jsonb(n.n))
		FROM names n FULL JOIN notification_events e ON e.id = n.n)),
	'33|33', 'channels of any name, in order');
is( $node->safe_psql(
		'names', q(
		SELECT count(*) FROM event_channel_stats WHERE notifications = 1 AND dropped = 0 AND last_received_at <= now())),
	'33', 'each has its own figures');

# The server does not deliver to the listener any more, either: the listener
# receives nothing.
my $received = q(SELECT notifications_received FROM event_worker_stats WHERE kind = 'listener' AND database = current_database());
$node->safe_psql('names', q(SELECT unlisten_event_channel(name) FROM names WHERE name <> 'plain'; SELECT listen_event_channel('last')));
wait_for_state('names', 'listening', 'last');
my $before = $node->safe_psql('names', $received);
$node->safe_psql('names', q(SELECT pg_notify(name, 'unlistened') FROM names));
mark('names', 'last');
is($node->safe_psql('names', $received), $before + 2, 'unlistened channels are not received');
is( $node->safe_psql('names', q(SELECT string_agg(event_name, ' ') FROM notification_events WHERE event_data = '"unlistened"')),
	'plain', 'and no events');

#
# Payloads
#
my $payloads = q(
	CREATE TABLE payloads (n serial, payload text);
	INSERT INTO payloads (payload) VALUES
		(''), (' '), ('text'), ('NULL'), ('null'), ('true'), ('42'), ('-0.0'), ('1e400'), ('1e200000'), ('007'),
		('"string"'), ('"'), ('''$1%s\\'), ('{}'), ('[]'), (' {"a" : 1 , "a" : 2} '), ('{"a": 1} {"b": 2}'), ('{"a": }'),
		('"\u0041"'), ('"\u0000"'), ('{"\u0000": 1}'), ('"\ud83d"'), ('"\ud83d\ude00"'), ('\u0000'),
		(E'tab\t and\nnewline'), ('{"a": "grün 日本語 🐘"}'), ('grün 日本語 🐘'),
		(repeat('x', 7999)), ('"' || repeat('x', 7997) || '"'), ('[' || repeat('1,', 3998) || '1]'), (repeat('ü', 3999)),
		(repeat('[', 7999)), (repeat('[', 100) || repeat(']', 100)), (repeat('{"a":', 100) || '1' || repeat('}', 100));
	-- what the data of the event must be
	CREATE FUNCTION expected(payload text) RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		RETURN payload::jsonb;
	EXCEPTION WHEN OTHERS THEN
		RETURN to_jsonb(payload);
	END
	$$;);
my $as_expected = q(
	SELECT string_agg(n || ' ' || left(payload, 40), E'\n' ORDER BY n) FROM payloads p
	LEFT JOIN notification_events e ON e.id = p.n AND e.event_name = 'p'
	WHERE e.event_data IS DISTINCT FROM expected(p.payload));
make_database('payloads');
$node->safe_psql('payloads', $payloads);
listen_channel('payloads', 'p');
$node->safe_psql('payloads', q(SELECT pg_notify('p', payload) FROM payloads ORDER BY n));
mark('payloads', 'p');
is($node->safe_psql('payloads', $as_expected), '', 'payloads: JSON, or a string');
is( $node->safe_psql('payloads',
		q(SELECT count(*) FILTER (WHERE jsonb_typeof(event_data) = 'string'), count(*) FROM notification_events)),
	'24|36', 'payloads: of both kinds');
is( $node->safe_psql('payloads',
		q(SELECT bytes - 6 - (SELECT sum(octet_length(payload)) FROM payloads), notifications FROM event_channel_stats)),
	'0|36', 'payloads: their bytes are counted');

# A payload that is nested too deep for the server's stack becomes a string.
make_database('shallow');
$node->safe_psql('postgres', q(ALTER DATABASE shallow SET max_stack_depth = '400kB'));
restart_listener('shallow');
listen_channel('shallow', 'p');
$node->safe_psql('shallow', q(SELECT pg_notify('p', repeat('[', 3999) || repeat(']', 3999))));
mark('shallow', 'p');
is( $node->safe_psql('shallow', 'SELECT jsonb_typeof(event_data), length(event_data #>> \'{}\') FROM notification_events ORDER BY id LIMIT 1'),
	'string|7998', 'payloads: too deep');

# An encoding into which \u escapes cannot be converted
make_database('ascii', q(TEMPLATE template0 ENCODING 'sql_ascii' LOCALE 'C'));
listen_channel('ascii', 'p');
$node->safe_psql('ascii', q(SELECT pg_notify('p', '"\u00fc"'), pg_notify('p', '"\u0041"'), pg_notify('p', E'\xfc')));
mark('ascii', 'p');
is( $node->safe_psql('ascii', q(SELECT string_agg(encode(convert_to(event_data::text, 'sql_ascii'), 'escape'), ' ' ORDER BY id) FROM (SELECT * FROM notification_events ORDER BY id LIMIT 3) e)),
	q("\\\\"\\\\\\\\u00fc\\\\"" "A" "\\374"), 'payloads: SQL_ASCII');

#
# Order, and no notifications of other databases or channels
#
make_database('shop');
make_owner($node, 'shop', 'ann');
make_recorder($node, 'shop');
listen_channel('shop', 'orders');
make_database('other');
$node->safe_psql('shop', q(SELECT pg_notify('orders', g::text) FROM generate_series(1, 5000) g));
$node->safe_psql('shop', join("\n", map { "NOTIFY orders, '$_';" } 5001 .. 5100));
$node->safe_psql('other', q(NOTIFY orders, 'another database'));
$node->safe_psql('shop', q(NOTIFY another_channel, 'another channel'));
mark('shop', 'orders');
is( $node->safe_psql('shop', q(SELECT count(*), count(*) FILTER (WHERE event_data = to_jsonb(id)) FROM notification_events)),
	'5101|5100', 'in the order in which they were sent, and none of others');
is_accounted_for('shop', 'orders', 'order');
cmp_ok($node->safe_psql('shop', 'SELECT count(DISTINCT txid) FROM notification_events'), '>=', 6, 'in batches');
$node->safe_psql('shop', 'TRUNCATE notification_events');

#
# No loop
#
# An event of a channel is announced like any other, and the announcement does not
# become an event.  A handler that notifies is an application like any other.
$node->safe_psql(
	'shop', q(
	CREATE FUNCTION passes_on(name text, data jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_notify('passed on', data #>> '{}');
	END
	$$;
	SELECT create_event_handler('passes_on', 'passes_on', event_name => 'orders', owner => 'ann');
));
listen_channel('shop', 'passed on');
my $client = $node->background_psql('shop');
$client->query_safe('LISTEN event_notification');
$node->safe_psql('shop', q(NOTIFY orders, 'once'));
my $heard = '';
while ($heard !~ /"passed on"/)
{
	$node->poll_query_until('shop', 'SELECT true');
	$heard .= $client->query_safe('SELECT 1');
}
$client->quit;
is(join(' ', $heard =~ /Asynchronous notification "event_notification" with payload "(.*?)"/g), 'orders passed on', 'they are announced');
wait_until('shop', q(EXISTS (SELECT FROM notification_events WHERE event_name = 'passed on')));
mark('shop', 'orders');
wait_until('shop', q((SELECT count(*) = 2 FROM notification_events WHERE event_name = 'passed on')));
is(data_of('shop', 'orders'), "once mark $marks", 'each notification is one event');
is(data_of('shop', 'passed on'), "once mark $marks", 'what a handler sends, too');
$node->safe_psql('shop', q(SELECT drop_event_handler('passes_on'); TRUNCATE notification_events));

# pg_notify_events.channel is set to the name of an event channel.
$offset = -s $node->logfile;
$node->append_conf('postgresql.conf', q(pg_notify_events.channel = 'orders'));
$node->reload;
wait_for_state('shop', 'suspended', 'orders');
is($node->safe_psql('shop', q(SELECT state FROM event_channel_stats WHERE channel = 'passed on')), 'listening', 'only that channel is suspended');
$node->safe_psql('shop', q(SELECT notify_event('announced there')));
$node->safe_psql('shop', q(NOTIFY orders, 'sent there'));
mark('shop', 'passed on');
is( $node->safe_psql('shop', 'SELECT string_agg(event_name, \' \' ORDER BY id) FROM notification_events'),
	'announced there passed on', 'what is announced there is no event');
# The same after a change of the definitions; the log says so once.
listen_channel('shop', 'third');
mark('shop', 'third');
is($node->safe_psql('shop', q(SELECT count(*) FROM notification_events WHERE event_name = 'orders')), '0', 'nor later');
is(logged(qr/WARNING:  event channel "orders" is suspended: events are announced on it/, $offset), 1, 'the log says so once');
$node->append_conf('postgresql.conf', q(pg_notify_events.channel = 'event_notification'));
$node->reload;
wait_for_state('shop', 'listening');
mark('shop', 'orders');
pass('another setting, and it goes on');
$node->safe_psql('shop', q(SELECT unlisten_event_channel('third'), unlisten_event_channel('passed on'); TRUNCATE notification_events));

#
# Restarts, and crashes of the server
#
$node->restart;
wait_for_state('shop', 'listening');
mark('shop', 'orders');
$node->stop('immediate');
$node->start;
wait_for_state('shop', 'listening');
mark('shop', 'orders');
restart_listener('shop');
wait_for_state('shop', 'listening');
mark('shop', 'orders');
is(data_of('shop', 'orders'), join(' ', map { "mark $_" } $marks - 2 .. $marks), 'restart, crash, end of the listener: it goes on');
$node->safe_psql('shop', 'TRUNCATE notification_events; SELECT reset_event_stats()');

#
# Triggers of other roles on the log
#
$node->safe_psql(
	'shop', q(
	CREATE TABLE caught (who text);
	GRANT ALL ON caught TO PUBLIC;
	CREATE FUNCTION steals() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.caught VALUES (current_user);
		RETURN new;
	END
	$$;
	CREATE FUNCTION tells(text) RETURNS boolean LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.caught VALUES (current_user);
		RETURN true;
	END
	$$;
	GRANT TRIGGER ON notification_events TO ann;
	GRANT EXECUTE ON FUNCTION _notification_event_row() TO ann;
));
my $stealing = 'EXECUTE FUNCTION steals()';
foreach (
	[ 'BEFORE INSERT', 'ROW' ],
	[ 'AFTER INSERT', 'ROW' ],
	[ 'BEFORE INSERT', 'STATEMENT' ],
	[ 'AFTER UPDATE OR INSERT', 'STATEMENT' ],
	[ 'AFTER INSERT', 'ROW', 'DISABLE' ],
	[ 'AFTER INSERT', 'ROW', 'ENABLE REPLICA' ],
	[ 'BEFORE INSERT', 'ROW', undef, 'WHEN (tells(new.event_name)) EXECUTE FUNCTION _notification_event_row()' ])
{
	my ($event, $for, $enabled, $what) = @$_;
	my $name = join(' ', grep { defined } $event, 'FOR EACH', $for, $enabled, $what);

	$offset = -s $node->logfile;
	$node->safe_psql('shop', "SET ROLE ann; CREATE TRIGGER steals $event ON notification_events FOR EACH $for " . ($what // $stealing));
	$node->safe_psql('shop', "ALTER TABLE notification_events $enabled TRIGGER steals") if $enabled;
	$node->safe_psql('shop', q(NOTIFY orders, '1'));
	wait_for_state('shop', 'suspended');
	$node->safe_psql('shop', q(NOTIFY orders, '2'));
	wait_until('shop', q((SELECT notifications = 2 FROM event_channel_stats)));
	# wait for some naptimes
	my $wakeups = $node->safe_psql('shop', q(SELECT wakeups FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop'));
	wait_until('shop', qq((SELECT wakeups > $wakeups + 3 FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop')));
	is($node->safe_psql('shop', 'SELECT count(*) FROM caught'), '0', "$name: not run");
	is(logged(qr/WARNING:  event channels are suspended: table "notification_events" has a trigger "steals"/, $offset), 1, "$name: the log says so once");
	$node->safe_psql('shop', 'DROP TRIGGER steals ON notification_events');
	mark('shop', 'orders');
	is(data_of('shop', 'orders'), "1 2 mark $marks", "$name: goes on when it is dropped");
	wait_for_state('shop', 'listening');
	$node->safe_psql('shop', 'TRUNCATE notification_events; SELECT reset_event_stats()');
}
$node->safe_psql('shop', 'CREATE TRIGGER harmless BEFORE UPDATE OR DELETE ON notification_events FOR EACH ROW EXECUTE FUNCTION steals()');
mark('shop', 'orders');
is($node->safe_psql('shop', 'SELECT state FROM event_channel_stats'), 'listening', 'a trigger that no INSERT fires is no matter');
$node->safe_psql('shop', 'TRUNCATE notification_events; SELECT reset_event_stats()');

# A listener that stops in good order inserts what it has kept before it ends.
# What a terminated listener has kept is dropped.
$node->append_conf('postgresql.conf', q(pg_notify_events.naptime = '1h'));
$node->reload;
sub suspend_and_notify
{
	$node->safe_psql('shop', 'CREATE TRIGGER steals BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION steals()');
	$node->safe_psql('shop', q(SELECT pg_notify('orders', g::text) FROM generate_series(1, 2500) g));
	wait_for_state('shop', 'suspended');
	wait_until('shop', q((SELECT notifications = 2500 FROM event_channel_stats)));
	$node->safe_psql('shop', 'DROP TRIGGER steals ON notification_events');
	is($node->safe_psql('shop', 'SELECT count(*) FROM notification_events'), '0', 'kept, and not tried again before naptime');
	return;
}
suspend_and_notify();
$node->safe_psql('postgres', 'ALTER DATABASE shop RENAME TO store');
is($node->safe_psql('store', 'SELECT count(*) FROM notification_events'), '2500', 'inserted when the listener leaves');
$node->safe_psql('postgres', 'ALTER DATABASE store RENAME TO shop');
$node->append_conf('postgresql.conf', q(pg_notify_events.naptime = '100ms'));
$node->reload;
wait_for_state('shop', 'listening');
is($node->safe_psql('shop', 'SELECT notifications, dropped FROM event_channel_stats'), '2500|0', 'and none counted as dropped');
$node->append_conf('postgresql.conf', q(pg_notify_events.naptime = '1h'));
$node->reload;
$node->safe_psql('shop', 'TRUNCATE notification_events; SELECT reset_event_stats()');
suspend_and_notify();
listen_channel('shop', 'another');
wait_until('shop', q((SELECT count(*) = 2500 FROM notification_events)));
pass('a change of definitions makes it try at once');
$node->safe_psql('shop', q(SELECT unlisten_event_channel('another'); TRUNCATE notification_events; SELECT reset_event_stats()));
suspend_and_notify();
restart_listener('shop');
wait_for_state('shop', 'listening');
is($node->safe_psql('shop', 'SELECT notifications, dropped FROM event_channel_stats'), '2500|2500', 'what is lost with the listener was dropped');
$node->append_conf('postgresql.conf', q(pg_notify_events.naptime = '100ms'));
$node->reload;
mark('shop', 'orders');
is_accounted_for('shop', 'orders', 'afterwards');
$node->safe_psql('shop', 'TRUNCATE notification_events; SELECT reset_event_stats()');

#
# Other failures: the listener does everything else meanwhile
#
$offset = -s $node->logfile;
$node->safe_psql('shop', q(
	SELECT create_event_handler('record', 'record', owner => 'ann');
	ALTER TABLE notification_events ADD CONSTRAINT no_orders CHECK (event_name <> 'orders');
	NOTIFY orders, '1';
));
wait_for_state('shop', 'suspended');
is(scalar(worker_pids($node, 'executor', 'shop')), 0, 'nobody runs handlers yet');
$node->safe_psql('shop', q(SELECT notify_event('else')));
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'an error: other events are handled');
$node->safe_psql('shop', q(NOTIFY orders, '2'));
wait_until('shop', q((SELECT notifications = 2 FROM event_channel_stats)));
wait_until('shop', q((SELECT last_error ~ 'no_orders' AND state = 'listening' FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop')));
my $error_at = $node->safe_psql('shop', q(SELECT last_error_at FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop'));
wait_until('shop', qq((SELECT last_error_at > '$error_at' FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop')));
is(logged(qr/WARNING:  event channels are suspended: new row for relation "notification_events" violates check constraint "no_orders"/, $offset), 1, 'an error: the log has it once');
is(logged(qr/Failing row/, $offset), 0, 'an error: without the data');
$node->safe_psql('shop', 'ALTER TABLE notification_events DROP CONSTRAINT no_orders');
mark('shop', 'orders');
is(data_of('shop', 'orders'), "1 2 mark $marks", 'an error: nothing is lost, and the order kept');
is_accounted_for('shop', 'orders', 'an error');
wait_for_state('shop', 'listening');
$node->safe_psql('shop', 'TRUNCATE notification_events, seen; SELECT reset_event_stats()');

# A lock on the log is held for long, one that permits reads: the listener goes on
# reading the queue.
my $locker = $node->background_psql('shop');
$locker->query_safe('BEGIN; LOCK TABLE notification_events IN SHARE MODE');
$node->safe_psql('shop', q(NOTIFY orders, '1'));
wait_until('shop', q((SELECT last_error ~ 'lock timeout' FROM event_worker_stats WHERE kind = 'listener' AND database = 'shop')));
$node->safe_psql('shop', q(NOTIFY orders, '2'));
wait_until('shop', q((SELECT notifications = 2 FROM event_channel_stats)));
is($node->safe_psql('shop', 'SELECT pg_notification_queue_usage()'), '0', 'a lock: the queue is read');
$locker->query_safe('COMMIT');
$locker->quit;
mark('shop', 'orders');
is(data_of('shop', 'orders'), "1 2 mark $marks", 'a lock: nothing is lost');
wait_for_handlers($node, 'shop');
$node->safe_psql('shop', 'TRUNCATE notification_events, seen; SELECT reset_event_stats()');

# A synchronous standby that is absent: a session that notifies does not wait for
# it, and neither does the listener.
$node->append_conf('postgresql.conf', q(synchronous_standby_names = 'absent'));
$node->reload;
mark('shop', 'orders');
mark('shop', 'orders');
pass('a standby that is not there is not waited for');
$node->append_conf('postgresql.conf', q(synchronous_standby_names = ''));
$node->reload;
$node->safe_psql('shop', 'TRUNCATE notification_events, seen; SELECT reset_event_stats()');

#
# A flood, while a handler works.  If it were not read, the queue would reach 0.05
# of its 8 GB.
#
my $script = "$PostgreSQL::Test::Utils::tmp_check/flood.sql";
append_to_file($script, q(
	SELECT count(pg_notify('orders', repeat('x', 7900) || :client_id || ' ' || nextval('flood'))) FROM generate_series(1, 10);
));
# listeners of other databases would have to follow the queue, too
$node->safe_psql('postgres', "DROP DATABASE $_") foreach qw(names payloads shallow ascii other);
$node->safe_psql('shop', 'CREATE SEQUENCE flood');
sub flood
{
	my ($clients, $transactions) = @_;	# of 10 notifications
	my ($highest, $samples) = (0, 0);
	my $pgbench = IPC::Run::start(
		[
			'pgbench', '--no-vacuum', '--client', $clients, '--jobs', 2,
			'--transactions', $transactions, '--file', $script, '-d', $node->connstr('shop')
		],
		'>', \my $out, '2>', \my $err);

	while ($pgbench->pumpable)
	{
		my $usage = $node->safe_psql('shop', 'SELECT pg_notification_queue_usage()');

		$samples++;
		$highest = $usage if $usage > $highest;
		$pgbench->pump_nb;
	}
	ok($pgbench->finish, 'a flood') or diag $err;
	cmp_ok($samples, '>', 5, "a flood: looked at the queue $samples times");
	cmp_ok($highest, '<', 0.01, "a flood: pg_notification_queue_usage() stays low ($highest)");
	wait_until('shop', "(SELECT notifications = 10 * $clients * $transactions FROM event_channel_stats)");
	return;
}
flood(5, 1000);
mark('shop', 'orders');
is_accounted_for('shop', 'orders', 'a flood');
note($node->safe_psql('shop', 'SELECT notifications, dropped FROM event_channel_stats'));
is( $node->safe_psql(
		'shop', q(
		SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY client ORDER BY id) AS previous
			FROM (SELECT id, split_part(substr(event_data #>> '{}', 7901), ' ', 1) AS client, split_part(event_data #>> '{}', ' ', 2)::int AS n
				FROM notification_events WHERE event_data #>> '{}' LIKE 'x%') e) e
		WHERE n <= previous)),
	'0', 'a flood: each session in its order');
wait_for_handlers($node, 'shop');
seen_is_log($node, 'shop', 'record', 'true', 'a flood: handled');

# More than the listener can keep: what has no room is dropped and counted.
$node->safe_psql('shop', 'TRUNCATE notification_events, seen; SELECT reset_event_stats()');
$node->safe_psql('shop', 'CREATE TRIGGER steals BEFORE INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION steals()');
flood(5, 400);
my ($sent, $dropped) = split /\|/, $node->safe_psql('shop', 'SELECT notifications, dropped FROM event_channel_stats');
cmp_ok($sent - $dropped, '>', 16000, 'too much: 128 MB are kept ...');
cmp_ok($sent - $dropped, '<', 17000, '... and no more');
$node->safe_psql('shop', 'DROP TRIGGER steals ON notification_events');
mark('shop', 'orders');
is_accounted_for('shop', 'orders', 'too much');
is($node->safe_psql('shop', 'SELECT dropped FROM event_channel_stats'), $dropped, 'too much: there is room again');
is($node->safe_psql('shop', 'SELECT count(*) FROM caught'), '0', 'all the time nobody has caught anything');
wait_for_handlers($node, 'shop');

#
# A copy made with TEMPLATE is dormant.
#
$node->safe_psql('shop', 'TRUNCATE notification_events, seen; SELECT reset_event_stats()');
$offset = -s $node->logfile;
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
wait_for_listener($node, 'copy');
$node->wait_for_log(qr/WARNING:  1 event channel is dormant/, $offset);
is($node->safe_psql('copy', 'SELECT channel, state, notifications FROM event_channel_stats'), 'orders|dormant|0', 'the copy is dormant');
$node->safe_psql('copy', q(NOTIFY orders, 'dormant'));
is($node->safe_psql('copy', 'SELECT activate_events()'), '2', 'a handler and a channel wake up');
wait_for_state('copy', 'listening');
mark('copy', 'orders');
is(data_of('copy', 'orders'), "mark $marks", 'what came while it was dormant is nothing');
wait_for_state('shop', 'listening');
mark('shop', 'orders');
is(data_of('shop', 'orders'), "mark $marks", 'the original goes on, by itself');
is(logged(qr/event channel is dormant/, $offset), 1, 'the log said so once');

# DROP EXTENSION: nothing is received any more, and no channel remains.
$node->safe_psql('copy', 'DROP EXTENSION pg_notify_events CASCADE');
ok(wait_for_no_workers($node, 'copy'), 'DROP EXTENSION with a channel');
$node->safe_psql('copy', 'DROP TABLE seen; CREATE EXTENSION pg_notify_events');
wait_for_listener($node, 'copy');
is($node->safe_psql('copy', 'SELECT count(*) FROM event_channel_stats'), '0', 'created again, it has none');

$node->stop;
done_testing();
