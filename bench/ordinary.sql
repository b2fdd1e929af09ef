-- Gives about 2 % of the containers of a calm site something to report. Run by bench.py through psql.
--
-- Every verdict but the calm ones makes the audit look into the whole history, once for all of them.

BEGIN;

CREATE TEMPORARY TABLE trouble ON COMMIT DROP AS
SELECT
    c_id,
    (ARRAY['late', 'missed', 'forgotten', 'failed', 'stalled', 'new'])[1 + c_id / 49 % 6] AS kind,
    CASE WHEN c_id % 10 < 7 THEN interval '1 day' ELSE interval '7 days' END AS period
FROM container_state
WHERE c_id % 49 = 0;

-- From some night on no run: of the last one, of four, of half a year; or never a run at all.
DELETE FROM backups
USING trouble
WHERE backups.c_id = trouble.c_id
    AND ts > CASE kind
        WHEN 'late' THEN localtimestamp - period
        WHEN 'missed' THEN localtimestamp - 4 * period
        WHEN 'forgotten' THEN localtimestamp - interval '180 days'
        WHEN 'stalled' THEN localtimestamp - 2 * period
        WHEN 'new' THEN '-infinity'
    END;

UPDATE containers
SET ts = localtimestamp - interval '2 hours'
FROM trouble
WHERE containers.id = c_id AND kind = 'new';

CREATE TEMPORARY TABLE last_end ON COMMIT DROP AS
SELECT max(id) AS id, kind
FROM backups JOIN trouble USING (c_id)
WHERE kind IN ('failed', 'stalled') AND state = 'end'
GROUP BY c_id, kind;

UPDATE backups
SET err_msg = 'pg_dump: [archiver (db)] connection to database "sales" failed: FATAL:  the database system is starti'
FROM last_end
WHERE backups.id = last_end.id AND kind = 'failed';

DELETE FROM backups
USING last_end
WHERE backups.id = last_end.id AND kind = 'stalled';

COMMIT;
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
