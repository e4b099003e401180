"""Files that were made or damaged to do harm: mutations, and what each reader may do with them."""
