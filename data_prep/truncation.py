"""What `data.on_long_row` is called in verl's configuration."""

TRUNCATION = {"error": "error", "drop": "error", "truncate_left": "left", "truncate_right": "right"}
