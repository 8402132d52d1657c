#!/usr/bin/env node
// Print each event as "id name": node, package pg, LISTEN and fetch.
//
// usage: consumer.js CONNECTION_URL
//
// Created before: SELECT create_event_consumer('node').
const { Client } = require('pg');

async function handleWaitingEvents(client) {
  for (;;) {
    const { rows } = await client.query("SELECT id, event_name FROM fetch_events('node')");
    if (rows.length === 0) return;
    for (const event of rows) console.log(`${event.id} ${event.event_name}`);
    await client.query("SELECT ack_events('node', $1)", [rows[rows.length - 1].id]);
  }
}

async function listen() {
  const client = new Client({ connectionString: process.argv[2] });
  const lost = new Promise((resolve, reject) => client.on('error', reject));
  lost.catch(() => {});
  await client.connect();
  try {
    let wake;
    let rung = true;                                  // first listen, then look
    client.on('notification', () => { rung = true; if (wake) wake(); });
    await client.query('LISTEN event_notification');
    for (;;) {
      if (!rung) await Promise.race([new Promise((resolve) => { wake = resolve; }), lost]);
      rung = false;
      await handleWaitingEvents(client);
    }
  } finally {
    client.end().catch(() => {});
  }
}

(async () => {
  for (;;) {
    await listen().catch(() => {});                   // the server is away: it comes back
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
})();
