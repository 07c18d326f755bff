"""Stage `rewrite`: the training chats with other answers, as a data-level method chooses them."""
