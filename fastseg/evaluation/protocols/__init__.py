"""Ways of scoring a network, one file per protocol."""
