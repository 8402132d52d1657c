// pgboss.js migrate|fill JOBS|drain - pg-boss for test/bench/drain.  The database
// comes from the environment.  drain runs jobs that do nothing until none are left.
//
// It uses fetch() and complete(), because fetch() shows when no job is left.  A worker
// of work() does the same, but sleeps for at least half a second when there may be no
// job.  A batch has 1000 jobs, like the batches of PgQ in this benchmark.  Two loops
// fetch at the same time, so that the server is not idle while node is busy.  Schedules
// and maintenance are off, because this benchmark does not need them.

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
	// pg-boss is an ES module, and import does not search NODE_PATH for its name.
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
