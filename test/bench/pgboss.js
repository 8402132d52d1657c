// pgboss.js migrate|fill JOBS|drain - pg-boss for test/bench/drain.  The database
// comes from the environment.  drain runs jobs that do nothing until there are
// none.
//
// It does so with fetch() and complete(), as these tell when there are none; a
// worker of work() does the same and sleeps, for half a second at least, when there
// may be none.  Batches are of 1000, as PgQ's in this benchmark.  Two loops fetch at
// the same time, so that the server is not idle while node is busy.  Schedules and
// maintenance are off: there is nothing for them.

const queue = "nothing";
const batchSize = 1000;
const loops = 2;

async function fill(boss, jobs) {
	for (let i = 1; i <= jobs; ) {
		const batch = [];

		while (batch.length < batchSize && i <= jobs) {
			batch.push({ data: { order: i++ } });
		}
		await boss.insert(queue, batch);
	}
}

async function drain(boss) {
	for (;;) {
		const jobs = await boss.fetch(queue, { batchSize });

		if (jobs.length === 0) {
			return;
		}
		await boss.complete(
			queue,
			jobs.map((job) => job.id),
		);
	}
}

async function main() {
	// an ES module, which import would not look for in NODE_PATH by its name
	const { PgBoss } = await import(require.resolve("pg-boss"));
	const migrate = process.argv[2] === "migrate";
	const boss = new PgBoss({ migrate, schedule: false, supervise: false });
	let failure;

	boss.on("error", (error) => {
		failure = error;
	});
	await boss.start();
	if (migrate) {
		await boss.createQueue(queue);
	} else if (process.argv[2] === "fill") {
		await fill(boss, Number(process.argv[3]));
	} else {
		await Promise.all(Array.from({ length: loops }, () => drain(boss)));
	}
	await boss.stop();
	if (failure) {
		throw failure;
	}
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
