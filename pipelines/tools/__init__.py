"""Settings, names, files, processes and random numbers; nothing here knows of data sets."""
