"""Data modules: one data family a file, each a LightningDataModule with an explicit data source."""
