-- Takes the last two nights from an ordinary site: its backup job was down. Run by bench.py through psql.
--
-- The last night began eight hours ago, the one before last 56 hours ago, and each takes less than four.

DELETE FROM backups WHERE ts > localtimestamp - interval '48 hours';
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
