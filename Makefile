# Makefile for pg_notify_events (PGXS)
#
#   make                 build against the pg_config in the PATH
#   make PG_CONFIG=...   build against another one
#   make WERROR=1        as above, every warning is an error
#   make FAULTS=1        with fault points (src/base/fault.c): for tests only
#   make install         put module, control file and script where that server looks for them
#   make installcheck    run the tests against a running server that preloads the module
#   make demo            see it work, on a throwaway server (test/demo)
#   make check           run every test, on throwaway servers (test/check)

# "check" is PGXS's own target for saying that it does not support check, so
# the two targets that need no PGXS are served without it.  That also lets
# them work where no pg_config is installed yet: the scripts install it.
ifneq (,$(filter check demo,$(MAKECMDGOALS)))

.PHONY: $(MAKECMDGOALS)

check demo:
	./test/$@

# other goals of the same command line, each in a make of its own
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

# pg_regress, one topic per file, in this order
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
# comes with the extension.  From PostgreSQL 16 on the two directories are set
# apart.
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

# Perl TAP tests.  They make servers of their own, so root cannot run them.
TAP_TESTS = 1
PROVE_TESTS = test/t/*.pl

# headers by folder and name: "base/catalog.h"
PG_CPPFLAGS = -I$(srcdir)/src

# The warnings that PostgreSQL's own headers survive.  Unused parameters are
# the nature of hooks and callbacks; -Wpedantic trips over __int128 and
# flexible array members in the server's headers.
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

# of a build with --coverage
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

# PGXS tracks no dependencies on headers where PostgreSQL itself was built
# without: rebuild all objects when a header or the flags change.
$(OBJS) $(OBJS:.o=.bc): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h) $(firstword $(MAKEFILE_LIST))

# A build outside of the source tree has no folders for them yet.  Their whole
# names keep make from finding those of the sources instead.
OBJECT_FOLDERS = $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS) $(OBJS:.o=.bc): | $(OBJECT_FOLDERS)
$(OBJECT_FOLDERS):
	mkdir -p $@

# the pictures in the documents; needs graphviz
doc/%.svg: doc/%.dot
	dot -Tsvg $< -o $@

# those of doc/benchmarks.md, from its tables; needs gnuplot
.PHONY: plots
plots:
	doc/bench/draw

# what a variable holds, for scripts: make -s print-REGRESS
print-%:
	@echo '$($*)'

endif
