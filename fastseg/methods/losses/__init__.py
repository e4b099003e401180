"""Loss terms of single methods, as differentiable PyTorch in fp32."""
