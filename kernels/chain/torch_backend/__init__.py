"""The chains vectorised in torch: any device."""
