# shellcheck shell=bash
#
# test/lib.sh - functions shared by test/demo, test/check and other scripts.
# Sourced, not run.
#
# All these scripts take the same steps:
#
#	begin					makes a temporary directory, and sets an exit trap that
#							stops every server in it and removes it
#	install_packages ...	installs the Debian packages that are missing
#	server_from_source ...	builds a server with assertions or sanitizers, if wanted
#	copy_server				makes a private copy of the server's files in the
#							temporary directory
#	build					builds the extension from a copy of the checkout and
#							installs it into the private copy of the server
#	start_server ...		starts a throwaway cluster on a private socket
#
# PostgreSQL finds its libraries and its share directory relative to the directory
# of its programs, and so does pg_config.  So a copy of the programs, with links
# for everything else, is a separate installation.  The extension under test is
# installed there.  The system's server, which may run another version of the
# extension, is never touched; the scripts need no root and leave nothing behind.
#
# initdb refuses to run as root.  So everything but the installation of packages
# runs as an unprivileged user: the caller, or "postgres" if the caller is root.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Ignore settings of the caller's own sessions and of an enclosing make.
pg_config=${PG_CONFIG-}
unset "${!PG@}" MAKEFLAGS MFLAGS MAKELEVEL
export LANG=C.UTF-8
unset LC_ALL LANGUAGE

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
work=				# the temporary directory
tree=				# the copy of the checkout in it, where everything is built and run
bindir=				# the programs of the private copy of the server
major=				# its major version
kind=				# of server, where it is not the system's: cassert, asan, valgrind
reports=()			# of the environment: where sanitizers and valgrind write to
declare -A children=()	# the process groups that were started in the background
keep=				# "files": leave the temporary directory, "all": the servers in it, too
steps=0				# numbers the log files

#
# Required packages.  NN stands for the major version of PostgreSQL.
#
server_packages=(postgresql-NN postgresql-server-dev-NN)
# shellcheck disable=SC2034  # used by the scripts
build_packages=(gcc libc6-dev libkrb5-dev libssl-dev make)
# shellcheck disable=SC2034
test_packages=(
	clang-tidy								# static
	cppcheck								# static
	libipc-run-perl							# tap
	libpq-dev								# tap: the client in C
	libtap-parser-sourcehandler-pgtap-perl	# pgtap: pg_prove
	locales									# tap: makes locales of its own
	perl									# tap: prove
	pgbouncer								# tap: clients through a pooler
	postgresql-NN-pgtap						# pgtap
	python3-psycopg							# tap: the clients in Python
	python3-psycopg2						# the same
	spin									# model
)
# If npm is already installed, the distribution's package is not needed.
node_packages=()
command -v npm >/dev/null || node_packages=(nodejs npm)
test_packages+=("${node_packages[@]}")
# shellcheck disable=SC2034
test_modules=(pg@8.23.1)					# tap: the client in JavaScript, of npm
# shellcheck disable=SC2034
source_packages=(
	bison									# from PostgreSQL 17 on
	bzip2									# unpacks it
	flex									# from PostgreSQL 17 on
	libipc-run-perl							# configure asks for it
	perl									# the same
	valgrind								# the server tells valgrind about its memory
)

# say TEXT: prints one line of progress
say()
{
	printf '== %s\n' "$*"
}

# die TEXT: exits with the reason
die()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# excerpt FILE [LINES]: prints the end of a log, indented
excerpt()
{
	[[ -s $1 ]] || return 0
	printf '   -- %s, last %s lines\n' "${1#"$work"/}" "${2:-40}"
	tail -n "${2:-40}" "$1" | sed 's/^/   | /'
}

# as_root COMMAND...
as_root()
{
	if ((EUID == 0)); then
		"$@"
	else
		sudo "$@"
	fi
}

# as_user COMMAND...: runs it as the unprivileged user, in the temporary directory
as_user()
{
	local -a how=(env -C "$tree" "HOME=$work/home" "TMPDIR=$work/tmp" "PATH=${bindir:+$bindir:}$PATH" "${reports[@]}")

	if ((EUID == 0)); then
		how=(runuser -u postgres -- "${how[@]}")
	fi
	"${how[@]}" "$@"
}

# launch OUTPUT COMMAND...: starts it in the background, as $child.  The command
# is a job with its own process group, and the shell waits for it with "wait".
# So the shell handles a signal at once and can end the command's children too.
child=
launch()
{
	local output=$1

	shift
	set -m
	"$@" </dev/null >"$output" 2>&1 &
	child=$!
	set +m
	children[$child]=yes
}

# in_background OUTPUT COMMAND...: launches it and waits for it
in_background()
{
	local status=0 group

	launch "$@"
	group=$child
	wait "$group" || status=$?
	unset "children[$group]"
	return "$status"
}

# The log file with the output of the last COMMAND.
last_log=

# run TEXT COMMAND...: runs a step; shows its output if it fails
run()
{
	local status=0

	say "$1"
	shift
	last_log=$work/log/$((++steps)).log
	in_background "$last_log" "$@" || status=$?
	((status == 0)) || excerpt "$last_log"
	return "$status"
}

# show TEXT COMMAND...: runs a step and shows its output as it appears, through sed
show_filter='s/^/   /'
show()
{
	local status=0 fifo=$work/log/fifo viewer

	say "$1"
	shift
	last_log=$work/log/$((++steps)).log
	mkfifo "$fifo"
	tee "$last_log" <"$fifo" | sed -u "$show_filter" &
	viewer=$!
	in_background "$fifo" "$@" || status=$?
	wait "$viewer" || true
	rm -f "$fifo"
	return "$status"
}

# Runs at every exit.
cleanup()
{
	local status=$? pidfile group

	trap '' INT TERM HUP
	for group in "${!children[@]}"; do
		kill -TERM -- "-$group" 2>/dev/null || true
	done
	for group in "${!children[@]}"; do
		wait "$group" 2>/dev/null || true
	done
	if [[ -n $work && $keep != all ]]; then
		while IFS= read -r pidfile; do
			as_user pg_ctl stop -s -w -m immediate -D "$(dirname "$pidfile")" 2>/dev/null || true
		done < <(find "$work" -name postmaster.pid)
		[[ $keep == files ]] || rm -rf "$work"
	fi
	exit "$status"
}

# begin: makes the temporary directory
begin()
{
	local base=${TMPDIR:-/tmp}

	# A socket's path is limited to 107 bytes.
	((${#base} <= 40)) || base=/tmp
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	work=$(mktemp -d "$base/pg_notify_events.XXXXXX")
	tree=$work/tree
	mkdir "$work"/{home,log,socket,tmp,tree}
}

# give_to_user DIRECTORY: the temporary directory or one below it
give_to_user()
{
	((EUID == 0)) || return 0
	getent passwd postgres >/dev/null || die "root cannot run a server, and there is no user postgres"
	chown -R -h postgres: "$1"
	as_user test -w . || die "the user postgres has no access to $work: set TMPDIR to a directory that it may enter"
}

# is_installed PACKAGE
is_installed()
{
	[[ $(dpkg-query -W -f='${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]
}

# Prints the newest PostgreSQL below /usr/lib/postgresql that has PROGRAM.
newest_with()
{
	local path

	for path in /usr/lib/postgresql/*/bin/"$1"; do
		[[ -x $path ]] || continue
		path=${path#/usr/lib/postgresql/}
		printf '%s\n' "${path%%/*}"
	done | sort -n | tail -n 1
}

# Chooses the PostgreSQL to use: that of $PG_CONFIG, else the newest that is
# installed as a package, else the one of the distribution.
choose_version()
{
	if [[ -n $pg_config ]]; then
		[[ $pg_config == */* ]] || pg_config=$(type -P "$pg_config") || die "PG_CONFIG: there is no such program in the PATH"
		[[ -x $pg_config ]] || die "PG_CONFIG: $pg_config is no program"
		# It belongs to packages only if it is below /usr/lib/postgresql.
		[[ $("$pg_config" --bindir) == /usr/lib/postgresql/* ]] || server_packages=()
		major=$("$pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
		return
	fi
	major=$(newest_with postgres)
	[[ -n $major ]] || major=$(newest_with psql)
	[[ -n $major ]] || major=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' || true)
}

# apt_get ARGUMENTS...: runs apt-get as root; output goes to the log
apt_get()
{
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null >"$last_log" 2>&1 && return
	excerpt "$last_log"
	return 1
}

# Debian creates and starts a cluster when it installs the server, and starts the
# pooler when it installs its package.  This is switched off during the
# installation.
no_main_cluster=/etc/postgresql-common/createcluster.d/pg_notify_events_test.conf
no_services=/usr/sbin/policy-rc.d

# install_packages PACKAGE...: installs those that are missing
install_packages()
{
	local package status=0
	local -a missing=()

	if ! command -v dpkg-query >/dev/null; then
		say "no Debian system: taking it that a compiler, PostgreSQL with its headers and the test tools are there"
		choose_version
		[[ -n $pg_config ]] || pg_config=$(type -P pg_config) || die "no pg_config in the PATH: name one with PG_CONFIG=..."
		return
	fi

	last_log=$work/log/packages.log
	choose_version
	if [[ -z $major ]]; then
		# There are no package lists yet.
		need_root "apt-get update"
		say "reading the package lists"
		apt_get update || die "apt-get update failed"
		choose_version
		[[ -n $major ]] || die "no package of PostgreSQL is known to apt-get"
	fi

	for package in "${server_packages[@]}" "$@"; do
		package=${package/NN/$major}
		is_installed "$package" || missing+=("$package")
	done
	if ((${#missing[@]} > 0)); then
		need_root "apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
		say "reading the package lists"
		apt_get update || die "apt-get update failed"
		say "installing ${missing[*]}"
		as_root mkdir -p "${no_main_cluster%/*}"
		echo 'create_main_cluster = false' | as_root tee "$no_main_cluster" >/dev/null
		if [[ -e $no_services ]]; then
			no_services=
		else
			printf '#!/bin/sh\nexit 101\n' | as_root tee "$no_services" >/dev/null
			as_root chmod +x "$no_services"
		fi
		apt_get install -y --no-install-recommends "${missing[@]}" || status=$?
		[[ -z $no_services ]] || as_root rm -f "$no_services"
		as_root rm -f "$no_main_cluster"
		as_root rmdir --ignore-fail-on-non-empty "${no_main_cluster%/*}"
		((status == 0)) || die "apt-get install failed"
	fi
	[[ -n $pg_config ]] || pg_config=/usr/lib/postgresql/$major/bin/pg_config
}

# install_modules MODULE...: installs npm modules into the temporary directory
install_modules()
{
	mkdir -p "$work/node"
	run "installing $* of npm" npm install --no-audit --no-fund --no-save --loglevel=error --prefix "$work/node" "$@" || return
	give_to_user "$work/node"
	export NODE_PATH=$work/node/node_modules
}

# need_root LINE: exits if there is no way to become root; LINE is what root has to run
need_root()
{
	((EUID != 0)) || return 0
	command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; } && return 0
	die "packages are missing, and sudo is not to be had.  Run this as root, then start again:
	$1"
}

#
# A server from source.  There are three kinds; each finds errors that a normal
# server does not report:
#
#	cassert		with assertions; freed memory is overwritten
#	asan		the same, with AddressSanitizer and UndefinedBehaviorSanitizer in
#				the server, its programs and the extension.  They also know the
#				chunks of memory contexts and which shared buffers are pinned
#				(test/asan)
#	valgrind	a server with assertions whose postmasters run under valgrind,
#				about 30 times slower, with the options in $VALGRIND_OPTS
#
# The source is the distribution's.  The build takes some minutes, once: the
# server is kept in ${XDG_CACHE_HOME:-~/.cache}/pg_notify_events/NN.MINOR-KIND; if
# the caller is root, that is the cache of the user postgres.  The server is built
# again when its build recipe changes.  To get a newer minor version, remove it.
#

source=				# where fetch_source put it
source_version=
suppressions=		# valgrind's file of what is known to be harmless in the server

# server_from_source KIND: sets kind, and sets pg_config to that of the server
server_from_source()
{
	local what=$1 header=$top/test/asan/valgrind/memcheck.h cache recipe lock prefix
	local sanitize='-fsanitize=address,undefined -fno-sanitize-recover=all'
	local -a configure

	command -v dpkg-query >/dev/null ||
		die "--$1 takes Debian's source package of PostgreSQL.  Elsewhere name a server of that kind with PG_CONFIG=..."
	kind=$1
	give_to_user "$work"
	reports_to "$work/log/reports"
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/pg_notify_events
	((EUID != 0)) || cache=$(getent passwd postgres | cut -d: -f6)/.cache/pg_notify_events

	configure=(
		-q --enable-cassert --enable-debug --enable-tap-tests
		--without-icu --without-readline --without-zlib
		'CPPFLAGS=-DUSE_VALGRIND -Iprefix/asan'
	)
	if [[ $kind == asan ]]; then
		configure+=("CFLAGS=-O1 -g -fno-omit-frame-pointer $sanitize" "LDFLAGS=$sanitize")
		export ASAN_OPTIONS=detect_leaks=0	# of what runs without as_user
		recipe=$(cat "$header")
	else
		what=cassert
		configure+=('CFLAGS=-O1 -g -fno-omit-frame-pointer')
	fi
	recipe="${configure[*]} ${recipe-}"

	# If another script is building the server, wait and use that build.
	as_user mkdir -p "$cache"
	as_user touch "$cache/lock-$what"
	exec {lock}<"$cache/lock-$what"
	flock -n "$lock" || run "waiting for another one who builds a server with $what" flock "$lock"
	prefix=$(printf '%s\n' "$cache/$major"[.a-z]*"-$what" | sort -V | tail -n 1)
	if [[ ! -f $prefix/recipe || $(<"$prefix/recipe") != "$recipe" ]]; then
		fetch_source
		prefix=$cache/${source_version}-$what
		as_user rm -rf "$prefix"
		as_user mkdir -p "$prefix/asan/valgrind" "$work/build"
		[[ $kind != asan ]] || as_user tee "$prefix/asan/valgrind/memcheck.h" <"$header" >/dev/null
		say "building PostgreSQL $source_version with $what, for $prefix: some minutes, this once"
		run "configuring" as_user env -C "$work/build" "$source/configure" "--prefix=$prefix" \
			"${configure[@]/prefix/"$prefix"}" || die "configure failed"
		run "compiling" as_user make -C "$work/build" -s -j "$cores" || die "the build failed"
		run "installing" as_user make -C "$work/build" -s install || die "make install failed"
		as_user cp "$source/src/tools/valgrind.supp" "$prefix/"
		as_user rm -rf "$work/build" "$work/source"
		as_user tee "$prefix/recipe" <<<"$recipe" >/dev/null
	fi
	exec {lock}<&-
	suppressions=$prefix/valgrind.supp
	pg_config=$prefix/bin/pg_config
}

# fetch_source: puts PostgreSQL's source, from Debian's source package, into the
# directory $source.  It takes the installed version if the archive still has it,
# else the newest.  Debian's patches are not applied: they install files below
# /usr, whatever the prefix.  The system's lists of archives mostly name no
# sources.  They stay unchanged: the function uses lists of its own, so it does
# not need root.
fetch_source()
{
	local name=postgresql-$major to=$work/source file version
	local -a apt versions

	as_user mkdir -p "$to"/{parts,state/lists/partial,cache/archives/partial}
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
		[[ -f $file ]] || continue
		sed -e 's/^[[:space:]]*deb[[:space:]]/deb-src /' -e 's/^Types:.*/Types: deb-src/I' "$file" |
			as_user tee "$to/parts/${file##*/}" >/dev/null
	done
	apt=(
		-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$to/parts"
		-o "Dir::State=$to/state" -o "Dir::Cache=$to/cache"
	)
	run "reading the lists of source packages" as_user apt-get "${apt[@]}" update || die "apt-get update failed"

	version=$(dpkg-query -W -f='${source:Version}' "$name" 2>/dev/null || true)
	mapfile -t versions < <(
		as_user apt-cache "${apt[@]}" showsrc --only-source "$name" | sed -n 's/^Version: //p' |
			awk -v first="$version" '{ print ($1 == first) "\t" $1 }' | sort -rVu | cut -f2)
	for version in "${versions[@]}"; do
		run "fetching the source of $name $version" \
			as_user env -C "$to" apt-get "${apt[@]}" source --download-only --only-source "$name=$version" || continue
		as_user tar -C "$to" -xf "$(echo "$to/$name"_*.orig.tar.*[!c])" || die "cannot unpack the source"
		source=$(echo "$to"/postgresql-"$major"*/)
		source=${source%/}
		source_version=${source##*/postgresql-}
		return
	done
	die "there is no source package of $name to be had"
}

# reports_to FILE: sets "reports" to the environment that makes sanitizers and
# valgrind write their findings to FILE.PID, one for each process.  They do not
# handle segfaults, but leave them to the server: some tests have handlers that
# cause one.
reports_to()
{
	reports=("REPORTS=$1")
	[[ $kind != asan ]] || reports+=(
		"ASAN_OPTIONS=log_path=$1:abort_on_error=1:detect_leaks=0:detect_stack_use_after_return=0:handle_segv=0"
		"UBSAN_OPTIONS=log_path=$1:abort_on_error=1:print_stacktrace=1"
	)
}

# wrap_postgres: replaces postgres in the copy of the server by a script that
# runs it under valgrind, except for what initdb runs, which would take too long
wrap_postgres()
{
	mv "$bindir/postgres" "$bindir/postgres.real"
	cat >"$bindir/postgres" <<-END
		#!/bin/sh
		case \$1 in
			-V | --version | --boot | --check | --single) exec "$bindir/postgres.real" "\$@" ;;
		esac
		exec valgrind --quiet --leak-check=no --num-callers=30 --gen-suppressions=all \\
			--suppressions="$suppressions" --suppressions="$tree/test/valgrind.supp" \\
			--error-markers=VALGRIND-BEGIN,VALGRIND-END \\
			--log-file="\$REPORTS.%p" "$bindir/postgres.real" "\$@"
	END
	chmod +x "$bindir/postgres"
}

# copy_server [DIRECTORY]: copies the server (see the top of this file).  Sets
# tree, bindir and pg_config to those of the copy.
copy_server()
{
	local to=${1:-$work} what program source copy
	local -A dir=()

	for what in bindir pkglibdir sharedir includedir pkgincludedir includedir-server; do
		dir[$what]=$("$pg_config" "--$what")
	done
	copy=$to/server
	tree=$to/tree
	say "copying the programs of $("$pg_config" --version) to $copy, where the extension goes too"

	mkdir -p "$copy${dir[bindir]}" "$tree"
	for program in postgres initdb psql pgbench createdb dropdb createuser dropuser \
		vacuumdb reindexdb clusterdb pg_config "${dir[bindir]}"/pg_*; do
		source=${dir[bindir]}/${program##*/}
		[[ ! -x $source ]] || cp -L "$source" "$copy${dir[bindir]}/"
	done
	for what in pkglibdir sharedir; do
		mkdir -p "$copy${dir[$what]}"
		cp -a --symbolic-link "${dir[$what]}/." "$copy${dir[$what]}/"
	done
	for what in includedir pkgincludedir includedir-server; do
		[[ -e $copy${dir[$what]} ]] && continue
		mkdir -p "$(dirname "$copy${dir[$what]}")"
		ln -s "${dir[$what]}" "$copy${dir[$what]}"
	done
	# An installed version of the extension must neither be found nor overwritten.
	rm -f "$copy${dir[pkglibdir]}"/pg_notify_events* "$copy${dir[sharedir]}"/extension/pg_notify_events*

	bindir=$copy${dir[bindir]}
	pg_config=$bindir/pg_config
	[[ -x $bindir/postgres && -x $bindir/initdb ]] || die "no server among the programs in ${dir[bindir]}"
	[[ -f $("$pg_config" --pgxs) ]] || die "no PGXS at $("$pg_config" --pgxs): install the server's development files"
	[[ $("$pg_config" --pkglibdir) == "$copy${dir[pkglibdir]}" && $("$pg_config" --sharedir) == "$copy${dir[sharedir]}" ]] ||
		die "a copy of this PostgreSQL does not find its own files"
	if [[ -n $kind ]]; then
		# pgTAP consists of SQL only, so the distribution's package can be used.
		cp --symbolic-link "/usr/share/postgresql/$major"/extension/pgtap* "$copy${dir[sharedir]}/extension/" 2>/dev/null || true
	fi
	[[ $kind != valgrind ]] || wrap_postgres

	# Copy the sources, without the files of an earlier build.
	tar -C "$top" -cf - --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
		--exclude=./results --exclude=./output_iso --exclude=./tmp_check . | tar -C "$tree" -xf -
	give_to_user "$to"
}

# in_tree TARGET... [VARIABLE=...]: runs make in the copy of the checkout
in_tree()
{
	as_user make --no-print-directory "PG_CONFIG=$pg_config" with_llvm=no "$@"
}

# build [VARIABLE=...]: builds, and installs into the copy of the server
build()
{
	run "building the extension${*:+ with $*}" in_tree -j "$cores" all "$@" || return
	run "installing it for the throwaway servers" in_tree install "$@"
}

# start_server [SETTING...]: creates and starts a cluster in $work/data, with its
# socket in $work/socket and the superuser postgres
start_server()
{
	run "making a throwaway cluster in $work/data" as_user initdb -D "$work/data" -U postgres -A trust \
		-E UTF8 --locale=C.UTF-8 --no-sync || return
	{
		printf '%s\n' \
			"listen_addresses = ''" \
			"unix_socket_directories = '$work/socket'" \
			"shared_preload_libraries = 'pg_notify_events'" \
			"log_line_prefix = '%m [%p] %b %q%u@%d '" \
			"$@"
	} >>"$work/data/postgresql.conf"
	start_again
}

# start_again [VARIABLE=VALUE...]: starts the server of that cluster, with these
# variables in its environment
# shellcheck disable=SC2120
start_again()
{
	local log=$work/log/server.log

	if ! run "starting its server${*:+ with $*}" as_user env "$@" pg_ctl start -s -w -t 60 -D "$work/data" -l "$log"; then
		excerpt "$log"
		return 1
	fi
}

# stop_server: stops it; a server that does not stop is a failure
stop_server()
{
	if ! run "stopping the server" as_user pg_ctl stop -s -w -t 60 -m fast -D "$work/data"; then
		excerpt "$work/log/server.log"
		return 1
	fi
}

# with_server COMMAND...: runs it with the environment of a client
with_server()
{
	as_user env "PGHOST=$work/socket" PGUSER=postgres PGDATABASE=postgres "$@"
}

# as_tester BASE COMMAND...: runs it in the environment of a TAP test; servers and
# logs are kept in BASE/tmp_check
as_tester()
{
	local base=$1 logs=$1/tmp_check/log timeout=180 pgxs
	local -a reports=()

	shift
	[[ $kind != asan ]] || timeout=600
	[[ $kind != valgrind ]] || timeout=1800
	pgxs=$(dirname "$("$pg_config" --pgxs)")/../..
	reports_to "$logs/reports"
	# PostgreSQL 15 uses $TESTDIR/tmp_check and its folder log; 16 and later have a
	# variable for each.
	as_user mkdir -p "$logs"
	# Tests that run at the same time reserve their ports in PG_TEST_PORT_DIR.
	as_user env "TESTDIR=$base" "TESTDATADIR=$base/tmp_check" "TESTLOGDIR=$logs" \
		"PG_REGRESS=$pgxs/src/test/regress/pg_regress" PGPORT=65432 "PG_TEST_PORT_DIR=$work/tmp/ports" \
		"PG_TEST_TIMEOUT_DEFAULT=$timeout" "PERL5LIB=$pgxs/src/test/perl:$tree/test" "$@"
}

# What no server's log may contain, even if a test kills its processes on purpose:
# failed assertions, findings of sanitizers and valgrind, damaged memory, and
# warnings about resources that a transaction did not release.
trouble='^TRAP: |ERROR: AddressSanitizer|: runtime error: |VALGRIND-BEGIN'
trouble+='|(WARNING|ERROR|FATAL|PANIC):  .*('
trouble+='(reference|refcount|file|memory|context) leak: |leaking still-referenced|nonzero refcount'
trouble+='|resource was not closed|snapshots seem to remain|snapshot .* still active'
trouble+='|lock .* (is )?already held|you don.t own a lock|tuple lock held at commit|lock table corrupted'
trouble+='|non-empty SPI stack|while in .* state|not closed at end-of-transaction'
trouble+='|problem in (alloc set|slab|bump|[Gg]eneration)|write past chunk end)'

# no_trouble FILE...: succeeds if the files match neither $trouble nor the pattern
# $more_trouble
more_trouble=
no_trouble()
{
	local found

	found=$(grep -sHE "$trouble${more_trouble:+|$more_trouble}" "$@" | sed "s|^$work/||; s/^/   /") || true
	[[ -n $found ]] || return 0
	printf '   -- no server may say this (%s lines, the first are shown):\n%s\n' "$(wc -l <<<"$found")" "$(head -n 20 <<<"$found")"
	return 1
}
