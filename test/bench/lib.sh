# shellcheck shell=bash
# shellcheck disable=SC2119  # functions with optional arguments
#
# test/bench/lib.sh - functions shared by the benchmarks, on top of test/lib.sh.
# Sourced, not run.
#
# A benchmark compares contenders, which are databases of one server, in rounds.
# Each round runs all of them, one after the other, and each round starts with
# another one.  So other load on the machine affects all of them alike.  Each run
# yields figures.  They are kept in a CSV file,
#
#	condition,contender,round,figure,value
#
# and everything that is printed or drawn comes from this file.
#
#	bench_begin				installs packages, copies the server, builds extension and clients
#	bench_server			starts the server, with test/bench/postgresql.conf
#	slow_flush on|off		restarts it, with or without a WAL flush that takes 1 ms
#	settle DATABASE			runs between two runs
#	measured ...			makes a run; repeats it if others disturb it (--patience)
#	watched ...				runs anything else than run_load, and records cores_others
#	load_with, run_load ...	run pgbench, with a LISTEN client that measures
#	handler_latency ...		measures the time from an INSERT to its handler
#	record, figure			write to and read from the CSV file
#	target ...				says whether it is met; a missed one is not a failure
#	problem TEXT			reports an error, which makes the benchmark fail

# shellcheck source=test/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# shellcheck disable=SC2034  # used by the scripts
bench_packages=(gnuplot-nox libpq-dev)

clients=32		# of pgbench
threads=2
area=			# directory for programs and raw figures, below the temporary one
csv=			# the file of figures
output=			# directory of the results
settle_time=2	# seconds
patience=0		# minutes that may go by until all runs had the machine for themselves
disturbed=0.1	# processors taken by others, above which a run had not
rate=100		# INSERTs a second, where their latency is measured
first_few=20	# of them, for which the server fills its caches, are left out
python=			# that has psycopg2
problems=()

# bench_begin CSV: prepares everything including the programs, and makes $output
bench_begin()
{
	local include library

	begin
	install_packages "${build_packages[@]}" "${bench_packages[@]}"
	# The copy of the server has no libpq.
	library=$("$pg_config" --libdir)
	copy_server
	build || die "the build failed"
	include=$("$pg_config" --includedir)
	area=$work/bench
	mkdir "$area"
	give_to_user "$area"
	run "building the measuring clients" build_clients "$include" "$library" || die "the measuring clients do not compile"

	mkdir -p "$output" || die "no directory for the results"
	output=$(cd "$output" && pwd)
	csv=$output/$1
	echo 'condition,contender,round,figure,value' >"$csv"
}

# build_clients INCLUDE LIBRARY: the arguments are directories of libpq
build_clients()
{
	local program
	local -a compile=(as_user gcc -std=gnu99 -D_GNU_SOURCE -O2 -Wall -Wextra)

	for program in listen latency flush; do
		"${compile[@]}" -I"$1" -o "$area/$program" "test/bench/$program.c" test/bench/client.c \
			-L"$2" -Wl,-rpath,"$2" -lpq || return
	done
	"${compile[@]}" -shared -fPIC -o "$area/slow_flush.so" test/bench/slow_flush.c
}

# find_python: sets $python to the one that has psycopg2; the distribution's may not
# be the first in the PATH
find_python()
{
	for python in python3 /usr/bin/python3; do
		! as_user "$python" -c 'import psycopg2' 2>/dev/null || return 0
	done
	die "no python3 with psycopg2"
}

#
# The server
#

# bench_server [SETTING...]: makes and starts it
bench_server()
{
	start_server "include '$tree/test/bench/postgresql.conf'" "$@" || die "the server did not start"
	[[ $(query postgres 'SHOW wal_sync_method') == fdatasync ]] || die "the server does not flush its WAL with fdatasync"
	run "writing the new cluster to disk" sync
}

# slow_flush on|off
slow_flush()
{
	local postmaster library=$area/slow_flush.so

	stop_server || die "the server did not stop"
	if [[ $1 == off ]]; then
		start_again || die "the server did not start"
		return
	fi
	start_again "LD_PRELOAD=$library" || die "the server did not start"
	postmaster=$(head -n 1 "$work/data/postmaster.pid")
	grep -q -F "$library" "/proc/$postmaster/maps" || die "the server has not loaded $library"
}

# query DATABASE SQL: prints the result, unaligned and without headers
query()
{
	with_server psql -X -A -t -q -v ON_ERROR_STOP=1 -d "$1" -c "$2"
}

# script DATABASE: runs SQL from standard input
script()
{
	with_server psql -X -q -v ON_ERROR_STOP=1 -d "$1" >/dev/null
}

# settle DATABASE: completes the pending work of the last run
settle()
{
	query "$1" 'VACUUM ANALYZE'
	query "$1" 'CHECKPOINT'
	sleep "$settle_time"
}

# flush_times on|off: prints the times of flushes of one page in a file next to the
# WAL, one per line
flush_times()
{
	local -a preload=()

	[[ $1 == off ]] || preload=("LD_PRELOAD=$area/slow_flush.so")
	as_user env "${preload[@]}" "$area/flush" "$area/flush.tmp" 1000
}

#
# The load of the machine
#

# processor_ticks: prints those of the whole machine, and those of the server with
# all its present and past processes
processor_ticks()
{
	local postmaster

	postmaster=$(head -n 1 "$work/data/postmaster.pid")
	awk '/^cpu / { printf "%d ", $2 + $3 + $4 + $7 + $8 + $9 }' /proc/stat
	# fields 4 and 14 to 17 of proc(5); a name may contain spaces
	cat /proc/[0-9]*/stat 2>/dev/null | awk -v postmaster="$postmaster" '
		{ pid = $1; sub(/^.*\) /, "") }
		pid == postmaster { ticks += $12 + $13 + $14 + $15 }
		$2 == postmaster { ticks += $12 + $13 }
		END { print ticks + 0 }'
}

# wal_flushes: prints how many the server has made, and how many milliseconds they took
wal_flushes()
{
	local from='wal_sync, wal_sync_time FROM pg_stat_wal'

	if (($(query postgres 'SHOW server_version_num') >= 180000)); then
		from="sum(fsyncs), sum(fsync_time) FROM pg_stat_io WHERE object = 'wal'"
	fi
	query postgres "SELECT $from" | tr '|' ' '
}

# describe_machine COMMAND: prints what the figures depend on
describe_machine()
{
	local commit

	commit=$(git -C "$top" describe --always --dirty 2>/dev/null || echo unknown)
	cat <<-END
		command     $1
		date        $(date -u '+%Y-%m-%d %H:%M UTC'), pg_notify_events at $commit
		machine     $cores cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)
		disk        $(df --output=fstype,source "$work" | tail -n 1 | tr -s ' ') ($work)
		WAL flush   fdatasync of 8 kB: $(summary ms "$area/flush.off"); with slow_flush.c: $(summary ms "$area/flush.on")
		server      $(query postgres 'SELECT version()')
		settings    test/bench/postgresql.conf: $(sed -n 's/[[:space:]]*#.*//; s/ = /=/p' "$tree/test/bench/postgresql.conf" | paste -s -d ' ')
	END
}

#
# Figures
#

# calculate EXPRESSION: prints the value of an awk expression
calculate()
{
	awk "BEGIN { print ($1) }"
}

# percentiles FILE P...: prints those of the numbers in FILE, which has one per line,
# by nearest rank; "-" if it is empty
percentiles()
{
	sort -g "$1" | awk -v wanted="${*:2}" '
		{ value[NR] = $1 }
		END {
			n = split(wanted, p, " ")
			for (i = 1; i <= n; i++) {
				rank = int(p[i] / 100 * NR)
				if (rank < p[i] / 100 * NR || rank == 0)
					rank++
				printf "%s%s", (NR == 0 ? "-" : value[rank]), (i < n ? " " : "\n")
			}
		}'
}

# summary ms FILE: prints median and p99 of a file of microseconds
summary()
{
	local p50 p99 max

	read -r p50 p99 max < <(percentiles "$2" 50 99 100)
	printf 'median %s ms, p99 %s ms' "$(milliseconds "$p50")" "$(milliseconds "$p99")"
}

# milliseconds N: converts from microseconds
milliseconds()
{
	if [[ $1 == - ]]; then
		echo -
	else
		calculate "sprintf(\"%.2f\", $1 / 1000)"
	fi
}

# record CONDITION CONTENDER ROUND FIGURE VALUE
record()
{
	local IFS=,

	echo "$*" >>"$csv"
}

# figures CONDITION CONTENDER FIGURE: prints the values of all rounds, one per line
figures()
{
	awk -F , -v key="$1,$2,$3" '$1 "," $2 "," $4 == key && $5 != "-" { print $5 }' "$csv"
}

# figure CONDITION CONTENDER FIGURE: prints the median of the rounds
figure()
{
	figures "$@" | sort -g | awk '
		{ value[NR] = $1 }
		END { print (NR == 0 ? "-" : NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2) }'
}

# lowest, highest CONDITION CONTENDER FIGURE: print that of the rounds
lowest()
{
	figures "$@" | sort -g | awk 'NR == 1 { value = $1 } END { print (NR == 0 ? "-" : value) }'
}

highest()
{
	figures "$@" | sort -g | awk '{ value = $1 } END { print (NR == 0 ? "-" : value) }'
}

# ratio A B: prints it rounded; "-" if there is none
ratio()
{
	if [[ $1 == - || $2 == - ]]; then
		echo -
	else
		awk "BEGIN { a = $1; b = $2; if (b == 0) print \"-\"; else printf \"%.2f\\n\", a / b }"
	fi
}

# rounded N: prints it rounded; "-" stays "-"
rounded()
{
	if [[ $1 == - ]]; then
		echo -
	else
		printf '%.0f\n' "$1"
	fi
}

# target TEXT VALUE COMPARISON BOUND [UNIT]: COMPARISON is < <= or >=
target()
{
	local outcome=missed

	if [[ $2 == - ]]; then
		outcome="no figure"
	elif (($(calculate "$2 $3 $4"))); then
		outcome=met
	fi
	printf '   %-52s %9s%-3s target %-2s %-4s%-3s %s\n' "$1" "$2" "${5-}" "$3" "$4" "${5-}" "$outcome"
}

# warn_of_others CONDITION: warns if other processes disturbed runs
warn_of_others()
{
	awk -F , -v condition="$1" -v limit="$disturbed" '
		$1 == condition && $4 == "cores_others" && $5 > limit { runs++; if ($5 > most) most = $5 }
		END { if (runs) printf "   NOT ALONE: in %d runs others took processors, up to %.2f of them: do not trust these figures.\n", runs, most }' \
		"$csv"
}

# problem TEXT
problem()
{
	problems+=("$1")
	echo "   PROBLEM: $1"
}

#
# Runs
#

# rotated N WORD...: prints the words, starting with the Nth, counted from 0
rotated()
{
	local n=$1

	shift
	n=$((n % $#))
	echo "${@:n+1}" "${@:1:n}"
}

# reported NAME: prints the value that listen.c or pgbench reported in the last run
reported()
{
	sed -n "s/^$1 //p" "$last_log"
}

# load_with SQL: sets what pgbench runs in run_load
load_with()
{
	echo "$1" | as_user tee "$area/load.sql" >/dev/null
}

# run_load CONDITION CONTENDER ROUND SECONDS [LISTEN_OPTION...]: runs
# test/bench/listen.c, which runs pgbench with $area/load.sql, in the database
# CONTENDER.  Round 0 is a warm-up: none of its figures are recorded.
run_load()
{
	local condition=$1 contender=$2 round=$3 seconds=$4
	local tps
	local -a before after

	shift 4
	settle "$contender"
	read -r -a before < <(echo "$(processor_ticks) $(wal_flushes) ${EPOCHREALTIME/./}")
	run "$condition, round $round: $contender" with_server env "PGDATABASE=$contender" \
		"$area/listen" "$@" pgbench -n -c "$clients" -j "$threads" -T "$seconds" -f "$area/load.sql" || die "the run failed"
	read -r -a after < <(echo "$(processor_ticks) $(wal_flushes) ${EPOCHREALTIME/./}")
	((round > 0)) || return 0

	set -- "$condition" "$contender" "$round"
	record "$@" transactions "$(reported 'number of transactions actually processed:')"
	tps=$(reported 'tps =' | cut -d ' ' -f 1)
	record "$@" tps "${tps:-0}"		# pgbench says nothing of none
	record "$@" flushes "$((after[2] - before[2]))"
	record "$@" flush_ms "$(ratio "${after[3]} - ${before[3]}" "${after[2]} - ${before[2]}")"
	record_processors "$@" "$((after[0] - before[0]))" "$((after[1] - before[1]))" "$((after[4] - before[4]))"
}

# record_processors CONDITION CONTENDER ROUND MACHINE SERVER US: records how many
# processors the server, its listener, the backend of the LISTEN client, the clients
# and others used during the load.  MACHINE and SERVER are ticks, counted during US
# microseconds, a little longer than the load.
record_processors()
{
	local name us tick load_us others

	tick=$((1000000 / $(getconf CLK_TCK)))
	load_us=$(reported load_us)
	others="$4 * $tick"
	for name in server:$(($5 * tick)) pgbench:"$(reported load_processor_us)" client:"$(reported client_processor_us)"; do
		us=${name#*:}
		others+=" - $us"
		record "${@:1:3}" "cores_${name%:*}" "$(ratio "$us" "$load_us")"
	done
	record "${@:1:3}" cores_others "$(ratio "$others" "$6")"
	record "${@:1:3}" cores_backend "$(ratio "$(reported backend_processor_us)" "$load_us")"
	record "${@:1:3}" cores_listener "$(ratio "$(reported listener_processor_us)" "$load_us")"
}

# measured CONDITION CONTENDER ROUND COMMAND...: makes a run that records
# cores_others, and repeats it while others disturb it and there is patience.
# Commits that wait for each other also wait for each other's processor time.  So
# other load on the machine changes not only the figures, but also their ratios.
measured()
{
	local others

	while :; do
		"${@:4}"
		others=$(awk -F , -v key="$1,$2,$3,cores_others" '$1 "," $2 "," $3 "," $4 == key { print $5 }' "$csv")
		(($(calculate "$others > $disturbed") && SECONDS < patience * 60)) || return 0
		say "others took $others processors: once more, in a moment"
		awk -F , -v key="$1,$2,$3" '$1 "," $2 "," $3 != key' "$csv" >"$area/csv"
		cat "$area/csv" >"$csv"
		sleep 5
	done
}

# watched CONDITION CONTENDER ROUND COMMAND...: runs it in this shell, and records
# cores_others; that includes the clients' processor time, which is small
watched()
{
	local status=0
	local -a before after

	read -r -a before < <(echo "$(processor_ticks) ${EPOCHREALTIME/./}")
	"${@:4}" || status=$?
	read -r -a after < <(echo "$(processor_ticks) ${EPOCHREALTIME/./}")
	record "${@:1:3}" cores_others "$(ratio "($((after[0] - before[0])) - $((after[1] - before[1]))) * 1000000 / $(getconf CLK_TCK)" \
		"$((after[2] - before[2]))")"
	return "$status"
}

# insert_paced DATABASE COUNT: runs $rate INSERTs a second, one at a time: the first
# few, which do not count, and COUNT.  $area/starts gets the time of each.
insert_paced()
{
	run "$2 INSERTs, $rate a second: $1" with_server env "PGDATABASE=$1" \
		"$area/latency" "$((first_few + $2))" "$rate" insert || return
	cp "$last_log" "$area/starts"
}

# times_from_start FILE COUNT: writes the microseconds from $area/starts to FILE,
# line by line, without the first few, to $area/times.  Fails if the two are not of
# the same INSERTs: their numbers differ, or one ends before it starts.
times_from_start()
{
	[[ $(wc -l <"$area/starts") == $((first_few + $2)) && $(wc -l <"$1") == $((first_few + $2)) ]] || return
	paste "$area/starts" "$1" | awk -v first="$first_few" '
		$2 < $1 { wrong = 1 }
		NR > first { printf "%d\n", $2 - $1 }
		END { exit wrong }' >"$area/times"
}

# handler_latency DATABASE COUNT: writes the microseconds from sending an INSERT to
# the first line of the handler to $area/times.  The database is one of make_noting
# and has no handler before and after.  One client inserts, so the ids of the events
# are in the order of the INSERTs.
handler_latency()
{
	script "$1" <<-'SQL' || return
		TRUNCATE calls;
		SELECT create_event_handler('note', 'note');
	SQL
	insert_paced "$1" "$2" || return
	query "$1" "CALL wait_for_event_handlers('60 s')" || return
	query "$1" 'SELECT (extract(epoch FROM at) * 1000000)::bigint FROM calls ORDER BY id' >"$area/ends" || return
	query "$1" "SELECT drop_event_handler('note')" >/dev/null || return
	times_from_start "$area/ends" "$2"
}

# record_times CONDITION CONTENDER ROUND NAME FILE: records percentiles of a file of
# microseconds, and keeps the file for all_times
record_times()
{
	local p50 p99 max

	read -r p50 p99 max < <(percentiles "$5" 50 99 100)
	record "$1" "$2" "$3" "$4_p50_ms" "$(milliseconds "$p50")"
	record "$1" "$2" "$3" "$4_p99_ms" "$(milliseconds "$p99")"
	record "$1" "$2" "$3" "$4_max_ms" "$(milliseconds "$max")"
	cp "$5" "$area/times.$1.$2.$4.$3"
}

# all_times CONDITION CONTENDER NAME: prints p50, p99 and maximum over all rounds in
# milliseconds, and the number of times
all_times()
{
	local p50 p99 max file=$area/times

	cat "$area/times.$1.$2.$3".* >"$file" 2>/dev/null || true
	if [[ ! -s $file ]]; then
		echo - - - 0
		return
	fi
	read -r p50 p99 max < <(percentiles "$file" 50 99 100)
	echo "$(milliseconds "$p50") $(milliseconds "$p99") $(milliseconds "$max") $(wc -l <"$file")"
}

# bench_end: prints the problems again; fails if there are any
bench_end()
{
	((${#problems[@]} > 0)) || return 0
	printf '   PROBLEM: %s\n' "${problems[@]}"
	return 1
}
