# shellcheck shell=bash
# shellcheck disable=SC2119  # functions with optional arguments
#
# test/bench/lib.sh - what benchmarks have in common, on top of test/lib.sh.
# Sourced, not run.
#
# A benchmark compares contenders, which are databases of one server, in rounds:
# each round runs all of them, one after the other, beginning with another one
# than the last round.  So what the machine does besides hits all of them alike.
# Each run yields figures.  They are kept in a CSV file,
#
#	condition,contender,round,figure,value
#
# and everything that is printed or drawn comes from there.
#
#	bench_begin				packages, server, extension, the measuring clients
#	bench_server			the server, with test/bench/postgresql.conf
#	slow_flush on|off		starts it again, with a WAL flush that takes 1 ms, or without
#	settle DATABASE			between two runs
#	measured ...			a run, again while others disturb it and there is patience
#	watched ...				what it does besides the load of run_load, with cores_others
#	load_with, run_load ...	pgbench, with a LISTEN client that measures
#	handler_latency ...		from an INSERT to its handler
#	record, figure			to and from the CSV file
#	target ...				says whether one is met.  No time is ever a failure
#	problem TEXT			what is wrong whatever the time: reported at the end

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

# bench_begin CSV: everything up to the programs; $output exists afterwards
bench_begin()
{
	local include library

	begin
	install_packages "${build_packages[@]}" "${bench_packages[@]}"
	# the copy of the server has no libpq
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

# build_clients INCLUDE LIBRARY: directories of libpq
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

# find_python: $python is the one that has psycopg2; the distribution's need not be the
# first in the PATH
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

# bench_server [SETTING...]: made and started
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

# query DATABASE SQL: what it returns, unadorned
query()
{
	with_server psql -X -A -t -q -v ON_ERROR_STOP=1 -d "$1" -c "$2"
}

# script DATABASE: SQL from standard input
script()
{
	with_server psql -X -q -v ON_ERROR_STOP=1 -d "$1" >/dev/null
}

# settle DATABASE: nothing is left to do of what came before
settle()
{
	query "$1" 'VACUUM ANALYZE'
	query "$1" 'CHECKPOINT'
	sleep "$settle_time"
}

# flush_times on|off: of a page in a file where the WAL is, a line each
flush_times()
{
	local -a preload=()

	[[ $1 == off ]] || preload=("LD_PRELOAD=$area/slow_flush.so")
	as_user env "${preload[@]}" "$area/flush" "$area/flush.tmp" 1000
}

#
# What the machine does
#

# processor_ticks: of the whole machine, and of the server with all processes
# that it has or had
processor_ticks()
{
	local postmaster

	postmaster=$(head -n 1 "$work/data/postmaster.pid")
	awk '/^cpu / { printf "%d ", $2 + $3 + $4 + $7 + $8 + $9 }' /proc/stat
	# fields 4, 14 to 17 of proc(5); a name may have spaces
	cat /proc/[0-9]*/stat 2>/dev/null | awk -v postmaster="$postmaster" '
		{ pid = $1; sub(/^.*\) /, "") }
		pid == postmaster { ticks += $12 + $13 + $14 + $15 }
		$2 == postmaster { ticks += $12 + $13 }
		END { print ticks + 0 }'
}

# wal_flushes: how many the server has made, and the milliseconds they took
wal_flushes()
{
	local from='wal_sync, wal_sync_time FROM pg_stat_wal'

	if (($(query postgres 'SHOW server_version_num') >= 180000)); then
		from="sum(fsyncs), sum(fsync_time) FROM pg_stat_io WHERE object = 'wal'"
	fi
	query postgres "SELECT $from" | tr '|' ' '
}

# describe_machine COMMAND: what the figures depend on
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

# calculate EXPRESSION: of awk
calculate()
{
	awk "BEGIN { print ($1) }"
}

# percentiles FILE P...: of numbers, a line each; nearest rank, "-" of none
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

# summary ms FILE: of a file of microseconds
summary()
{
	local p50 p99 max

	read -r p50 p99 max < <(percentiles "$2" 50 99 100)
	printf 'median %s ms, p99 %s ms' "$(milliseconds "$p50")" "$(milliseconds "$p99")"
}

# milliseconds N: of microseconds
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

# figures CONDITION CONTENDER FIGURE: of all rounds, a line each
figures()
{
	awk -F , -v key="$1,$2,$3" '$1 "," $2 "," $4 == key && $5 != "-" { print $5 }' "$csv"
}

# figure CONDITION CONTENDER FIGURE: the median of the rounds
figure()
{
	figures "$@" | sort -g | awk '
		{ value[NR] = $1 }
		END { print (NR == 0 ? "-" : NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2) }'
}

# lowest, highest CONDITION CONTENDER FIGURE: of the rounds
lowest()
{
	figures "$@" | sort -g | awk 'NR == 1 { value = $1 } END { print (NR == 0 ? "-" : value) }'
}

highest()
{
	figures "$@" | sort -g | awk '{ value = $1 } END { print (NR == 0 ? "-" : value) }'
}

# ratio A B: rounded; "-" if there is none
ratio()
{
	if [[ $1 == - || $2 == - ]]; then
		echo -
	else
		awk "BEGIN { a = $1; b = $2; if (b == 0) print \"-\"; else printf \"%.2f\\n\", a / b }"
	fi
}

# rounded N: "-" stays
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

# warn_of_others CONDITION
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

# rotated N WORD...: the words, beginning with the Nth, counted from 0
rotated()
{
	local n=$1

	shift
	n=$((n % $#))
	echo "${@:n+1}" "${@:1:n}"
}

# reported NAME: by listen.c or pgbench, in the last run
reported()
{
	sed -n "s/^$1 //p" "$last_log"
}

# load_with SQL: what run_load has pgbench do
load_with()
{
	echo "$1" | as_user tee "$area/load.sql" >/dev/null
}

# run_load CONDITION CONTENDER ROUND SECONDS [LISTEN_OPTION...]: pgbench with
# $area/load.sql in the database CONTENDER, and test/bench/listen.c around it.
# Round 0 warms up: nothing of it is recorded.
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

# record_processors CONDITION CONTENDER ROUND MACHINE SERVER US: who used how many
# of the processors while the load ran; given are ticks of machine and server,
# and the time in which they were counted, which is a little longer
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

# measured CONDITION CONTENDER ROUND COMMAND...: a run that records cores_others.
# Where commits wait for each other each of them waits for a processor, too: so
# whoever else uses the machine spoils not only the figures but their ratio.
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

# watched CONDITION CONTENDER ROUND COMMAND...: runs it here, and records
# cores_others; the clients' little is among it
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

# insert_paced DATABASE COUNT: INSERTs, $rate a second, one at a time, the first
# few and COUNT; $area/starts is when each was sent
insert_paced()
{
	run "$2 INSERTs, $rate a second: $1" with_server env "PGDATABASE=$1" \
		"$area/latency" "$((first_few + $2))" "$rate" insert || return
	cp "$last_log" "$area/starts"
}

# times_from_start FILE COUNT: $area/times is the microseconds from $area/starts
# to FILE, line by line, without the first few.  Fails where they are not the
# same INSERTs, which what ends before it starts shows, too.
times_from_start()
{
	[[ $(wc -l <"$area/starts") == $((first_few + $2)) && $(wc -l <"$1") == $((first_few + $2)) ]] || return
	paste "$area/starts" "$1" | awk -v first="$first_few" '
		$2 < $1 { wrong = 1 }
		NR > first { printf "%d\n", $2 - $1 }
		END { exit wrong }' >"$area/times"
}

# handler_latency DATABASE COUNT: of make_noting, which has no handler, then;
# $area/times is the microseconds from sending an INSERT to the first line of the
# handler.  One client inserts, so its events' ids are in the order of the INSERTs.
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

# record_times CONDITION CONTENDER ROUND NAME FILE: percentiles of a file of
# microseconds, which is kept for all_times
record_times()
{
	local p50 p99 max

	read -r p50 p99 max < <(percentiles "$5" 50 99 100)
	record "$1" "$2" "$3" "$4_p50_ms" "$(milliseconds "$p50")"
	record "$1" "$2" "$3" "$4_p99_ms" "$(milliseconds "$p99")"
	record "$1" "$2" "$3" "$4_max_ms" "$(milliseconds "$max")"
	cp "$5" "$area/times.$1.$2.$4.$3"
}

# all_times CONDITION CONTENDER NAME: p50, p99 and maximum over all rounds in
# milliseconds, and how many there are
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

# bench_end: what went wrong, as the exit status
bench_end()
{
	((${#problems[@]} > 0)) || return 0
	printf '   PROBLEM: %s\n' "${problems[@]}"
	return 1
}
