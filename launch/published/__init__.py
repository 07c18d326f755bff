"""What the papers print: cells of their tables, and which of ours each is compared with."""
