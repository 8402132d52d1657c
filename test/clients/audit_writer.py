#!/usr/bin/env python3
"""A writer of the audit, test/t/lib/Audit.pm: changes rows, and says which.

usage: audit_writer.py CONNECTION_STRING NUMBER SEED LOG HOLD [prepare]

Works until it is told to end by SIGTERM, and connects again whenever the
server has gone.  Each transaction writes its changes into the table "ledger",
and, once the outcome is known, a line into LOG: writer, number of the
transaction, outcome, items, versions.  Outcomes: A, the server acknowledged
the commit; R, it was rolled back, or COMMIT was never sent; U, nobody knows.
While a file HOLD exists, no transaction is begun.  With "prepare" half of the
transactions are prepared first.
"""
import os
import random
import signal
import sys
import time

import psycopg2

HOT_ITEMS = 12      # rows that all writers change

KINDS = {           # what a transaction does -> how often
    "insert": 15,
    "update": 30,
    "own": 8,
    "several": 16,
    "early": 8,
    "savepoint": 10,
    "rollback": 7,
    "all": 3,
    "bulk": 3,
}


class Writer:
    def __init__(self, connection_string, number, seed, log, hold, prepares):
        self.connection_string = connection_string
        self.number = number
        self.random = random.Random(f"{seed} {number}")
        self.log = open(log, "a", buffering=1)
        self.hold = hold
        self.prepares = prepares
        self.cursor = None
        self.transaction = 0
        self.changes = []       # of the transaction at hand
        self.own_items = []     # that this writer has inserted
        self.pending = None     # a prepared transaction: what was asked for last
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, signal_number, frame):
        self.stopping = True

    def pause(self, most):
        """Be slow, as clients are."""
        time.sleep(self.random.uniform(0, most))

    def record(self, outcome):
        items, versions = ("{" + ",".join(str(c[i]) for c in self.changes) + "}" for i in (0, 1))
        self.log.write(f"{self.number}\t{self.transaction}\t{outcome}\t{items}\t{versions}\n")
        if outcome == "A":
            self.own_items += [item for item, _ in self.changes if item > HOT_ITEMS]
            del self.own_items[:-50]

    def connect(self):
        connection = psycopg2.connect(self.connection_string, application_name="audit_writer")
        connection.autocommit = True    # BEGIN and COMMIT are ours
        self.cursor = connection.cursor()

    def lost(self):
        return self.cursor.connection.closed != 0

    # changes: each goes into the ledger with the statement that makes it

    def change(self, statement, *arguments):
        self.cursor.execute(
            f"WITH c AS ({statement} RETURNING id, version) "
            "INSERT INTO ledger SELECT %s, %s, id, version FROM c RETURNING item, version",
            (*arguments, self.number, self.transaction))
        self.changes += self.cursor.fetchall()

    def insert(self, count=1):
        self.change("INSERT INTO items SELECT nextval('item_ids'), 1 FROM generate_series(1, %s)", count)

    def update(self, item=None):
        self.change("UPDATE items SET version = version + 1 WHERE id = %s",
                    item or self.random.randint(1, HOT_ITEMS))

    def do_insert(self):
        self.insert()

    def do_update(self):
        self.update()

    def do_own(self):
        """Rows that hardly anybody else changes."""
        for item in self.random.sample(self.own_items, min(3, len(self.own_items))):
            self.update(item)
        self.insert()

    def do_several(self):
        """In any order: deadlocks are welcome."""
        for _ in range(self.random.randint(2, 7)):
            self.update()
            self.pause(0.01)

    def do_early(self):
        """A transaction id long before the id of its event."""
        self.insert()
        self.pause(0.4)
        self.update()

    def do_savepoint(self):
        self.update()
        before = len(self.changes)
        self.cursor.execute("SAVEPOINT a")
        self.update()
        self.insert(self.random.randint(1, 5))
        self.cursor.execute("ROLLBACK TO a")
        del self.changes[before:]
        self.update()
        self.cursor.execute("SAVEPOINT b")
        self.update()
        self.cursor.execute("RELEASE b")

    def do_rollback(self):
        self.do_several()

    def do_all(self):
        self.change("UPDATE items SET version = version + 1 WHERE id BETWEEN 1 AND %s", HOT_ITEMS)

    def do_bulk(self):
        self.insert(self.random.randint(20, 150))

    # transactions

    def run_transaction(self):
        kind = self.random.choices(list(KINDS), KINDS.values())[0]
        prepare = self.prepares and self.random.random() < 0.5
        self.transaction += 1
        self.changes = []
        try:
            self.cursor.execute("BEGIN")
            getattr(self, "do_" + kind)()
            if kind == "rollback":
                self.cursor.execute("ROLLBACK")
        except psycopg2.Error:
            self.record("R")
            if self.lost():
                raise
            self.cursor.execute("ROLLBACK")
            return
        if kind == "rollback":
            self.record("R")
        elif prepare:
            self.pending = "PREPARE"
            self.cursor.execute("PREPARE TRANSACTION %s", (self.prepared_name(),))
            self.pause(0.1)
            self.resolve()
        else:
            self.commit()

    def commit(self):
        try:
            self.cursor.execute("COMMIT")
        except psycopg2.Error:
            self.record("U")
            raise
        self.record("A" if self.cursor.statusmessage == "COMMIT" else "R")

    def prepared_name(self):
        return f"audit {self.number} {self.transaction}"

    def resolve(self):
        """End the prepared transaction, one way or the other."""
        self.pending = self.random.choice(["COMMIT", "COMMIT", "ROLLBACK"])
        self.cursor.execute(self.pending + " PREPARED %s", (self.prepared_name(),))
        self.record("A" if self.pending == "COMMIT" else "R")
        self.pending = None

    def settle(self):
        """After a lost connection: what has become of what was prepared?"""
        if self.pending is None:
            return
        self.cursor.execute("SELECT count(*) FROM pg_prepared_xacts WHERE gid = %s", (self.prepared_name(),))
        if self.cursor.fetchone()[0] > 0:
            self.resolve()
        else:
            # nobody else ends it: so it is as it was asked for last
            self.record("A" if self.pending == "COMMIT" else "R")
            self.pending = None

    def run(self):
        while not self.stopping or self.pending is not None:
            try:
                self.connect()
                self.settle()
                while not self.stopping:
                    if not os.path.exists(self.hold):
                        self.run_transaction()
                    self.pause(0.04)
            except psycopg2.ProgrammingError:
                raise
            except psycopg2.Error:
                time.sleep(0.05)        # the server is not there: try again


if __name__ == "__main__":
    Writer(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5],
           "prepare" in sys.argv[6:]).run()
