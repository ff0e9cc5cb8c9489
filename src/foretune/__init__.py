"""foretune tells you how a fine-tune will go before you train it."""
