-- Fills the four empty tables with a site of :containers active containers and :days nights of backups.
--
-- Run by bench.py through psql. A document has :parts of each kind: 3 make some kilobytes, 24 about 20. 70 % of the containers are Daily, 20 % Weekly (Saturdays), 10 % Never. The
-- last night began eight hours before the server's present clock, and all of its runs have ended: every
-- container is fine. Rows are inserted in the order of time, so ids grow with it, and the starts and ends
-- of a night are interleaved.

SET work_mem = '256MB';

-- One row for each container: all that its rows have in common.
CREATE TEMPORARY TABLE plan AS
SELECT
    c_id,
    word || '_' || c_id AS name,
    CASE WHEN c_id % 10 < 7 THEN 'Daily' WHEN c_id % 10 < 9 THEN 'Weekly' ELSE 'Never' END AS policy,
    (ARRAY['Postgres', 'MariaDB', 'MongoDB', 'Neo4j'])[1 + c_id / 10 % 4] AS engine,
    1 + c_id / 40 % 2 AS generation,
    'person' || c_id % 97 AS owner,
    make_interval(secs => (hashint4(c_id) & 8191) * 1.3) AS offset_in_night, -- within three hours
    15 + (hashint4(-c_id) & 2047) AS typical_seconds,                        -- up to 34 minutes
    ''::text AS url,
    ''::text AS command,
    ''::text AS message
FROM generate_series(1, :containers) AS c_id
CROSS JOIN LATERAL (
    SELECT (ARRAY['sales', 'error_tracking', 'failed-trials', 'genomics', 'lims', 'cohort'])[1 + c_id / 3 % 6]
) AS words (word);

UPDATE plan
SET url = 's3://site-backups/prod/' || name || '/' || name || '_',
    command = CASE engine
        WHEN 'Postgres' THEN 'pg_dump --dbname ' || name || ' --username pgdba -F c -f /var/lib/postgresql/backup/' || name
            || '.dump && aws s3 cp --recursive /var/lib/postgresql/backup/ s3://site-backups/prod/' || name
        WHEN 'MariaDB' THEN 'mariadb-dump -h db -P 32015 -u root -p' || md5(name || 'p')
            || ' --single-transaction --all-databases | aws s3 cp - s3://site-backups/prod/' || name || '/all.sql'
        WHEN 'MongoDB' THEN 'mongodump --host db --port 32015 --username root --password ' || md5(name || 'p')
            || ' --gzip --archive | aws s3 cp - s3://site-backups/prod/' || name || '/all.archive'
        ELSE 'neo4j-admin dump --database=graph.db --to=/data/' || name || '.dump && aws s3 cp /data/' || name
            || '.dump s3://site-backups/prod/' || name || '/'
    END,
    message = left(CASE engine
        WHEN 'Postgres' THEN E'\nExecuted Postgres dump_all commands:\npg_dump --dbname ' || name
            || ' --username pgdba  -F c -f /var/lib/postgresql/backup/'
        WHEN 'MariaDB' THEN E'\nExecuted MariaDB dump command:\n    mariadb-dump -h db -P 32015 -u root -pxxxxx'
            || ' --single-transaction --all-databases'
        WHEN 'MongoDB' THEN E'<time>\twriting admin.system.users to \n<time>\tdone dumpin'
        ELSE ''
    END, 100);
ANALYZE plan;

-- What the values of a document are made of: 64 hexadecimal digits that hardly compress, as in real ones.
CREATE FUNCTION pg_temp.digest(seed text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT md5(seed) || md5(seed || '.') $$;

-- In one transaction with the filling, a server with wal_level = minimal need not log the new rows.
BEGIN;
TRUNCATE containers, container_state, action_log, backups RESTART IDENTITY;

-- The containers, and a quarter as many that were deleted long ago: they have no state any more.
INSERT INTO containers (name, data, ts)
SELECT
    c.name,
    jsonb_build_object(
        'Id', pg_temp.digest(c.name),
        'Image', 'sha256:' || pg_temp.digest(c.engine),
        'Created', '2021-04-12T18:32:11.402215913Z',
        'State', jsonb_build_object('Status', 'running', 'Running', true, 'Pid', 20000 + c.c_id, 'ExitCode', 0),
        'Mounts', parts.mounts,
        'NetworkSettings', jsonb_build_object('Networks', parts.networks, 'Ports', jsonb_build_object(
            '5432/tcp', jsonb_build_array(jsonb_build_object('HostIp', '0.0.0.0', 'HostPort', 30000 + c.c_id)))),
        'HostConfig', jsonb_build_object('Binds', parts.mounts, 'RestartPolicy', jsonb_build_object('Name', 'always')),
        'Config', jsonb_build_object('Env', parts.env || to_jsonb('DB_PASS=' || md5(c.name || 'p')), 'Labels', parts.labels)
    ) || CASE c.generation
        WHEN 1 THEN jsonb_build_object('Info', jsonb_build_object(
            'Name', c.name, 'dbengine', c.engine, 'OWNER', c.owner, 'CONTACT', c.owner || '@example.org',
            'BACKUP_FREQ', c.policy, 'DBaaS_UID', 'u' || c.c_id, 'POSTGRES_PASSWORD', md5(c.name || 'p'), 'Port', 30000 + c.c_id))
        ELSE jsonb_build_object(
            'Version', jsonb_build_object('Index', 1000 + c.c_id),
            'Spec', jsonb_build_object('Name', c.name, 'TaskTemplate', jsonb_build_object(
                'ContainerSpec', jsonb_build_object('Image', c.engine, 'Env', parts.env, 'Labels', parts.labels))),
            'Info', jsonb_build_object(
                'Name', c.name, 'dbengine', c.engine, 'DB_PASS', md5(c.name || 'p'), 'Port', 30000 + c.c_id,
                'labels', jsonb_build_object('owner', c.owner, 'contact', c.owner || '@example.org', 'BACKUP_FREQ', c.policy)))
    END,
    localtimestamp - make_interval(days => :days + 1)
FROM (
    SELECT c_id, name, policy, engine, generation, owner FROM plan
    UNION ALL
    SELECT :containers + c_id, 'old_' || name, policy, engine, generation, owner FROM plan WHERE c_id <= :containers / 4
    ORDER BY c_id
) AS c
CROSS JOIN LATERAL (
    SELECT
        jsonb_agg('DB_SETTING_' || i || '=' || pg_temp.digest(c.name || i)) AS env,
        jsonb_object_agg('org.example.label' || i, pg_temp.digest(i || c.name)) AS labels,
        jsonb_object_agg('network' || i, jsonb_build_object(
            'NetworkID', pg_temp.digest('n' || i), 'EndpointID', pg_temp.digest('e' || i || c.name))) AS networks,
        jsonb_agg(jsonb_build_object(
            'Type', 'bind', 'Source', '/mydb/dbs/' || c.name || '/' || md5(c.name || i), 'Destination', '/var/lib/' || i,
            'Mode', '', 'RW', true, 'Propagation', 'rprivate')) AS mounts
    FROM generate_series(1, :parts) AS i
) AS parts;

INSERT INTO container_state (c_id, name, state, last_state, observerd, changed_by, ts)
SELECT c_id, name, 'running', 'created', 'running', owner, localtimestamp - make_interval(days => :days + 1) FROM plan;

-- The log, one night after the other.
INSERT INTO backups (c_id, name, state, backup_id, backup_type, url, command, err_msg, ts)
SELECT event.*
FROM generate_series(:days - 1, 0, -1) AS nights_ago
CROSS JOIN LATERAL (SELECT localtimestamp(0) - interval '8 hours' - make_interval(days => nights_ago)) AS n (night)
CROSS JOIN LATERAL (
    SELECT
        p.c_id,
        p.name,
        state,
        run.id,
        p.policy,
        p.url || run.id || '/',
        p.command,
        CASE
            WHEN state = 'start' THEN ''
            WHEN p.engine = 'MongoDB' THEN replace(p.message, '<time>', to_char(ts, 'YYYY-MM-DD"T"HH24:MI:SS".402-0800"'))
            ELSE p.message
        END,
        ts
    FROM plan AS p
    CROSS JOIN LATERAL (
        SELECT
            night + p.offset_in_night,
            night + p.offset_in_night
                + make_interval(secs => p.typical_seconds * (0.9 + (hashint4(p.c_id + 8191 * nights_ago) & 255) / 1280.0)),
            to_char(
                night + p.offset_in_night,
                CASE p.generation WHEN 1 THEN 'YYYYMMDD-HH24:MI:SS' ELSE 'YYYY-MM-DD_HH24:MI:SS' END
            )
    ) AS run (started, ended, id)
    CROSS JOIN LATERAL (VALUES ('start', run.started), ('end', run.ended)) AS event (state, ts)
    WHERE p.policy = 'Daily' OR p.policy = 'Weekly' AND extract(isodow FROM night) = 6
    ORDER BY ts
    OFFSET 0
) AS event;

COMMIT;
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
