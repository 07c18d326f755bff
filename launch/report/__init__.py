"""The comparison: objectives by what SFT and then RL make of them, each number with the records it came from."""
