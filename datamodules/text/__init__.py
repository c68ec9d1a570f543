"""Text: corpora and GLUE, tokenised once and batched without padding."""
