"""The tests of Backup Audit."""
