-- The role `backup_audit`: it can read what Backup Audit needs, and no container's password, whatever it sends.
--
-- Run it by psql in DB4Sci's admin database, as a superuser, and again after an upgrade:
--
--     psql -h HOST -p 32009 -U postgres -d mydb_admin -f read_only_role.sql
--     psql -h HOST -p 32009 -U postgres -d mydb_admin -c '\password backup_audit'
--
-- The second command asks for the password and sends it encrypted. If the owner of the database runs it instead of a
-- superuser, that role must own the tables as well, and needs CREATEROLE. Works on PostgreSQL 9.6 to 18.
--
-- In place of the table `containers`, which holds passwords, the role sees the view `backup_audit.containers`, which
-- its search_path finds first.
--
-- To remove it all, as a superuser (with several databases: DROP ROLE in the last one only):
--
--     DROP SCHEMA backup_audit CASCADE;
--     DROP OWNED BY backup_audit;
--     DROP ROLE backup_audit;

\set ON_ERROR_STOP on
\set QUIET on

BEGIN;

SET LOCAL client_min_messages = warning;
-- What others have made in `public` must not get into the view: not a function, not an operator.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'backup_audit') THEN
        CREATE ROLE backup_audit;
    END IF;
END
$$;

-- An audit needs one connection; three are enough for two at once and somebody who looks on.
ALTER ROLE backup_audit LOGIN CONNECTION LIMIT 3;
ALTER ROLE backup_audit IN DATABASE :"DBNAME" SET search_path = backup_audit, public;

-- These two guard against accidents: a session may change them. What holds are the privileges below.
ALTER ROLE backup_audit SET default_transaction_read_only = on;
ALTER ROLE backup_audit SET statement_timeout = '10min';

-- First nothing, so that this file says all that the role may do.
REVOKE ALL ON public.containers, public.container_state, public.action_log, public.backups FROM backup_audit;

-- The view reads the table with the rights of the table's owner.
SELECT pg_get_userbyid(relowner) AS owner FROM pg_class WHERE oid = 'public.containers'::regclass
\gset

CREATE SCHEMA IF NOT EXISTS backup_audit AUTHORIZATION :"owner";
REVOKE ALL ON SCHEMA backup_audit FROM backup_audit;
DROP VIEW IF EXISTS backup_audit.containers;

-- All that the audit reads of `data`: where the policy may stand, engine, owner and contact, and of these only text.
-- A number or an object in one of these places becomes null, so that nothing comes along with it.
CREATE VIEW backup_audit.containers WITH (security_barrier) AS
SELECT
    id,
    name,
    jsonb_build_object(
        'Info', jsonb_build_object(
            'BACKUP_FREQ', CASE jsonb_typeof(info -> 'BACKUP_FREQ') WHEN 'string' THEN info -> 'BACKUP_FREQ' END,
            'backup_freq', CASE jsonb_typeof(info -> 'backup_freq') WHEN 'string' THEN info -> 'backup_freq' END,
            'dbengine', CASE jsonb_typeof(info -> 'dbengine') WHEN 'string' THEN info -> 'dbengine' END,
            'OWNER', CASE jsonb_typeof(info -> 'OWNER') WHEN 'string' THEN info -> 'OWNER' END,
            'CONTACT', CASE jsonb_typeof(info -> 'CONTACT') WHEN 'string' THEN info -> 'CONTACT' END,
            'labels', jsonb_build_object(
                'BACKUP_FREQ',
                CASE jsonb_typeof(labels -> 'BACKUP_FREQ') WHEN 'string' THEN labels -> 'BACKUP_FREQ' END,
                'backup_freq',
                CASE jsonb_typeof(labels -> 'backup_freq') WHEN 'string' THEN labels -> 'backup_freq' END,
                'owner', CASE jsonb_typeof(labels -> 'owner') WHEN 'string' THEN labels -> 'owner' END,
                'contact', CASE jsonb_typeof(labels -> 'contact') WHEN 'string' THEN labels -> 'contact' END
            )
        ),
        'Config', jsonb_build_object(
            'Labels', jsonb_build_object(
                'BACKUP_FREQ', CASE jsonb_typeof(config -> 'BACKUP_FREQ') WHEN 'string' THEN config -> 'BACKUP_FREQ' END
            )
        )
    ) AS data,
    ts
FROM (
    -- OFFSET 0 keeps the three parts from being taken out of the document once for each key
    SELECT id, name, ts, data -> 'Info' AS info, data #> '{Info,labels}' AS labels, data #> '{Config,Labels}' AS config
    FROM public.containers
    OFFSET 0
) AS document;

ALTER VIEW backup_audit.containers OWNER TO :"owner";

GRANT CONNECT ON DATABASE :"DBNAME" TO backup_audit;
GRANT USAGE ON SCHEMA backup_audit, public TO backup_audit;
GRANT SELECT ON backup_audit.containers TO backup_audit;
GRANT SELECT (id, c_id, name, state) ON public.container_state TO backup_audit;
-- Not `command`: it can contain a password.
GRANT SELECT (id, c_id, name, state, backup_id, backup_type, url, err_msg, ts) ON public.backups TO backup_audit;

-- Nothing is made if the role has a way past these privileges.
DO $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM pg_roles
        WHERE rolname = 'backup_audit' AND (
            rolsuper OR rolcreaterole OR rolreplication
            OR oid IN (SELECT member FROM pg_auth_members)
            OR has_any_column_privilege(oid, 'public.containers', 'SELECT')
            OR has_column_privilege(oid, 'public.backups', 'command', 'SELECT')
        )
    ) THEN
        RAISE EXCEPTION 'backup_audit can read passwords: it is a superuser, a member of another role, has CREATEROLE '
            'or REPLICATION, or everybody (PUBLIC) may read containers.data or backups.command';
    END IF;
END
$$;

COMMIT;

-- PostgreSQL 14 and older let every role make tables in `public`. If only the owner of the database needs to, end it:
--
--     REVOKE CREATE ON SCHEMA public FROM PUBLIC;

\echo 'The role backup_audit is ready: it reads what the audit needs, and no password.'
