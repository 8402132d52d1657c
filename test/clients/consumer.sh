#!/bin/sh
# Print each event as "id|name": psql, no LISTEN.
#
# usage: consumer.sh CONNECTION_STRING
#
# Created before: SELECT create_event_consumer('psql').
while :; do
	psql -X -q -A -t -v ON_ERROR_STOP=1 "$1" <<'SQL' || sleep 0.2
CALL wait_for_events('psql', '1 min');
BEGIN;
SELECT id, event_name FROM fetch_events('psql');
SELECT ack_events('psql') \g /dev/null
COMMIT;
SQL
done
