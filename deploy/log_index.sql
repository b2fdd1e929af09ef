-- An optional index, for sites with years of history: the audit then reads only the last days of the backup log.
--
-- The audit works without it and never makes it. Each audit passes over the whole log: a second or two for a few million
-- rows. With the index, that pass is over the days that the verdicts and `history_days` need. Containers without a good
-- backup in these days still cost a pass over the whole log.
--
-- A block range index (BRIN) keeps the lowest and the highest time stamp of each megabyte of the table. It takes some
-- kilobytes, next to nothing for each new row, and some seconds to make, during which DB4Sci can go on writing
-- (figures: bench/README.md). It helps as long as the log is only appended to. Where old rows are deleted, new ones
-- fill the gaps: the verdicts stay right, but the index saves less.
--
-- Run it by psql as the owner of the table `backups`, not in a transaction (no --single-transaction):
--
--     psql -h HOST -p 32009 -U mydbadmin -d mydb_admin -f log_index.sql
--
-- It may be run again. An interrupted run leaves an invalid index (`valid` is `f` below), which no query uses and
-- which another run skips: drop it first. A valid one is dropped in the same way:
--
--     psql -h HOST -p 32009 -U mydbadmin -d mydb_admin -c 'DROP INDEX CONCURRENTLY IF EXISTS backups_ts'
--
-- Works on PostgreSQL 9.6 to 18. Every audit reads the new rows until their megabyte is summarized. From version 10
-- on, autovacuum does so within minutes (autosummarize). On 9.6, let cron do it once a week:
--
--     psql -h HOST -p 32009 -U mydbadmin -d mydb_admin -c "SELECT brin_summarize_new_values('backups_ts')"

\set ON_ERROR_STOP on

SELECT CASE WHEN current_setting('server_version_num')::int >= 100000 THEN 'WITH (autosummarize = on)' ELSE '' END AS options
\gset

CREATE INDEX CONCURRENTLY IF NOT EXISTS backups_ts ON backups USING brin (ts) :options;

SELECT pg_size_pretty(pg_relation_size(indexrelid)) AS size, indisvalid AS valid
FROM pg_index
WHERE indexrelid = 'backups_ts'::regclass;
