-- What an expert would ask PostgreSQL by hand: of every active container its policy, its newest run and its
-- last good backup, from one statement.
--
-- It trusts that ids grow with time: it walks down the primary key until it meets a row of nine days ago
-- (a Weekly promise looks eight days back), and reads only what comes after. BETWEEN instead of > makes the
-- planner expect few rows, and so use the index. Containers without a good backup in that part are looked
-- up in the whole log, in one pass, which is skipped if there are none.

WITH site AS MATERIALIZED (
    SELECT s.c_id, s.name, s.state, c.ts AS created, info, nullif(coalesce(
        info ->> 'BACKUP_FREQ', info ->> 'backup_freq', info #>> '{labels,BACKUP_FREQ}', info #>> '{labels,backup_freq}'
    ), '') AS policy
    FROM container_state AS s
    LEFT JOIN (SELECT id, ts, data -> 'Info' AS info FROM containers OFFSET 0) AS c ON c.id = s.c_id
), recent AS (
    SELECT c_id, max(started) AS newest, max(started) FILTER (WHERE good) AS last_success
    FROM (
        SELECT c_id, min(ts) AS started, bool_or(state = 'end') AND NOT bool_or(err_msg ~ '(error|failed):') AS good
        FROM backups
        WHERE id BETWEEN
            coalesce((SELECT id FROM backups WHERE ts < localtimestamp - interval '9 days' ORDER BY id DESC LIMIT 1), 0)
            AND (SELECT max(id) FROM backups)
        GROUP BY c_id, backup_id
    ) AS runs
    GROUP BY c_id
), known AS MATERIALIZED (
    SELECT * FROM site LEFT JOIN recent USING (c_id)
), unknown AS MATERIALIZED (
    SELECT c_id FROM known WHERE last_success IS NULL AND policy IN ('Daily', 'Weekly')
), older AS (
    SELECT c_id, max(started) AS newest, max(started) FILTER (WHERE good) AS last_success
    FROM (
        SELECT c_id, min(ts) AS started, bool_or(state = 'end') AND NOT bool_or(err_msg ~ '(error|failed):') AS good
        FROM backups
        WHERE EXISTS (SELECT FROM unknown) AND c_id = ANY (ARRAY(SELECT c_id FROM unknown))
        GROUP BY c_id, backup_id
    ) AS runs
    GROUP BY c_id
)
SELECT
    c_id,
    extract(epoch FROM coalesce(known.last_success, older.last_success)) AS last_success,
    extract(epoch FROM coalesce(older.newest, known.newest)) AS newest_run,
    name, state, created, policy, info ->> 'dbengine' AS engine,
    coalesce(info ->> 'OWNER', info #>> '{labels,owner}') AS owner,
    coalesce(info ->> 'CONTACT', info #>> '{labels,contact}') AS contact
FROM known
LEFT JOIN older USING (c_id)
ORDER BY c_id;
