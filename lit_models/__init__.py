"""Architectures, one a file: its nn.Modules, then its LightningModule."""
