"""Programs that draw the numbers of runs: TensorBoard, Weights & Biases, MLflow."""
