"""Tables, triggers, types and schemas that two sessions alter at random between their writes.

usage: altered_tables.py CONNECTION_STRING SEED STEPS

Each write is compared with what its events ought to be: with the trigger's
arguments as they were in the catalog when it began, and what to_jsonb() makes of
the rows that the write itself has returned.  Some replace the trigger before it
fires.  The sessions take turns; one has a transaction with savepoints now and
then, and what it has altered may be rolled back.  The last line tells how much
was compared; a difference is printed, with the last statements, latest first,
and ends the program with 1.
"""
import collections
import json
import random
import sys

import psycopg2

SETUP = """
CREATE SCHEMA a;
CREATE SCHEMA b;
CREATE SCHEMA types;
CREATE TYPE types.mood AS ENUM ('calm', 'cross');
CREATE TYPE types.pair AS (x int, y text);
CREATE DOMAIN types.short AS text;
CREATE DOMAIN types.pair_domain AS types.pair;
CREATE FUNCTION types.mood_to_json(types.mood) RETURNS json LANGUAGE sql
    RETURN json_build_object('mood', $1::text);
CREATE TABLE a.plain (id int);
CREATE TABLE a.checked (id int);
CREATE TABLE a.parts (id int, v text) PARTITION BY LIST (id);
CREATE TABLE a.parts_1 PARTITION OF a.parts FOR VALUES IN (1);
CREATE TABLE a.parts_2 (dropped int, v text, id int);
ALTER TABLE a.parts_2 DROP COLUMN dropped;
ALTER TABLE a.parts ATTACH PARTITION a.parts_2 FOR VALUES IN (2);
CREATE TABLE a.bulk (id int);
CREATE FUNCTION types.meddle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE current_setting('fuzzer.meddle');
    RETURN NULL;
END $$;
CREATE TRIGGER meddler BEFORE INSERT OR UPDATE OR DELETE ON a.plain
    FOR EACH STATEMENT WHEN (current_setting('fuzzer.meddle', true) <> '') EXECUTE FUNCTION types.meddle();
CREATE TRIGGER meddler BEFORE INSERT ON a.bulk
    FOR EACH STATEMENT WHEN (current_setting('fuzzer.meddle', true) <> '') EXECUTE FUNCTION types.meddle();
"""

# how to create each table's trigger: its name, the table, the arguments
TRIGGERS = {
    "plain": "CREATE OR REPLACE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {}"
             " FOR EACH ROW EXECUTE FUNCTION notify_event({})",
    "checked": "CREATE CONSTRAINT TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {}"
               " DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION notify_event({})",
    "bulk": "CREATE OR REPLACE TRIGGER {} AFTER INSERT ON {} REFERENCING NEW TABLE AS added"
            " FOR EACH STATEMENT EXECUTE FUNCTION notify_event({})",
}
TRIGGERS["parts"] = TRIGGERS["plain"]

# the tables whose writes can replace the trigger
MEDDLED = ("plain", "bulk")

# values for each column type; for pair and pair_domain see Fuzzer.value()
VALUES = {
    "int4": ["-7", "0", "NULL"],
    "float8": ["0.1", "'Infinity'", "NULL"],
    "numeric": ["1.50", "'NaN'", "-3e5"],
    "bool": ["true", "NULL"],
    "text": ["'x'", "E'\\\\\"\\n'", "NULL"],
    "bytea": [r"'\x00ff'"],
    "date": ["'2020-02-29'", "'infinity'", "NULL"],
    "timestamptz": ["now()", "'-infinity'"],
    "interval": ["'1 mon'"],
    "jsonb": ["""'{"b": 1, "a": [null]}'""", "'null'", "NULL"],
    "json": ["""'{"b": 1, "b": 2}'""", "NULL"],
    "_int4": ["'{1,2,NULL}'"],
    "_text": ["'{{a},{b}}'"],
    "mood": ["(enum_range(NULL::types.mood))[1]", "(enum_range(NULL::types.mood))[2]"],
    "_mood": ["enum_range(NULL::types.mood)"],
    "short": ["'s'", "NULL"],
}
TYPES = ["int4", "float8", "numeric", "bool", "text", "bytea", "date", "timestamptz", "interval",
         "jsonb", "json", "int4[]", "text[]", "types.mood", "types.mood[]", "types.short",
         "types.pair", "types.pair_domain"]

UNDEFINED_COLUMN = "42703"      # a trigger names a column that is gone
ROLLED_BACK_NAMES = {
    "3F000",                    # a schema that has another name now
    "42P06", "42P07",           # a name that is taken
}


class Difference(Exception):
    pass


class Session:
    def __init__(self, connection_string, history):
        connection = psycopg2.connect(connection_string)
        connection.autocommit = True
        self.cursor = connection.cursor()
        self.name = connection.get_backend_pid()
        self.history = history
        self.savepoints = None          # how many, in a transaction

    def query(self, sql):
        self.history.append(f"{self.name}: {sql}")
        self.cursor.execute(sql)
        return self.cursor.fetchall() if self.cursor.description else None

    def attempt(self, action, expected):
        """Whether that goes well, and not wrong in a way that is expected."""
        in_transaction = self.savepoints is not None
        if in_transaction:
            self.query("SAVEPOINT attempt")
        try:
            action()
        except psycopg2.Error as error:
            if error.pgcode not in expected:
                raise
            if in_transaction:
                self.query("ROLLBACK TO attempt")
            return False
        if in_transaction:
            self.query("RELEASE attempt")
        return True

    def step_in_transaction(self, chance):
        """Begin one, or go on in it.  Whether the other session can have its turn."""
        if self.savepoints is None:
            if chance.random() < 0.5:
                return True
            self.query("BEGIN")
            self.savepoints = 0
            return False
        what = chance.choice(["SAVEPOINT", "ROLLBACK TO", "RELEASE", "COMMIT", "ROLLBACK"])
        if what in ("COMMIT", "ROLLBACK"):
            self.query(what)
            self.savepoints = None
        elif what == "SAVEPOINT":
            self.query("SAVEPOINT s")
            self.savepoints += 1
        elif self.savepoints > 0:
            self.query(f"{what} s")
            self.savepoints -= what == "RELEASE"
        return False


class Fuzzer:
    def __init__(self, connection_string, seed):
        self.chance = random.Random(seed)
        self.history = collections.deque(maxlen=60)
        self.sessions = [Session(connection_string, self.history) for _ in range(2)]
        self.session = self.sessions[0]
        self.number = 0                 # makes names of their own
        self.counts = collections.Counter()
        self.query(SETUP)
        self.tables = {name: self.query(f"SELECT 'a.{name}'::regclass::oid")[0][0] for name in TRIGGERS}
        for name in TRIGGERS:
            self.query(TRIGGERS[name].format("recorder", f"a.{name}", ""))

    def query(self, sql):
        return self.session.query(sql)

    # Queries for the current state: it is not kept here, because it may be rolled back.

    def table_name(self, oid):
        return self.query(f"SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n"
                          f" ON n.oid = relnamespace WHERE c.oid = {oid}")[0]

    def columns(self, oid):
        return self.query(f"SELECT attname, typname FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid"
                          f" WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum")

    def trigger(self, oid):
        """Its name and its arguments, or None."""
        rows = self.query(f"SELECT tgname, tgargs FROM pg_trigger WHERE tgrelid = {oid}"
                          f" AND NOT tgisinternal AND tgname <> 'meddler'")
        if not rows:
            return None
        return rows[0][0], [arg.decode() for arg in bytes(rows[0][1]).split(b"\0")[:-1]]

    def pair_columns(self):
        return self.columns("'types.pair'::regclass")

    def value(self, type_name):
        if type_name not in ("pair", "pair_domain"):
            return self.chance.choice(VALUES[type_name])
        fields = ", ".join(self.chance.choice(VALUES[name]) for _, name in self.pair_columns())
        return f"ROW({fields})::types.{type_name}"

    # Writes

    def insert(self, table, columns):
        rows = []
        for _ in range(self.chance.choice([1, 1, 3])):
            values = [str(self.chance.randint(1, 2)) if name == "id" else self.value(type_name)
                      for name, type_name in columns]
            rows.append(f"({', '.join(values)})")
        names = ", ".join(name for name, _ in columns)
        return self.query(f"INSERT INTO {table} AS t ({names}) VALUES {', '.join(rows)}"
                          f" RETURNING tableoid, to_jsonb(t), NULL")

    def update(self, table, columns):
        name, type_name = self.chance.choice(columns)
        value = "t.id" if name == "id" else self.value(type_name)
        return self.query(f"UPDATE {table} AS t SET {name} = {value}"
                          f" FROM (SELECT tableoid AS part, ctid AS place, to_jsonb(o) AS row FROM {table} AS o LIMIT 2) AS old"
                          f" WHERE t.tableoid = part AND t.ctid = place RETURNING t.tableoid, to_jsonb(t), old.row")

    def delete(self, table):
        return self.query(f"DELETE FROM {table} AS t"
                          f" WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM {table} LIMIT 1)"
                          f" RETURNING tableoid, NULL, to_jsonb(t)")

    def meddle(self, sql):
        """What the next writes do before their triggers fire."""
        self.query(f"SELECT set_config('fuzzer.meddle', $meddle${sql}$meddle$, false)")

    def write(self):
        which = self.chance.choice(list(self.tables))
        oid = self.tables[which]
        operation = "INSERT" if which == "bulk" else self.chance.choice(["INSERT", "INSERT", "UPDATE", "DELETE"])
        table = ".".join(self.table_name(oid))
        columns = self.columns(oid)
        trigger = self.trigger(oid)
        changes = []

        def act():
            if operation == "INSERT":
                changes.extend(self.insert(table, columns))
            elif operation == "UPDATE":
                changes.extend(self.update(table, columns))
            else:
                changes.extend(self.delete(table))

        meddles = which in MEDDLED and self.chance.random() < 0.2
        if meddles:
            self.number += 1
            self.meddle(self.replace_trigger(which, table, [name for name, _ in columns]))
        went_well = self.session.attempt(act, {UNDEFINED_COLUMN})
        if meddles:
            self.meddle("")
        if went_well:
            self.compare(trigger, operation, changes)
            self.counts["meddled"] += meddles
        else:
            if set(trigger[1][2:]) <= {name for name, _ in columns}:
                raise Difference("all columns are there that the trigger names")
            self.counts["refused"] += 1

    def expected(self, arguments, operation, part, new, old):
        schema, table = self.table_name(part)
        name = arguments[0] if arguments else f"{schema}.{table}.{operation.lower()}"
        if len(arguments) > 1 and arguments[1] != "new":
            return name, json.loads(arguments[1])
        new, old = ({column: value for column, value in row.items()
                     if len(arguments) < 3 or column in arguments[2:]} if row else None for row in (new, old))
        return name, {"op": operation, "schema": schema, "table": table, "new": new, "old": old}

    def compare(self, trigger, operation, changes):
        wanted = [] if trigger is None else [self.expected(trigger[1], operation, *change) for change in changes]
        events = self.query("DELETE FROM notification_events RETURNING event_name, event_data")
        wanted, events = (sorted(json.dumps(event, sort_keys=True) for event in some) for some in (wanted, events))
        if wanted != events:
            raise Difference("\n".join(["wanted:", *wanted, "recorded:", *events]))
        self.counts["compared"] += len(wanted)

    # What is altered

    def arguments(self, columns):
        name = f"'event {self.number}'"
        some = self.chance.sample(columns, min(2, len(columns)))
        return self.chance.choice([
            "", name, f"{name}, 'new'", f"""{name}, '{{"fixed": {self.number}}}'""",
            ", ".join([name, "'new'"] + [f"'{column}'" for column in some])])

    def replace_trigger(self, which, table, columns):
        trigger = self.trigger(self.tables[which])
        name = "recorder" if trigger is None else trigger[0]
        drop = f"DROP TRIGGER IF EXISTS {name} ON {table};" if which == "checked" else ""
        return drop + TRIGGERS[which].format(name, table, self.arguments(columns))

    def alter_trigger(self, which, table):
        trigger = self.trigger(self.tables[which])
        if trigger is None:
            return "SELECT"
        return self.chance.choice([f"ALTER TRIGGER {trigger[0]} ON {table} RENAME TO recorder_{self.number}",
                                   f"DROP TRIGGER {trigger[0]} ON {table}"])

    def alter_column(self, table, columns):
        new = f"c{self.number}"
        added = f"ALTER TABLE {table} ADD COLUMN {new} {self.chance.choice(TYPES)}"
        if not columns:
            return added
        old = self.chance.choice(columns)
        return self.chance.choice([
            added, added,
            f"ALTER TABLE {table} DROP COLUMN {old}",
            f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}",
            f"ALTER TABLE {table} ALTER COLUMN {old} TYPE {self.chance.choice(TYPES)} USING NULL"])

    def alter_type(self):
        fields = [name for name, _ in self.pair_columns()]
        label = self.query("SELECT enumlabel FROM pg_enum ORDER BY enumsortorder LIMIT 1")[0][0]
        has_cast = self.query("SELECT 1 FROM pg_cast WHERE castsource = 'types.mood'::regtype")
        return self.chance.choice([
            f"ALTER TYPE types.mood RENAME VALUE '{label}' TO 'mood {self.number}'",
            f"ALTER TYPE types.pair ADD ATTRIBUTE f{self.number} {self.chance.choice(['int', 'text', 'types.mood'])}",
            f"ALTER TYPE types.pair RENAME ATTRIBUTE {fields[-1]} TO f{self.number}",
            f"ALTER TYPE types.pair DROP ATTRIBUTE {fields[-1]}" if len(fields) > 1 else "SELECT",
            "DROP CAST (types.mood AS json)" if has_cast else
            "CREATE CAST (types.mood AS json) WITH FUNCTION types.mood_to_json(types.mood)"])

    def alter_name(self, which, schema, table):
        schemas = [row[0] for row in self.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^[ab]' ORDER BY 1")]
        return self.chance.choice([
            f"ALTER TABLE {table} RENAME TO {which}_{self.number}",
            f"ALTER TABLE {table} SET SCHEMA {[name for name in schemas if name != schema][0]}",
            f"ALTER SCHEMA {self.chance.choice(schemas)} RENAME TO {self.chance.choice('ab')}{self.number}"])

    def alter(self):
        self.number += 1
        which = self.chance.choice(list(self.tables))
        schema, name = self.table_name(self.tables[which])
        table = f"{schema}.{name}"
        columns = [name for name, _ in self.columns(self.tables[which]) if name != "id"]
        sql = self.chance.choice([
            lambda: self.replace_trigger(which, table, columns),
            lambda: self.alter_trigger(which, table),
            lambda: self.alter_column(table, columns),
            lambda: self.alter_column(table, columns),
            self.alter_type,
            lambda: self.alter_name(which, schema, table)])()
        if self.session.attempt(lambda: self.query(sql), ROLLED_BACK_NAMES):
            self.counts["altered"] += 1

    def run(self, steps):
        for _ in range(steps):
            die = self.chance.random()
            if die < 0.6:
                self.write()
            elif die < 0.85:
                self.alter()
            elif self.session.step_in_transaction(self.chance):
                self.session = self.chance.choice(self.sessions)


fuzzer = Fuzzer(sys.argv[1], int(sys.argv[2]))
try:
    fuzzer.run(int(sys.argv[3]))
except (Difference, psycopg2.Error) as error:
    print(error, *reversed(fuzzer.history), sep="\n")
    sys.exit(1)
print(*(f"{what} {count}" for what, count in sorted(fuzzer.counts.items())), sep=", ")
