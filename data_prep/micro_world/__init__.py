"""The embedded world: its problems, its tokenizer and the training of a small model on its text."""
