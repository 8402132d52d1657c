# Makefile for pg_notify_events (PGXS)
#
#   make                 build against the pg_config in the PATH
#   make PG_CONFIG=...   build against another one
#   make WERROR=1        build with warnings as errors
#   make FAULTS=1        build with fault points (src/base/fault.c): for tests only
#   make install         install module, control file and script into that server
#   make installcheck    run the tests against a running server that preloads the module
#   make demo            show how it works, on a throwaway server (test/demo)
#   make check           run every test, on throwaway servers (test/check)

# PGXS defines a "check" target of its own, which only reports that "check" is
# not supported.  So "check" and "demo" do not include PGXS.  They also work
# without pg_config: the scripts install it.
ifneq (,$(filter check demo,$(MAKECMDGOALS)))

.PHONY: $(MAKECMDGOALS)

check demo:
	./test/$@

# Other goals on the same command line run in a make of their own.
$(filter-out check demo,$(MAKECMDGOALS)):
	$(MAKE) $@

else

EXTENSION = pg_notify_events
DATA = src/pg_notify_events--1.0.sql

MODULE_big = pg_notify_events
OBJS = \
	$(WIN32RES) \
	$(patsubst $(srcdir)/%.c,%.o,$(sort $(wildcard $(srcdir)/src/*.c $(srcdir)/src/*/*.c)))
PGFILEDESC = "pg_notify_events - durable events, delivered by the server"

# pg_regress tests, one topic per file, run in this order
REGRESS = \
	install \
	emit \
	recorded \
	altered_tables \
	two_phase \
	not_writable \
	statement_triggers \
	handlers \
	delivery \
	consumers \
	channels \
	privileges \
	bad_input \
	stats \
	statistics_rights \
	schema

# Isolation tests: test/specs/*.spec and test/expected/*.out.  The database
# is created with the extension.  PostgreSQL 16 and later need --expecteddir in
# addition to --inputdir.
ISOLATION = \
	cursor \
	altered_table \
	commit_order \
	long_transaction \
	emitting_handler \
	consumers
ISOLATION_OPTS = \
	--inputdir=$(srcdir)/test \
	$(if $(filter 15,$(MAJORVERSION)),,--expecteddir=$(srcdir)/test) \
	--load-extension=pg_notify_events

# Perl TAP tests.  They start their own servers, so root cannot run them.
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

# Headers are included by folder and name: "base/catalog.h".
PG_CPPFLAGS = -I$(srcdir)/src

# The warnings that PostgreSQL's own headers do not trigger.  Hooks and callbacks
# often have unused parameters; -Wpedantic warns about __int128 and flexible
# array members in the server's headers.
PG_CFLAGS = \
	-Wall \
	-Wextra \
	-Wno-unused-parameter \
	-Wformat=2 \
	-Wmissing-declarations \
	-Wold-style-definition \
	-Wstrict-prototypes \
	-Wvla \
	-Wwrite-strings \
	$(if $(filter gcc%,$(notdir $(CC))),$(GCC_WARNINGS)) \
	$(if $(WERROR),-Werror) \
	$(if $(FAULTS),-DPNE_FAULT_POINTS)
GCC_WARNINGS = \
	-Wduplicated-branches \
	-Wduplicated-cond \
	-Wjump-misses-init \
	-Wlogical-op \
	-Wshadow=compatible-local

# files of a build with --coverage
EXTRA_CLEAN = src/*.gcda src/*.gcno src/*/*.gcda src/*/*.gcno

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq (,$(PGXS))
$(error $(PG_CONFIG) does not run: install the server's development files, or name one with PG_CONFIG=/path/to/pg_config)
endif
include $(PGXS)

ifneq (,$(filter 9.% 10 11 12 13 14,$(MAJORVERSION)))
$(error pg_notify_events needs PostgreSQL 15 or newer, $(PG_CONFIG) is of $(VERSION))
endif

# PGXS tracks header dependencies only if PostgreSQL itself was built with
# --enable-depend.  So rebuild all objects when a header or the flags change.
$(OBJS) $(OBJS:.o=.bc): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h) $(firstword $(MAKEFILE_LIST))

# A build outside of the source tree has to create the folders for the objects.
# Absolute names keep make from finding the source folders through VPATH.
OBJECT_FOLDERS = $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS) $(OBJS:.o=.bc): | $(OBJECT_FOLDERS)
$(OBJECT_FOLDERS):
	mkdir -p $@

# The pictures in the documents.  Needs graphviz.
doc/%.svg: doc/%.dot
	dot -Tsvg $< -o $@

# The plots of doc/benchmarks.md, drawn from its tables.  Needs gnuplot.
.PHONY: plots
plots:
	doc/bench/draw

# Prints the value of a variable, for scripts: make -s print-REGRESS
print-%:
	@echo '$($*)'

endif
