/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The settings of pg_notify_events, as variables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_SETTINGS_H
#define PNE_SETTINGS_H

#include "catalog/pg_database.h"

/* who announces an event */
typedef enum AnnounceMode
{
	ANNOUNCE_RELAY,				/* the listener */
	ANNOUNCE_DIRECT,			/* the emitting transaction */
	ANNOUNCE_OFF				/* nobody */
} AnnounceMode;

/* the payload of an announcement */
typedef enum AnnouncePayload
{
	PAYLOAD_NAME,
	PAYLOAD_ID,
	PAYLOAD_JSON
} AnnouncePayload;

/*
 * Upper limit of max_executors: a database slot has so many bells for executors.
 */
#define MAX_EXECUTORS 64

extern bool pne_enabled;
extern char *pne_databases;
extern int	pne_announce;
extern char *pne_channel;
extern int	pne_payload;
extern bool pne_partition_root;
extern int	pne_max_executors;
extern int	pne_max_handler_timeout;
extern int	pne_executor_idle_timeout;	/* ms, 0 = never */
extern int	pne_batch_time;		/* ms */
extern int	pne_batch_bytes;	/* kB */
extern int	pne_naptime;		/* ms */
extern int	pne_synchronous_commit;
extern double pne_queue_usage_limit;
extern bool pne_superuser_handlers;

extern void settings_init(void);
extern const char *settings_synchronous_commit_name(void);
extern bool settings_serve_database(Form_pg_database database);
extern char *settings_of_database(void);

#endif							/* PNE_SETTINGS_H */
