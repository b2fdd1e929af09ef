-- A role that can read what Backup Audit needs, and nothing else.
--
-- Run it by psql in DB4Sci's admin database, as a superuser, and once more whenever this file has changed:
--
--     psql -h HOST -p 32009 -U postgres -d mydb_admin -f read_only_role.sql
--     psql -h HOST -p 32009 -U postgres -d mydb_admin -c '\password backup_audit'
--
-- The second command asks for the password and sends it encrypted. Put it into the password file of the
-- user that runs the audit, and set admin_user = 'backup_audit' in mydb_config.py.
--
-- Works on PostgreSQL 9.6 to 18. If the owner of the database runs it instead of a superuser, that role needs
-- CREATEROLE.

\set ON_ERROR_STOP on

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'backup_audit') THEN
        CREATE ROLE backup_audit;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO backup_audit', current_database());
END
$$;

-- An audit needs one connection; three are enough for two at once and somebody who looks on.
ALTER ROLE backup_audit LOGIN CONNECTION LIMIT 3;

-- These two guard against accidents: a session may change them. What holds are the privileges below.
ALTER ROLE backup_audit SET default_transaction_read_only = on;
ALTER ROLE backup_audit SET statement_timeout = '10min';

GRANT USAGE ON SCHEMA public TO backup_audit;

-- First nothing, so that this file says all that the role may do.
REVOKE ALL ON containers, container_state, action_log, backups FROM backup_audit;

GRANT SELECT (id, name, data, ts) ON containers TO backup_audit;
GRANT SELECT (id, c_id, name, state) ON container_state TO backup_audit;

-- Not `command`: it can contain a password. Nor `url`: nothing needs it.
GRANT SELECT (id, c_id, name, state, backup_id, backup_type, err_msg, ts) ON backups TO backup_audit;

COMMIT;

-- containers.data holds passwords as well. The audit only asks for a few of its keys, but a privilege
-- covers a whole column: guard the password of this role as you guard those.
--
-- PostgreSQL 14 and older let every role create tables in the schema public. If only the owner of the
-- database needs to, this ends it:
--
--     REVOKE CREATE ON SCHEMA public FROM PUBLIC;
