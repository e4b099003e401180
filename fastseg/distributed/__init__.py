"""Many processes as one: who they are, how a network is spread over them."""
