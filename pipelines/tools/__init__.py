"""What knows nothing of data sets: settings, names, files, processes, random numbers."""
