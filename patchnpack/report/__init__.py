"""How a packing report is shown: fields, terminal tables, charts, an HTML page."""
