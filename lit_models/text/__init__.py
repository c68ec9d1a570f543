"""Text: state-space models and their rivals on sequences of tokens."""
