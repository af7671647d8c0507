"""Memory for keys and values: blocks of token slots, who holds them, the tensors behind them."""
