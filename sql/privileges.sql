--
-- Privileges, and the roles that functions run as
--
CREATE EXTENSION pg_notify_events;
CREATE ROLE regress_nobody LOGIN;
CREATE ROLE regress_app LOGIN;
CREATE ROLE regress_member LOGIN IN ROLE regress_app;
CREATE ROLE regress_other LOGIN;
CREATE ROLE regress_monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE regress_attacker LOGIN;
CREATE SCHEMA regress_privileges;
GRANT USAGE, CREATE ON SCHEMA regress_privileges TO regress_nobody, regress_app, regress_other, regress_attacker;
GRANT USAGE ON SCHEMA regress_privileges TO PUBLIC;
SET search_path = regress_privileges, public;

CREATE FUNCTION try_statement(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN format('%s: %s', sqlstate, sqlerrm);
END
$$;
CREATE FUNCTION becomes_true(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '10 s';
	result boolean;
BEGIN
	LOOP
		PERFORM pg_stat_clear_snapshot();
		EXECUTE 'SELECT ' || condition INTO result;
		EXIT WHEN result OR clock_timestamp() > deadline;
	END LOOP;
	RETURN result;
END
$$;

-- The calls of the handlers, with their roles.
CREATE TABLE calls (n serial, handler text, event_name text, who text);
CREATE FUNCTION take_calls(OUT handler text, OUT event_name text, OUT who text) RETURNS SETOF record
	LANGUAGE sql
BEGIN ATOMIC
	WITH taken AS (DELETE FROM calls RETURNING *)
	SELECT taken.handler, taken.event_name, taken.who FROM taken ORDER BY n;
END;
GRANT INSERT ON calls TO PUBLIC;
GRANT USAGE ON calls_n_seq TO PUBLIC;
CREATE FUNCTION record_call(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('record_call', $1,
		CASE WHEN current_user = session_user THEN current_user
		ELSE format('current_user %s, session_user %s', current_user, session_user) END)
$$;
CREATE FUNCTION superuser_call(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('superuser_call', $1,
		CASE WHEN current_user = session_user AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
		THEN 'a superuser' ELSE current_user END)
$$;

-- A handler of the superuser, for the rest of the test.
SELECT create_event_handler('of superuser', 'superuser_call');

--
-- A role without privileges
--
SET ROLE regress_nobody;
SELECT statement, try_statement(statement) AS result FROM (VALUES
	('SELECT FROM notification_events'),
	('INSERT INTO notification_events (event_name) VALUES (''x'')'),
	('UPDATE notification_events SET event_name = ''x'''),
	('DELETE FROM notification_events'),
	('TRUNCATE notification_events'),
	('SELECT nextval(''notification_events_id_seq'')'),
	('SELECT FROM _event_install'),
	('SELECT FROM _event_announcer'),
	('SELECT FROM _event_handlers'),
	('SELECT FROM _event_handler_progress'),
	('SELECT FROM _event_handler_failures'),
	('SELECT FROM _event_retries'),
	('INSERT INTO _event_handlers (name) VALUES (''x'')'),
	('UPDATE _event_handler_progress SET delivered = 0'),
	('DELETE FROM _event_retries'),
	('TRUNCATE _event_handlers'),
	('SELECT notify_event(''x'')'),
	('SELECT notify_event(''x'', ''{}''::text)'),
	('SELECT notify_event(''x'', ''{}''::json)'),
	('SELECT notify_event(''x'', ''{}''::jsonb)'),
	('SELECT notify_event()'),
	('CREATE TABLE own (a integer)'),
	('CREATE TRIGGER notify AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION notify_event(''x'')'),
	('DROP TABLE own'),
	('CREATE TRIGGER notify AFTER INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION record()'),
	('SELECT create_event_handler(''x'', ''record_call'')'),
	('SELECT create_event_handler(''of superuser'', ''record_call'', or_replace => true)'),
	('SELECT alter_event_handler(''of superuser'', batch_size => 1)'),
	('SELECT pause_event_handler(''of superuser'')'),
	('SELECT resume_event_handler(''of superuser'')'),
	('SELECT drop_event_handler(''of superuser'')'),
	('SELECT call_event_handler(''of superuser'', 1)'),
	('SELECT activate_events()'),
	('SELECT reset_event_stats()'),
	('SELECT _extension_installing()'),
	('SELECT _extension_installed()'),
	('CREATE TRIGGER guard BEFORE INSERT ON calls FOR EACH ROW EXECUTE FUNCTION _guard()'),
	('DROP EXTENSION pg_notify_events')
) s (statement);
-- It may read the views, but sees nothing of other roles.
SELECT count(*) FROM event_handlers;
SELECT count(*) FROM event_handler_stats;
SELECT count(*) FROM event_retries;
SELECT count(*) FROM event_stats;
SELECT kind, last_error FROM event_worker_stats WHERE database = current_database() AND kind = 'listener';
SELECT state, pending, calls FROM _handler_statistics('of superuser');
CALL wait_for_event_handlers();
RESET ROLE;

--
-- The privilege to write events
--
GRANT EXECUTE ON FUNCTION notify_event(varchar, text) TO regress_app;
SET ROLE regress_app;
SELECT notify_event('app: text', '{}') IS NOT NULL AS recorded;
SELECT notify_event('app: jsonb', '{}'::jsonb);
CREATE TABLE app_table (a integer);
CREATE TRIGGER notify AFTER INSERT ON app_table FOR EACH ROW EXECUTE FUNCTION notify_event('app: trigger', new, a);
RESET ROLE;
GRANT EXECUTE ON FUNCTION notify_event(), notify_event(varchar, json), notify_event(varchar, jsonb) TO regress_app;
SET ROLE regress_app;
SELECT notify_event('app: jsonb', '{}'::jsonb) IS NOT NULL AS recorded;
SELECT notify_event('app: json', '{}'::json) IS NOT NULL AS recorded;
CREATE TRIGGER notify AFTER INSERT ON app_table FOR EACH ROW EXECUTE FUNCTION notify_event('app: trigger', new, a);
INSERT INTO app_table VALUES (1);
INSERT INTO notification_events (event_name) VALUES ('app: plain');
SELECT count(*) FROM notification_events;
-- A role that changes the table needs no privilege on events.
GRANT INSERT ON app_table TO regress_nobody;
SET ROLE regress_nobody;
INSERT INTO app_table VALUES (2);
RESET ROLE;
-- Plain INSERTs: privileges on two columns are enough. No other columns are granted.
GRANT INSERT (event_name, event_data) ON notification_events TO regress_other;
SET ROLE regress_other;
INSERT INTO notification_events (event_name, event_data) VALUES ('other: plain', '{}');
INSERT INTO notification_events (event_name, created_at) VALUES ('other: plain', now());
INSERT INTO notification_events (event_name, txid) VALUES ('other: plain', '1');
INSERT INTO notification_events (event_name) VALUES ('other: plain') RETURNING id;
SELECT notify_event('other');
RESET ROLE;
SELECT event_name, event_data FROM notification_events ORDER BY id;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();

--
-- Handlers of a role that is no superuser
--
SET ROLE regress_app;
SELECT create_event_handler('of app', 'record_call');
RESET ROLE;
GRANT EXECUTE ON FUNCTION create_event_handler TO regress_app, regress_other;
SET ROLE regress_app;
SELECT create_event_handler('of app', 'record_call');
RESET ROLE;
GRANT SELECT ON notification_events TO regress_app;
SET ROLE regress_app;
SELECT create_event_handler('of app', 'record_call');
SELECT notify_event('app: both') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
RESET ROLE;
SELECT * FROM take_calls() ORDER BY handler;

-- The handler runs like an ordinary session of that role: it cannot become another
-- role, and it gets no privilege that the role does not have.
SET ROLE regress_app;
CREATE FUNCTION climb(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_privileges.calls (handler, event_name, who) SELECT 'climb', s.statement,
		regress_privileges.try_statement(s.statement)
		FROM (VALUES (1, 'SET ROLE regress_other'), (2, 'SET SESSION AUTHORIZATION regress_other'),
			(3, 'RESET SESSION AUTHORIZATION; RESET ROLE; SET ROLE regress_other'), (4, 'SELECT FROM public._event_handlers'),
			(5, 'UPDATE public._event_handler_progress SET delivered = 0'),
			(6, 'SET pg_notify_events.announce = off'), (7, 'SET session_replication_role = replica'),
			(8, 'SELECT count(*) FROM public.notification_events'), (9, 'SET ROLE regress_app')) AS s (ord, statement)
		ORDER BY s.ord;
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('climb', $1, current_user);
END
$$;
SELECT create_event_handler('climbs', 'climb', event_name => 'climb');
SELECT notify_event('climb') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
RESET ROLE;
SELECT * FROM take_calls() WHERE handler = 'climb';
SELECT drop_event_handler('climbs');

-- SECURITY DEFINER works as it does everywhere.
SET ROLE regress_other;
CREATE FUNCTION definer(text, jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who)
		VALUES ('definer', $1, format('current_user %s, session_user %s', current_user, session_user))
$$;
SET ROLE regress_app;
-- refused, because the function's owner could replace it at any time
SELECT create_event_handler('definer', 'definer', event_name => 'definer');
RESET ROLE;
GRANT regress_app TO regress_other;
SET ROLE regress_app;
SELECT create_event_handler('definer', 'definer', event_name => 'definer');
SELECT notify_event('definer') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
RESET ROLE;
SELECT * FROM take_calls() WHERE handler = 'definer';
SELECT drop_event_handler('definer');
REVOKE regress_app FROM regress_other;

-- Handlers that a role sees.
SELECT create_event_handler('of other', 'record_call', owner => 'regress_other');
GRANT SELECT ON notification_events TO regress_other;
SELECT create_event_handler('of other', 'record_call', owner => 'regress_other');
SELECT name, owner = current_user AS own FROM event_handlers ORDER BY name;
SET ROLE regress_monitor;
SELECT name FROM event_handlers ORDER BY name;
SELECT handler FROM event_handler_stats ORDER BY handler;
SELECT becomes_true('EXISTS (SELECT FROM event_stats)') AS some_events;
SET ROLE regress_app;
SELECT name, owner FROM event_handlers ORDER BY name;
SELECT handler, owner FROM event_handler_stats ORDER BY handler;
SET ROLE regress_member;
SELECT name, owner FROM event_handlers ORDER BY name;
SET ROLE regress_other;
SELECT name, owner FROM event_handlers ORDER BY name;
SET ROLE regress_nobody;
SELECT name, owner FROM event_handlers ORDER BY name;
RESET ROLE;

-- Handlers that a role can change: its own, and those of roles it is a member of.
SET ROLE regress_other;
SELECT try_statement('SELECT alter_event_handler(''of app'', batch_size => 1)');
SELECT try_statement('SELECT pause_event_handler(''of app'')');
SELECT try_statement('SELECT resume_event_handler(''of app'')');
SELECT try_statement('SELECT drop_event_handler(''of app'')');
SELECT try_statement('SELECT create_event_handler(''of app'', ''record_call'', or_replace => true)');
SELECT try_statement('SELECT call_event_handler(''of app'', 1)');
SET ROLE regress_monitor;
SELECT try_statement('SELECT drop_event_handler(''of app'')');
SET ROLE regress_member;
SELECT alter_event_handler('of app', batch_size => 7);
SELECT pause_event_handler('of app');
SELECT paused, batch_size, owner FROM event_handlers;
SELECT resume_event_handler('of app');
SELECT call_event_handler('of app', 1);
RESET ROLE;

-- An owner must be a role that the current role can become.
SET ROLE regress_app;
SELECT create_event_handler('for other', 'record_call', owner => 'regress_other');
SELECT alter_event_handler('of app', owner => 'regress_other');
RESET ROLE;
GRANT regress_other TO regress_app;
SET ROLE regress_app;
SELECT create_event_handler('for other', 'record_call', owner => 'regress_other', event_name => 'for other');
SELECT alter_event_handler('of app', owner => 'regress_other');
SELECT notify_event('for other') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
RESET ROLE;
SELECT handler, event_name, who FROM take_calls() ORDER BY who, handler;
SELECT alter_event_handler('of app', owner => 'regress_app');
REVOKE regress_other FROM regress_app;
SELECT drop_event_handler('for other');
SELECT drop_event_handler('of other');

-- call_event_handler runs the function as the current role, which must be the
-- owner: not even a superuser can call a handler of another role.
SELECT max(id) AS id FROM notification_events \gset
SELECT call_event_handler('of app', :id);
SET ROLE regress_app;
SELECT call_event_handler('of app', :id);
RESET ROLE;
SELECT * FROM take_calls();

--
-- Handlers are suspended while their owner lacks what it needs, and then continue
--
CREATE FUNCTION app_is_suspended(OUT pending bigint, OUT suspended_reason text) LANGUAGE sql
BEGIN ATOMIC
	SELECT pending, suspended_reason FROM event_handler_stats WHERE handler = 'of app';
END;
SELECT pause_event_handler('of superuser');
ALTER ROLE regress_app NOLOGIN;
SELECT notify_event('1') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM app_is_suspended();
ALTER ROLE regress_app LOGIN;
CALL wait_for_event_handlers();
REVOKE SELECT ON notification_events FROM regress_app;
SELECT notify_event('2') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM app_is_suspended();
GRANT SELECT ON notification_events TO regress_app;
CALL wait_for_event_handlers();
REVOKE EXECUTE ON FUNCTION record_call FROM PUBLIC;
SELECT notify_event('3') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM app_is_suspended();
GRANT EXECUTE ON FUNCTION record_call TO PUBLIC;
REVOKE USAGE ON SCHEMA regress_privileges FROM PUBLIC, regress_app;
SELECT * FROM app_is_suspended();
GRANT USAGE ON SCHEMA regress_privileges TO PUBLIC, regress_app;
REVOKE CONNECT ON DATABASE :"DBNAME" FROM PUBLIC;
SELECT * FROM app_is_suspended();
GRANT CONNECT ON DATABASE :"DBNAME" TO PUBLIC;
CALL wait_for_event_handlers();
-- The function gets another owner: somebody has to confirm it. The handler's owner
-- and superusers need no confirmation.
GRANT regress_app TO regress_other;
ALTER FUNCTION record_call OWNER TO regress_other;
SELECT notify_event('4') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM app_is_suspended();
SET ROLE regress_app;
SELECT alter_event_handler('of app');
RESET ROLE;
CALL wait_for_event_handlers();
ALTER FUNCTION record_call OWNER TO regress_attacker;
SELECT * FROM app_is_suspended();
ALTER FUNCTION record_call OWNER TO regress_other;
SELECT * FROM app_is_suspended();
ALTER FUNCTION record_call OWNER TO regress_app;
SELECT * FROM app_is_suspended();
ALTER FUNCTION record_call OWNER TO CURRENT_USER;
SELECT * FROM app_is_suspended();
REVOKE regress_app FROM regress_other;
SELECT * FROM take_calls();
SELECT failed FROM event_handler_stats WHERE handler = 'of app';

-- The handler of a dropped role stays, visible to superusers.
CREATE ROLE regress_short_lived LOGIN;
GRANT pg_read_all_data TO regress_short_lived;
SELECT create_event_handler('left behind', 'record_call', owner => 'regress_short_lived');
DROP ROLE regress_short_lived;
SELECT notify_event('5') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT name, owner FROM event_handlers WHERE name = 'left behind';
SELECT state, regexp_replace(suspended_reason, '[0-9]+', 'N') AS suspended_reason FROM event_handler_stats
	WHERE handler = 'left behind';
SELECT alter_event_handler('left behind', owner => 'regress_app');
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT drop_event_handler('left behind');

-- The settings of the owner have no effect.
CREATE ROLE regress_odd LOGIN;
GRANT SELECT ON notification_events TO regress_odd;
ALTER ROLE regress_odd SET default_transaction_isolation = 'serializable';
ALTER ROLE regress_odd SET default_transaction_read_only = on;
ALTER ROLE regress_odd SET default_transaction_deferrable = on;
ALTER ROLE regress_odd SET session_replication_role = replica;
ALTER ROLE regress_odd SET statement_timeout = '1ms';
ALTER ROLE regress_odd SET lock_timeout = '1ms';
ALTER ROLE regress_odd SET idle_in_transaction_session_timeout = '1ms';
ALTER ROLE regress_odd SET role = 'pg_read_all_stats';
ALTER ROLE regress_odd SET search_path = 'nowhere';
ALTER ROLE regress_odd SET application_name = 'odd one';
CREATE FUNCTION odd_call(text, jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who)
		SELECT 'odd_call', name, CASE WHEN name = 'statement_timeout' THEN (setting <> '1')::text ELSE setting END FROM pg_settings
		WHERE name IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'session_replication_role',
			'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'search_path', 'application_name')
		ORDER BY name COLLATE "C";
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('odd_call', 'current_user', current_user), ('odd_call', 'session_user', session_user);
$$;
SELECT create_event_handler('odd', 'odd_call', event_name => 'odd', owner => 'regress_odd');
SELECT notify_event('odd') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT event_name, who FROM take_calls() WHERE handler = 'odd_call';
SELECT last_error FROM event_retries;
SELECT drop_event_handler('odd');
SELECT drop_event_handler('of app');

--
-- Row security on the log applies to handlers
--
ALTER TABLE notification_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_names ON notification_events FOR SELECT USING (event_name LIKE current_user || '%');
CREATE FUNCTION array_call(events notification_events[]) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who)
		SELECT 'array_call', string_agg(e.event_name, ', ' ORDER BY e.id), current_user FROM unnest(events) e
$$;
SELECT create_event_handler('of app', 'record_call', owner => 'regress_app');
SELECT create_event_handler('array of app', 'array_call', owner => 'regress_app');
SELECT create_event_handler('of other', 'record_call', owner => 'regress_other');
SELECT resume_event_handler('of superuser');
CALL wait_for_event_handlers();
DELETE FROM calls;
SELECT count(notify_event(name)) FROM unnest('{regress_app 1,regress_other 1,regress_app 2,else}'::text[]) name;
CALL wait_for_event_handlers();
SELECT * FROM take_calls() ORDER BY handler, who, event_name;
SELECT handler, delivered, pending FROM event_handler_stats ORDER BY handler;
SELECT max(id) AS id FROM notification_events WHERE event_name = 'regress_other 1' \gset
SET ROLE regress_app;
SELECT call_event_handler('of app', :id);
-- There is no policy for INSERT: an INSERT statement fails, but EXECUTE on
-- notify_event is enough to write events.
SELECT notify_event('regress_app 3') IS NOT NULL AS recorded;
SET ROLE regress_other;
INSERT INTO notification_events (event_name) VALUES ('regress_other 2');
RESET ROLE;
CALL wait_for_event_handlers();
SELECT * FROM take_calls() ORDER BY handler, who, event_name;
DROP POLICY own_names ON notification_events;
ALTER TABLE notification_events DISABLE ROW LEVEL SECURITY;
SELECT drop_event_handler(name) FROM event_handlers WHERE name <> 'of superuser';

--
-- Attacks
--
-- GRANT ALL includes TRIGGER. The extension never fires such a trigger, which would
-- get the privileges of the extension's owner: it raises an error that says why. A
-- preloaded library refuses to create it, so allow_system_table_mods allows it here.
SET allow_system_table_mods = on;
GRANT ALL ON _event_install, _event_announcer, _event_handlers, _event_handler_progress, _event_handler_failures, _event_retries
	TO regress_attacker;
SET ROLE regress_attacker;
CREATE FUNCTION attack() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('attack', TG_TABLE_NAME, current_user);
	RETURN NEW;
END
$$;
CREATE TRIGGER attack AFTER INSERT OR UPDATE ON public._event_handler_progress FOR EACH ROW EXECUTE FUNCTION attack();
RESET ROLE;
SELECT notify_event('during the attack') IS NOT NULL AS recorded;
-- without state and last error, which vary from run to run
\set VERBOSITY terse
CALL wait_for_event_handlers('0 s');
\set VERBOSITY default
SELECT becomes_true($$EXISTS (SELECT FROM event_worker_stats WHERE database = current_database() AND kind = 'executor'
	AND last_error = 'table "_event_handler_progress" has a trigger "attack" that is not the extension''s')$$) AS visible;
SELECT pause_event_handler('of superuser');
SELECT create_event_handler('new', 'record_call');
DROP TRIGGER attack ON _event_handler_progress;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
-- A trigger on the table of failed events.
SELECT pause_event_handler('of superuser');
CREATE FUNCTION fails(text, jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no way'; END$$;
SELECT create_event_handler('fails', 'fails', event_name => 'fail', retry_delay => '1 h');
SET ROLE regress_attacker;
CREATE TRIGGER attack BEFORE INSERT ON public._event_retries FOR EACH STATEMENT EXECUTE FUNCTION attack();
RESET ROLE;
SELECT notify_event('fail') IS NOT NULL AS recorded;
-- without state and last error, which vary from run to run
\set VERBOSITY terse
CALL wait_for_event_handlers('0 s');
\set VERBOSITY default
SELECT becomes_true($$EXISTS (SELECT FROM event_worker_stats WHERE database = current_database() AND kind = 'executor'
	AND last_error = 'table "_event_retries" has a trigger "attack" that is not the extension''s')$$) AS visible;
DROP TRIGGER attack ON _event_retries;
CALL wait_for_event_handlers();
SELECT handler, state FROM event_retries;
SELECT drop_event_handler('fails');
-- A trigger on the table of definitions. REFERENCES creates triggers, too.
SET ROLE regress_attacker;
CREATE TRIGGER attack BEFORE INSERT OR UPDATE OR DELETE ON public._event_handlers FOR EACH ROW EXECUTE FUNCTION attack();
RESET ROLE;
SELECT create_event_handler('new', 'record_call');
SELECT pause_event_handler('of superuser');
SELECT drop_event_handler('of superuser');
DROP TRIGGER attack ON _event_handlers;
SET ROLE regress_attacker;
CREATE TABLE refers (name text REFERENCES public._event_handlers ON DELETE CASCADE ON UPDATE CASCADE);
RESET ROLE;
SELECT regexp_replace(try_statement('SELECT pause_event_handler(''of superuser'')'), '[0-9]+"', 'N"') AS result;
DROP TABLE refers;
-- A WHEN condition is code, too, even if the trigger's function is the extension's.
GRANT EXECUTE ON FUNCTION _guard() TO regress_attacker;
SET ROLE regress_attacker;
CREATE FUNCTION attack(text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('attack', $1, current_user);
	RETURN true;
END
$$;
CREATE TRIGGER attack BEFORE UPDATE ON public._event_handlers FOR EACH ROW WHEN (attack(NEW.name)) EXECUTE FUNCTION public._guard();
RESET ROLE;
SELECT pause_event_handler('of superuser');
SELECT * FROM take_calls();
DROP TRIGGER attack ON _event_handlers;
RESET allow_system_table_mods;
SET ROLE regress_attacker;
CREATE TRIGGER attack BEFORE UPDATE ON public._event_handlers FOR EACH ROW WHEN (attack(NEW.name)) EXECUTE FUNCTION public._guard();
CREATE TRIGGER attack BEFORE INSERT ON public._event_handlers FOR EACH ROW EXECUTE FUNCTION attack();
CREATE CONSTRAINT TRIGGER attack AFTER UPDATE ON public._event_retries DEFERRABLE FOR EACH ROW EXECUTE FUNCTION attack();
CREATE OR REPLACE TRIGGER guard_rows BEFORE INSERT ON public._event_announcer FOR EACH ROW EXECUTE FUNCTION attack();
CREATE TABLE refers (name text REFERENCES public._event_handlers ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE refers (name text);
ALTER TABLE refers ADD CONSTRAINT attack FOREIGN KEY (name) REFERENCES public._event_handler_progress;
DROP TABLE refers;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION _guard() FROM regress_attacker;
-- The extension's owner cannot create one either, nor a foreign key to another table.
CREATE TRIGGER attack BEFORE UPDATE ON _event_handler_failures FOR EACH ROW EXECUTE FUNCTION attack();
CREATE TABLE referred (name text PRIMARY KEY);
ALTER TABLE _event_handlers ADD FOREIGN KEY (name) REFERENCES referred;
-- Other tables and the log can have triggers and foreign keys.
ALTER TABLE referred ADD event bigint REFERENCES notification_events;
CREATE TRIGGER attack AFTER INSERT ON notification_events FOR EACH ROW EXECUTE FUNCTION attack();
DROP TRIGGER attack ON notification_events;
DROP TABLE referred;
-- No trigger is left, and handlers work again.
SELECT count(*) FROM pg_trigger WHERE tgrelid::regclass::text ~ '_event_' AND tgfoid <> '_guard'::regproc AND tgrelid <> 'notification_events'::regclass;
SELECT create_event_handler('goes on', 'record_call');
SELECT notify_event('after the attack') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT handler, event_name FROM take_calls();
SELECT drop_event_handler('goes on');
-- The guard refuses these statements whatever the privileges.
SET ROLE regress_attacker;
SELECT try_statement('UPDATE public._event_handlers SET owner = 0');
SELECT try_statement('DELETE FROM public._event_handler_progress');
SELECT try_statement('TRUNCATE public._event_retries');
SELECT try_statement('INSERT INTO public._event_announcer SELECT false, cursor FROM public._event_announcer');
SELECT try_statement('INSERT INTO public._event_retries (handler, event_id, state, attempts) VALUES (''of superuser'', 1, ''waiting'', 0)');
SELECT try_statement('ALTER TABLE public._event_handlers DISABLE TRIGGER ALL');
RESET ROLE;
SELECT count(*) FROM take_calls() WHERE handler = 'attack';
REVOKE ALL ON _event_install, _event_announcer, _event_handlers, _event_handler_progress, _event_handler_failures, _event_retries
	FROM regress_attacker;

-- Objects in a role's own search_path do not replace those the extension uses.
GRANT EXECUTE ON FUNCTION create_event_handler TO regress_attacker;
GRANT EXECUTE ON FUNCTION notify_event(varchar, jsonb), notify_event(varchar, text), notify_event() TO regress_attacker;
GRANT SELECT ON notification_events TO regress_attacker;
CREATE SCHEMA regress_attacker AUTHORIZATION regress_attacker;
SET ROLE regress_attacker;
CREATE FUNCTION regress_attacker.caught(text) RETURNS void LANGUAGE sql AS $$
	INSERT INTO regress_privileges.calls (handler, event_name, who) VALUES ('caught', $1, current_user)
$$;
CREATE FUNCTION regress_attacker.eq_text(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('= text'); RETURN false; END$$;
CREATE OPERATOR regress_attacker.= (FUNCTION = regress_attacker.eq_text, LEFTARG = text, RIGHTARG = text);
CREATE FUNCTION regress_attacker.eq_oid(oid, oid) RETURNS boolean LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('= oid'); RETURN false; END$$;
CREATE OPERATOR regress_attacker.= (FUNCTION = regress_attacker.eq_oid, LEFTARG = oid, RIGHTARG = oid);
CREATE OPERATOR regress_attacker.<> (FUNCTION = regress_attacker.eq_oid, LEFTARG = oid, RIGHTARG = oid);
CREATE FUNCTION regress_attacker.plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('+'); RETURN 0; END$$;
CREATE OPERATOR regress_attacker.+ (FUNCTION = regress_attacker.plus, LEFTARG = bigint, RIGHTARG = bigint);
CREATE FUNCTION regress_attacker.now() RETURNS timestamptz LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('now()'); RETURN NULL; END$$;
CREATE FUNCTION regress_attacker.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('clock_timestamp()'); RETURN NULL; END$$;
CREATE FUNCTION regress_attacker.count(anyelement) RETURNS bigint LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('count'); RETURN 0; END$$;
CREATE FUNCTION regress_attacker.to_jsonb(anyelement) RETURNS jsonb LANGUAGE plpgsql AS
	$$BEGIN PERFORM regress_attacker.caught('to_jsonb'); RETURN NULL; END$$;
CREATE DOMAIN regress_attacker.pg_snapshot AS text;
CREATE TABLE regress_attacker._event_handlers (name text);
CREATE TABLE regress_attacker._event_handler_progress (handler text);
CREATE TABLE regress_attacker._event_retries (handler text);
CREATE TABLE regress_attacker.notification_events (id bigint);
CREATE TEMPORARY TABLE _event_handlers (name text);
CREATE TEMPORARY TABLE notification_events (id bigint);
ALTER ROLE regress_attacker SET search_path = regress_attacker, pg_temp, pg_catalog;
SET search_path = regress_attacker, pg_temp, pg_catalog;
SELECT public.create_event_handler('caught', 'regress_privileges.record_call');
SELECT public.alter_event_handler('caught', max_attempts => 3);
SELECT public.pause_event_handler('caught');
SELECT public.resume_event_handler('caught');
CREATE TABLE regress_privileges.attackers (a integer);
CREATE TRIGGER notify AFTER INSERT ON regress_privileges.attackers FOR EACH ROW EXECUTE FUNCTION public.notify_event();
INSERT INTO regress_privileges.attackers VALUES (1);
SELECT public.notify_event('caught') OPERATOR(pg_catalog.>) 0 AS recorded;
CALL public.wait_for_event_handlers();
RESET ROLE;
SET search_path = regress_privileges, public;
SELECT * FROM take_calls() WHERE who = 'regress_attacker' OR handler = 'caught';
SELECT event_data FROM public.notification_events WHERE event_name LIKE 'regress_privileges.attackers%';
SELECT max_attempts FROM event_handlers WHERE name = 'caught';
SET ROLE regress_attacker;
SET search_path = regress_attacker, pg_temp, pg_catalog;
SELECT handler, delivered, pending FROM public.event_handler_stats;
SELECT public.drop_event_handler('caught');
RESET ROLE;
SET search_path = regress_privileges, public;
SELECT * FROM take_calls() WHERE handler = 'caught';
SELECT name FROM event_handlers;

--
-- superuser_handlers = off suspends the handlers of superusers
--
SELECT resume_event_handler('of superuser');
SELECT create_event_handler('of other', 'record_call', owner => 'regress_other');
CALL wait_for_event_handlers();
DELETE FROM calls;
ALTER SYSTEM SET pg_notify_events.superuser_handlers = off;
SELECT pg_reload_conf();
-- A new session is certain to have the new configuration.
\c -
SET search_path = regress_privileges, public;
SHOW pg_notify_events.superuser_handlers;
SELECT notify_event('who handles it') IS NOT NULL AS recorded;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();
SELECT handler, state = 'suspended' AS suspended, pending,
	replace(suspended_reason, quote_ident(session_user), 'of the session') AS suspended_reason
	FROM event_handler_stats ORDER BY handler;
SELECT replace(try_statement('SELECT create_event_handler(''another'', ''record_call'')'), quote_ident(session_user), 'of the session') AS result;
ALTER SYSTEM RESET pg_notify_events.superuser_handlers;
SELECT pg_reload_conf();
\c -
SET search_path = regress_privileges, public;
SHOW pg_notify_events.superuser_handlers;
CALL wait_for_event_handlers();
SELECT * FROM take_calls();

-- EXECUTE is enough to reset counters, but not to activate restored definitions.
GRANT EXECUTE ON FUNCTION activate_events, reset_event_stats TO regress_other;
SET ROLE regress_other;
SELECT activate_events();
SELECT reset_event_stats();
RESET ROLE;

SET client_min_messages = warning;
DROP SCHEMA regress_privileges, regress_attacker CASCADE;
DROP EXTENSION pg_notify_events;
DROP ROLE regress_nobody, regress_member, regress_app, regress_other, regress_monitor, regress_attacker, regress_odd;
