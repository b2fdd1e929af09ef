"""Settings of the demo. `demo/build.py` makes the database and the folder that are named here."""

from os.path import relpath
from pathlib import Path

_here = Path(__file__).resolve().parent

database_url = f"sqlite:///{relpath(_here / 'admin.db')}"
prometheus_file = _here / "textfiles" / "backup_audit.prom"
timezone = "America/Los_Angeles"
extra_jobs = {"offsite": "Daily"}
dumps_kept_days = 30
exceptions = {"bookings": ("2030-12-31", "frozen for the paper, ticket 4711")}
