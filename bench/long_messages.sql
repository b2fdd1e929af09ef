-- Gives every run of a site a message of 1.1 MB, as version 1 writes them for thousands of databases. Run by bench.py.

UPDATE backups
SET err_msg = E'\nExecuted Postgres dump_all commands:\n' || repeat(
    E'pg_dump --dbname sales --username pgdba  -F c -f /var/lib/postgresql/backup/sales/sales.dump\nResult: \n', 11000)
WHERE state = 'end';
VACUUM (FREEZE, ANALYZE);
CHECKPOINT;
