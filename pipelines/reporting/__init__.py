"""Figures, tables and HTML pages for people: `write_report`, `render` for ablations, `figures`."""
