"""Files to pixels, exactly; what decoders disagree about is refused by name."""
