"""Foundation encoders: a Hugging Face vision backbone from a local folder, with adapters."""
