/*-------------------------------------------------------------------------
 *
 * listen.c
 *	  A LISTEN client that runs a load, receives its announcements, and reports
 *	  how late they were.
 *
 * usage: listen [-p FILE] [-a FILE] COMMAND [ARGUMENT...]
 *
 * COMMAND is the load.  It is started when everything is ready.  Its events are
 * announced by the name in client.h, or by any other text that is not a probe's.
 * Its output goes to standard output, where the client also prints its own
 * report: lines of name and value.
 *
 * With -p the client sends probes on a second connection, one every 100 ms.  A
 * probe is an event with a unique name that the function probe(text) of the
 * database emits.  The function returns the text of the announcement.  So the
 * client knows, in microseconds, when a probe was sent, when its commit was
 * acknowledged, and when it was received, even if announcements of the load are
 * merged.  The schedule of the probes does not wait for their announcements, so
 * a pause of the announcements counts in full.  FILE gets these three times of
 * each probe, in microseconds; "-" for one that was not received.
 *
 * One probe before the load checks that everything is up and listening.  One
 * probe is sent after the load.  When it is announced, everything that was
 * committed before it should have been announced; the client receives for a
 * little longer, to verify that.
 *
 * With -a the FILE gets each announcement that is not the load's name, including
 * probes, with the time when it was received in microseconds since the epoch.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#define PROBE_INTERVAL	100000
#define QUIET			200000	/* how long we listen after the last probe */
#define GIVE_UP			60000000

typedef struct Announcement
{
	char		payload[24];
	int64_t		received;
	bool		of_probe;
} Announcement;

typedef struct Probe
{
	char		payload[24];
	int64_t		sent;
	int64_t		committed;		/* acknowledged; 0: not yet */
	int64_t		received;		/* 0: not yet */
	size_t		searched;		/* announcements before this one are not it */
} Probe;

typedef struct Usage
{
	int64_t		self;
	int64_t		listener;
	int64_t		backend;
} Usage;

static PGconn *listening;
static PGconn *probing;
static int	listener_pid;		/* the extension's process in this database */

static Announcement *announcements; /* those that are not EVENT */
static size_t announcement_count;
static int64_t load_received;	/* announcements that are EVENT */
static int64_t last_load_received;	/* when */

static Probe *probes;
static size_t probe_count;
static bool probe_sent;			/* and not acknowledged */

/* Returns ARRAY with room for COUNT + 1 elements; it grows by powers of two. */
static void *
make_room(void *array, size_t count, size_t size)
{
	if (count == 0 || (count & (count - 1)) == 0)
	{
		array = realloc(array, (count == 0 ? 1 : count * 2) * size);
		if (array == NULL)
			fail("out of memory");
	}
	return array;
}

static void
take_announcement(const char *payload, int64_t at)
{
	Announcement *announcement;

	if (strcmp(payload, EVENT) == 0)
	{
		load_received++;
		last_load_received = at;
		return;
	}
	announcements = make_room(announcements, announcement_count, sizeof(Announcement));
	announcement = &announcements[announcement_count++];
	snprintf(announcement->payload, sizeof(announcement->payload), "%s", payload);
	announcement->received = at;
	announcement->of_probe = false;
}

/* Sleeps until something arrives, at most until the given time; takes the input. */
static void
turn(int other_fd, int64_t until)
{
	PGnotify   *notification;
	PGresult   *result;
	int64_t		at;

	wait_for_input(listening, probing, other_fd, until);
	at = now_us();
	while ((notification = PQnotifies(listening)) != NULL)
	{
		take_announcement(notification->extra, at);
		PQfreemem(notification);
	}
	if (probe_sent && (result = result_if_complete(probing)) != NULL)
	{
		Probe	   *probe = &probes[probe_count - 1];

		snprintf(probe->payload, sizeof(probe->payload), "%s", PQgetvalue(result, 0, 0));
		probe->committed = at;
		probe_sent = false;
		PQclear(result);
	}
}

static void
send_probe(void)
{
	Probe	   *probe;
	char		name[24];
	const char *values[] = {name};

	probes = make_room(probes, probe_count, sizeof(Probe));
	probe = &probes[probe_count++];
	memset(probe, 0, sizeof(Probe));
	probe->searched = announcement_count;
	snprintf(name, sizeof(name), "probe_%zu", probe_count);
	probe->sent = now_us();
	if (!PQsendQueryPrepared(probing, "probe", 1, values, NULL, NULL, 0))
		fail("%s", PQerrorMessage(probing));
	probe_sent = true;
}

/*
 * Has the probe been announced?  Before its commit is acknowledged, the text of
 * its announcement is not known.
 */
static bool
probe_received(Probe *probe)
{
	if (probe->committed == 0)
		return false;
	while (probe->received == 0 && probe->searched < announcement_count)
	{
		Announcement *announcement = &announcements[probe->searched++];

		if (strcmp(announcement->payload, probe->payload) == 0)
		{
			announcement->of_probe = true;
			probe->received = announcement->received;
		}
	}
	return probe->received != 0;
}

/* Sends a probe and waits for it; returns false if it is not announced. */
static bool
probe_now(void)
{
	int64_t		give_up = now_us() + GIVE_UP;

	while (probe_sent && now_us() < give_up)
		turn(-1, give_up);
	if (probe_sent)
		return false;
	send_probe();
	while (!probe_received(&probes[probe_count - 1]))
	{
		if (now_us() >= give_up)
			return false;
		turn(-1, give_up);
	}
	return true;
}

/* Starts the load.  When it ends, *PIPE_FD reaches end of file. */
static pid_t
start_load(char **command, int *pipe_fd)
{
	int			ends[2];
	pid_t		pid;

	if (pipe(ends) != 0)
		fail("pipe: %m");
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	pid = fork();
	if (pid < 0)
		fail("fork: %m");
	if (pid == 0)
	{
		execvp(command[0], command);
		fprintf(stderr, "%s: %m\n", command[0]);
		_exit(127);
	}
	close(ends[1]);
	*pipe_fd = ends[0];
	return pid;
}

/* Runs the load and sends probes meanwhile; returns its processor time. */
static int64_t
run_load(char **command, bool with_probes)
{
	int			fd;
	pid_t		pid = start_load(command, &fd);
	int64_t		next_trial = now_us();
	int			status;
	char		byte;
	struct rusage usage;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (read(fd, &byte, 1) != 0)
	{
		if (with_probes && !probe_sent && now_us() >= next_trial)
		{
			send_probe();
			next_trial += PROBE_INTERVAL;
		}
		/* if a probe is acknowledged late, the next one follows at once */
		turn(fd, with_probes && !probe_sent ? next_trial : now_us() + PROBE_INTERVAL);
	}
	close(fd);
	if (wait4(pid, &status, 0, &usage) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail("the load has failed");
	return (int64_t) (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
		usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

/* Returns the processor time that a process of this machine has taken so far. */
static int64_t
processor_time(int pid)
{
	char		path[64];
	char		line[1024] = "";
	const char *end_of_name;
	unsigned long user = 0;
	unsigned long system = 0;
	FILE	   *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (file == NULL)
		return 0;
	if (fgets(line, sizeof(line), file) != NULL && (end_of_name = strrchr(line, ')')) != NULL)
		sscanf(end_of_name, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
	fclose(file);
	return (int64_t) (user + system) * (1000000 / sysconf(_SC_CLK_TCK));
}

static Usage
current_usage(void)
{
	Usage		usage;

	usage.self = processor_time(getpid());
	usage.listener = listener_pid == 0 ? 0 : processor_time(listener_pid);
	usage.backend = processor_time(PQbackendPID(listening));
	return usage;
}

static void
open_connections(bool with_probes)
{
	PGresult   *result;

	listening = connect_to_server("listen");
	execute(listening, "LISTEN " CHANNEL);
	probing = connect_to_server("probe");
	if (with_probes)
		prepare(probing, "probe", "SELECT probe($1)");
	result = PQexec(probing, "SELECT pid FROM pg_stat_activity "
					"WHERE datname = current_database() AND backend_type = 'pg_notify_events listener'");
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		fail("%s", PQerrorMessage(probing));
	if (PQntuples(result) == 1)
		listener_pid = atoi(PQgetvalue(result, 0, 0));
	PQclear(result);
}

static FILE *
open_file(const char *path)
{
	FILE	   *file = fopen(path, "w");

	if (file == NULL)
		fail("cannot make %s: %m", path);
	return file;
}

/*
 * Reports all probes but the one before the load.  Returns how many were not
 * received.
 */
static size_t
write_probes(const char *path)
{
	FILE	   *file = open_file(path);
	size_t		missing = 0;

	for (size_t i = 1; i < probe_count; i++)
	{
		fprintf(file, "%" PRId64 "\t%" PRId64, probes[i].sent, probes[i].committed);
		if (probe_received(&probes[i]))
			fprintf(file, "\t%" PRId64 "\n", probes[i].received);
		else
		{
			fprintf(file, "\t-\n");
			missing++;
		}
	}
	fclose(file);
	return missing;
}

static void
write_announcements(const char *path)
{
	FILE	   *file = open_file(path);
	struct timespec now;
	int64_t		offset;

	clock_gettime(CLOCK_REALTIME, &now);
	offset = (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000 - now_us();
	for (size_t i = 0; i < announcement_count; i++)
		fprintf(file, "%s\t%" PRId64 "\n", announcements[i].payload, announcements[i].received + offset);
	fclose(file);
}

static void
report(const char *name, int64_t value)
{
	printf("%s %" PRId64 "\n", name, value);
}

/* Reports the announcements of the load. */
static void
report_load(int64_t load_end)
{
	/* an announcement that is neither EVENT nor a probe's is of the load */
	for (size_t i = 0; i < announcement_count; i++)
	{
		if (!announcements[i].of_probe)
		{
			load_received++;
			last_load_received = announcements[i].received;
		}
	}
	report("announcements_received", load_received);
	report("drain_us", last_load_received > load_end ? last_load_received - load_end : 0);
}

int
main(int argc, char **argv)
{
	const char *probe_file = NULL;
	const char *announcement_file = NULL;
	Usage		before;
	Usage		after;
	int64_t		load_start;
	int64_t		load_end;
	int64_t		load_usage;
	int			option;

	while ((option = getopt(argc, argv, "+p:a:")) != -1)
	{
		if (option == 'p')
			probe_file = optarg;
		else if (option == 'a')
			announcement_file = optarg;
		else
			fail("usage: listen [-p FILE] [-a FILE] COMMAND [ARGUMENT...]");
	}
	if (optind >= argc)
		fail("no command");
	open_connections(probe_file != NULL);
	if (probe_file != NULL && !probe_now())
		fail("an event on the idle server is not announced");

	before = current_usage();
	load_start = now_us();
	load_usage = run_load(argv + optind, probe_file != NULL);
	load_end = now_us();
	if (probe_file != NULL)
	{
		int64_t		until;

		report("all_received", probe_now());
		until = now_us() + QUIET;
		while (now_us() < until)
			turn(-1, until);
	}
	after = current_usage();

	report("load_us", load_end - load_start);
	report("load_processor_us", load_usage);
	report("client_processor_us", after.self - before.self);
	report("backend_processor_us", after.backend - before.backend);
	report("listener_processor_us", after.listener - before.listener);
	if (probe_file != NULL)
		report("probes_missing", (int64_t) write_probes(probe_file));
	if (announcement_file != NULL)
		write_announcements(announcement_file);
	report_load(load_end);
	PQfinish(listening);
	PQfinish(probing);
	return 0;
}
