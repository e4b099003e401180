"""What models cost: parameters, multiply-adds and activations, counted by shapes alone."""
