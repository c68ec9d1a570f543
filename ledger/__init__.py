"""The ledger of claims: what a paper says, which runs test it, and what they showed."""
