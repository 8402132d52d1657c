// graphile.js migrate|drain - graphile-worker for test/bench/drain.  The database
// comes from the environment.  drain runs jobs that do nothing, 10 at a time, until
// none are left.

const { runMigrations, runOnce, Logger } = require("graphile-worker");
const { Pool } = require("pg");

async function main() {
	const pgPool = new Pool({ max: 12 });
	const logger = new Logger(() => () => {});

	if (process.argv[2] === "migrate") {
		await runMigrations({ pgPool, logger });
	} else {
		await runOnce({
			pgPool,
			logger,
			concurrency: 10,
			noHandleSignals: true,
			taskList: { nothing: async () => {} },
		});
	}
	await pgPool.end();
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
