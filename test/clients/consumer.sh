#!/bin/sh
# Print each event as "id|name": psql, no LISTEN.
#
# usage: consumer.sh "KEY=VALUE ..."
#
# Created before: SELECT create_event_consumer('psql').
seconds=${LOOK_EVERY:-60} # the longest poll; each psql gets twice as long
alive='connect_timeout=10 keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=60000'
away='08...|25006|25P03|53...|57P0.' # SQLSTATEs of a server that comes back
delay=1

exec 3>&1
while :; do
	errors=$(timeout $((2 * seconds)) \
		psql -X -q -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=verbose "$1 $alive" 2>&1 >&3 <<SQL
CALL wait_for_events('psql', '$seconds s');
BEGIN;
SET LOCAL idle_in_transaction_session_timeout = '$seconds s'; -- if we vanish
SELECT id, event_name FROM fetch_events('psql');
SELECT ack_events('psql') \g /dev/null
COMMIT;
SQL
	)
	status=$?
	[ -z "$errors" ] || printf '%s\n' "$errors" >&2
	case $status in
		0) delay=1 && continue ;;
		2 | 124) ;; # no connection, no answer: the server comes back
		*) printf '%s\n' "$errors" | grep -Eq ":  ($away):" || exit 1 ;;
	esac
	sleep $delay
	[ $delay -ge 8 ] || delay=$((2 * delay))
done
