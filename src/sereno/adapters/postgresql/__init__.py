"""The export to PostgreSQL: tables of rows, a pointer, and a view over both. `docs/exports.md` says why."""
