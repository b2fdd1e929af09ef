"""The parts of Backup Audit that `backup_audit.py` puts together; see README.md for what each file holds."""
