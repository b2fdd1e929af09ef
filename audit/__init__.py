"""The parts of Backup Audit that `backup_audit.py` puts together; CONTRIBUTING.md says what each file holds."""
