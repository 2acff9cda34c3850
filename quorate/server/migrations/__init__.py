"""Alembic's migrations of a coordinator's state and an authority's records: one file a change; `env.py` runs them."""
