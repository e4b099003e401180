"""Data sets without code: a TOML file to a spec, every key checked."""
