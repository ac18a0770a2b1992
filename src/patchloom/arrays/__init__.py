"""Arrays by rows: many seen as one without reading them, and one written row by row."""
