#!/usr/bin/env node
// Print each event as "id name": node, package pg, LISTEN and fetch.
//
// usage: consumer.js CONNECTION_URL
//
// Created before: SELECT create_event_consumer('node').
const { Client } = require('pg');

const lookEvery = 1000 * (process.env.LOOK_EVERY || 60);      // ms without an announcement
const away = /^(08|25006|25P03|53|57P0)/;                     // SQLSTATEs of a server that comes back
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let delay = 0;

async function handleWaitingEvents(client) {
  for (;;) {
    const { rows } = await client.query("SELECT id, event_name FROM fetch_events('node')");
    if (rows.length === 0) return;
    for (const event of rows) console.log(`${event.id} ${event.event_name}`);
    await client.query("SELECT ack_events('node', $1)", [rows[rows.length - 1].id]);
  }
}

async function listen() {
  const client = new Client({
    connectionString: process.argv[2],
    connectionTimeoutMillis: 10000,
    query_timeout: 2 * lookEvery,
    keepAlive: true,                                          // the rest is up to the system
    keepAliveInitialDelayMillis: 30000,
  });
  try {
    let wake = () => {};
    let rung;
    let lost;                                                 // an error outside of a query
    client.on('error', (error) => { lost = error; wake(); });
    client.on('notification', () => { rung = true; wake(); });
    await client.connect();
    await client.query('LISTEN event_notification');          // first listen, then look
    for (;;) {
      rung = false;
      await handleWaitingEvents(client);
      delay = 0;
      if (!rung && !lost) {
        let timer;
        await new Promise((resolve) => { wake = resolve; timer = setTimeout(resolve, lookEvery); });
        clearTimeout(timer);
      }
      if (lost) throw lost;
    }
  } finally {
    client.connection.stream.destroy();
  }
}

(async () => {
  for (;;) {
    await sleep(delay);
    delay = Math.min(2 * delay + 200, 10000);
    await listen().catch((error) => {
      console.error(error);
      if (error.severity && !away.test(error.code)) process.exit(1);    // of the server: a mistake
    });
  }
})();
