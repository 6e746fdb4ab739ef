"""The embedded default: a small real trained model with its tokenizer."""
