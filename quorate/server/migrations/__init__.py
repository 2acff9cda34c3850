"""Alembic's migrations of the coordinator's database: one file a change, in `versions/`; `env.py` runs them."""
